//! Lines, heat maps and bars as SVG.
//!
//! Everything is text with classes: the colours come from `STYLE`, light or dark as the reader's machine is set, in a report
//! from its head and in a file of its own from within. What a script may show on hovering stands in `data-hover`; without one,
//! the titles of lines, rows and bars serve.

use super::text::escape;
use serde::Serialize;
use std::fmt::Write as _;

/// Lines that have a colour of their own; further ones share the last.
pub(super) const TONES: usize = 8;
/// Points of a line that are there for hovering.
const HOVER_POINTS: usize = 256;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 88.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Height of a chart with lines.
const HEIGHT: f64 = 280.0;
/// Where the cells of a heat map and the bars begin: names stand before them.
const NAMES: f64 = 216.0;
const ROW: f64 = 17.0;

/// Colours and strokes. The hues are those of Okabe and Ito ("Color universal design", 2008), darkened or lightened until they
/// stand out from the ground.
pub(super) const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--panel:#fff;--page:#f6f8fa;--heat:#0b5394;\
--c0:#0072b2;--c1:#c24e00;--c2:#007d5b;--c3:#a64d83;--c4:#9a6700;--c5:#2b7fb8;--c6:#6f6200;--c7:#555;--rest:#b6bec7}\
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--rule:#30363d;--panel:#161b22;--page:#0d1117;\
--heat:#6cb6ff;--c0:#56b4e9;--c1:#ff8a4c;--c2:#2fd3a3;--c3:#e59bc6;--c4:#f2b632;--c5:#9ad0f5;--c6:#f0e442;--c7:#ccc;\
--rest:#484f58}}\
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\
svg text{fill:var(--soft)}svg .name{fill:var(--ink)}svg .in{fill:var(--panel);font-weight:600}\
svg .grid{stroke:var(--rule);stroke-width:1}svg .axis{stroke:var(--soft);stroke-width:1}\
svg .line{fill:none;stroke-width:2;stroke-linejoin:round}svg .dash{stroke-dasharray:6 4}svg .mark{stroke-dasharray:2 3}\
svg .area{stroke:none;opacity:.18}svg .cursor{stroke:var(--soft);stroke-width:1;visibility:hidden}\
svg .heat{fill:var(--heat)}svg .cell{fill:none;stroke:var(--rule)}svg .rest{fill:var(--rest)}\
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}\
.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}.s6{stroke:var(--c6)}.s7{stroke:var(--c7)}\
.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}\
.f4{fill:var(--c4)}.f5{fill:var(--c5)}.f6{fill:var(--c6)}.f7{fill:var(--c7)}";

/// The charts of some runs as files: names without their ending, and what is in them.
pub fn files(digests: &[super::Digest]) -> Vec<(String, String)> {
    let charts = super::charts::charts(digests).into_iter();
    charts.map(|chart| (chart.name, standalone(&chart.svg))).collect()
}

/// What an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Quantity {
    /// Seconds.
    Seconds,
    /// Of 1.
    Share,
    /// Bytes a second.
    Rate,
    /// Nodes.
    Nodes,
}

impl Quantity {
    fn title(self) -> &'static str {
        match self {
            Self::Seconds => "time, s",
            Self::Share => "share of nodes",
            Self::Rate => "bytes a second",
            Self::Nodes => "nodes",
        }
    }

    /// A mark of the axis, of which the next is `step` further.
    fn tick(self, value: f64, step: f64) -> String {
        match self {
            Self::Seconds => plain(value, step),
            Self::Share => format!("{} %", plain(value * 100.0, step * 100.0)),
            Self::Rate => super::text::rate(value),
            Self::Nodes => scaled(value, step),
        }
    }
}

/// As many digits after the point as the step needs.
fn plain(value: f64, step: f64) -> String {
    let is_whole = |value: f64| (value - value.round()).abs() < 1e-6;
    let digits = (0_u8..9).find(|digits| is_whole(step * 10_f64.powi(i32::from(*digits)))).unwrap_or(9);
    format!("{value:.0$}", usize::from(digits))
}

fn scaled(value: f64, step: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", plain(value / 1e6, step / 1e6)),
        value if value >= 1e4 => format!("{} k", plain(value / 1e3, step / 1e3)),
        value => plain(value, step),
    }
}

