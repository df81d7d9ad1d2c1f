//! One chunk as one zstd frame: how it is stored and sent.

use crate::model::{Algorithm, ContentId, limits};
use bytes::Bytes;
use std::cell::RefCell;
use std::io;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

/// Highest compression level of zstd; 3 is the default of publishing.
pub const MAX_LEVEL: i32 = 22;

/// Why bytes are not the chunk that was asked for. Never a reason to try the same bytes again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The stated plain length is zero or beyond [`limits::PLAIN_MAX_BYTES`].
    #[error("chunk {id}: a plain length of {plain_len} bytes is not allowed")]
    Length {
        /// The chunk.
        id: ContentId,
        /// What was stated.
        plain_len: u32,
    },
    /// It is not exactly one whole zstd frame.
    #[error("chunk {id}: {frame_bytes} bytes are not one zstd frame ({detail})")]
    NotOneFrame {
        /// The chunk.
        id: ContentId,
        /// Bytes given.
        frame_bytes: usize,
        /// What zstd said.
        detail: String,
    },
    /// The plain bytes are more or fewer than stated, or the frame does not say how many.
    #[error("chunk {id}: the plain bytes are {found:?}, the catalog says {plain_len}")]
    OtherLength {
        /// The chunk.
        id: ContentId,
        /// What the frame states, or what came.
        found: Option<u64>,
        /// What the catalog states.
        plain_len: u32,
    },
    /// The bytes hash to another name.
    #[error("chunk {id}: the bytes hash to {found}")]
    OtherHash {
        /// What was wanted.
        id: ContentId,
        /// What came.
        found: ContentId,
    },
    /// The name was made with a hash function that does not name Starling's own chunks.
    #[error("chunk {id}: only BLAKE3 names chunks of this format")]
    Algorithm {
        /// The chunk.
        id: ContentId,
    },
}

/// Checks plain bytes against their name and length.
///
/// # Errors
/// [`DecodeError`] when they differ.
pub fn verify(plain: &[u8], id: &ContentId, plain_len: u32) -> Result<(), DecodeError> {
    if id.algorithm() != Algorithm::Blake3 {
        return Err(DecodeError::Algorithm { id: *id });
    }
    if plain.len() as u64 != u64::from(plain_len) {
        return Err(DecodeError::OtherLength { id: *id, found: Some(plain.len() as u64), plain_len });
    }
    let found = ContentId::of(plain);
    if found == *id { Ok(()) } else { Err(DecodeError::OtherHash { id: *id, found }) }
}

/// The verified plain bytes of a frame. Writes at most `plain_len` bytes, whatever the frame wants.
///
/// # Errors
/// [`DecodeError`] when the frame is damaged, states another length, is followed by more bytes, or
/// holds other content.
pub fn decode(frame: &[u8], id: &ContentId, plain_len: u32) -> Result<Bytes, DecodeError> {
    thread_local! {
        // A context costs more to set up than a small chunk to decompress.
        static CONTEXT: RefCell<Decompressor<'static>> = RefCell::new(Decompressor::default());
    }
    let id = *id;
    if plain_len == 0 || plain_len > limits::PLAIN_MAX_BYTES {
        return Err(DecodeError::Length { id, plain_len });
    }
    let broken = |detail: String| DecodeError::NotOneFrame { id, frame_bytes: frame.len(), detail };
    let stated = zstd_safe::get_frame_content_size(frame).map_err(|error| broken(error.to_string()))?;
    if stated != Some(u64::from(plain_len)) {
        return Err(DecodeError::OtherLength { id, found: stated, plain_len });
    }
    let one = zstd_safe::find_frame_compressed_size(frame)
        .map_err(|code| broken(zstd_safe::get_error_name(code).to_owned()))?;
    if one != frame.len() {
        return Err(broken(format!("the frame ends after {one}")));
    }
    let mut plain = Vec::with_capacity(plain_len as usize);
    CONTEXT
        .with_borrow_mut(|context| context.decompress_to_buffer(frame, &mut plain))
        .map_err(|error| broken(error.to_string()))?;
    verify(&plain, &id, plain_len)?;
    Ok(plain.into())
}

/// Compresses chunks, one frame each. Keep one a thread: setting it up costs more than a small chunk.
pub struct Encoder {
    context: Compressor<'static>,
}

