//! Reading chunks straight from a repository's objects, without a network: for publishing again, for checks and tests.

use super::objects::{ObjectError, ObjectStore};
use crate::chunk::{ChunkSource, DecodeError, Piece, SourceError, decode};
use crate::model::{ChunkRef, Class};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Why a chunk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadChunkError {
    /// Its frame is not there.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Its frame is damaged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The verified plain bytes of a chunk. Blocks for the disk.
///
/// # Errors
/// [`ReadChunkError`] when the frame is missing or damaged.
pub fn read_chunk(objects: &dyn ObjectStore, chunk: &ChunkRef) -> Result<Bytes, ReadChunkError> {
    let frame = objects.read(&chunk.place.segment, chunk.place.offset, chunk.place.stored_len)?;
    Ok(decode(&frame, &chunk.id, chunk.plain_len)?)
}

/// A [`ChunkSource`] that reads a repository where it lies. It blocks for the disk inside its futures.
pub struct StoredChunks {
    objects: Arc<dyn ObjectStore>,
}

impl StoredChunks {
    /// Reads from `objects`.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    fn piece(&self, piece: &Piece) -> Result<Bytes, SourceError> {
        let chunk = piece.chunk.id;
        let range = piece.offset.checked_add(piece.len).filter(|end| *end <= piece.chunk.plain_len);
        let Some(end) = range else {
            let detail = format!("{} bytes from {} of {}", piece.len, piece.offset, piece.chunk.plain_len);
            return Err(SourceError::Invalid { chunk, detail });
        };
        let plain = read_chunk(&*self.objects, &piece.chunk)
            .map_err(|error| SourceError::Unavailable { chunk, detail: error.to_string() })?;
        Ok(plain.slice(piece.offset as usize..end as usize))
    }
}

impl std::fmt::Debug for StoredChunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredChunks")
    }
}

impl ChunkSource for StoredChunks {
    fn read(&self, pieces: Vec<Piece>, _class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        Box::pin(async move { pieces.iter().map(|piece| self.piece(piece)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{SegmentBuilder, encode};
    use crate::model::ContentId;
    use crate::store::MemoryObjects;

    #[tokio::test]
    async fn pieces_are_verified_and_cut_out() {
        let objects = Arc::new(MemoryObjects::default());
        let mut builder = SegmentBuilder::new();
        builder.push(ContentId::of(b"content"), 7, &encode(b"content", 3).unwrap());
        let segment = builder.finish();
        let chunk = segment.chunks[0];
        let source = StoredChunks::new(objects.clone());
        let missing = source.read(vec![Piece::whole(chunk)], Class::Read).await;
        assert!(matches!(missing, Err(SourceError::Unavailable { .. })));
        objects.put(&segment.id, &segment.bytes).unwrap();
        let pieces = vec![Piece { chunk, offset: 3, len: 4 }, Piece::whole(chunk)];
        let found = source.read(pieces, Class::Read).await.unwrap();
        assert_eq!(found, [&b"tent"[..], b"content"]);
        let beyond = source.read(vec![Piece { chunk, offset: 4, len: 4 }], Class::Read).await;
        assert!(matches!(beyond, Err(SourceError::Invalid { .. })));
        let other = ChunkRef { id: ContentId::of(b"another"), ..chunk };
        let wrong = source.read(vec![Piece::whole(other)], Class::Read).await;
        assert!(matches!(wrong, Err(SourceError::Unavailable { .. })));
    }
}
