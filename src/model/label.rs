//! Where a node is: region, zone and rack.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;

/// Most characters of one part of a label.
const PART_MAX_CHARS: usize = 63;

/// The label of a cell: `REGION/ZONE/RACK`.
///
/// Nodes with the same label form a cell; cells with the same region share one copy from the strata.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellLabel {
    text: String,
    region_end: usize,
}

/// Why a text is not a cell's label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a cell: write REGION/ZONE/RACK, each 1-63 of a-z, A-Z, 0-9, `.`, `_` and `-`")]
pub struct ParseCellError {
    /// The offending text.
    pub found: String,
}

impl CellLabel {
    /// The region: cells between which traffic is cheap.
    pub fn region(&self) -> &str {
        &self.text[..self.region_end]
    }

    /// The whole label.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for CellLabel {
    /// The cell of nodes to which nobody gave a place.
    fn default() -> Self {
        Self { text: "default/default/default".to_owned(), region_end: 7 }
    }
}

impl FromStr for CellLabel {
    type Err = ParseCellError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ok = |part: &str| {
            (1..=PART_MAX_CHARS).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() != 3 || !parts.iter().all(|part| ok(part)) {
            return Err(ParseCellError { found: text.chars().take(256).collect() });
        }
        Ok(Self { text: text.to_owned(), region_end: parts[0].len() })
    }
}

impl fmt::Display for CellLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for CellLabel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for CellLabel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_three_parts() {
        let cell: CellLabel = "eu-west/a/r12".parse().unwrap();
        assert_eq!((cell.region(), cell.as_str()), ("eu-west", "eu-west/a/r12"));
        for bad in ["", "a", "a/b", "a/b/c/d", "a//c", "a/b/c d", "a/b/ü"] {
            assert!(bad.parse::<CellLabel>().is_err(), "{bad}");
        }
    }
}