impl Encoder {
    /// A compressor of the given zstd level, 1 to [`MAX_LEVEL`].
    ///
    /// # Errors
    /// When zstd refuses the level or has no memory.
    pub fn new(level: i32) -> io::Result<Self> {
        Ok(Self { context: Compressor::new(level)? })
    }

    /// The frame of `plain`. It states the plain length and carries no checksum, the hash being one.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn encode(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        self.context.compress(plain)
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

/// The frame of one chunk; [`Encoder`] is faster for many.
///
/// # Errors
/// When zstd refuses the level or has no memory.
pub fn encode(plain: &[u8], level: i32) -> io::Result<Vec<u8>> {
    Encoder::new(level)?.encode(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn len(bytes: &[u8]) -> u32 {
        u32::try_from(bytes.len()).unwrap()
    }

    #[test]
    fn a_frame_that_wants_more_than_the_stated_length_is_refused_before_it_is_written() {
        let bomb = vec![0; 64 << 20];
        let frame = encode(&bomb, 3).unwrap();
        assert!(frame.len() < 16_384);
        let id = ContentId::of(&bomb);
        let error = decode(&frame, &id, 1000).unwrap_err();
        assert_eq!(error, DecodeError::OtherLength { id, found: Some(64 << 20), plain_len: 1000 });
    }

    #[test]
    fn a_frame_whose_header_lies_about_the_length_is_refused() {
        let plain: Vec<u8> = (0..1000_u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut frame = encode(&plain, 3).unwrap();
        // Single-segment frames of this size carry a two-byte content size (less 256) after magic and descriptor.
        let stated = u16::from_le_bytes([frame[5], frame[6]]);
        assert_eq!(usize::from(stated) + 256, plain.len());
        frame[5..7].copy_from_slice(&(stated - 100).to_le_bytes());
        let id = ContentId::of(&plain);
        assert!(matches!(decode(&frame, &id, len(&plain)), Err(DecodeError::OtherLength { .. })));
        assert!(matches!(decode(&frame, &id, len(&plain) - 100), Err(DecodeError::NotOneFrame { .. })));
    }

    #[test]
    fn trailing_bytes_and_a_second_frame_are_refused() {
        let id = ContentId::of(b"content");
        let mut frame = encode(b"content", 3).unwrap();
        assert_eq!(decode(&frame, &id, 7).unwrap(), &b"content"[..]);
        frame.extend_from_slice(&frame.clone());
        assert!(matches!(decode(&frame, &id, 7), Err(DecodeError::NotOneFrame { .. })));
    }

    #[test]
    fn nonsensical_lengths_are_refused() {
        let id = ContentId::of(b"");
        for plain_len in [0, limits::PLAIN_MAX_BYTES + 1, u32::MAX] {
            assert_eq!(decode(b"", &id, plain_len), Err(DecodeError::Length { id, plain_len }));
        }
    }

    #[test]
    fn other_hash_functions_are_refused() {
        let id = ContentId::new(Algorithm::Sha1, &[0; 20]).unwrap();
        assert_eq!(verify(b"x", &id, 1), Err(DecodeError::Algorithm { id }));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(plain in proptest::collection::vec(any::<u8>(), 1..20_000), level in 1..6) {
            let frame = encode(&plain, level).unwrap();
            prop_assert!(frame.len() <= plain.len() + limits::FRAME_OVERHEAD_BYTES as usize);
            let decoded = decode(&frame, &ContentId::of(&plain), len(&plain));
            prop_assert_eq!(&decoded.unwrap()[..], &plain[..]);
        }

        #[test]
        fn a_changed_bit_is_refused(plain in proptest::collection::vec(0_u8..4, 1..5000), at: usize, bit in 0_u8..8) {
            let mut frame = encode(&plain, 3).unwrap();
            let at = at % frame.len();
            frame[at] ^= 1_u8 << bit;
            // A flipped bit that leaves the plain bytes as they were (such as a reserved one) does no harm.
            if let Ok(decoded) = decode(&frame, &ContentId::of(&plain), len(&plain)) {
                prop_assert_eq!(&decoded[..], &plain[..]);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(frame in proptest::collection::vec(any::<u8>(), 0..300), plain_len in 0_u32..2000) {
            let id = ContentId::of(b"something else");
            prop_assert!(decode(&frame, &id, plain_len).is_err());
        }
    }
}
