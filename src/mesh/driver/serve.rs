//! The serving side: what peers ask becomes the core's inputs, its answers go back to them.

use super::super::proto::{Answer, Ask, Chunk, Input, Peer};
use super::super::ticket::CONTACT_MAX_ADDRESSES;
use super::super::transfer::{self, AskReply, Body, Done, PeerRequest, Sent, Stored};
use super::super::wire::{Holder, MemberRecord};
use super::counters::{add, count};
use super::peers::ME;
use super::task::{Driver, Message};
use crate::model::{ContentId, limits};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Asks of peers that are kept track of. The core's own bound is lower.
const ASKS_MAX: usize = 1 << 16;

/// Asks of one peer for chunks that are not stored here: a quarter of what the core fetches for others, so that nobody
/// keeps all homes busy with chunks that may not even exist.
const ABSENT_PER_PEER: u32 = 256;

/// An ask of a peer that has no final answer yet.
struct Upload {
    peer: Peer,
    chunk: Chunk,
    id: ContentId,
    plain_len: u32,
    request: u64,
    /// Whether it was not stored when it was asked for.
    absent: bool,
    /// Gone once the bytes are on their way.
    reply: Option<AskReply>,
}

/// The asks of peers. Each pins its chunk and its peer.
#[derive(Default)]
pub(super) struct UploadBook {
    by_ask: HashMap<Ask, Upload>,
    by_request: HashMap<u64, Ask>,
    /// How many of each peer are for chunks that were not stored.
    absent: HashMap<Peer, u32>,
    next: u32,
}

/// Tells the loop, from where nothing may wait.
fn tell(inbox: &mpsc::Sender<Message>, message: Message) {
    let Err(TrySendError::Full(message)) = inbox.try_send(message) else { return };
    // Each upload says so once, and their number is bounded. Without a runtime the loop is gone, too.
    if let Ok(runtime) = Handle::try_current() {
        let inbox = inbox.clone();
        runtime.spawn(async move {
            let _ = inbox.send(message).await;
        });
    }
}

impl Driver {
    /// A peer wants something.
    pub(super) fn requested(&mut self, request: PeerRequest) {
        match request {
            PeerRequest::Ask(ask) => self.asked(ask),
            PeerRequest::Withdrawn { number } => {
                if let Some(ask) = self.uploads.by_request.get(&number).copied() {
                    self.end_upload(ask);
                    self.input(Input::AskGone { ask });
                }
            }
            PeerRequest::News { from, news } => self.judge(news, from),
            PeerRequest::Possession { from, slices } => self.possession_told(from, &slices),
            PeerRequest::AllNews { reply } => {
                let links = self.links.for_task();
                let turn = self.gossip.draw();
                // It is in memory, but there may be thousands: not in the loop. Not on a thread for blocking work
                // either, whose end no test with a seed could foresee.
                tokio::spawn(async move {
                    let mut news = links.trust.map(|trust| trust.documents()).unwrap_or_default();
                    let mut others = links.local.all_news();
                    // So that somebody to whom all of them take too long has all of them after some times.
                    let first = turn % others.len().max(1);
                    others.rotate_left(first);
                    news.extend(others);
                    let _ = reply.send(news);
                });
            }
            PeerRequest::Renew { shown, reply } => self.renewal_wanted(shown, reply),
            PeerRequest::Shown { from, certificate } => self.shown(from, certificate),
            PeerRequest::Members { reply } => {
                let _ = reply.send(self.member_records());
            }
        }
    }

    fn asked(&mut self, ask: transfer::Ask) {
        count(&self.links.counters.asks_received);
        let transfer::Ask { number: request, peer: node, repository, class, chunk, reply } = ask;
        let peer = self.peers.number(&node);
        let room = self.uploads.by_ask.len() < ASKS_MAX;
        let (Some(peer), true) = (peer, room) else {
            count(&self.links.counters.overload);
            reply.busy(Vec::new(), u8::MAX);
            return;
        };
        let Some(number) = self.intern(chunk, &repository, false) else {
            count(&self.links.counters.overload);
            reply.busy(Vec::new(), u8::MAX);
            return;
        };
        let absent = self.content.get(number).is_some_and(|entry| !entry.stored);
        if absent {
            let others = self.uploads.absent.entry(peer).or_default();
            if *others >= ABSENT_PER_PEER {
                count(&self.links.counters.overload);
                reply.busy(Vec::new(), u8::MAX);
                return;
            }
            *others += 1;
        }
        let ask = self.next_ask();
        self.content.pin(number);
        self.peers.pin(peer);
        let (id, plain_len) = (chunk.id, chunk.plain_len);
        let upload = Upload { peer, chunk: number, id, plain_len, request, absent, reply: Some(reply) };
        self.uploads.by_ask.insert(ask, upload);
        self.uploads.by_request.insert(request, ask);
        self.input(Input::Asked { peer, ask, chunk: number, class });
    }

    /// A number that no ask under way has.
    fn next_ask(&mut self) -> Ask {
        loop {
            self.uploads.next = self.uploads.next.wrapping_add(1);
            let ask = Ask(self.uploads.next);
            if !self.uploads.by_ask.contains_key(&ask) {
                return ask;
            }
        }
    }

