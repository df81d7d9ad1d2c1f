//! The repository card: what a node must know to mount a repository.

use super::keys::Fingerprint;
use super::sections::{Malformed, Sections, begin, is_signed, parse, put_section, sign, unparse};
use crate::model::{RepositoryName, UnixTime};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

/// Most strata that a card names (guess: one or two a continent).
pub const STRATA_MAX: usize = 16;
/// Most bytes of a stratum's URL.
const URL_MAX_BYTES: usize = 512;
/// Most bytes of a signed card: all strata, and room for the rest.
pub(super) const CARD_MAX_BYTES: usize = STRATA_MAX * (URL_MAX_BYTES + 8) + 1024;
const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"STARCARD";
const CONTEXT: &[u8] = b"starling card v1\0";

/// Name, fingerprint and strata of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryCard {
    /// The repository.
    pub name: RepositoryName,
    /// Of its root keys.
    pub fingerprint: Fingerprint,
    /// Base URLs (`http` or `https`) of its strata, nearest first. The repository lies at `URL/NAME/`.
    pub strata: Vec<String>,
    /// When the card was written. A later card replaces an earlier one.
    pub issued: UnixTime,
}

/// Why a card is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// A stratum's URL is not one.
    #[error(
        "`{found}` is not a stratum: write http://HOST/PATH or https://HOST/PATH, at most 512 characters"
    )]
    Stratum {
        /// The offending text, shortened.
        found: String,
    },
    /// Too many strata.
    #[error("{found} strata; a card names at most {STRATA_MAX}")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A later format.
    #[error("card format version {found} is not known; this program reads version {VERSION}")]
    Version {
        /// What it states.
        found: u16,
    },
    /// It is not laid out as a card is.
    #[error("not a card: {0}")]
    Malformed(&'static str),
    /// The authority did not sign it.
    #[error("the card is not signed by this mesh's authority")]
    Signature,
}

impl From<Malformed> for CardError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.0)
    }
}

impl RepositoryCard {
    /// Refuses strata that are none, or too many.
    ///
    /// # Errors
    /// [`CardError::Stratum`] or [`CardError::TooMany`] with the offending value.
    pub fn check(&self) -> Result<(), CardError> {
        if self.strata.len() > STRATA_MAX {
            return Err(CardError::TooMany { found: self.strata.len() });
        }
        for url in &self.strata {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            let host = rest.map_or("", |rest| rest.split('/').next().unwrap_or(""));
            let plain = url.bytes().all(|b| b.is_ascii_graphic() && !b"?#\"<>\\".contains(&b));
            if host.is_empty() || !plain || url.len() > URL_MAX_BYTES {
                return Err(CardError::Stratum { found: url.chars().take(160).collect() });
            }
        }
        Ok(())
    }
}

/// The document: how a card is signed and how it is verified.
#[derive(Clone, Copy, Debug)]
pub struct SignedCard;

impl SignedCard {
    /// The document of `card`, signed with the authority's ed25519 secret key.
    ///
    /// # Errors
    /// [`CardError`] when the card is out of bounds.
    pub fn sign(card: &RepositoryCard, authority_secret: &[u8; 32]) -> Result<Vec<u8>, CardError> {
        card.check()?;
        let body = unparse(card);
        let mut bytes = begin(MAGIC, VERSION);
        put_section(&mut bytes, &body);
        bytes.extend_from_slice(&sign(&SigningKey::from_bytes(authority_secret), CONTEXT, &body));
        Ok(bytes)
    }

    /// Verifies a document against the authority's public key, before it is parsed.
    ///
    /// # Errors
    /// [`CardError`] when anything does not hold.
    pub fn verify(bytes: &[u8], authority: &[u8; 32]) -> Result<RepositoryCard, CardError> {
        let (body, signature) = Self::open(bytes)?;
        if !is_signed(authority, CONTEXT, body, &signature) {
            return Err(CardError::Signature);
        }
        Self::parse(body)
    }

    /// Reads a card whose signature was verified before it was stored.
    pub fn read_stored(bytes: &[u8]) -> Result<RepositoryCard, CardError> {
        Self::parse(Self::open(bytes)?.0)
    }

    fn open(bytes: &[u8]) -> Result<(&[u8], [u8; 64]), CardError> {
        if bytes.len() > CARD_MAX_BYTES {
            return Err(CardError::Malformed("longer than any card"));
        }
        let (mut sections, version) = Sections::open(bytes, MAGIC)?;
        if version != VERSION {
            return Err(CardError::Version { found: version });
        }
        let body = sections.section()?;
        let signature = sections.array()?;
        sections.end()?;
        Ok((body, signature))
    }

    fn parse(body: &[u8]) -> Result<RepositoryCard, CardError> {
        let card: RepositoryCard = parse(body)?;
        card.check()?;
        Ok(card)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn card(strata: &[&str]) -> RepositoryCard {
        RepositoryCard {
            name: "sw.example.org".parse().unwrap(),
            fingerprint: Fingerprint([7; 32]),
            strata: strata.iter().map(|s| (*s).to_owned()).collect(),
            issued: UnixTime(1_800_000_000),
        }
    }

    fn public(secret: &[u8; 32]) -> [u8; 32] {
        SigningKey::from_bytes(secret).verifying_key().to_bytes()
    }

    #[test]
    fn only_the_authority_signs_cards() {
        let card = card(&["http://127.0.0.1:8080", "https://s1.example.org/strata"]);
        let signed = SignedCard::sign(&card, &[1; 32]).unwrap();
        assert_eq!(SignedCard::verify(&signed, &public(&[1; 32])), Ok(card));
        assert_eq!(SignedCard::verify(&signed, &public(&[2; 32])), Err(CardError::Signature));
    }

    #[test]
    fn strata_that_are_no_urls_are_refused_with_the_offending_text() {
        let long = format!("http://h/{}", "x".repeat(600));
        for bad in
            ["", "ftp://x", "http://", "http:///x", "file:///etc", "http://h/a b", "http://h/?q", &long]
        {
            let error = card(&[bad]).check().unwrap_err();
            assert!(
                matches!(&error, CardError::Stratum { found } if bad.starts_with(found.as_str())),
                "{bad}"
            );
        }
        assert_eq!(card(&["http://h"; 17]).check(), Err(CardError::TooMany { found: 17 }));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_refused(at: usize, by in 1_u8..) {
            let mut signed = SignedCard::sign(&card(&["http://h"]), &[1; 32]).unwrap();
            let at = at % signed.len();
            signed[at] = signed[at].wrapping_add(by);
            prop_assert!(SignedCard::verify(&signed, &public(&[1; 32])).is_err());
        }
    }
}
