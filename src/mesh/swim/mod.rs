//! Who is in this cell: SWIM (Das, Gupta, Motivala: "SWIM: Scalable Weakly-consistent Infection-style
//! Process Group Membership Protocol", DSN 2002) with suspicion, as foca implements it.
//!
//! Every member probes one other a second; who does not answer, not even through three others, is
//! suspected, and is down when it has not spoken up in time. With [`Tuning::default`] a killed member
//! is probed first after about 1.6 s, suspected 1 s later, down 2.5 s after that, and all know within
//! another second: about six seconds. The fetch path does not wait for it: a home that does not
//! answer is passed over at once.
//!
//! The datagrams (`datagram`) are signed and carry certificates; the protocol without I/O is `protocol`.

mod claims;
mod datagram;
mod hints;
mod protocol;
mod seat;
#[cfg(test)]
mod tests;

use super::authority::node_signed;
use super::identity::Identity;
use super::proto::Part;
use crate::ambient;
use crate::model::{CellLabel, NodeId, UnixTime, limits};
use crate::seldom::Seldom;
use bytes::Bytes;
use datagram::VERSION;
use protocol::{Action, Now, Protocol};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What a membership certificate says, once it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// Whom it admits.
    pub(super) node: NodeId,
    /// To which cell.
    pub(super) cell: CellLabel,
    /// Since when.
    pub(super) issued: UnixTime,
    /// Until when.
    pub(super) expires: UnixTime,
}

/// This node's key and certificate, and its judgement of those of others.
pub(super) trait Credentials: Send + Sync + 'static {
    /// This node.
    fn node(&self) -> NodeId;
    /// This node's cell.
    fn cell(&self) -> CellLabel;
    /// This node's membership certificate, at most [`MEMBERSHIP_MAX_BYTES`].
    fn certificate(&self) -> Bytes;
    /// Signs with this node's key.
    fn sign(&self, message: &[u8]) -> [u8; 64];
    /// Whether `node` signed `message`.
    fn verify(&self, node: NodeId, message: &[u8], signature: &[u8; 64]) -> bool;
    /// Checks a certificate by what this node believes of its mesh. `None`: forged, foreign, expired or revoked.
    fn admit(&self, certificate: &[u8], now: UnixTime) -> Option<Admission>;
    /// Whether this node was not revoked, by what it believes of its mesh itself.
    fn is_member(&self) -> bool;
    /// Changes whenever a certificate that was admitted may not count any more, though it has not expired.
    fn beliefs(&self) -> u64;
}

/// What the node's key signs here; no such signature counts for another purpose.
const DOMAIN: &str = "starling membership datagram 1";

impl Credentials for Arc<Identity> {
    fn node(&self) -> NodeId {
        Identity::node(self)
    }

    fn cell(&self) -> CellLabel {
        self.membership().cell.clone()
    }

    fn certificate(&self) -> Bytes {
        self.membership().bytes().clone()
    }

    fn is_member(&self) -> bool {
        let own = self.membership();
        self.trust().revoked(&own.node, own.issued).is_none()
    }

    fn beliefs(&self) -> u64 {
        self.trust().generation()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key().sign(DOMAIN, message)
    }

    fn verify(&self, node: NodeId, message: &[u8], signature: &[u8; 64]) -> bool {
        node_signed(&node, DOMAIN, message, signature)
    }

    fn admit(&self, certificate: &[u8], now: UnixTime) -> Option<Admission> {
        let certificate = self.trust().verify(certificate, now).ok()?;
        let (node, cell, issued) = (certificate.node, certificate.cell.clone(), certificate.issued);
        Some(Admission { node, cell, issued, expires: self.trust().end_of(&certificate) })
    }
}

/// The protocol's times.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Between two probes of a member (SWIM's period; memberlist's default for a LAN).
    pub probe_period: Duration,
    /// Until a probe is repeated through others (guess: the 99th percentile inside a site, doubled twice over).
    pub probe_rtt: Duration,
    /// How long a suspect may speak up (guess: two probes and a busy machine's pause).
    pub suspect_to_down: Duration,
    /// How long the dead are remembered, and thus announced to (guess: longer than most cuts).
    pub remember_down: Duration,
    /// How often two of the dead are announced to, so that the halves of a cut cell find together.
    pub announce_to_down: Duration,
    /// Most members of a cell, of those who share a label: with more it halves. Alike on all members.
    pub cell_max: usize,
    /// How long a cell must be too large until it halves, and a third of the time that it must be small until it joins
    /// with its sibling (guess: longer than a death or a start takes to be known to all).
    pub pause: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_rtt: Duration::from_millis(400),
            suspect_to_down: Duration::from_millis(2_500),
            remember_down: Duration::from_secs(3_600),
            announce_to_down: Duration::from_secs(5),
            cell_max: limits::CELL_MAX_MEMBERS,
            pause: Duration::from_secs(10),
        }
    }
}