/// Marks from 0 to `most`: about five, at 1, 2 or 5 times a power of ten. Returns them and their distance.
fn ticks(most: f64) -> (Vec<f64>, f64) {
    if !(most.is_finite() && most > 0.0) {
        return (vec![0.0], 1.0);
    }
    let rough = most / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let marks =
        (0_u8..=12).map(|number| f64::from(number) * step).take_while(|mark| *mark <= most * 1.000_001);
    (marks.collect(), step)
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    /// Its colour.
    pub(super) tone: usize,
    pub(super) points: Vec<(f64, f64)>,
    /// Between the two, at each point of the line, other seeds lie.
    pub(super) band: Vec<(f64, f64)>,
}

/// A chart with lines over time.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    /// What it shows, for those who do not see it.
    pub(super) about: String,
    /// Where its axis of time ends, in seconds.
    pub(super) end_s: f64,
    /// What its other axis counts, and where that ends.
    pub(super) quantity: Quantity,
    pub(super) most: f64,
    pub(super) lines: Vec<Line>,
    /// Moments that are marked, with their names.
    pub(super) marks: Vec<(f64, String)>,
    /// The bands lie along the axis of time.
    pub(super) bands_in_time: bool,
}

#[derive(Serialize)]
struct Hover<'a> {
    left: f64,
    right: f64,
    end: f64,
    quantity: Quantity,
    lines: Vec<HoverLine<'a>>,
}

#[derive(Serialize)]
struct HoverLine<'a> {
    name: &'a str,
    tone: usize,
    x: Vec<f64>,
    y: Vec<f64>,
}

/// Where the names of lines stand below a chart: row, and the place within it.
fn legend(lines: &[Line]) -> Vec<(usize, f64)> {
    let (mut row, mut x) = (0, LEFT);
    let mut places = Vec::new();
    for line in lines {
        // A letter is about so wide.
        let wide = 34.0 + 6.6 * line.name.chars().count() as f64;
        if x > LEFT && x + wide > WIDTH {
            (row, x) = (row + 1, LEFT);
        }
        places.push((row, x));
        x += wide;
    }
    places
}

/// Six digits are more than a screen shows.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let power = 10_f64.powf(5.0 - value.abs().log10().floor());
    (value * power).round() / power
}

fn tone(number: usize) -> usize {
    number.min(TONES - 1)
}

/// Begins a picture.
fn begin(height: f64, about: &str, hover: &str) -> String {
    let hover = if hover.is_empty() { String::new() } else { format!(" data-hover=\"{}\"", escape(hover)) };
    let about = escape(about);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{about}\"{hover}>\n"
    )
}

/// A picture as a file of its own: with its colours, on its ground.
fn standalone(picture: &str) -> String {
    let Some((tag, rest)) = picture.split_once(">\n") else { return picture.to_owned() };
    // The style is text of the document: what looks like a tag in it would be one.
    let style = escape(STYLE);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{tag}>\n<style>{style}</style>\n\
         <rect width=\"100%\" height=\"100%\" style=\"fill:var(--panel)\"/>\n{rest}"
    )
}

impl Lines {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (seconds / self.end_s.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
    }

    fn y(&self, value: f64) -> f64 {
        let height = HEIGHT - TOP - BOTTOM;
        TOP + height * (1.0 - (value / self.most.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0))
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        let mut last = None;
        for (seconds, value) in points {
            if !seconds.is_finite() || !value.is_finite() {
                continue;
            }
            let place = format!("{:.1} {:.1}", self.x(seconds), self.y(value));
            if last.as_ref() != Some(&place) {
                let _ = write!(path, "{}{place}", if path.is_empty() { "M" } else { "L" });
            }
            last = Some(place);
        }
        path
    }

