//! Readers on this node that wait for a chunk.

use super::super::ports::{ObtainError, Obtained};
use super::super::proto::{Chunk, GiveUp, Input, Source};
use super::peers::ME;
use super::task::{Driver, Message, WantReply};
use crate::model::{ChunkRef, Class, RepositoryName, Time};
use bytes::Bytes;
use std::collections::HashMap;

/// Readers that wait at once (guess: more than a node has threads that read).
const WAITERS_MAX: usize = 32_768;
/// How often bytes that the core holds for stored may turn out lost before a reader is told so.
const LOADS_MAX: u8 = 3;

/// What a reader wants.
pub(super) struct Wish {
    pub(super) repository: RepositoryName,
    pub(super) chunk: ChunkRef,
    pub(super) class: Class,
    pub(super) deadline: Time,
    pub(super) reply: WantReply,
    /// In which what is done for it is noted.
    pub(super) span: tracing::Span,
}

struct Waiter {
    class: Class,
    deadline: Time,
    reply: WantReply,
    span: tracing::Span,
}

#[derive(Default)]
struct Waiting {
    waiters: Vec<Waiter>,
    /// Whether the store is being read for them.
    loading: bool,
    /// How often it was read in vain.
    loads: u8,
}

/// Who waits for what. Each entry pins its chunk's number.
#[derive(Default)]
pub(super) struct WantBook {
    by_chunk: HashMap<Chunk, Waiting>,
    waiters: usize,
}

impl WantBook {
    /// Whether somebody here wishes for a chunk, and only to have it fetched ahead.
    pub(super) fn is_only_ahead(&self, chunk: Chunk) -> bool {
        let ahead = |waiting: &Waiting| waiting.waiters.iter().all(|waiter| waiter.class == Class::Prefetch);
        self.by_chunk.get(&chunk).is_some_and(ahead)
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.by_chunk.is_empty()
    }
}

impl Driver {
    /// A reader wants a chunk.
    pub(super) fn want(&mut self, wish: Wish) {
        let Wish { repository, chunk, class, deadline, reply, span } = wish;
        if self.wants.waiters >= WAITERS_MAX {
            let _ = reply.send(Err(ObtainError::TooMany));
            return;
        }
        let Some(number) = self.intern(chunk, &repository, true) else {
            let _ = reply.send(Err(ObtainError::TooMany));
            return;
        };
        let waiting = self.wants.by_chunk.entry(number).or_default();
        if waiting.waiters.is_empty() {
            self.content.pin(number);
        }
        waiting.waiters.push(Waiter { class, deadline, reply, span });
        self.wants.waiters += 1;
        self.input(Input::Wanted { chunk: number, class, deadline });
        if class == Class::Read {
            self.hurry_upstream(number);
        }
    }

    /// The span of who waits for a chunk longest; none, when it is fetched for others only.
    pub(super) fn span_of(&self, chunk: Chunk) -> Option<tracing::Id> {
        self.wants.by_chunk.get(&chunk)?.waiters.first()?.span.id()
    }

    /// The core says that a wanted chunk is here.
    pub(super) fn deliver(&mut self, chunk: Chunk) {
        let Some(entry) = self.content.get(chunk) else { return };
        let (reference, repository) = (entry.chunk, entry.repository);
        if let Some((bytes, from)) = self.recent.get(&reference.id)
            && bytes.len() == reference.plain_len as usize
        {
            let obtained = match from {
                Source::Strata => Obtained::Strata,
                Source::Peer(peer) => {
                    Obtained::Peer(self.peers.get(peer).map_or(self.node, |entry| entry.node))
                }
            };
            self.answer_waiters(chunk, &Ok((bytes, obtained)));
            return;
        }
        let Some(waiting) = self.wants.by_chunk.get_mut(&chunk).filter(|waiting| !waiting.loading) else {
            return;
        };
        waiting.loading = true;
        let links = self.links.for_task();
        tokio::spawn(async move {
            let bytes = links.local.load(reference.id).await;
            let bytes = bytes.filter(|bytes| bytes.len() == reference.plain_len as usize);
            let _ = links.inbox.send(Message::Loaded { repository, chunk: reference, bytes }).await;
        });
    }

    /// The store was read for waiting readers.
    pub(super) fn loaded(&mut self, repository: &RepositoryName, chunk: ChunkRef, bytes: Option<Bytes>) {
        let Some(chunk) = self.content.number(&chunk, repository) else { return };
        let Some(waiting) = self.wants.by_chunk.get_mut(&chunk) else { return };
        waiting.loading = false;
        if let Some(bytes) = bytes {
            // It was stored before it was wanted: nobody had to send it.
            let own = self.peers.get(ME).map_or(self.node, |entry| entry.node);
            self.answer_waiters(chunk, &Ok((bytes, Obtained::Peer(own))));
            return;
        }
        waiting.loads += 1;
        if waiting.loads >= LOADS_MAX {
            let error = ObtainError::NoSource("the store lost the chunk again and again".into());
            self.answer_waiters(chunk, &Err(error));
            return;
        }
        // The core believed it to be stored: it has to be fetched after all.
        let urgent = waiting.waiters.iter().map(|waiter| waiter.class).min();
        let latest = waiting.waiters.iter().map(|waiter| waiter.deadline).max();
        if self.content.set_stored(chunk, false) {
            self.input(Input::Evicted { chunk });
        }
        if let (Some(class), Some(deadline)) = (urgent, latest) {
            self.input(Input::Wanted { chunk, class, deadline });
        }
    }

    /// The core gives up.
    pub(super) fn give_up(&mut self, chunk: Chunk, why: GiveUp) {
        let error = match why {
            GiveUp::NoSource => ObtainError::NoSource("no neighbour and no stratum delivered it".into()),
            GiveUp::Deadline => ObtainError::Deadline("it was still being fetched".into()),
            GiveUp::TooMany => ObtainError::TooMany,
        };
        self.answer_waiters(chunk, &Err(error));
    }

    fn answer_waiters(&mut self, chunk: Chunk, result: &Result<(Bytes, Obtained), ObtainError>) {
        let Some(waiting) = self.wants.by_chunk.remove(&chunk) else { return };
        self.wants.waiters -= waiting.waiters.len();
        self.content.unpin(chunk);
        for waiter in waiting.waiters {
            let _ = waiter.reply.send(result.clone());
        }
    }

    /// Readers that went away: when none is left for a chunk, the core hears that it is not wanted.
    pub(super) fn drop_withdrawn_wants(&mut self) {
        let mut unwanted = Vec::new();
        for (chunk, waiting) in &mut self.wants.by_chunk {
            let before = waiting.waiters.len();
            waiting.waiters.retain(|waiter| !waiter.reply.is_closed());
            self.wants.waiters -= before - waiting.waiters.len();
            if waiting.waiters.is_empty() {
                unwanted.push(*chunk);
            }
        }
        unwanted.sort_unstable();
        for chunk in unwanted {
            self.wants.by_chunk.remove(&chunk);
            self.content.unpin(chunk);
            self.input(Input::Unwanted { chunk });
        }
    }
}