/// Why a datagram was dropped. Nothing is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It is not of this protocol, or its parts do not fit.
    #[error("malformed")]
    Malformed,
    /// Of a version that is not spoken here.
    #[error("of version {0}, and this program speaks version {VERSION}")]
    Version(u8),
    /// It claims to come from this node.
    #[error("sent in this node's own name")]
    OwnName,
    /// Its counter is too far from this node's clock.
    #[error("older or newer than the clocks may differ")]
    Stale,
    /// It was seen before.
    #[error("replayed")]
    Replayed,
    /// Its sender is not known and shows no certificate.
    #[error("from a stranger without a certificate")]
    Stranger,
    /// The certificate is forged, of another mesh or node, or expired.
    #[error("bad certificate")]
    BadCertificate,
    /// The sender belongs to another cell.
    #[error("from another cell")]
    OtherCell,
    /// The signature is wrong, or the packet speaks for somebody else.
    #[error("forged")]
    Forged,
    /// More members are remembered than a cell may have.
    #[error("the cell is full")]
    CellFull,
    /// It would have this node probe or answer somebody who is not known here.
    #[error("about somebody who is not known")]
    Unknown,
    /// Too many came from there, or in all; its signature was not even looked at.
    #[error("too many")]
    Paced,
    /// This node's own certificate does not count any more: it belongs to no cell.
    #[error("this node is no member any more")]
    NoMember,
}

/// A change of the cell, for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MemberEvent {
    /// A member is up, or is reached elsewhere than before.
    Up {
        /// Who.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
        /// Its checked membership certificate.
        certificate: Bytes,
    },
    /// A member that is up shows a renewed certificate.
    Renewed {
        /// Who.
        node: NodeId,
        /// The certificate, checked.
        certificate: Bytes,
    },
    /// A member that is up says where it can be reached: its seat's address, and others, best first.
    Reached {
        /// Who.
        node: NodeId,
        /// Where, at most eight.
        addresses: Vec<SocketAddr>,
    },
    /// A member that is up restarted or is elsewhere now: connections with its old life lead nowhere.
    Moved(NodeId),
    /// A member is down, left, or is a member no longer.
    Down(NodeId),
    /// The cell is another part of its label now; nothing more is heard of members that are not in it.
    Parted(Part),
}

/// Counters for the metrics.
#[derive(Debug, Default)]
pub struct SwimCounters {
    /// Datagrams taken.
    pub received: AtomicU64,
    /// Datagrams dropped: malformed, forged, replayed, of strangers.
    pub dropped: AtomicU64,
    /// Datagrams dropped because more came than are looked at, from one address or in all.
    pub paced: AtomicU64,
    /// Datagrams of members of other cells, who cannot know.
    pub other_cells: AtomicU64,
    /// Deaths that were taken for suspicions, for want of members who say so.
    pub deaths_doubted: AtomicU64,
    /// Accusations that were not listened to, because their speaker accuses too much.
    pub accusations_ignored: AtomicU64,
    /// Claims that this node is down which it did not follow.
    pub own_deaths_survived: AtomicU64,
    /// Claims about members who have not spoken for themselves.
    pub claims_unknown: AtomicU64,
    /// Datagrams sent.
    pub sent: AtomicU64,
}

/// Sends a datagram; may drop it.
pub(super) type SendDatagram = Box<dyn Fn(SocketAddr, Bytes) + Send + Sync>;

enum Command {
    Contact(NodeId, SocketAddr),
    NotOurs(NodeId),
    Moved(SocketAddr, Vec<SocketAddr>),
    Leave(oneshot::Sender<()>),
}

/// Commands that may wait for the task.
const COMMANDS_MAX: usize = 64;

/// The membership of this node in its cell: a task of its own.
pub(super) struct Swim {
    commands: mpsc::Sender<Command>,
    counters: Arc<SwimCounters>,
}

impl Swim {
    /// Starts the task, which asks `contacts` at once. `addr` is where others reach this node, `further` where else.
    ///
    /// The task ends when this handle is dropped, on [`Swim::leaving`], or when `events` or
    /// `datagrams` close.
    pub(super) fn start(
        credentials: impl Credentials,
        (addr, further): (SocketAddr, &[SocketAddr]),
        contacts: Vec<(NodeId, SocketAddr)>,
        tuning: &Tuning,
        datagrams: mpsc::Receiver<(SocketAddr, Bytes)>,
        send: SendDatagram,
        events: mpsc::Sender<MemberEvent>,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let counters = Arc::new(SwimCounters::default());
        let swim = Protocol::new(credentials, addr, further, contacts, tuning, now(), ambient::generator());
        let task = Task { swim, inbox, datagrams, send, events, counters: Arc::clone(&counters) };
        tokio::spawn(task.run());
        Self { commands, counters }
    }

    /// Names another node that may be a member of this cell. Dropped when the task is busy.
    pub(super) fn add_contact(&self, node: NodeId, addr: SocketAddr) {
        let _ = self.commands.try_send(Command::Contact(node, addr));
    }