    fn hover(&self) -> String {
        let thin = |line: &'_ Line| {
            let every = line.points.len().div_ceil(HOVER_POINTS).max(1);
            let last = line.points.len().saturating_sub(1);
            let kept = line.points.iter().enumerate().filter(|(place, point)| {
                (place % every == 0 || *place == last) && point.0.is_finite() && point.1.is_finite()
            });
            kept.map(|(_, point)| (rounded(point.0), rounded(point.1)))
                .unzip::<f64, f64, Vec<f64>, Vec<f64>>()
        };
        let lines = self.lines.iter().map(|line| {
            let (x, y) = thin(line);
            HoverLine { name: &line.name, tone: tone(line.tone), x, y }
        });
        let hover = Hover {
            left: LEFT,
            right: WIDTH - RIGHT,
            end: self.end_s,
            quantity: self.quantity,
            lines: lines.collect(),
        };
        serde_json::to_string(&hover).unwrap_or_default()
    }

    /// The chart.
    pub(super) fn draw(&self) -> String {
        let legend = legend(&self.lines);
        let rows = legend.last().map_or(0, |place| place.0 + 1);
        let mut svg = begin(HEIGHT + 18.0 * rows as f64, &self.about, &self.hover());
        self.draw_axes(&mut svg);
        for line in &self.lines {
            let forth = line.points.iter().zip(&line.band);
            let (area, back): (Vec<_>, Vec<_>) = if self.bands_in_time {
                forth.map(|(point, band)| ((band.0, point.1), (band.1, point.1))).unzip()
            } else {
                forth.map(|(point, band)| ((point.0, band.0), (point.0, band.1))).unzip()
            };
            let area = self.path(area.into_iter().chain(back.into_iter().rev()));
            if !area.is_empty() {
                let _ = writeln!(svg, "<path class=\"area f{}\" d=\"{area}Z\"/>", tone(line.tone));
            }
        }
        for (seconds, name) in &self.marks {
            let x = self.x(*seconds);
            let end = HEIGHT - BOTTOM;
            let _ = writeln!(
                svg,
                "<line class=\"axis mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{end}\"><title>{0}</title></line>\
                 <text x=\"{x:.1}\" y=\"{1}\" text-anchor=\"middle\">{0}</text>",
                escape(name),
                TOP - 3.0
            );
        }
        for line in &self.lines {
            // Beyond the colours, dashes tell lines apart.
            let dash = if line.tone >= TONES / 2 { " dash" } else { "" };
            let path = self.path(line.points.iter().copied());
            let _ = writeln!(
                svg,
                "<path class=\"line s{}{dash}\" d=\"{path}\"><title>{}</title></path>",
                tone(line.tone),
                escape(&line.name)
            );
        }
        for (line, (row, x)) in self.lines.iter().zip(legend) {
            let y = HEIGHT + 18.0 * row as f64;
            let dash = if line.tone >= TONES / 2 { " dash" } else { "" };
            let _ = writeln!(
                svg,
                "<path class=\"line key s{}{dash}\" d=\"M{x} {y}h20\"/><text x=\"{}\" y=\"{}\">{}</text>",
                tone(line.tone),
                x + 26.0,
                y + 4.0,
                escape(&line.name)
            );
        }
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        let _ = writeln!(svg, "<line class=\"cursor\" y1=\"{top}\" y2=\"{bottom}\"/>\n</svg>");
        svg
    }

    fn draw_axes(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let (marks, step) = ticks(self.most);
        for mark in marks {
            let y = self.y(mark);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(&self.quantity.tick(mark, step))
            );
        }
        draw_time(svg, (LEFT, right), bottom, self.end_s);
        let _ = writeln!(
            svg,
            "<text transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            TOP + (bottom - TOP) / 2.0,
            self.quantity.title()
        );
    }
}

