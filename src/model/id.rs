//! Names of content and of nodes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;

/// The hash function that a [`ContentId`] was made with.
///
/// Starling's own objects use BLAKE3-256. The others name objects of CernVM-FS repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// BLAKE3 with 32 bytes of output.
    Blake3 = 1,
    /// SHA-1, 20 bytes.
    Sha1 = 2,
    /// RIPEMD-160, 20 bytes.
    Ripemd160 = 3,
    /// SHAKE-128 cut to 20 bytes, as CernVM-FS does.
    Shake128 = 4,
}

impl Algorithm {
    /// Length of a digest, in bytes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Blake3 => 32,
            Self::Sha1 | Self::Ripemd160 | Self::Shake128 => 20,
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Blake3 => "",
            Self::Sha1 => "sha1-",
            Self::Ripemd160 => "rmd160-",
            Self::Shake128 => "shake128-",
        }
    }

    const ALL: [Self; 4] = [Self::Blake3, Self::Sha1, Self::Ripemd160, Self::Shake128];

    fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|a| *a as u8 == tag)
    }
}

/// The name of an immutable piece of content: hash function and digest.
///
/// As text, a BLAKE3 digest is 64 lower-case hexadecimal digits; other algorithms carry a prefix,
/// such as `sha1-…`. Digests shorter than 32 bytes are padded with zeros inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId {
    algorithm: Algorithm,
    digest: [u8; 32],
}

/// Why a text or a byte string does not name content or a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The digest has the wrong number of bytes or digits.
    #[error("`{found}`: a digest of this kind has {expected} bytes")]
    Length {
        /// The offending text.
        found: String,
        /// Bytes that the algorithm has.
        expected: usize,
    },
    /// A character outside 0-9 and a-f.
    #[error("`{found}` is not lower-case hexadecimal")]
    NotHex {
        /// The offending text.
        found: String,
    },
    /// An unknown hash function.
    #[error("hash function number {tag} is not known")]
    Algorithm {
        /// The number that was read.
        tag: u8,
    },
}

impl ContentId {
    /// Names content by its BLAKE3 digest.
    pub const fn blake3(digest: [u8; 32]) -> Self {
        Self { algorithm: Algorithm::Blake3, digest }
    }

    /// The BLAKE3 name of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::blake3(*blake3::hash(bytes).as_bytes())
    }

    /// Builds a name from an algorithm and a digest of exactly its length.
    ///
    /// # Errors
    /// [`ParseIdError::Length`] when `digest` is not of the algorithm's length.
    pub fn new(algorithm: Algorithm, digest: &[u8]) -> Result<Self, ParseIdError> {
        if digest.len() != algorithm.digest_len() {
            return Err(ParseIdError::Length { found: hex(digest), expected: algorithm.digest_len() });
        }
        let mut padded = [0; 32];
        padded[..digest.len()].copy_from_slice(digest);
        Ok(Self { algorithm, digest: padded })
    }

    /// The hash function.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest, without padding.
    pub fn digest(&self) -> &[u8] {
        &self.digest[..self.algorithm.digest_len()]
    }

    /// Eight bytes of the digest as a number: a well-mixed key for tables and rendezvous hashing.
    pub fn key(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.digest[..8]);
        u64::from_le_bytes(first)
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.prefix())?;
        f.write_str(&hex(self.digest()))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({}{}…)", self.algorithm.prefix(), hex(&self.digest[..6]))
    }
}

impl FromStr for ContentId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let algorithm = Algorithm::ALL
            .into_iter()
            .filter(|a| !a.prefix().is_empty())
            .find(|a| text.starts_with(a.prefix()))
            .unwrap_or(Algorithm::Blake3);
        let digits = &text[algorithm.prefix().len()..];
        let digest = unhex(digits).ok_or_else(|| ParseIdError::NotHex { found: text.to_owned() })?;
        Self::new(algorithm, &digest)
            .map_err(|_| ParseIdError::Length { found: text.to_owned(), expected: algorithm.digest_len() })
    }
}

impl Serialize for ContentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.algorithm as u8, self.digest).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ContentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            let (tag, digest) = <(u8, [u8; 32])>::deserialize(deserializer)?;
            let algorithm =
                Algorithm::from_tag(tag).ok_or_else(|| D::Error::custom(ParseIdError::Algorithm { tag }))?;
            if digest[algorithm.digest_len()..].iter().any(|b| *b != 0) {
                return Err(D::Error::custom("a short digest is not padded with zeros"));
            }
            Ok(Self { algorithm, digest })
        }
    }
}

/// The identity of a node: its ed25519 public key. A libp2p peer id is derived from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The first ten hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..5])
    }

    /// Eight bytes of the hashed key as a number, for rendezvous hashing.
    ///
    /// Hashed, because a node chooses its own key and could otherwise choose its rank.
    pub fn key(&self) -> u64 {
        ContentId::of(&self.0).key()
    }
}

#[cfg(all(test, feature = "node"))]
impl NodeId {
    /// A node that a test makes up; such nodes are in the order of their numbers. It is no key.
    pub(crate) fn numbered(number: usize) -> Self {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        Self(id)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({}…)", self.short())
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = unhex(text).ok_or_else(|| ParseIdError::NotHex { found: text.to_owned() })?;
        let array = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| ParseIdError::Length { found: text.to_owned(), expected: 32 })?;
        Ok(Self(array))
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_text_and_bytes() {
        for algorithm in Algorithm::ALL {
            let id = ContentId::new(algorithm, &vec![0xa5; algorithm.digest_len()]).unwrap();
            assert_eq!(id.to_string().parse::<ContentId>().unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<ContentId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_offending_text() {
        for bad in ["", "abc", "zz", "sha1-00", "ABCDEF", &"0".repeat(63), &"0".repeat(66), "é"] {
            let error = bad.parse::<ContentId>().unwrap_err().to_string();
            assert!(error.contains(bad), "{error} does not show {bad}");
        }
    }
}
