//! What the driver says to the asks of one stream, carried back to the asker: chunks, read as they leave, and short
//! answers.

use super::outflow::Outflow;
use super::{Body, StreamError};
use crate::mesh::wire::{DataHeader, Message, Told};
use crate::model::Class;
use quinn::SendStream;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// What the asks of a stream say.
pub(super) enum Out {
    Say(Message),
    Data(Box<Sending>),
    Nothing(u16),
}

/// A chunk that is to be sent.
pub(super) struct Sending {
    pub(super) index: u16,
    pub(super) body: Body,
    pub(super) done: Done,
    /// Where it goes once it was read, if reading must wait.
    pub(super) out: mpsc::Sender<Out>,
    /// Its place among what the peer may ask for at a time.
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// How the sending of a chunk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum Sent {
    /// The peer has acknowledged all of it but the little that is in flight.
    Whole,
    /// The asker withdrew, takes nothing for too long, or is gone.
    Broken,
    /// The store does not have it any more.
    Gone,
}

/// Hears once how the sending of a chunk ended, even if what sends it is dropped.
pub(in crate::mesh) struct Done(Option<Box<dyn FnOnce(Sent) + Send>>);

impl Done {
    pub(in crate::mesh) fn new(hear: impl FnOnce(Sent) + Send + 'static) -> Self {
        Self(Some(Box::new(hear)))
    }

    fn tell(mut self, sent: Sent) {
        if let Some(hear) = self.0.take() {
            hear(sent);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(hear) = self.0.take() {
            hear(Sent::Broken);
        }
    }
}

/// The asks of a stream that have no final answer: their numbers, by index.
pub(super) struct Open(Mutex<Vec<Option<u64>>>);

impl Open {
    pub(super) fn new(count: usize) -> Self {
        Self(Mutex::new(vec![None; count]))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Option<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, index: u16, number: u64) {
        self.lock()[usize::from(index)] = Some(number);
    }

    fn is_open(&self, index: u16) -> bool {
        self.lock()[usize::from(index)].is_some()
    }

    pub(super) fn take(&self, index: u16) -> Option<u64> {
        self.lock().get_mut(usize::from(index))?.take()
    }

    pub(super) fn take_all(&self) -> Vec<u64> {
        self.lock().iter_mut().filter_map(Option::take).collect()
    }
}

/// Writes what the asks say until all of them have ended: what is short before the next chunk, for whoever hears nothing
/// believes this node dead.
pub(super) async fn carry_back(
    send: &mut SendStream,
    outflow: &Outflow,
    class: Class,
    mut said: mpsc::Receiver<Out>,
    open: &Open,
) -> Result<(), StreamError> {
    let mut left = open.lock().len();
    let mut chunks: VecDeque<Box<Sending>> = VecDeque::new();
    loop {
        let out = match said.try_recv() {
            Ok(out) => out,
            Err(_) => match chunks.pop_front() {
                Some(sending) => {
                    left = left.saturating_sub(1);
                    carry_chunk(send, outflow, class, sending, (open, left)).await?;
                    continue;
                }
                None => match said.recv().await {
                    Some(out) => out,
                    None => break,
                },
            },
        };
        match out {
            Out::Say(message) => {
                if let Message::Busy(told) | Message::Missing(told) = &message {
                    open.take(told.index);
                    left = left.saturating_sub(1);
                }
                outflow.say(send, &message).await?;
            }
            // Withdrawn meanwhile; dropping it says so.
            Out::Data(sending) if !open.is_open(sending.index) => left = left.saturating_sub(1),
            Out::Data(mut sending) => {
                if let Body::Stored(stored) = &mut sending.body
                    && !stored.begin()
                {
                    // Others need not wait for the disk with it.
                    tokio::spawn(load(sending));
                } else {
                    chunks.push_back(sending);
                }
            }
            Out::Nothing(index) => {
                open.take(index);
                left = left.saturating_sub(1);
            }
        }
    }
    // For the second time, where it was said with the last chunk: that changes nothing.
    let _ = send.finish();
    Ok(())
}

/// Writes one chunk, after which `left` asks have no final answer, and tells how that ended.
async fn carry_chunk(
    send: &mut SendStream,
    outflow: &Outflow,
    class: Class,
    mut sending: Box<Sending>,
    (open, left): (&Open, usize),
) -> Result<(), StreamError> {
    if !open.is_open(sending.index) {
        // Withdrawn meanwhile; dropping it says so.
        return Ok(());
    }
    let result = send_chunk(send, outflow, class, &mut sending).await;
    open.take(sending.index);
    if left == 0 && result.is_ok() {
        // The end leaves with the last bytes, and both before the driver is told.
        let _ = send.finish();
        tokio::task::yield_now().await;
    }
    let sent = match &result {
        Ok(()) => Sent::Whole,
        Err(StreamError::Lost) => Sent::Gone,
        Err(_) => Sent::Broken,
    };
    sending.done.tell(sent);
    result
}

async fn send_chunk(
    send: &mut SendStream,
    outflow: &Outflow,
    class: Class,
    sending: &mut Sending,
) -> Result<(), StreamError> {
    let body = &mut sending.body;
    let len = u32::try_from(body.len()).map_err(|_| StreamError::Ended)?;
    let frame = Message::Data(DataHeader::plain(sending.index, len)).to_frame()?;
    outflow.write(send, class, frame.into(), body).await
}

/// Reads a chunk that the kernel does not have in memory, and queues it again.
async fn load(mut sending: Box<Sending>) {
    let Body::Stored(stored) = &sending.body else { return };
    let out = sending.out.clone();
    // The queue has room for all that the ask may say. When the stream is gone, what is dropped says so.
    if let Some(bytes) = stored.load().await {
        sending.body = Body::Here(bytes);
        let _ = out.try_send(Out::Data(sending));
    } else {
        let told = Told { index: sending.index, holders: Vec::new(), load: 0 };
        let _ = out.try_send(Out::Say(Message::Missing(told)));
        sending.done.tell(Sent::Gone);
    }
}