    /// Says that a node belongs to another cell, so that it is not asked any longer. Dropped when the task is busy.
    pub(super) fn not_ours(&self, node: NodeId) {
        let _ = self.commands.try_send(Command::NotOurs(node));
    }

    /// Says where others reach this node from now on, and where else. Dropped when the task is busy: to be repeated.
    pub(super) fn moved(&self, addr: SocketAddr, further: &[SocketAddr]) {
        let _ = self.commands.try_send(Command::Moved(addr, further.to_vec()));
    }

    /// Tells a few members that this node goes, and ends the task, when the future is run.
    pub(super) fn leaving(&self) -> impl Future<Output = ()> + Send + use<> {
        let commands = self.commands.clone();
        async move {
            let (done, wait) = oneshot::channel();
            if commands.send(Command::Leave(done)).await.is_ok() {
                let _ = wait.await;
            }
        }
    }

    /// The counters.
    pub(super) fn counters(&self) -> Arc<SwimCounters> {
        Arc::clone(&self.counters)
    }
}

struct Task<C> {
    swim: Protocol<C>,
    inbox: mpsc::Receiver<Command>,
    datagrams: mpsc::Receiver<(SocketAddr, Bytes)>,
    send: SendDatagram,
    events: mpsc::Sender<MemberEvent>,
    counters: Arc<SwimCounters>,
}

fn now() -> Now {
    Now { time: ambient::now(), unix: ambient::unix_now() }
}

/// Says that a datagram was refused. That nodes of versions which do not understand each other meet, an operator must
/// hear of.
fn note(from: SocketAddr, refusal: Refusal) {
    static FOREIGN: Seldom = Seldom::new(Duration::from_secs(60));
    if let Refusal::Version(_) = refusal
        && let Some(held_back) = FOREIGN.pass()
    {
        tracing::warn!(%from, %refusal, held_back, "a membership datagram is not understood");
    } else {
        tracing::debug!(%from, %refusal, "membership datagram dropped");
    }
}

impl<C: Credentials> Task<C> {
    async fn run(mut self) {
        loop {
            self.swim.advance(now());
            if !self.carry_out().await {
                return;
            }
            let pause = self.swim.next_deadline().since(ambient::now());
            // In this order: a flood of datagrams must not keep the rest from being done.
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                command = self.inbox.recv() => match command {
                    Some(Command::Contact(node, addr)) => self.swim.add_contact((node, addr), now()),
                    Some(Command::NotOurs(node)) => self.swim.forget_contact(node),
                    Some(Command::Moved(addr, further)) => self.swim.move_to(addr, &further, now()),
                    Some(Command::Leave(done)) => {
                        self.swim.leave(now());
                        self.carry_out().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                datagram = self.datagrams.recv() => {
                    let Some((from, bytes)) = datagram else { return };
                    self.take(from, &bytes);
                }
            }
        }
    }

    fn take(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        if let Err(refusal) = self.swim.receive(from, bytes, now()) {
            let counter = match refusal {
                Refusal::Paced => &self.counters.paced,
                Refusal::OtherCell => &self.counters.other_cells,
                _ => &self.counters.dropped,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            note(from, refusal);
        }
        let claims = self.swim.claim_counts();
        for (counter, count) in [
            (&self.counters.deaths_doubted, claims.doubted),
            (&self.counters.accusations_ignored, claims.ignored),
            (&self.counters.own_deaths_survived, claims.survived),
            (&self.counters.claims_unknown, claims.unknown),
        ] {
            counter.store(count, Ordering::Relaxed);
        }
    }

    /// `false` when nobody listens any more.
    async fn carry_out(&mut self) -> bool {
        for action in self.swim.take_actions() {
            let event = match action {
                Action::Send(to, bytes) => {
                    self.counters.sent.fetch_add(1, Ordering::Relaxed);
                    (self.send)(to, bytes.into());
                    continue;
                }
                Action::Up { node, addr, certificate } => MemberEvent::Up { node, addr, certificate },
                Action::Renewed { node, certificate } => MemberEvent::Renewed { node, certificate },
                Action::Reached { node, addresses } => MemberEvent::Reached { node, addresses },
                Action::Moved(node) => MemberEvent::Moved(node),
                Action::Down(node) => MemberEvent::Down(node),
                Action::Parted(part) => MemberEvent::Parted(part),
            };
            if self.events.send(event).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// A datagram in which `identity` introduces itself to `to`, as if it had just started.
#[cfg(test)]
pub(super) fn introduction(identity: &Arc<Identity>, to: NodeId) -> Vec<u8> {
    let letter = datagram::Letter {
        sender: identity.node(),
        receiver: to,
        counter: datagram::Counter::default().next(ambient::unix_now()),
        certificate: Some(&identity.certificate()),
        wants_certificate: true,
        addresses: None,
        wants_addresses: false,
        told: super::proto::Told::default(),
        packet: &[],
    };
    letter.seal(|message| Credentials::sign(identity, message))
}
