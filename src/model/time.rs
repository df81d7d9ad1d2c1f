//! Time as a value. Clocks are read at the edges only.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

/// A moment of a monotonic clock: nanoseconds since its owner began. Good for 584 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// The beginning.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the beginning.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the beginning.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds since the beginning.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The time since `earlier`, or zero when it lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        let nanos = span.as_secs().saturating_mul(1_000_000_000).saturating_add(span.subsec_nanos().into());
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;
    fn sub(self, earlier: Time) -> Duration {
        self.since(earlier)
    }
}

/// Seconds since 1970-01-01 UTC, for documents that outlive a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// This moment and `span` more.
    pub const fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs()))
    }
}

impl fmt::Display for UnixTime {
    /// `2026-05-01T12:00:00Z` (days to date: Howard Hinnant, "chrono-compatible low-level date algorithms").
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_index + 2) / 5 + 1;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// A text that is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no moment: write 2026-05-01T12:00:00Z (or another offset, such as +02:00), or 2026-05-01 for the end of that day"
)]
pub struct ParseMomentError(String);

impl FromStr for UnixTime {
    type Err = ParseMomentError;

    /// RFC 3339, of which fractions of a second are dropped; or a day, meaning its last second in UTC.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_moment(text).ok_or_else(|| ParseMomentError(text.chars().take(80).collect()))
    }
}

/// `width` digits at `at`.
fn digits(text: &str, at: usize, width: usize) -> Option<u64> {
    let digits = text.get(at..at + width)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

fn parse_moment(text: &str) -> Option<UnixTime> {
    let (year, month, day) = (digits(text, 0, 4)?, digits(text, 5, 2)?, digits(text, 8, 2)?);
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_of_month = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u64::from(is_leap),
        _ => return None,
    };
    if text.get(4..5)? != "-" || text.get(7..8)? != "-" || year < 1970 || !(1..=days_of_month).contains(&day)
    {
        return None;
    }
    // Hinnant's days from the date; years begin in March there.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_era = (year % 400) * 365 + (year % 400) / 4 - (year % 400) / 100 + (153 * month + 2) / 5 + day - 1;
    let days = (year / 400) * 146_097 + of_era - 719_468;
    let midnight = days * 86_400;
    let Some(clock) = text.get(10..).filter(|rest| !rest.is_empty()) else {
        return Some(UnixTime(midnight + 86_399));
    };
    let (hour, minute, second) = (digits(clock, 1, 2)?, digits(clock, 4, 2)?, digits(clock, 7, 2)?);
    let separated =
        ["T", "t", " "].contains(&clock.get(..1)?) && clock.get(3..4)? == ":" && clock.get(6..7)? == ":";
    // A leap second is that before it.
    if !separated || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let local = midnight + hour * 3_600 + minute * 60 + second.min(59);
    let rest = &clock[9..];
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return None;
            }
            zone
        }
        None => rest,
    };
    if zone == "Z" || zone == "z" {
        return Some(UnixTime(local));
    }
    let (ahead, behind) = (zone.strip_prefix('+'), zone.strip_prefix('-'));
    let offset = ahead.or(behind)?;
    let (hours, minutes) = (digits(offset, 0, 2)?, digits(offset, 3, 2)?);
    if offset.len() != 5 || offset.get(2..3)? != ":" || hours > 23 || minutes > 59 {
        return None;
    }
    let offset = hours * 3_600 + minutes * 60;
    Some(UnixTime(if ahead.is_some() { local.checked_sub(offset)? } else { local + offset }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_written() {
        for seconds in [0, 951_782_400, 1_767_225_599, 4_107_542_400, 1_709_164_800, 1_700_000_000] {
            assert_eq!(UnixTime(seconds).to_string().parse(), Ok(UnixTime(seconds)));
        }
        let read = |text: &str| text.parse::<UnixTime>().map(|time| time.to_string());
        for (text, means) in [
            ("2026-05-01", "2026-05-01T23:59:59Z"),
            ("2024-02-29", "2024-02-29T23:59:59Z"),
            ("2026-05-01t01:00:00.123+02:00", "2026-04-30T23:00:00Z"),
            ("2026-05-01 23:30:59-00:45", "2026-05-02T00:15:59Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(means), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_by_name() {
        let wrong = [
            "",
            "now",
            "2026",
            "2026-5-1",
            "2026-13-01",
            "2026-02-29",
            "2026-00-10",
            "1969-12-31",
            "2026-05-01T",
            "2026-05-01T12:00:00",
            "2026-05-01T12:00Z",
            "2026-05-01T24:00:00Z",
            "2026-05-01T12:00:00.Z",
            "2026-05-01T12:00:00+2:00",
            "2026-05-01T12:00:00+02:00x",
            "1970-01-01T00:00:00+01:00",
            "2026-05-0\u{e9}",
        ];
        for text in wrong {
            assert!(text.parse::<UnixTime>().unwrap_err().to_string().contains(text), "{text}");
        }
    }

    #[test]
    fn dates_are_right_at_the_corners() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
    }

    #[test]
    fn time_does_not_wrap() {
        assert_eq!(Time::NEVER + Duration::from_secs(1), Time::NEVER);
        assert_eq!(Time::ZERO - Time::from_nanos(5), Duration::ZERO);
    }
}
