//! How signed documents are laid out: magic, version, sections with a length, signatures.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

/// Reads sections from the front of a document. Every getter refuses what is not there.
#[derive(Debug)]
pub(super) struct Sections<'a> {
    rest: &'a [u8],
}

/// The document ends early, begins with another magic, or has bytes left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl<'a> Sections<'a> {
    /// After the magic; also returns the version.
    pub(super) fn open(bytes: &'a [u8], magic: &[u8; 8]) -> Result<(Self, u16), Malformed> {
        let rest = bytes.strip_prefix(magic).ok_or(Malformed("it does not begin with its magic"))?;
        let mut sections = Self { rest };
        let version = u16::from_le_bytes(sections.array()?);
        Ok((sections, version))
    }

    /// `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(Malformed("it ends early"))?;
        self.rest = rest;
        Ok(*first)
    }

    /// A section: its length, then its bytes.
    pub(super) fn section(&mut self) -> Result<&'a [u8], Malformed> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        let (section, rest) =
            self.rest.split_at_checked(len).ok_or(Malformed("a section is longer than the document"))?;
        self.rest = rest;
        Ok(section)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("bytes are left over")) }
    }
}

/// Begins a document.
pub(super) fn begin(magic: &[u8; 8], version: u16) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes
}

/// Appends a section. Documents are bounded far below 4 GiB by their callers.
pub(super) fn put_section(bytes: &mut Vec<u8>, section: &[u8]) {
    let len = u32::try_from(section.len()).expect("sections are shorter than 4 GiB");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(section);
}

/// What is signed: the context says which kind of document it is, so that a signature over one kind
/// is never good for another.
fn message(context: &[u8], section: &[u8]) -> Vec<u8> {
    [context, section].concat()
}

/// Signs a section.
pub(super) fn sign(key: &SigningKey, context: &[u8], section: &[u8]) -> [u8; 64] {
    key.sign(&message(context, section)).to_bytes()
}

/// Whether `signature` over the section is by `key`. Weak keys and malleable signatures are refused.
pub(super) fn is_signed(key: &[u8; 32], context: &[u8], section: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|key| {
        key.verify_strict(&message(context, section), &Signature::from_bytes(signature)).is_ok()
    })
}

/// Reads a postcard document to its last byte.
pub(super) fn parse<T: serde::de::DeserializeOwned>(section: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(section) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Malformed("bytes are left over in a section")),
        Err(_) => Err(Malformed("a section does not parse")),
    }
}

/// Writes a postcard document.
pub(super) fn unparse<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain values are always written")
}
