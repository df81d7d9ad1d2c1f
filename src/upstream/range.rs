//! Byte ranges in HTTP headers (RFC 9110, section 14): what a server is asked for, and what it sends.

use std::ops::Range;

/// What a `Range` header asks of a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it: there is no header, or one that a server may ignore (another unit, several ranges).
    Whole,
    /// These bytes, never empty, all of them inside.
    Part(Range<u64>),
    /// Bytes that are not there: status 416.
    Unsatisfiable,
}

/// Reads a `Range` header against a representation of `len` bytes.
pub(super) fn parse_range(header: &str, len: u64) -> Asked {
    let Some(spec) = strip_unit(header, '=') else { return Asked::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Asked::Whole };
    let part = match (first, last) {
        ("", suffix) => {
            let Some(wanted) = number(suffix) else { return Asked::Whole };
            len.saturating_sub(wanted)..len
        }
        (first, "") => {
            let Some(first) = number(first) else { return Asked::Whole };
            first..len
        }
        (first, last) => {
            let (Some(first), Some(last)) = (number(first), number(last)) else { return Asked::Whole };
            if last < first {
                return Asked::Whole;
            }
            first..last.saturating_add(1).min(len)
        }
    };
    if part.is_empty() { Asked::Unsatisfiable } else { Asked::Part(part) }
}

/// Reads a `Content-Range` header of a 206: the bytes that follow, and the length of the whole where
/// the server tells it. `None` for anything else.
pub(super) fn parse_content_range(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, whole) = strip_unit(header, ' ')?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    let whole = match whole {
        "*" => None,
        digits => Some(number(digits)?),
    };
    (first < end && whole.is_none_or(|len| end <= len)).then_some((first..end, whole))
}

/// What follows the unit `bytes`, which is written in any case.
fn strip_unit(header: &str, separator: char) -> Option<&str> {
    let (unit, rest) = header.trim().split_once(separator)?;
    unit.trim_end().eq_ignore_ascii_case("bytes").then_some(rest)
}

/// Digits only: no sign, no blanks, no overflow.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn single_ranges_are_understood_and_cut_to_the_length() {
        for (header, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-5", Asked::Part(2..6)),
            ("Bytes = 2-5", Asked::Part(2..6)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=2-99", Asked::Part(2..10)),
            ("bytes=9-18446744073709551615", Asked::Part(9..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-99", Asked::Part(0..10)),
            ("bytes=10-", Asked::Unsatisfiable),
            ("bytes=10-20", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
        ] {
            assert_eq!(parse_range(header, 10), expected, "{header}");
        }
        assert_eq!(parse_range("bytes=-5", 0), Asked::Unsatisfiable);
    }

    #[test]
    fn what_a_server_may_ignore_means_the_whole() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=0-1,4-5",
            "bytes=a-b",
            "items=0-1",
            "bytes=+1-2",
            "bytes=18446744073709551616-",
            "bytes=0x1-2",
        ] {
            assert_eq!(parse_range(header, 10), Asked::Whole, "{header}");
        }
    }

    #[test]
    fn a_content_range_that_contradicts_itself_is_refused() {
        assert_eq!(parse_content_range("bytes 0-4/10"), Some((0..5, Some(10))));
        assert_eq!(parse_content_range("BYTES 7-9/*"), Some((7..10, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 4-3/10",
            "bytes 0-10/10",
            "bytes 0-4/",
            "bytes 0-4",
            "bytes -4/10",
            "bytes 0-18446744073709551615/*",
            "bytes=0-4/10",
            "octets 0-4/10",
            "bytes 0 - 4/10",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_leads_outside_the_representation(header in "(bytes[= ])?[0-9a-z,*/ -]{0,40}", len in 0..1000u64) {
            if let Asked::Part(range) = parse_range(&header, len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
            if let Some((range, whole)) = parse_content_range(&header) {
                prop_assert!(range.start < range.end && whole.is_none_or(|len| range.end <= len));
            }
        }

        #[test]
        fn what_a_server_cuts_is_what_its_content_range_says(start in 0..500u64, wanted in 1..500u64, len in 1..1000u64) {
            let asked = parse_range(&format!("bytes={start}-{}", start + wanted - 1), len);
            if start >= len {
                prop_assert_eq!(asked, Asked::Unsatisfiable);
            } else {
                let end = (start + wanted).min(len);
                prop_assert_eq!(asked, Asked::Part(start..end));
                let header = format!("bytes {start}-{}/{len}", end - 1);
                prop_assert_eq!(parse_content_range(&header), Some((start..end, Some(len))));
            }
        }

        #[test]
        fn foreign_text_never_panics(header in any::<String>(), len in any::<u64>()) {
            let _ = (parse_range(&header, len), parse_content_range(&header));
        }
    }
}
