//! Frames on QUIC streams, each read and write bounded in time.

use crate::mesh::registry::InUse;
use crate::mesh::wire::{HEADER_BYTES, Header, Message, VERSION, VERSION_OLDEST, WireError};
use bytes::Bytes;
use futures::FutureExt as _;
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use std::future::Future;
use std::time::Duration;

/// Frames of unknown types that are skipped in a row, and bytes of them: a newer peer may say more, even a whole list
/// of documents that are not known here (guess for the bytes), but not only noise.
const SKIPPED_MAX: u32 = 2_048;
const SKIPPED_MAX_BYTES: usize = 4 << 20;
/// Bytes that must leave within one time-out: small enough for a slow reader, large enough to be cheap.
const WRITE_STEP_BYTES: usize = 256 << 10;

/// Why a stream cannot be read or written on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum StreamError {
    Connection(String),
    NoProgress(Duration),
    Ended,
    Wire(WireError),
    Noise(u32),
    /// This node's own store lost the rest of a chunk that was being sent.
    Lost,
}

impl From<WireError> for StreamError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Ended,
            ReadExactError::ReadError(error) => Self::Connection(error.to_string()),
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        Self::Connection(error.to_string())
    }
}

async fn bounded<T, E: Into<StreamError>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, StreamError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(StreamError::NoProgress(limit)),
    }
}

/// Reads frames. Not safe to cancel in the middle of a call: drop the reader with it.
pub(in crate::mesh) struct FrameReader {
    stream: RecvStream,
    limit: Duration,
    /// Only held.
    _in_use: Option<InUse>,
}

impl FrameReader {
    /// Reads `stream`; each read of some bytes may take `limit`.
    pub(in crate::mesh) fn new(stream: RecvStream, limit: Duration) -> Self {
        Self { stream, limit, _in_use: None }
    }

    /// The same; as long as it is read from, its connection is not idle.
    pub(in crate::mesh) fn holding(self, in_use: InUse) -> Self {
        Self { _in_use: Some(in_use), ..self }
    }

    /// Changes the time-out.
    pub(in crate::mesh) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Reads the version that opens a stream: one that this program speaks.
    pub(in crate::mesh) async fn version(&mut self) -> Result<(), StreamError> {
        let mut version = [0];
        bounded(self.limit, self.stream.read_exact(&mut version)).await?;
        if (VERSION_OLDEST..=VERSION).contains(&version[0]) {
            Ok(())
        } else {
            Err(WireError::Version { found: version[0] }.into())
        }
    }

    /// The next message of a known type, or `None` when the stream ended between two frames.
    pub(in crate::mesh) async fn message(&mut self) -> Result<Option<Message>, StreamError> {
        let (mut frames, mut bytes) = (0, 0);
        while frames < SKIPPED_MAX && bytes < SKIPPED_MAX_BYTES {
            let mut header = [0; HEADER_BYTES];
            let read = async {
                match self.stream.read_exact(&mut header).await {
                    Ok(()) => Ok(true),
                    Err(ReadExactError::FinishedEarly(0)) => Ok(false),
                    Err(error) => Err(StreamError::from(error)),
                }
            };
            if !bounded(self.limit, read).await? {
                return Ok(None);
            }
            let header = Header::read(header)?;
            let body = bounded(self.limit, read_body(&mut self.stream, header.len)).await?;
            if let Some(message) = Message::from_body(header.kind, &body)? {
                return Ok(Some(message));
            }
            frames += 1;
            bytes += HEADER_BYTES + header.len;
        }
        Err(StreamError::Noise(frames))
    }

    /// Notes the stream's end if it has come. Dropped before, a stream tells the peer to stop, in a packet of its own.
    pub(in crate::mesh) fn note_end(&mut self) {
        let _ = self.stream.read_chunk(1, true).now_or_never();
    }

    /// Fills the beginning of `buffer` with bytes that follow a frame, as many as have come; how many.
    pub(in crate::mesh) async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let read = bounded(self.limit, async {
            self.stream.read(buffer).await.map_err(|error| StreamError::Connection(error.to_string()))
        });
        read.await?.ok_or(StreamError::Ended)
    }
}

/// Reads `len` bytes. Memory is taken as they come.
async fn read_body(stream: &mut RecvStream, len: usize) -> Result<Vec<u8>, StreamError> {
    let mut body = Vec::new();
    while body.len() < len {
        let read = stream.read_chunk(len - body.len(), true).await;
        let chunk = read.map_err(|error| StreamError::Connection(error.to_string()))?;
        body.extend_from_slice(&chunk.ok_or(StreamError::Ended)?.bytes);
    }
    Ok(body)
}

/// Writes one message.
pub(in crate::mesh) async fn write_message(
    stream: &mut SendStream,
    message: &Message,
    limit: Duration,
) -> Result<(), StreamError> {
    let frame = message.to_frame()?;
    write_all(stream, frame.into(), limit).await
}

/// Writes `bytes`, without copying them; each step may take `limit`.
pub(in crate::mesh) async fn write_all(
    stream: &mut SendStream,
    mut bytes: Bytes,
    limit: Duration,
) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let step = bytes.split_to(bytes.len().min(WRITE_STEP_BYTES));
        bounded(limit, stream.write_chunk(step)).await?;
    }
    Ok(())
}
