//! Compresses chunks on several threads and stores them in segments, in the order in which they came.
//!
//! Chunks travel in batches: a thread hand-over costs more than a small chunk. The order of batches is kept by
//! giving the storing thread, for each batch, the channel on which its frames will come.

use super::PublishError;
use crate::chunk::{Encoder, SegmentBuilder};
use crate::model::{ChunkRef, ContentId};
use crate::store::{ObjectStore, Put};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Threads that compress.
const COMPRESSORS: usize = 2;
/// Plain bytes after which a batch is handed over.
const BATCH_BYTES: usize = 512 << 10;
/// Batches under way: with chunks of at most 4 MiB these are at most 36 MiB plain (catalogs aside).
const BATCHES: usize = 8;

/// A chunk that is to be stored.
struct Plain {
    id: ContentId,
    bytes: Vec<u8>,
}

/// A chunk as it will be stored.
struct Framed {
    id: ContentId,
    plain_len: u32,
    frame: Vec<u8>,
}

type Frames = Result<Vec<Framed>, PublishError>;

struct Job {
    batch: Vec<Plain>,
    reply: SyncSender<Frames>,
}

/// What was stored.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// Where the chunks lie, in the order in which they came.
    pub(super) chunks: Vec<ChunkRef>,
    /// Bytes of the segments that were written, those that a killed publisher had left included.
    pub(super) stored_bytes: u64,
    /// Segments.
    pub(super) segments: u64,
}

/// Takes chunks and stores them in segments of their own.
pub(super) struct Packer {
    batch: Vec<Plain>,
    batch_bytes: usize,
    jobs: SyncSender<Job>,
    order: SyncSender<Receiver<Frames>>,
    compressors: Vec<JoinHandle<()>>,
    storing: JoinHandle<Result<Packed, PublishError>>,
}

impl Packer {
    /// Starts the threads.
    pub(super) fn start(objects: Arc<dyn ObjectStore>, level: i32) -> Result<Self, PublishError> {
        let (jobs, queue) = sync_channel::<Job>(BATCHES);
        let (order, due) = sync_channel::<Receiver<Frames>>(BATCHES);
        let queue = Arc::new(Mutex::new(queue));
        let worker = |error: std::io::Error| PublishError::Worker(error.to_string());
        let compressors = (0..COMPRESSORS)
            .map(|_| {
                let queue = Arc::clone(&queue);
                Builder::new()
                    .name("compress".to_owned())
                    .spawn(move || compress(&queue, level))
                    .map_err(worker)
            })
            .collect::<Result<_, _>>()?;
        let storing =
            Builder::new().name("store".to_owned()).spawn(move || store(&*objects, &due)).map_err(worker)?;
        Ok(Self { batch: Vec::new(), batch_bytes: 0, jobs, order, compressors, storing })
    }

    /// Adds a chunk. Waits while too much is under way. A failure shows in [`Packer::finish`].
    pub(super) fn push(&mut self, id: ContentId, bytes: Vec<u8>) {
        self.batch_bytes += bytes.len();
        self.batch.push(Plain { id, bytes });
        if self.batch_bytes >= BATCH_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let (reply, frames) = sync_channel(1);
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        // Refused only when the other end has failed, and that failure is what `finish` returns.
        if self.order.send(frames).is_ok() {
            let _ = self.jobs.send(Job { batch, reply });
        }
    }

    /// Waits until all is stored durably.
    pub(super) fn finish(mut self) -> Result<Packed, PublishError> {
        if !self.batch.is_empty() {
            self.hand_over();
        }
        drop((self.jobs, self.order));
        let abnormal = |_| PublishError::Worker("it ended abnormally".to_owned());
        let packed = self.storing.join().map_err(abnormal)?;
        for compressor in self.compressors {
            compressor.join().map_err(abnormal)?;
        }
        packed
    }
}

fn compress(queue: &Mutex<Receiver<Job>>, level: i32) {
    let mut encoder = Encoder::new(level);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { batch, reply }) = job else { return };
        let frames = match &mut encoder {
            Ok(encoder) => batch.iter().map(|plain| frame(encoder, plain)).collect(),
            Err(error) => Err(PublishError::Compress(std::io::Error::new(error.kind(), error.to_string()))),
        };
        // Nobody waits when storing has failed.
        let _ = reply.send(frames);
    }
}

