//! The asker's side of a request for chunks.

use super::buffers::Buffer;
use super::{FrameReader, NO_PROGRESS, TransferError, patience, say, write_all};
use crate::mesh::throttle::Throttle;
use crate::mesh::wire::{DataHeader, Encoding, Holder, Message, Request, Told};
use crate::mesh::{CloseCode, MemberConnection};
use crate::model::{ChunkRef, Class, ContentId};
use bytes::Bytes;
use quinn::SendStream;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Verified chunks that wait for the asker; then the peer is no longer read, and so is slowed down.
const EVENTS_WAITING: usize = 4;
/// Bytes of a growing chunk that are hashed at once: while the rest is on its way, and while they are in the processor's
/// cache (measured: from 16 KiB up BLAKE3 runs at full speed).
const HASH_STEP_BYTES: usize = 64 << 10;
/// Memory taken for a chunk before its bytes have come; a larger one grows with what arrives.
const RESERVE_MAX_BYTES: usize = 4 << 20;

/// Without a datagram for so long, not even an acknowledgement, a connection is dead (guess: no round trip is as long,
/// and the core gives an ask up after 2 s).
const DEAD_AFTER: Duration = Duration::from_millis(1_500);

/// How often a peer may say `Wait` for each chunk of a request: every half second for as long as the core lets one
/// source make it wait, twice over.
const WAITS_PER_CHUNK: usize = 60;

/// What became of one chunk of a request. All but `Wait` are final.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Its plain bytes: their BLAKE3 is the chunk's name.
    Arrived(Bytes),
    /// The peer gets or queues it: data follows.
    Wait {
        /// Uploads running and queued there.
        load: u8,
    },
    /// The peer has no upload slot.
    Busy {
        /// Others who may hold it.
        holders: Vec<Holder>,
        /// Uploads running and queued there.
        load: u8,
    },
    /// The peer does not have it.
    Missing {
        /// Others who may hold it.
        holders: Vec<Holder>,
        /// Uploads running and queued there.
        load: u8,
    },
    /// It will not come.
    Failed(TransferError),
}

/// A request under way. Dropping it withdraws everything that has not arrived.
#[derive(Debug)]
pub struct Asking {
    events: mpsc::Receiver<(usize, Reply)>,
    withdrawals: mpsc::Sender<u16>,
}

impl Asking {
    /// The next reply and the index of its chunk in the request; `None` after the last chunk's final
    /// reply. Every chunk gets one unless it was withdrawn. Safe to cancel.
    pub async fn next(&mut self) -> Option<(usize, Reply)> {
        self.events.recv().await
    }

    /// Tells the peer that one chunk is no longer wanted. It may arrive all the same.
    pub fn withdraw(&self, index: usize) {
        if let Ok(index) = u16::try_from(index) {
            // The queue holds one withdrawal a chunk. Once the request has ended it does not matter.
            let _ = self.withdrawals.try_send(index);
        }
    }
}

/// Asks the peer at the other end of `connection`. The request ends when each chunk has its final
/// reply, or after [`NO_PROGRESS`] without a byte.
///
/// # Errors
/// [`TransferError::Request`] when the request is out of bounds: nothing was sent.
pub fn ask(connection: MemberConnection, request: Request) -> Result<Asking, TransferError> {
    request.check()?;
    let (events_in, events) = mpsc::channel(EVENTS_WAITING);
    let (withdrawals, withdrawn) = mpsc::channel(request.chunks.len());
    let in_use = connection.begin_use();
    tokio::spawn(async move {
        let _in_use = in_use;
        let count = request.chunks.len();
        let mut open = Open { left: count, is_open: vec![true; count], waits_left: WAITS_PER_CHUNK * count };
        let began = (tokio::time::Instant::now(), received(&connection));
        let result = tokio::select! {
            biased;
            () = events_in.closed() => {
                close_if_dead(&connection, began);
                return;
            }
            result = exchange(&connection, &request, &mut open, &events_in, withdrawn) => result,
        };
        let error = result.err().unwrap_or(TransferError::NotAnswered);
        close_if_dead(&connection, began);
        if let Some(offence) = error.offence() {
            connection.report(offence);
        }
        for index in (0..request.chunks.len()).filter(|index| open.is_open[*index]) {
            if events_in.send((index, Reply::Failed(error.clone()))).await.is_err() {
                return;
            }
        }
    });
    Ok(Asking { events, withdrawals })
}

