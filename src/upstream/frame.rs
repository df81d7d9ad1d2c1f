//! From stored frames to verified plain bytes, on the right thread.

use super::UpstreamError;
use crate::chunk;
use crate::model::ChunkRef;
use bytes::Bytes;

/// Plain bytes up to which decoding runs on the caller's thread: about 1 ms of zstd and BLAKE3
/// (measured: above 1 GB/s each). More goes to a thread that may block.
const INLINE_MAX_BYTES: u32 = 1 << 20;

/// Decodes the frame of `wanted` and verifies it. `url` tells where it came from.
pub(super) async fn decode(frame: Bytes, wanted: ChunkRef, url: &str) -> Result<Bytes, UpstreamError> {
    let decoded = if wanted.plain_len <= INLINE_MAX_BYTES {
        decode_now(&frame, &wanted)
    } else {
        tokio::task::spawn_blocking(move || decode_now(&frame, &wanted))
            .await
            .unwrap_or_else(|error| Err(format!("the decoder ended early: {error}")))
    };
    decoded.map_err(|detail| UpstreamError::WrongBytes { url: url.to_owned(), chunk: wanted.id, detail })
}

fn decode_now(frame: &[u8], wanted: &ChunkRef) -> Result<Bytes, String> {
    chunk::decode(frame, &wanted.id, wanted.plain_len).map_err(|error| error.to_string())
}