fn frame(encoder: &mut Encoder, plain: &Plain) -> Result<Framed, PublishError> {
    let frame = encoder.encode(&plain.bytes).map_err(PublishError::Compress)?;
    let plain_len = u32::try_from(plain.bytes.len()).expect("chunks and catalogs are shorter than 4 GiB");
    Ok(Framed { id: plain.id, plain_len, frame })
}

fn store(objects: &dyn ObjectStore, due: &Receiver<Receiver<Frames>>) -> Result<Packed, PublishError> {
    let mut packed = Packed::default();
    let mut builder = SegmentBuilder::new();
    while let Ok(frames) = due.recv() {
        let frames = frames.recv().map_err(|_| PublishError::Worker("a compressor ended".to_owned()))??;
        for Framed { id, plain_len, frame } in frames {
            builder.push(id, plain_len, &frame);
            if builder.is_full() {
                put(objects, &mut builder, &mut packed)?;
            }
        }
    }
    if !builder.is_empty() {
        put(objects, &mut builder, &mut packed)?;
    }
    Ok(packed)
}

fn put(
    objects: &dyn ObjectStore,
    builder: &mut SegmentBuilder,
    packed: &mut Packed,
) -> Result<(), PublishError> {
    let segment = builder.finish();
    let put: Put = objects.put(&segment.id, &segment.bytes)?;
    tracing::debug!(segment = %segment.id, bytes = segment.bytes.len(), ?put, "segment stored");
    packed.stored_bytes += segment.bytes.len() as u64;
    packed.segments += 1;
    packed.chunks.extend(segment.chunks);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryObjects, ObjectError, read_chunk};
    use bytes::Bytes;

    #[test]
    fn chunks_come_out_in_the_order_in_which_they_went_in() {
        let objects = Arc::new(MemoryObjects::default());
        let mut packer = Packer::start(objects.clone(), 1).unwrap();
        let plain: Vec<Vec<u8>> =
            (0..3000_u32).map(|n| n.to_le_bytes().repeat(n as usize % 400 + 1)).collect();
        for bytes in &plain {
            packer.push(ContentId::of(bytes), bytes.clone());
        }
        let packed = packer.finish().unwrap();
        assert_eq!(packed.chunks.len(), plain.len());
        for (chunk, bytes) in packed.chunks.iter().zip(&plain) {
            assert_eq!(read_chunk(&*objects, chunk).unwrap(), bytes);
        }
    }

    /// A disk that is full.
    struct Full;

    impl ObjectStore for Full {
        fn put(&self, _: &ContentId, _: &[u8]) -> Result<Put, ObjectError> {
            let source = std::io::ErrorKind::StorageFull.into();
            Err(ObjectError::Io { path: "full".to_owned(), source })
        }
        fn length(&self, _: &ContentId) -> Result<Option<u64>, ObjectError> {
            Ok(None)
        }
        fn read(&self, id: &ContentId, _: u64, _: u32) -> Result<Bytes, ObjectError> {
            Err(ObjectError::Missing(*id))
        }
        fn list(&self, _: &mut dyn FnMut(ContentId, u64)) -> Result<(), ObjectError> {
            Ok(())
        }
        fn root(&self) -> Result<Option<Vec<u8>>, ObjectError> {
            Ok(None)
        }
        fn put_root(&self, _: &[u8]) -> Result<(), ObjectError> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_packing_with_its_error_and_without_hanging() {
        let mut packer = Packer::start(Arc::new(Full), 1).unwrap();
        let mut generator = crate::model::Generator::new(1);
        for _ in 0..100 {
            let words = (0..(1 << 16)).map(|_| crate::model::Rng::next_u64(&mut generator));
            let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            packer.push(ContentId::of(&bytes), bytes);
        }
        assert!(matches!(packer.finish(), Err(PublishError::Store(ObjectError::Io { .. }))));
    }
}