fn received(connection: &MemberConnection) -> u64 {
    connection.quinn().stats().udp_rx.datagrams
}

/// Closes a connection on which nothing at all came while something was asked: its peer restarted, or the path
/// forgot it. Whoever asks next dials anew, rather than to wait for the idle time-out.
fn close_if_dead(connection: &MemberConnection, (began, datagrams): (tokio::time::Instant, u64)) {
    if began.elapsed() >= DEAD_AFTER && received(connection) == datagrams {
        tracing::debug!(?connection, "nothing comes on it");
        connection.close(CloseCode::Done);
    }
}

/// Which chunks have no final reply yet.
struct Open {
    left: usize,
    is_open: Vec<bool>,
    /// How often the peer may still say `Wait`, about any of them.
    waits_left: usize,
}

impl Open {
    fn close(&mut self, index: usize) {
        if std::mem::replace(&mut self.is_open[index], false) {
            self.left -= 1;
        }
    }

    fn note_wait(&mut self) -> Result<(), TransferError> {
        self.waits_left = self
            .waits_left
            .checked_sub(1)
            .ok_or_else(|| TransferError::Protocol("it says `Wait` without end".into()))?;
        Ok(())
    }

    /// The chunk that a reply speaks of, if it still waits for one.
    fn find(&self, index: u16) -> Result<usize, TransferError> {
        let index = usize::from(index);
        match self.is_open.get(index) {
            Some(true) => Ok(index),
            Some(false) => Err(TransferError::Protocol(format!("a second answer for chunk {index}"))),
            None => {
                Err(TransferError::Protocol(format!("an answer for chunk {index} of {}", self.is_open.len())))
            }
        }
    }
}

type Events = mpsc::Sender<(usize, Reply)>;

async fn exchange(
    connection: &MemberConnection,
    request: &Request,
    open: &mut Open,
    events: &Events,
    withdrawn: mpsc::Receiver<u16>,
) -> Result<(), TransferError> {
    let (mut send, recv) = tokio::time::timeout(NO_PROGRESS, connection.quinn().open_bi())
        .await
        .map_err(|_| TransferError::NoProgress(NO_PROGRESS))?
        .map_err(|error| TransferError::Connection(error.to_string()))?;
    // In one piece, so that it leaves in one packet.
    let frame = Message::Request(request.clone()).to_frame()?;
    let frame = [&[connection.version()][..], &frame].concat().into();
    connection.precedence().first(write_all(&mut send, frame, NO_PROGRESS)).await?;
    // The end of a request for one chunk leaves with it, rather than in a packet of its own when all is over.
    let send = if request.chunks.len() == 1 {
        let _ = send.finish();
        None
    } else {
        Some(send)
    };
    let mut reader = FrameReader::new(recv, NO_PROGRESS);
    tokio::select! {
        biased;
        result = replies(connection, &mut reader, request, open, events) => result,
        () = pass_withdrawals(connection, send, withdrawn) => Err(TransferError::NotAnswered),
    }
}

