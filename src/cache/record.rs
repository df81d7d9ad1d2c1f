//! The header in front of each chunk in a pack, pure.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | `SLCR` |
//! | 4 | version, 1 |
//! | 5 | hash function, as in `ContentId` |
//! | 6..8 | zero |
//! | 8..12 | plain length, little-endian |
//! | 12..44 | digest, padded with zeros |
//! | 44..56 | zero |
//! | 56..64 | first 8 bytes of the BLAKE3 of bytes 0..56 |

use crate::model::{Algorithm, ContentId, limits};

/// Length of a header, in bytes. The chunk's plain bytes follow at once.
pub(super) const HEADER_BYTES: usize = 64;
/// The same, where offsets are counted.
pub(super) const HEADER_BYTES_U64: u64 = HEADER_BYTES as u64;

const MAGIC: [u8; 4] = *b"SLCR";
const VERSION: u8 = 1;
const CHECKED_BYTES: usize = 56;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The chunk's name.
    pub(super) id: ContentId,
    /// The chunk's plain length, at most [`limits::PLAIN_MAX_BYTES`].
    pub(super) plain_len: u32,
}

/// Why bytes are not a header. To a scan it means that the pack ends before them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    /// The first bytes are others.
    #[error("magic {found:02x?} instead of `SLCR`")]
    Magic { found: [u8; 4] },
    /// Written by another version.
    #[error("version {found}, this build reads {VERSION}")]
    Version { found: u8 },
    /// The checksum contradicts the bytes.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A right checksum over nonsense.
    #[error(
        "length {plain_len} or hash function {algorithm} out of bounds, or bytes that must be zero are not"
    )]
    Nonsense { plain_len: u32, algorithm: u8 },
}

impl Header {
    /// Bytes of header and chunk together.
    pub(super) fn record_bytes(&self) -> u64 {
        HEADER_BYTES_U64 + u64::from(self.plain_len)
    }

    /// The header as bytes.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let digest = self.id.digest();
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.id.algorithm() as u8;
        bytes[8..12].copy_from_slice(&self.plain_len.to_le_bytes());
        bytes[12..12 + digest.len()].copy_from_slice(digest);
        let sum = checksum(&bytes);
        bytes[CHECKED_BYTES..].copy_from_slice(&sum);
        bytes
    }

    /// Reads a header.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let found = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if found != MAGIC {
            return Err(HeaderError::Magic { found });
        }
        if bytes[4] != VERSION {
            return Err(HeaderError::Version { found: bytes[4] });
        }
        if bytes[CHECKED_BYTES..] != checksum(bytes) {
            return Err(HeaderError::Checksum);
        }
        let plain_len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let nonsense = HeaderError::Nonsense { plain_len, algorithm: bytes[5] };
        let Some(algorithm) = algorithm(bytes[5]) else { return Err(nonsense) };
        let digest_end = 12 + algorithm.digest_len();
        let zeros = bytes[6..8].iter().chain(&bytes[digest_end..CHECKED_BYTES]).all(|byte| *byte == 0);
        let Ok(id) = ContentId::new(algorithm, &bytes[12..digest_end]) else { return Err(nonsense) };
        if plain_len > limits::PLAIN_MAX_BYTES || !zeros {
            return Err(nonsense);
        }
        Ok(Self { id, plain_len })
    }
}

fn checksum(bytes: &[u8; HEADER_BYTES]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(&bytes[..CHECKED_BYTES]).as_bytes()[..8]);
    sum
}

fn algorithm(tag: u8) -> Option<Algorithm> {
    [Algorithm::Blake3, Algorithm::Sha1, Algorithm::Ripemd160, Algorithm::Shake128]
        .into_iter()
        .find(|algorithm| *algorithm as u8 == tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header { id: ContentId::of(b"starling"), plain_len: 8 }
    }

    #[test]
    fn a_header_survives_the_disk() {
        let short = ContentId::new(Algorithm::Sha1, &[7; 20]).unwrap();
        for header in [header(), Header { id: short, plain_len: limits::PLAIN_MAX_BYTES }] {
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn the_bytes_of_a_header_are_frozen() {
        let bytes = Header { id: ContentId::blake3([0xab; 32]), plain_len: 0x0102_0304 }.encode();
        assert_eq!(bytes[..12], [b'S', b'L', b'C', b'R', 1, 1, 0, 0, 4, 3, 2, 1]);
        assert!(
            bytes[12..44].iter().all(|byte| *byte == 0xab) && bytes[44..56].iter().all(|byte| *byte == 0)
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_right_checksum_does_not_excuse_nonsense() {
        for (at, value) in [(5, 9), (7, 1), (11, 0xff), (50, 1)] {
            let mut bytes = header().encode();
            bytes[at] = value;
            let sum = checksum(&bytes);
            bytes[CHECKED_BYTES..].copy_from_slice(&sum);
            assert!(matches!(Header::decode(&bytes), Err(HeaderError::Nonsense { .. })), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic_and_what_is_read_is_what_is_written(
            mut bytes in proptest::array::uniform32(any::<u8>()).prop_flat_map(|first| {
                proptest::array::uniform32(any::<u8>()).prop_map(move |second| {
                    let mut all = [0; HEADER_BYTES];
                    all[..32].copy_from_slice(&first);
                    all[32..].copy_from_slice(&second);
                    all
                })
            }),
            repair in any::<bool>(),
        ) {
            if repair {
                bytes[..5].copy_from_slice(b"SLCR\x01");
                bytes[5] %= 6;
                bytes[6..8].fill(0);
                bytes[44..56].fill(0);
                let sum = checksum(&bytes);
                bytes[CHECKED_BYTES..].copy_from_slice(&sum);
            }
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
