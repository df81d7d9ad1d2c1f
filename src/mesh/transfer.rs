//! Chunks, news and lists of members between neighbours, over connections of the protocol `starling/1`.
//!
//! One bidirectional stream a request. [`ask`] is the asker's side: it verifies each chunk against its
//! name before anybody sees a byte of it. [`serve()`] is the other side: it passes what is asked, within
//! the asker's rights, to the driver, and carries the answers back. `talk` holds the small requests.

mod ask;
mod body;
mod buffers;
mod carry_back;
mod frames;
mod outflow;
mod precedence;
mod serve;
mod talk;

pub use ask::{Asking, Reply, ask};
pub(super) use serve::may_hear;
pub use serve::{Ask, AskReply, PeerRequest, serve};
pub use talk::{all_news, members, push_news, tell_possession};

pub(super) use body::{Body, Stored};
pub(super) use carry_back::{Done, Sent};

pub(super) use frames::{FrameReader, StreamError, write_all, write_message};
pub(super) use outflow::WINDOW_MAX_BYTES as SEND_WINDOW_BYTES;
pub(super) use precedence::Precedence;
pub(super) use talk::{Renewal, lapsed_or_not, renew, show, take_rest};

use super::MemberConnection;
use super::conduct::Offence;
use super::proto::Failure;
use super::wire::{Message, RefusedBecause, WireError};
use crate::model::ContentId;
use quinn::SendStream;
use std::time::Duration;

/// Without a byte from the peer for so long, a request has failed (guess: five leases of a home without
/// progress, shorter than the idle time-out of a connection).
pub const NO_PROGRESS: Duration = Duration::from_secs(10);

/// Slowest transfer of one chunk, in bytes a second: a quarter of what the core still waits for, so that only what
/// nobody waits for any longer is ended here,
const SLOWEST_BYTES_PER_S: u64 = 64 << 10;
/// and the time that it gets beside.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the bytes of a chunk may take from the first to the last.
fn patience(len: u32) -> Duration {
    PATIENCE + Duration::from_millis(u64::from(len) * 1_000 / SLOWEST_BYTES_PER_S)
}

/// Writes one message between two members, before what chunks there are on the connection.
async fn say(
    connection: &MemberConnection,
    stream: &mut SendStream,
    message: &Message,
) -> Result<(), StreamError> {
    connection.precedence().first(write_message(stream, message, NO_PROGRESS)).await
}

/// Why a peer did not deliver.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection broke, or the peer closed it: also the way in which a peer says that this node is
    /// not welcome.
    #[error("the connection failed: {0}")]
    Connection(String),
    /// No byte for too long.
    #[error("no progress for {0:?}")]
    NoProgress(Duration),
    /// Bytes come, but too slowly to be of use.
    #[error("a chunk of {len} bytes did not come within {limit:?}")]
    Drip {
        /// Its length.
        len: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// The bytes are not those of the chunk.
    #[error("wrong bytes for chunk {chunk}: {detail}")]
    WrongBytes {
        /// What was asked.
        chunk: ContentId,
        /// What came.
        detail: String,
    },
    /// The peer speaks otherwise than agreed.
    #[error("the peer violates the protocol: {0}")]
    Protocol(String),
    /// The peer does not serve the request.
    #[error("the peer refuses: {0:?}")]
    Refused(RefusedBecause),
    /// The peer ended the stream without an answer for this chunk.
    #[error("the peer ended the request without an answer")]
    NotAnswered,
    /// The request itself is out of bounds.
    #[error(transparent)]
    Request(#[from] WireError),
}

impl TransferError {
    /// The failure as the core knows it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Connection(_) => Failure::Unreachable,
            Self::NoProgress(_) | Self::Drip { .. } => Failure::TimedOut,
            Self::WrongBytes { .. } => Failure::WrongBytes,
            Self::Protocol(_) | Self::Refused(_) | Self::NotAnswered | Self::Request(_) => Failure::Refused,
        }
    }
}

impl TransferError {
    /// What the peer did that it should not have done. Wrong bytes are the core's to judge.
    pub(super) fn offence(&self) -> Option<Offence> {
        match self {
            Self::Protocol(_) => Some(Offence::Protocol),
            Self::Drip { .. } => Some(Offence::Drip),
            _ => None,
        }
    }
}

impl From<StreamError> for TransferError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Connection(detail) => Self::Connection(detail),
            StreamError::NoProgress(span) => Self::NoProgress(span),
            StreamError::Ended | StreamError::Lost => Self::NotAnswered,
            StreamError::Wire(error) => Self::Protocol(error.to_string()),
            StreamError::Noise(frames) => {
                Self::Protocol(format!("{frames} frames of unknown types in a row"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