    fn end_upload(&mut self, ask: Ask) -> Option<Upload> {
        let upload = self.uploads.by_ask.remove(&ask)?;
        self.uploads.by_request.remove(&upload.request);
        if upload.absent
            && let Some(others) = self.uploads.absent.get_mut(&upload.peer)
        {
            *others -= 1;
            if *others == 0 {
                self.uploads.absent.remove(&upload.peer);
            }
        }
        self.content.unpin(upload.chunk);
        self.peers.unpin(upload.peer);
        Some(upload)
    }

    /// The core says: send the bytes.
    pub(super) fn serve(&mut self, ask: Ask) {
        let Some(upload) = self.uploads.by_ask.get_mut(&ask) else {
            self.input(Input::Served { ask, ok: false });
            return;
        };
        let Some(reply) = upload.reply.take() else { return };
        let (id, plain_len) = (upload.id, upload.plain_len);
        count(&self.links.counters.answers_data);
        // The reference may lie about the length; then nobody can have the chunk under it.
        let recent = self.recent.get(&id).filter(|(bytes, _)| bytes.len() == plain_len as usize);
        let body = match recent {
            Some((bytes, _)) => Body::Here(bytes),
            None => Body::Stored(Stored::new(Arc::clone(&self.links.local), id, plain_len)),
        };
        let inbox = self.links.inbox.clone();
        reply.send_body(
            body,
            Done::new(move |sent| {
                let uploaded = Message::Uploaded { ask, ok: sent == Sent::Whole, gone: sent == Sent::Gone };
                tell(&inbox, uploaded);
            }),
        );
    }

    /// An upload ended.
    pub(super) fn uploaded(&mut self, ask: Ask, ok: bool, gone: bool) {
        let Some(upload) = self.end_upload(ask) else { return };
        if ok {
            let len = u64::from(upload.plain_len);
            add(&self.links.counters.bytes_up, len);
            if let Some(entry) = self.peers.get_mut(upload.peer) {
                entry.bytes_up += len;
            }
        }
        if gone && self.content.set_stored(upload.chunk, false) {
            self.input(Input::Evicted { chunk: upload.chunk });
        }
        self.input(Input::Served { ask, ok });
    }

    /// The core says something instead of data.
    pub(super) fn answer(&mut self, ask: Ask, answer: &Answer, load: u8) {
        let counters = self.links.counters.clone();
        let holders = match answer {
            Answer::Wait => {
                count(&counters.answers_wait);
                if let Some(reply) =
                    self.uploads.by_ask.get_mut(&ask).and_then(|upload| upload.reply.as_mut())
                {
                    reply.wait(load);
                }
                return;
            }
            Answer::Busy { holders } | Answer::Missing { holders } => self.named(ask, holders),
        };
        let Some(reply) = self.end_upload(ask).and_then(|upload| upload.reply) else { return };
        if matches!(answer, Answer::Busy { .. }) {
            count(&counters.answers_busy);
            reply.busy(holders, load);
        } else {
            count(&counters.answers_missing);
            reply.missing(holders, load);
        }
    }

    /// Holders as a peer is told of them: none that may not read the repository itself.
    fn named(&self, ask: Ask, holders: &[Peer]) -> Vec<Holder> {
        let chunk = self.uploads.by_ask.get(&ask).and_then(|upload| self.content.get(upload.chunk));
        let Some(repository) = chunk.map(|entry| entry.repository) else { return Vec::new() };
        holders
            .iter()
            .filter_map(|peer| self.peers.get(*peer))
            .filter(|entry| entry.may_read(&repository))
            .map(|entry| Holder { node: entry.node, address: entry.addr })
            .collect()
    }

    /// This node, as others are told of it.
    pub(super) fn own_record(&self) -> Option<MemberRecord> {
        let (network, entry) = (self.links.network.as_ref()?, self.peers.get(ME)?);
        let certificate = network.endpoint.identity().membership().bytes().to_vec();
        let addresses = std::iter::once(entry.addr).chain(network.more.iter().copied());
        Some(MemberRecord { certificate, addresses: addresses.take(CONTACT_MAX_ADDRESSES).collect() })
    }

    /// This node is reached elsewhere from now on.
    pub(super) fn reached_at(&mut self, addresses: &[SocketAddr]) {
        let (Some(network), Some((addr, more))) = (&mut self.links.network, addresses.split_first()) else {
            return;
        };
        network.more = more.to_vec();
        network.swim.moved(*addr, more);
        if let Some(dht) = &network.dht {
            dht.moved(*addr);
        }
        // The core knows this node by its number only: nothing changes for it.
        self.peers.meet(self.node, *addr, None, &mut Vec::new());
    }

    /// How often the label was halved, and the members of this cell that are up, this node first, and a few of each other
    /// cell of the region: who asks
    /// need not find those by itself.
    fn member_records(&self) -> (u8, Vec<MemberRecord>) {
        let own = self.own_record();
        let others = self.gossip.members().chain(self.gossip.others()).map(|(addr, certificate)| {
            MemberRecord { certificate: certificate.to_vec(), addresses: vec![addr] }
        });
        let records = own.into_iter().chain(others).take(limits::CELL_MAX_MEMBERS).collect();
        (self.peers.own_cell().part.bits(), records)
    }
}
