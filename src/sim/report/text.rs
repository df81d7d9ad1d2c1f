//! Figures as people read them, and text where HTML and SVG take it.

/// Seconds, to four digits.
pub(super) fn seconds(value: f64) -> String {
    if !value.is_finite() {
        return "never".to_owned();
    }
    match value {
        value if value >= 7_200.0 => format!("{:.2} h", value / 3_600.0),
        value if value >= 1_000.0 => format!("{value:.0} s"),
        value if value >= 100.0 => format!("{value:.1} s"),
        value if value >= 10.0 => format!("{value:.2} s"),
        value if value >= 0.1 || value == 0.0 => format!("{value:.3} s"),
        value => format!("{:.3} ms", value * 1e3),
    }
}

/// Bytes, in powers of 1 000.
pub(super) fn bytes(value: f64) -> String {
    scaled(value, "B")
}

/// Bytes a second.
pub(super) fn rate(value: f64) -> String {
    scaled(value, "B/s")
}

fn scaled(value: f64, unit: &str) -> String {
    let steps = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match steps.iter().find(|(size, _)| value >= *size) {
        Some((size, prefix)) => format!("{} {prefix}{unit}", short(value / size)),
        None => format!("{value:.0} {unit}"),
    }
}

/// Three digits at least.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// A count, its thousands set apart.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A share of 1.
pub(super) fn per_cent(share: f64) -> String {
    if !share.is_finite() {
        return "-".to_owned();
    }
    let value = share * 100.0;
    if value != 0.0 && value < 0.95 { format!("{value:.2} %") } else { format!("{value:.0} %") }
}

/// A ratio or a number of copies.
pub(super) fn times(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "-".to_owned() }
}

/// Text between tags or in an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Nothing that XML forbids.
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_their_unit() {
        let found = [0.0, 0.000_25, 0.994, 12.345, 123.45, 1_234.5, 9_000.0, f64::INFINITY].map(seconds);
        assert_eq!(
            found,
            ["0.000 s", "0.250 ms", "0.994 s", "12.35 s", "123.5 s", "1234 s", "2.50 h", "never"]
        );
        assert_eq!([999.0, 1e6, 1.5e9, 2.25e13].map(bytes), ["999 B", "1.00 MB", "1.50 GB", "22.5 TB"]);
        assert_eq!(rate(1.25e9), "1.25 GB/s");
        assert_eq!([7, 999, 1_000, 1_234_567].map(count), ["7", "999", "1 000", "1 234 567"]);
        assert_eq!([0.0, 0.001, 0.5, 1.0, f64::NAN].map(per_cent), ["0 %", "0.10 %", "50 %", "100 %", "-"]);
        assert_eq!([1.0, f64::NAN].map(times), ["1.000", "-"]);
    }

    #[test]
    fn nothing_of_a_text_is_taken_for_a_tag() {
        assert_eq!(escape("<b> & \"x\" 'y'\u{1}"), "&lt;b&gt; &amp; &quot;x&quot; &#39;y&#39;\u{fffd}");
    }
}
