//! The kinds of values that settings have, as people write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A number of bytes that people may write as `4096`, `"10 GiB"` or `"1.5GB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Largest UDP payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// What the largest interface carries.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u16),
}

impl Serialize for Mtu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => serializer.serialize_u16(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = || D::Error::custom(format!("mtu_bytes is {text}; it must be \"auto\", or 1200 to 6550"));
        text.parse().map(Self::Bytes).map_err(|_| wrong())
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line, for collectors.
    Json,
}

impl<'de> Deserialize<'de> for LogFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, "log_format", [("human", Self::Human), ("json", Self::Json)])
    }
}

/// When bytes of the cache are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Before they are first delivered after a start, and by the scrub.
    #[default]
    Once,
    /// Before every delivery. The kernel reads no file by itself then, since it checks nothing.
    Always,
}

impl<'de> Deserialize<'de> for Verify {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, "verify", [("once", Self::Once), ("always", Self::Always)])
    }
}

/// One of two words. What is derived for an enum names the type where it refuses, which is no word of the settings.
pub(super) fn word<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    key: &str,
    words: [(&str, T); 2],
) -> Result<T, D::Error> {
    let found = String::deserialize(deserializer)?;
    let allowed = format!("\"{}\" or \"{}\"", words[0].0, words[1].0);
    let value = words.into_iter().find(|(word, _)| *word == found).map(|(_, value)| value);
    value.ok_or_else(|| D::Error::custom(format!("{key} is {found}; it must be {allowed}")))
}

/// A list, or a text with commas, as an environment variable has to write it.
pub(super) fn list<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        List(Vec<String>),
        Text(String),
    }
    let texts: Vec<String> = match Written::deserialize(deserializer)? {
        Written::List(list) => list,
        Written::Text(text) => {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        }
    };
    let read = |text: String| text.parse().map_err(|error| D::Error::custom(format!("`{text}`: {error}")));
    texts.into_iter().map(read).collect()
}

/// A table, or a text `NAME:TEXT` with semicolons between, as an environment variable has to write it.
pub(super) fn by_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Table(BTreeMap<String, String>),
        Text(String),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Table(table) => return Ok(table),
        Written::Text(text) => text,
    };
    let entries = text.split(';').map(str::trim).filter(|entry| !entry.is_empty());
    let read = |entry: &str| match entry.split_once(':') {
        Some((name, text)) => Ok((name.to_owned(), text.to_owned())),
        None => Err(D::Error::custom(format!("`{entry}` is not NAME:OPTIONS"))),
    };
    entries.map(read).collect()
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a size: write bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB")]
pub struct ParseSizeError {
    /// The offending text.
    pub found: String,
}

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = ParseSizeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseSizeError { found: text.chars().take(64).collect() };
        let trimmed = text.trim();
        if let Ok(bytes) = trimmed.parse() {
            return Ok(Self(bytes));
        }
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| trimmed.strip_suffix(unit).map(|number| (number.trim(), *factor)))
            .ok_or_else(refuse)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.len() <= 15 && part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err(refuse());
        }
        // Whole numbers throughout: a size that was written exactly is kept exactly.
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| refuse())?);
        let number: u128 = format!("{whole}{fraction}").parse().map_err(|_| refuse())?;
        u64::try_from(number * u128::from(factor) / scale).map(Self).map_err(|_| refuse())
    }
}

impl fmt::Display for ByteSize {
    /// At most one decimal, in binary units: `512 B`, `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, factor)) = UNITS[..4].iter().rev().find(|(_, factor)| self.0 >= *factor) else {
            return write!(f, "{} B", self.0);
        };
        let tenths = u128::from(self.0) * 10 / u128::from(*factor);
        if tenths.is_multiple_of(10) {
            write!(f, "{} {unit}", tenths / 10)
        } else {
            write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 4096 or \"10 GiB\"")
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom(format!("{bytes} is not a size")))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10 GiB", 10 << 30),
            ("1.5GB", 1_500_000_000),
            (" 3 B ", 3),
            ("0.5 KiB", 512),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "GiB", "1e3", "-1", "1..2 GiB", "ten MiB", "99999999999999 TiB", "1.GiB2", "1 gib"] {
            let error = bad.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_size_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn a_printed_size_is_read_back_within_a_tenth_of_its_unit(bytes in 0_u64..1 << 50) {
            let again = ByteSize(bytes).to_string().parse::<ByteSize>().unwrap().0;
            prop_assert!(again <= bytes && bytes - again <= bytes / 10 + 1);
        }
    }
}