/// The axis of time below a picture.
fn draw_time(svg: &mut String, (left, right): (f64, f64), bottom: f64, end_s: f64) {
    let _ =
        writeln!(svg, "<line class=\"axis\" x1=\"{left}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    let (marks, step) = ticks(end_s);
    for mark in marks {
        let x = left + (right - left) * mark / end_s.max(f64::MIN_POSITIVE);
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            bottom + 17.0,
            escape(&Quantity::Seconds.tick(mark, step))
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(left, right),
        bottom + 33.0,
        Quantity::Seconds.title()
    );
}

/// Rows of shares over time, the darker the larger.
#[derive(Clone, Debug)]
pub(super) struct HeatMap {
    pub(super) about: String,
    pub(super) end_s: f64,
    /// Names, and shares of 1 in spans of equal length.
    pub(super) rows: Vec<(String, Vec<f64>)>,
}

impl HeatMap {
    /// The picture.
    pub(super) fn draw(&self) -> String {
        let bottom = TOP + ROW * self.rows.len() as f64 + 2.0;
        let right = WIDTH - RIGHT;
        let mut svg = begin(bottom + 66.0, &self.about, "");
        for (number, (name, shares)) in self.rows.iter().enumerate() {
            let y = TOP + ROW * number as f64;
            let width = (right - NAMES) / shares.len().max(1) as f64;
            let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
            let values: Vec<String> = shares.iter().map(|share| format!("{:.0}", share * 100.0)).collect();
            let name = escape(name);
            let _ = write!(
                svg,
                "<g class=\"row\" data-name=\"{name}\" data-left=\"{NAMES}\" data-right=\"{right}\" data-end=\"{}\" \
                 data-values=\"{}\"><title>{name}: {} of its capacity</title>\
                 <text class=\"name\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"cell\" pointer-events=\"all\" x=\"{NAMES}\" y=\"{y:.1}\" width=\"{}\" height=\"{ROW}\"/>",
                rounded(self.end_s),
                values.join(","),
                super::text::per_cent(mean),
                NAMES - 8.0,
                y + 13.0,
                right - NAMES
            );
            for (first, count, level) in stretches(shares) {
                let (x, wide) = (NAMES + width * first as f64, width * count as f64);
                let _ = write!(
                    svg,
                    "<rect class=\"heat\" fill-opacity=\"{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.2}\" height=\"{ROW}\"/>",
                    f64::from(level) / 10.0
                );
            }
            svg.push_str("</g>\n");
        }
        draw_time(&mut svg, (NAMES, right), bottom, self.end_s);
        for level in 0_u8..=10 {
            let x = NAMES + 18.0 * f64::from(level);
            let y = bottom + 44.0;
            let _ = write!(
                svg,
                "<rect class=\"cell\" x=\"{x}\" y=\"{y}\" width=\"18\" height=\"10\"/>\
                 <rect class=\"heat\" fill-opacity=\"{}\" x=\"{x}\" y=\"{y}\" width=\"18\" height=\"10\"/>",
                f64::from(level) / 10.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{1}\" text-anchor=\"end\">nothing</text><text x=\"{2}\" y=\"{1}\">all that it can carry</text>\n</svg>",
            NAMES - 8.0,
            bottom + 53.0,
            NAMES + 18.0 * 11.0 + 8.0
        );
        svg
    }
}

/// Neighbours of the same tenth as one, without those of nothing: first, count, tenth.
fn stretches(shares: &[f64]) -> Vec<(usize, usize, u8)> {
    let mut found: Vec<(usize, usize, u8)> = Vec::new();
    for (place, share) in shares.iter().enumerate() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10")]
        let level = (share.clamp(0.0, 1.0) * 10.0).round() as u8;
        match found.last_mut() {
            Some((first, count, last)) if *last == level && *first + *count == place => *count += 1,
            _ if level > 0 => found.push((place, 1, level)),
            _ => {}
        }
    }
    found
}

/// Rows of parts that make a whole.
#[derive(Clone, Debug)]
pub(super) struct Bars {
    pub(super) about: String,
    /// What the parts are. The last one is drawn as the rest.
    pub(super) parts: [&'static str; 3],
    /// Names, and shares that make 1.
    pub(super) rows: Vec<(String, [f64; 3])>,
}

impl Bars {
    /// The picture.
    pub(super) fn draw(&self) -> String {
        let high = 30.0;
        let bottom = TOP + high * self.rows.len() as f64;
        let all = WIDTH - RIGHT - NAMES;
        let fill = |part: usize| if part == 2 { "rest".to_owned() } else { format!("f{part}") };
        let mut svg = begin(bottom + 34.0, &self.about, "");
        for (number, (name, shares)) in self.rows.iter().enumerate() {
            let y = TOP + high * number as f64;
            let _ = write!(
                svg,
                "<text class=\"name\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                NAMES - 8.0,
                y + 17.0,
                escape(name)
            );
            let mut x = NAMES;
            for (part, share) in shares.iter().enumerate() {
                let (width, said) = (all * share, super::text::per_cent(*share));
                let _ = write!(
                    svg,
                    "<rect class=\"bar {}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"22\">\
                     <title>{}: {said} {}</title></rect>",
                    fill(part),
                    escape(name),
                    self.parts[part]
                );
                if *share >= 0.08 {
                    let middle = x + width / 2.0;
                    let _ = write!(
                        svg,
                        "<text class=\"in\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{said}</text>",
                        y + 15.0
                    );
                }
                x += width;
            }
            svg.push('\n');
        }
        let mut x = NAMES;
        for (part, name) in self.parts.iter().enumerate() {
            let _ = write!(
                svg,
                "<rect class=\"{}\" x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"{}\">{name}</text>",
                fill(part),
                bottom + 10.0,
                x + 18.0,
                bottom + 20.0
            );
            x += 130.0;
        }
        svg.push_str("\n</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(points: Vec<(f64, f64)>, band: Vec<(f64, f64)>) -> Lines {
        Lines {
            about: "a <test>".to_owned(),
            end_s: 10.0,
            quantity: Quantity::Share,
            most: 1.0,
            lines: vec![Line { name: "\"a\" & b".to_owned(), tone: 0, points, band }],
            marks: vec![(5.0, "bound".to_owned())],
            bands_in_time: true,
        }
    }

    #[test]
    fn marks_are_few_and_round() {
        assert_eq!(ticks(10.0), (vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 2.0));
        assert_eq!(ticks(1.0).1, 0.2);
        assert_eq!(ticks(0.0), (vec![0.0], 1.0));
        for most in [0.000_3, 0.9, 1.1, 4.4, 99.0, 12_345.0, 7e9] {
            let (marks, step) = ticks(most);
            assert!(
                (3..=12).contains(&marks.len()) && marks[marks.len() - 1] + step > most,
                "{most}: {marks:?}"
            );
        }
        assert_eq!(Quantity::Share.tick(0.2, 0.2), "20 %");
        assert_eq!(Quantity::Seconds.tick(0.25, 0.05), "0.25");
        assert_eq!(
            [500.0, 20_000.0, 1_500_000.0].map(|n| Quantity::Nodes.tick(n, 500.0)),
            ["500", "20.0 k", "1.5000 M"]
        );
    }

    #[test]
    fn a_line_lies_where_its_points_are_and_what_is_never_is_left_out() {
        let chart = lines(vec![(0.0, 0.0), (5.0, 0.5), (10.0, 1.0), (f64::INFINITY, 1.0)], Vec::new());
        let svg = chart.draw();
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        let path = format!("M{LEFT:.1} 240.0L{middle:.1} 127.0L{:.1} {TOP:.1}\"", WIDTH - RIGHT);
        assert!(svg.contains(&path), "{path} is not in {svg}");
        assert!(svg.contains("aria-label=\"a &lt;test&gt;\"") && svg.contains("&quot;a&quot; &amp; b"));
        assert!(!svg.contains("inf") && !svg.contains("NaN") && !svg.contains("class=\"area"));
    }

    #[test]
    fn a_band_is_an_area_around_its_line() {
        let svg = lines(vec![(2.0, 0.0), (4.0, 1.0)], vec![(1.0, 3.0), (2.0, 6.0)]).draw();
        let x = |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * seconds / 10.0;
        let path =
            format!("d=\"M{:.1} 240.0L{:.1} 14.0L{:.1} 14.0L{:.1} 240.0Z\"", x(1.0), x(2.0), x(6.0), x(3.0));
        assert!(svg.contains(&path), "{path} is not in {svg}");
    }

    #[test]
    fn what_hovering_shows_is_bounded_and_reads_as_json() {
        let many = (0..5_000_u32).map(|n| (f64::from(n) / 500.0, f64::from(n) / 5_000.0)).collect();
        let hover: serde_json::Value = serde_json::from_str(&lines(many, Vec::new()).hover()).unwrap();
        let xs = hover["lines"][0]["x"].as_array().unwrap();
        assert!(xs.len() <= HOVER_POINTS + 1 && xs.last().unwrap().as_f64() == Some(9.998), "{}", xs.len());
        assert_eq!((hover["quantity"].as_str(), hover["end"].as_f64()), (Some("share"), Some(10.0)));
    }

    #[test]
    fn cells_of_the_same_heat_are_one() {
        assert_eq!(
            stretches(&[0.0, 0.5, 0.52, 1.0, 0.0, 0.0, 0.96, 2.0]),
            [(1, 2, 5), (3, 1, 10), (6, 2, 10)]
        );
        let map =
            HeatMap { about: String::new(), end_s: 1.0, rows: vec![("a&b".to_owned(), vec![0.0, 1.0])] };
        let svg = map.draw();
        assert!(
            svg.contains("data-values=\"0,100\"") && svg.contains("a&amp;b: 50 % of its capacity"),
            "{svg}"
        );
    }

    #[test]
    fn bars_fill_their_row() {
        let rows = vec![("slow".to_owned(), [0.5, 0.45, 0.05])];
        let svg = Bars { about: String::new(), parts: ["a", "b", "c"], rows }.draw();
        let all = WIDTH - RIGHT - NAMES;
        for share in [0.5, 0.45, 0.05] {
            assert!(svg.contains(&format!("width=\"{:.1}\"", all * share)), "{share}: {svg}");
        }
        assert_eq!(svg.matches("class=\"in\"").count(), 2, "a part too narrow for its figure has none");
    }

    #[test]
    fn a_file_of_its_own_has_its_colours() {
        let svg = standalone(&lines(vec![(0.0, 0.0), (1.0, 1.0)], Vec::new()).draw());
        assert!(svg.starts_with("<?xml") && svg.matches("<svg").count() == 1 && svg.contains("--heat"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }
}