/// Passes withdrawals on as they come. A peer that has said all it will takes no more of them, which is
/// no failure: what it said may still be on its way. A broken connection is noticed by the reader. Returns when
/// the only chunk of a request was withdrawn: then nothing more is read, which says as much.
async fn pass_withdrawals(
    connection: &MemberConnection,
    send: Option<SendStream>,
    mut withdrawn: mpsc::Receiver<u16>,
) {
    let Some(mut send) = send else {
        return match withdrawn.recv().await {
            Some(_) => {}
            None => std::future::pending().await,
        };
    };
    while let Some(index) = withdrawn.recv().await {
        if say(connection, &mut send, &Message::Withdraw(index)).await.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}

async fn replies(
    connection: &MemberConnection,
    reader: &mut FrameReader,
    request: &Request,
    open: &mut Open,
    events: &Events,
) -> Result<(), TransferError> {
    while open.left > 0 {
        let Some(message) = reader.message().await? else { return Err(TransferError::NotAnswered) };
        let (index, reply) = match message {
            Message::Data(header) => {
                let index = open.find(header.index)?;
                let intake = Intake { throttle: &connection.throttles().down, class: request.class };
                match read_chunk(reader, header, &request.chunks[index], intake).await {
                    Ok(bytes) => (index, Reply::Arrived(bytes)),
                    Err(error @ TransferError::WrongBytes { .. }) => {
                        open.close(index);
                        let _ = events.send((index, Reply::Failed(error.clone()))).await;
                        return Err(TransferError::NotAnswered);
                    }
                    Err(error) => return Err(error),
                }
            }
            Message::Wait(Told { index, load, .. }) => {
                open.note_wait()?;
                (open.find(index)?, Reply::Wait { load })
            }
            Message::Busy(Told { index, holders, load }) => {
                (open.find(index)?, Reply::Busy { holders, load })
            }
            Message::Missing(Told { index, holders, load }) => {
                (open.find(index)?, Reply::Missing { holders, load })
            }
            Message::Refused(because) => return Err(TransferError::Refused(because)),
            other => return Err(TransferError::Protocol(format!("unexpected in a reply: {other:?}"))),
        };
        if !matches!(reply, Reply::Wait { .. }) {
            open.close(index);
        }
        // The asker's end being gone is noticed by whoever runs this.
        let _ = events.send((index, reply)).await;
    }
    reader.note_end();
    Ok(())
}

/// How fast chunks are taken in.
struct Intake<'a> {
    throttle: &'a Throttle,
    class: Class,
}

/// Reads a chunk's bytes and verifies them. Memory grows with what arrives, never beyond the length that
/// the asker's own catalog states.
async fn read_chunk(
    reader: &mut FrameReader,
    header: DataHeader,
    chunk: &ChunkRef,
    intake: Intake<'_>,
) -> Result<Bytes, TransferError> {
    let wrong = |detail: String| TransferError::WrongBytes { chunk: chunk.id, detail };
    let Encoding::Plain = header.encoding().map_err(|error| TransferError::Protocol(error.to_string()))?;
    if header.len != chunk.plain_len {
        return Err(wrong(format!("{} bytes instead of {}", header.len, chunk.plain_len)));
    }
    let len = header.len as usize;
    let mut bytes =
        if len <= RESERVE_MAX_BYTES { Room::Whole(Buffer::take(len)) } else { Room::Growing(Vec::new()) };
    let mut hasher = blake3::Hasher::new();
    let (mut read, mut hashed) = (0, 0);
    let limit = patience(header.len);
    let mut until = Instant::now() + limit;
    while read < len {
        let room = bytes.up_to(len, read);
        let came = tokio::time::timeout_at(until, reader.read(&mut room[read..])).await;
        let came = came.map_err(|_| TransferError::Drip { len: header.len, limit })??;
        read += came;
        // What is not read fills QUIC's windows, and the peer slows down: that is no fault of its own.
        until += intake.throttle.pass(intake.class, came).await;
        if read - hashed >= HASH_STEP_BYTES || read == len {
            // BLAKE3 is fast on whole subtrees: what is beyond the last step waits for more.
            let end = if read == len { len } else { read - (read - hashed) % HASH_STEP_BYTES };
            hasher.update(&room[hashed..end]);
            hashed = end;
        }
    }
    let found = ContentId::blake3(*hasher.finalize().as_bytes());
    if found == chunk.id { Ok(bytes.freeze()) } else { Err(wrong(format!("they hash to {found}"))) }
}

/// Memory for a chunk that comes in.
enum Room {
    Whole(Buffer),
    /// Grown by [`RESERVE_MAX_BYTES`] whenever it is full.
    Growing(Vec<u8>),
}

impl Room {
    /// The memory, of at most `len` bytes; there is always some beyond `read`.
    fn up_to(&mut self, len: usize, read: usize) -> &mut [u8] {
        match self {
            Self::Whole(buffer) => buffer.as_mut(),
            Self::Growing(bytes) => {
                if bytes.len() == read {
                    bytes.resize(len.min(read + RESERVE_MAX_BYTES), 0);
                }
                bytes
            }
        }
    }

    fn freeze(self) -> Bytes {
        match self {
            Self::Whole(buffer) => buffer.freeze(),
            Self::Growing(bytes) => bytes.into(),
        }
    }
}
