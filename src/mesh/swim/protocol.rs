//! Membership without I/O: foca, the certificates of those it talks to, and what is due when.
//!
//! Bytes and time go in, [`Action`]s come out. foca believes whoever speaks, so nothing reaches it
//! that was not signed by a node whose membership certificate was checked and names this cell, and of
//! what such a node says of others only what [`super::claims`] lets pass.
//!
//! A certificate travels with each datagram until the receiver has shown that it knows it (its own
//! datagrams ask for it no longer). Past [`RENEWAL_DUE_PERCENT`] of a certificate's life its receiver asks again, and
//! so hears of the renewed one in time. Members that others speak of are asked, at a bounded pace, and join
//! by what they answer themselves.
//!
//! A node's further addresses travel from its own mouth to who asks for them, and by hearsay to those who have not
//! met it yet. It is spoken to at the one that it is heard from.
//!
//! Signatures cost the most here (50 µs each), so they are checked at a bounded pace: for each address, and in all.

mod parting;

use super::super::bucket::{Bucket, Buckets, Pace};
use super::super::proto::{Part, Told};
use super::claims::{ClaimCounts, Claims, View, append_further};
use super::datagram::{
    Counter, Datagram, Further, Letter, PACKET_MAX_BYTES, VERSION, Window, fit_together, further_bytes,
    further_of,
};
use super::hints::Hints;
use super::seat::{Codec, Dice, Seat};
use super::{Admission, Credentials, Refusal, Tuning};
use crate::model::{CellLabel, Generator, NodeId, Rng as _, Time, UnixTime, limits};
use bytes::Bytes;
use foca::{AccumulatingRuntime, Foca, Identity as _, NoCustomBroadcast, OwnedNotification, Timer};
use parting::Parting;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Most members that are remembered, the dead included: a full cell and as many that were replaced.
const REMEMBERED_MAX: usize = 2 * limits::CELL_MAX_MEMBERS;
/// Most timers kept for foca: several for each member that flaps. Beyond, only the timers that
/// forget the dead are dropped, so the dead are remembered longer.
const TIMERS_MAX: usize = 8 * REMEMBERED_MAX;
/// How often certificates are asked for and contacts are looked after: while some are missing, and otherwise; then it is
/// only about what this node believes of its mesh, where a revocation must count within seconds.
const CHORES_EVERY: Duration = Duration::from_millis(100);
const CHORES_IDLE: Duration = Duration::from_millis(200);
/// Most certificates asked for at once: 320 a second, 2 000 in seven seconds (guess).
const ASKS_AT_ONCE: usize = 32;
/// Until a certificate is asked for again; also one that may have been renewed.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long after this node spoke to a member of its own accord what that says counts as its answer (guess: the probe's own patience).
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The part of a certificate's life after which a renewed one is asked for: members renew from half of it on.
const RENEWAL_DUE_PERCENT: u64 = 60;
/// How often an incomplete cell asks its contacts: at first, and at most.
const JOIN_FIRST: Duration = Duration::from_millis(500);
const JOIN_LATER: Duration = Duration::from_secs(15);
/// How often a member of a cell looks whether a contact is missing (a cut longer than the memory of the dead).
const CONTACT_EVERY: Duration = Duration::from_secs(60);
/// Most contacts asked at once.
const CONTACTS_AT_ONCE: usize = 3;
/// How often a node that was taken for dead, and is not yet taken back, asks for it.
const REJOIN_EVERY: Duration = Duration::from_secs(1);
/// Most contacts kept.
const CONTACTS_MAX: usize = 64;
/// Datagrams from one address that are looked at: a large cell's join at once, then many times its ordinary pace.
const FROM_ONE: Pace = Pace { burst: 512, per_s: 128 };
/// Datagrams of all that are looked at: a quarter of a core for their signatures.
const FROM_ALL: Pace = Pace { burst: 8_192, per_s: 4_096 };
/// What a refused datagram costs on top, so that an address that sends nothing good is soon cut short.
const REFUSED_COST: u32 = 7;
/// Addresses whose pace is remembered.
const ADDRESSES_MAX: usize = 4 * limits::CELL_MAX_MEMBERS;

/// Room that is left in each packet of foca's for further addresses of those that it is about: some twenty of IPv4, nine
/// of IPv6 (guess).
const FURTHER_ROOM: usize = 192;

/// Lives from which on a new one is a restart, not a rejoin: a second of a start's clock.
const RESTARTED: u64 = 1_000;

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send a datagram.
    Send(SocketAddr, Vec<u8>),
    /// A member is up, or its address changed.
    Up { node: NodeId, addr: SocketAddr, certificate: Bytes },
    /// A member that is up shows a renewed certificate.
    Renewed { node: NodeId, certificate: Bytes },
    /// A member says where it can be reached, best first.
    Reached { node: NodeId, addresses: Vec<SocketAddr> },
    /// A member began a new life elsewhere, or after a restart: connections with the old one lead nowhere.
    Moved(NodeId),
    /// A member is down, left, or is a member no longer.
    Down(NodeId),
    /// The cell is another part of the label now. Of members that are not in it nothing more is heard.
    Parted(Part),
}

/// The clocks of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) time: Time,
    pub(super) unix: UnixTime,
}

/// A node whose certificate was checked.
struct Acquaintance {
    certificate: Bytes,
    issued: UnixTime,
    expires: UnixTime,
    window: Window,
    /// Whether it has shown that it knows this node's certificate.
    knows_us: bool,
    /// [`NodeId::key`].
    key: u64,
    /// What it said of its cell, and when.
    told: Told,
    heard: Time,
    /// Where else it says that it is, once it has said so in this life.
    further: Option<Further>,
    /// Whether it understands further addresses, and does not know this node's yet.
    wants_further: bool,
    /// The one of them that it was last heard from.
    heard_at: Option<SocketAddr>,
    /// When it was last asked for a renewed certificate.
    asked: Option<Time>,
    /// When this node last chose to speak to it, and when it last answered that: a liar can speak as often as it likes, and is not chosen
    /// more often than others.
    chosen: Option<Time>,
    answered: Option<Time>,
}

impl Acquaintance {
    /// Whether to ask for a renewed certificate now: two whose certificates age, because no authority answers, would else
    /// answer each other for ever.
    fn is_to_show(&mut self, now: Now) -> bool {
        let is_due = self.asked.is_none_or(|asked| now.time.since(asked) >= ASK_AGAIN);
        let asks = is_due && self.is_ageing(now.unix);
        if asks {
            self.asked = Some(now.time);
        }
        asks
    }

    /// Whether it may have a renewed certificate by now.
    fn is_ageing(&self, now: UnixTime) -> bool {
        let life = self.expires.0.saturating_sub(self.issued.0);
        now.0.saturating_sub(self.issued.0) >= life.saturating_mul(RENEWAL_DUE_PERCENT) / 100
    }
}

/// What goes with a packet.
#[derive(Clone, Copy)]
struct Enclosed<'a> {
    certificate: Option<&'a [u8]>,
    addresses: Option<&'a [u8]>,
    wants_certificate: bool,
    wants_addresses: bool,
}

pub(super) struct Protocol<C> {
    credentials: C,
    /// [`Credentials::beliefs`] when the acquaintances were last looked through.
    beliefs: u64,
    /// Whether this node was revoked. Then it says nothing, hears nothing and knows nobody.
    ended: bool,
    cell: CellLabel,
    me: Seat,
    /// This node's further addresses, as [`further_bytes`] has them.
    further: Vec<u8>,
    foca: Foca<Seat, Codec, Dice, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Seat>,
    counter: Counter,
    known: BTreeMap<NodeId, Acquaintance>,
    /// Whom foca believes to be up.
    active: BTreeMap<NodeId, Seat>,
    /// Members of `active` that were not reported yet, and when they are asked for a certificate.
    unmet: BTreeMap<NodeId, Time>,
    /// Who was revoked and has shown nothing newer since: nothing is sent to them, for foca announces itself to the dead.
    turned_out: BTreeSet<NodeId>,
    hints: Hints,
    claims: Claims,
    parting: Parting,
    from_one: Buckets<SocketAddr>,
    from_all: Bucket,
    contacts: Vec<(NodeId, SocketAddr)>,
    next_contact: usize,
    /// While this node has taken a new life and nobody has spoken to it: when it asks again to be taken back.
    rejoin_due: Option<Time>,
    contacts_due: Time,
    contacts_pause: Duration,
    chores_due: Time,
    timers: BTreeMap<(Time, u64), Timer<Seat>>,
    timer_number: u64,
    actions: Vec<Action>,
}

impl<C: Credentials> Protocol<C> {
    /// A node that knows nobody. `contacts` are asked at the first call of [`Protocol::advance`].
    pub(super) fn new(
        credentials: C,
        addr: SocketAddr,
        further: &[SocketAddr],
        mut contacts: Vec<(NodeId, SocketAddr)>,
        tuning: &Tuning,
        now: Now,
        generator: Generator,
    ) -> Self {
        contacts.retain(|(node, _)| *node != credentials.node());
        contacts.truncate(CONTACTS_MAX);
        // Milliseconds, so that a restart always wins over the rejoins of the life before.
        let me = Seat { node: credentials.node(), addr, renewal: now.unix.0.saturating_mul(1_000) };
        let parting = Parting::new(me.node, tuning, Generator::new(generator.clone().next_u64()));
        Self {
            cell: credentials.cell(),
            parting,
            foca: Foca::new(me, config(tuning), Dice(generator), Codec),
            beliefs: credentials.beliefs(),
            ended: false,
            credentials,
            me,
            further: further_bytes(further),
            runtime: AccumulatingRuntime::new(),
            counter: Counter::default(),
            known: BTreeMap::new(),
            active: BTreeMap::new(),
            unmet: BTreeMap::new(),
            turned_out: BTreeSet::new(),
            hints: Hints::default(),
            claims: Claims::new(),
            from_one: Buckets::new(FROM_ONE, ADDRESSES_MAX),
            from_all: Bucket::default(),
            contacts,
            next_contact: 0,
            rejoin_due: None,
            contacts_due: now.time,
            contacts_pause: JOIN_FIRST,
            chores_due: now.time,
            timers: BTreeMap::new(),
            timer_number: 0,
            actions: Vec::new(),
        }
    }

    /// What was decided since the last call.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// When [`Protocol::advance`] is due.
    pub(super) fn next_deadline(&self) -> Time {
        let timer = self.timers.keys().next().map_or(Time::NEVER, |(time, _)| *time);
        timer.min(self.chores_due)
    }

    /// Another node that may be a member of this cell.
    pub(super) fn add_contact(&mut self, contact: (NodeId, SocketAddr), now: Now) {
        let known = self.active.contains_key(&contact.0) || self.contacts.contains(&contact);
        if known || contact.0 == self.me.node {
            return;
        }
        if !self.parting.part().holds(contact.0.key()) {
            return self.remember_relative(contact.0, contact.1, now);
        }
        if self.contacts.len() == CONTACTS_MAX {
            // The oldest are the configured ones: they stay.
            self.contacts.pop();
        }
        self.contacts.push(contact);
        self.introduce(contact.1, contact.0, now);
    }

    /// A node that turned out to be no member of this cell is not asked any longer.
    pub(super) fn forget_contact(&mut self, node: NodeId) {
        self.contacts.retain(|(contact, _)| *contact != node);
    }

    /// This node as others know it.
    #[cfg(test)]
    pub(super) fn seat(&self) -> Seat {
        self.me
    }

    /// What was made of what members said of others.
    pub(super) fn claim_counts(&self) -> ClaimCounts {
        self.claims.counts
    }

    /// Takes a datagram. What is refused changes nothing but its sender's pace.
    pub(super) fn receive(&mut self, from: SocketAddr, bytes: &[u8], now: Now) -> Result<(), Refusal> {
        if !self.from_one.take(from, 1, now.time) || !self.from_all.take(FROM_ALL, 1, now.time) {
            return Err(Refusal::Paced);
        }
        let result = self.look_at(from, bytes, now);
        // Members of other cells do nothing wrong: they cannot know.
        if result.is_err_and(|refusal| refusal != Refusal::OtherCell) {
            self.from_one.take(from, REFUSED_COST, now.time);
        }
        result
    }

    fn look_at(&mut self, from: SocketAddr, bytes: &[u8], now: Now) -> Result<(), Refusal> {
        if let Some(version) = bytes.first().filter(|version| **version != VERSION) {
            return Err(Refusal::Version(*version));
        }
        if self.ended {
            return Err(Refusal::NoMember);
        }
        let datagram = Datagram::open(bytes).ok_or(Refusal::Malformed)?;
        if datagram.sender == self.me.node {
            return Err(Refusal::OwnName);
        }
        if !datagram.is_recent(now.unix) {
            return Err(Refusal::Stale);
        }
        let admission = self.admission(&datagram, now.unix)?;
        if !self.credentials.verify(datagram.sender, &datagram.message(self.me.node), &datagram.signature) {
            return Err(Refusal::Forged);
        }
        // Before it is met, so that who hears of it hears of all.
        let further = match datagram.addresses.map(further_of) {
            Some(None) => return Err(Refusal::Malformed),
            known => known.flatten(),
        };
        self.meet(&datagram, admission, now)?;
        self.note_place(&datagram, from, further);
        if !self.known.get(&datagram.sender).is_some_and(|known| self.parting.part().holds(known.key)) {
            return self.hear_outsider(from, &datagram, now);
        }
        if datagram.packet.is_empty() {
            self.introduced(from, &datagram, now);
            return Ok(());
        }
        let view = View { me: self.me, active: &self.active };
        let sifted = self.claims.sift(datagram.sender, datagram.packet, &view, now.time)?;
        // Full of the dead: hear those that are known.
        if self.foca.iter_membership_state().len() >= REMEMBERED_MAX
            && !self.active.contains_key(&datagram.sender)
        {
            return Err(Refusal::CellFull);
        }
        let result = self.foca.handle_data(&sifted.packet, &mut self.runtime);
        self.settle(now);
        for (seat, further) in sifted.hints {
            if self.parting.part().holds(seat.node.key()) {
                self.hints.add(seat, further, datagram.sender, now.time);
            } else {
                // Who speaks of the sibling half has joined with it.
                self.remember_relative(seat.node, seat.addr, now);
            }
        }
        result.map_err(|_| Refusal::Malformed)
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, now: Now) {
        // Each timer submits at most a few others, all later than now: the loop ends.
        while let Some(due) = self.timers.first_entry().filter(|entry| entry.key().0 <= now.time) {
            let timer = due.remove();
            if let Err(error) = self.foca.handle_timer(timer, &mut self.runtime) {
                tracing::debug!(%error, "membership timer");
            }
            for node in self.settle(now) {
                if let Some(known) = self.known.get_mut(&node) {
                    known.chosen = Some(now.time);
                }
            }
        }
        if self.chores_due <= now.time {
            self.chores_due = now.time + CHORES_IDLE;
            self.look_at_oneself(now);
            self.drop_expired(now);
            self.ask_for_certificates(now);
            self.ask_hinted(now);
            self.claims.forget(now.time);
            self.look_after_contacts(now);
            self.rejoin(now);
            self.look_around(now);
        }
        if !self.unmet.is_empty() || self.active.is_empty() {
            self.chores_due = self.chores_due.min(now.time + CHORES_EVERY);
        }
    }

    /// Tells a few members that this node goes.
    pub(super) fn leave(&mut self, now: Now) {
        if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
            tracing::debug!(%error, "leaving the cell");
        }
        self.settle(now);
    }

    /// This node is reached elsewhere from now on. It takes a new name, so that the others believe it at once and ask where
    /// else it is.
    pub(super) fn move_to(&mut self, addr: SocketAddr, further: &[SocketAddr], now: Now) {
        let further = further_bytes(further);
        if (addr, &further) == (self.me.addr, &self.further) {
            return;
        }
        let Some(seat) = self.me.renew().map(|seat| Seat { addr, ..seat }) else { return };
        if let Err(error) = self.foca.change_identity(seat, &mut self.runtime) {
            tracing::debug!(%error, "telling the cell of a new address");
        }
        (self.me, self.further) = (*self.foca.identity(), further);
        self.settle(now);
    }

    /// Checks who sent it. `Some` when the certificate is new and was checked just now.
    fn admission(&self, datagram: &Datagram<'_>, unix: UnixTime) -> Result<Option<Admission>, Refusal> {
        let known = self.known.get(&datagram.sender);
        if let Some(known) = known
            && !known.window.accepts(datagram.counter)
        {
            return Err(Refusal::Replayed);
        }
        let fresh = |known: &&Acquaintance| known.expires > unix;
        match (known.filter(fresh), datagram.certificate) {
            (Some(known), Some(shown)) if shown != known.certificate => {
                // An older one, or one that is no good, takes nothing away from the one that is known.
                let newer = self.credentials.admit(shown, unix).filter(|other| {
                    other.issued >= known.issued && other.node == datagram.sender && other.cell == self.cell
                });
                return Ok(newer);
            }
            (Some(_), _) => return Ok(None),
            (None, None) => return Err(Refusal::Stranger),
            (None, Some(_)) => {}
        }
        let shown = datagram.certificate.unwrap_or_default();
        let admission = self.credentials.admit(shown, unix).ok_or(Refusal::BadCertificate)?;
        if admission.node != datagram.sender {
            return Err(Refusal::BadCertificate);
        }
        if admission.cell != self.cell {
            return Err(Refusal::OtherCell);
        }
        Ok(Some(admission))
    }

    /// Remembers the sender of a verified datagram.
    fn meet(
        &mut self,
        datagram: &Datagram<'_>,
        admission: Option<Admission>,
        now: Now,
    ) -> Result<(), Refusal> {
        if let (Some(admission), Some(certificate)) = (admission, datagram.certificate) {
            self.turned_out.remove(&datagram.sender);
            if !self.known.contains_key(&datagram.sender) && self.known.len() >= REMEMBERED_MAX {
                let idle = self.known.keys().find(|node| !self.active.contains_key(node)).copied();
                self.known.remove(&idle.ok_or(Refusal::CellFull)?);
            }
            let known = self.known.entry(datagram.sender).or_insert_with(|| Acquaintance {
                certificate: Bytes::new(),
                issued: admission.issued,
                expires: admission.expires,
                window: Window::default(),
                knows_us: false,
                key: datagram.sender.key(),
                told: Told::default(),
                heard: now.time,
                further: None,
                wants_further: false,
                heard_at: None,
                asked: None,
                chosen: None,
                answered: None,
            });
            known.certificate = Bytes::copy_from_slice(certificate);
            (known.issued, known.expires) = (admission.issued, admission.expires);
            let (node, certificate) = (datagram.sender, known.certificate.clone());
            if self.active.contains_key(&node) && !self.unmet.contains_key(&node) {
                self.actions.push(Action::Renewed { node, certificate });
            }
        }
        let known = self.known.get_mut(&datagram.sender).ok_or(Refusal::Stranger)?;
        known.window.mark(datagram.counter);
        known.knows_us = !datagram.wants_certificate;
        (known.told, known.heard) = (datagram.told, now.time);
        if known.chosen.is_some_and(|chosen| now.time.since(chosen) <= ANSWER_WITHIN) {
            (known.chosen, known.answered) = (None, Some(now.time));
        }
        self.report(datagram.sender);
        Ok(())
    }

    /// Notes where the sender of a verified datagram says that it is, and where it was heard from.
    fn note_place(&mut self, datagram: &Datagram<'_>, from: SocketAddr, further: Option<Further>) {
        let Some(known) = self.known.get_mut(&datagram.sender) else { return };
        known.wants_further = datagram.wants_addresses;
        let news = further.is_some() && known.further != further;
        if further.is_some() {
            known.further = further;
        }
        // Nowhere but where it says that it is: a datagram may have been passed on.
        known.heard_at = known.further.iter().flatten().find(|address| **address == from).copied();
        if news {
            self.report_places(datagram.sender);
        }
    }

    /// Reports where else a member is that was reported to be up.
    fn report_places(&mut self, node: NodeId) {
        let (Some(seat), Some(known)) = (self.active.get(&node), self.known.get(&node)) else { return };
        if let (false, Some(further)) = (self.unmet.contains_key(&node), &known.further) {
            let addresses = std::iter::once(seat.addr).chain(further.iter().copied()).collect();
            self.actions.push(Action::Reached { node, addresses });
        }
    }

    /// Reports a member that foca holds for alive and whose certificate is known.
    fn report(&mut self, node: NodeId) {
        let (Some(seat), Some(known)) = (self.active.get(&node), self.known.get(&node)) else { return };
        if self.unmet.remove(&node).is_some() {
            let certificate = known.certificate.clone();
            self.actions.push(Action::Up { node, addr: seat.addr, certificate });
            self.report_places(node);
        }
    }

    /// Reacts to a datagram without a packet: somebody shows its certificate, or asks for ours, or both.
    fn introduced(&mut self, from: SocketAddr, datagram: &Datagram<'_>, now: Now) {
        if datagram.wants_certificate {
            self.introduce(from, datagram.sender, now);
        }
        // Who is in another cell, as it believes, does not take this node in.
        let theirs = self.known.get(&datagram.sender).map(|known| Part::of(known.key, known.told.bits));
        let takes_in = theirs.is_some_and(|theirs| self.parting.is_in(theirs));
        if takes_in && !self.active.contains_key(&datagram.sender) {
            self.announce_to(Seat { node: datagram.sender, addr: from, renewal: 0 }, now);
        }
    }

    /// Carries out what foca decided; to whom it speaks.
    fn settle(&mut self, now: Now) -> SmallVec<[NodeId; 4]> {
        let mut spoken_to = SmallVec::new();
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(seat) => {
                    // Who remains when the cell halves is up already.
                    if self.active.insert(seat.node, seat) != Some(seat) {
                        self.unmet.insert(seat.node, now.time);
                        self.report(seat.node);
                    }
                }
                OwnedNotification::MemberDown(seat) => {
                    self.active.remove(&seat.node);
                    if let Some(known) = self.known.get_mut(&seat.node) {
                        // Should it come back, it may be elsewhere.
                        known.further = None;
                    }
                    if self.unmet.remove(&seat.node).is_none() {
                        self.actions.push(Action::Down(seat.node));
                    }
                }
                OwnedNotification::Rename(before, seat) => {
                    // A rejoin counts one; a start reads a clock of milliseconds.
                    let restarted = seat.renewal.saturating_sub(before.renewal) >= RESTARTED;
                    if restarted || seat.addr != before.addr {
                        self.actions.push(Action::Moved(seat.node));
                    }
                    // A new life: it may have forgotten us, and it may have moved.
                    if let Some(known) = self.known.get_mut(&seat.node) {
                        known.knows_us = false;
                        (known.further, known.heard_at) = (None, None);
                    }
                    if let Some(place) = self.active.get_mut(&seat.node) {
                        *place = seat;
                        self.unmet.entry(seat.node).or_insert(now.time);
                        self.report(seat.node);
                    }
                }
                OwnedNotification::Rejoin(seat) => {
                    self.me = seat;
                    self.rejoin_due = Some(now.time + REJOIN_EVERY);
                }
                OwnedNotification::Active => self.rejoin_due = None,
                other => tracing::debug!(?other, "membership"),
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if self.timers.len() >= TIMERS_MAX && matches!(timer, Timer::RemoveDown(_)) {
                continue;
            }
            self.timer_number += 1;
            self.timers.insert((now.time + after, self.timer_number), timer);
        }
        while let Some((seat, packet)) = self.runtime.to_send() {
            let (place, other) = self.places(&seat);
            for to in std::iter::once(place).chain(other) {
                self.send(to, seat.node, &packet, now);
            }
            spoken_to.push(seat.node);
        }
        spoken_to
    }

    /// Where a member is spoken to: where it is heard from; and who is not up also where it was heard from last.
    fn places(&self, seat: &Seat) -> (SocketAddr, Option<SocketAddr>) {
        let heard_at = self.known.get(&seat.node).and_then(|known| known.heard_at);
        if self.active.get(&seat.node) == Some(seat) {
            (heard_at.unwrap_or(seat.addr), None)
        } else {
            (seat.addr, heard_at.filter(|address| *address != seat.addr))
        }
    }

    /// Sends a datagram without a packet: this node's certificate, and a wish for theirs if it is not known.
    fn introduce(&mut self, to: SocketAddr, receiver: NodeId, now: Now) {
        self.send(to, receiver, &[], now);
    }

    /// Sends a packet of foca's, with this node's certificate while the receiver may not know it.
    pub(super) fn send(&mut self, to: SocketAddr, receiver: NodeId, packet: &[u8], now: Now) {
        if self.ended || self.turned_out.contains(&receiver) {
            return;
        }
        let wants_certificate = self.known.get_mut(&receiver).is_none_or(|known| known.is_to_show(now));
        let known = self.known.get(&receiver);
        let attach = packet.is_empty() || !known.is_some_and(|known| known.knows_us);
        let wanted = !self.further.is_empty() && known.is_some_and(|known| known.wants_further);
        let (certificate, further) = (self.credentials.certificate(), self.further.clone());
        let enclosed = Enclosed {
            certificate: attach.then_some(&certificate[..]),
            addresses: wanted.then_some(&further[..]),
            wants_certificate,
            wants_addresses: known.is_none_or(|known| known.further.is_none()),
        };
        if !fit_together(enclosed.certificate, enclosed.addresses, packet) {
            // They go ahead. Should they be overtaken or lost, the packet is dropped there as a stranger's, and foca
            // sends another.
            self.seal(to, receiver, enclosed, &[], now);
            let bare = Enclosed { certificate: None, addresses: None, ..enclosed };
            self.seal(to, receiver, bare, packet, now);
            return;
        }
        let taken = enclosed.certificate.map_or(0, |bytes| 2 + bytes.len())
            + enclosed.addresses.map_or(0, |bytes| 1 + bytes.len());
        let mut packet = packet.to_vec();
        let room = PACKET_MAX_BYTES - taken - packet.len();
        append_further(&mut packet, room, |node| {
            self.known.get(node)?.further.as_ref().filter(|further| !further.is_empty())
        });
        self.seal(to, receiver, enclosed, &packet, now);
    }

    fn seal(&mut self, to: SocketAddr, receiver: NodeId, with: Enclosed<'_>, packet: &[u8], now: Now) {
        let letter = Letter {
            sender: self.me.node,
            receiver,
            counter: self.counter.next(now.unix),
            certificate: with.certificate,
            wants_certificate: with.wants_certificate,
            addresses: with.addresses,
            wants_addresses: with.wants_addresses,
            told: self.parting.told(self.active.len() + 1),
            packet,
        };
        let bytes = letter.seal(|message| self.credentials.sign(message));
        self.actions.push(Action::Send(to, bytes));
    }

    /// Lets go of everybody when this node was revoked: nobody listens to it any more, and what it
    /// believes of the others is only what it remembers. Once it has a new one it asks its contacts anew.
    fn look_at_oneself(&mut self, now: Now) {
        let ended = !self.credentials.is_member();
        let before = std::mem::replace(&mut self.ended, ended);
        if before == ended {
            return;
        }
        if !ended {
            (self.contacts_due, self.contacts_pause) = (now.time, JOIN_FIRST);
            return;
        }
        self.known.clear();
        self.hints = Hints::default();
        for node in self.active.keys() {
            if self.unmet.insert(*node, now.time).is_none() {
                self.actions.push(Action::Down(*node));
            }
        }
    }

    /// Members whose certificate ran out or was revoked count as strangers again.
    fn drop_expired(&mut self, now: Now) {
        let beliefs = self.credentials.beliefs();
        let look_anew = std::mem::replace(&mut self.beliefs, beliefs) != beliefs;
        let (active, credentials) = (&self.active, &self.credentials);
        let (unmet, actions) = (&mut self.unmet, &mut self.actions);
        let mut revoked = Vec::new();
        self.known.retain(|node, known| {
            let expired = known.expires <= now.unix;
            let mut refused = false;
            if !expired && look_anew {
                // It may have been revoked; or its signer's key retires, and it ends earlier than it says.
                match credentials.admit(&known.certificate, now.unix) {
                    Some(admission) => known.expires = admission.expires,
                    None => refused = true,
                }
            }
            if refused {
                revoked.push(*node);
            }
            let good = !expired && !refused;
            if !good && active.contains_key(node) && unmet.insert(*node, now.time).is_none() {
                actions.push(Action::Down(*node));
            }
            good
        });
        for node in revoked {
            self.turn_out(node, now);
        }
    }

    /// Has foca take a member for dead that still speaks: who was revoked is neither probed nor spoken of any more.
    /// The others hear of its death from those who know, before they know themselves.
    fn turn_out(&mut self, node: NodeId, now: Now) {
        if self.turned_out.len() >= REMEMBERED_MAX {
            self.turned_out.pop_first();
        }
        self.turned_out.insert(node);
        let Some(seat) = self.active.get(&node).copied() else { return };
        let down = foca::Member::down(seat);
        if let Err(error) = self.foca.apply_many(std::iter::once(down), true, &mut self.runtime) {
            tracing::debug!(%error, "turning a revoked member out");
        }
        self.settle(now);
    }

    fn ask_for_certificates(&mut self, now: Now) {
        let due: Vec<NodeId> = self
            .unmet
            .iter()
            .filter(|(_, time)| **time <= now.time)
            .map(|(node, _)| *node)
            .take(ASKS_AT_ONCE)
            .collect();
        for node in due {
            self.unmet.insert(node, now.time + ASK_AGAIN);
            if let Some(addr) = self.active.get(&node).map(|seat| seat.addr) {
                self.introduce(addr, node, now);
            }
        }
    }

    /// Asks those whom others spoke of.
    fn ask_hinted(&mut self, now: Now) {
        if self.foca.iter_membership_state().len() >= REMEMBERED_MAX {
            return;
        }
        for seat in self.hints.due(&self.active, ASKS_AT_ONCE, now.time) {
            if !self.known.contains_key(&seat.node) {
                self.introduce(seat.addr, seat.node, now);
                continue;
            }
            // Most who begin a new life do so where they were, whatever a liar says.
            let known = self.active.get(&seat.node).copied().filter(|known| known.addr != seat.addr);
            if let Some(known) = known {
                self.announce_to(known, now);
            }
            self.announce_to(seat, now);
        }
    }

    /// Asks a node whose certificate is known to take this one in. Its answer tells its seat first-hand.
    fn announce_to(&mut self, seat: Seat, now: Now) {
        if let Err(error) = self.foca.announce(seat, &mut self.runtime) {
            tracing::debug!(%error, "announcing");
        }
        self.settle(now);
    }

    /// Asks members to take this node back. foca tells its new life once and then waits to be spoken to, and where
    /// there are few others, all that it said may be lost.
    fn rejoin(&mut self, now: Now) {
        if self.rejoin_due.is_none_or(|due| due > now.time) {
            return;
        }
        self.rejoin_due = Some(now.time + REJOIN_EVERY);
        let first = self.next_contact;
        self.next_contact = self.next_contact.wrapping_add(CONTACTS_AT_ONCE);
        let seats: Vec<Seat> = self.active.values().copied().collect();
        for number in 0..CONTACTS_AT_ONCE.min(seats.len()) {
            self.announce_to(seats[(first.wrapping_add(number)) % seats.len()], now);
        }
    }

    /// Asks contacts: often and several while this node is alone, now and then a missing one later.
    fn look_after_contacts(&mut self, now: Now) {
        if self.contacts_due > now.time {
            return;
        }
        let alone = self.active.is_empty();
        if alone {
            self.contacts_due = now.time + self.contacts_pause;
            self.contacts_pause = (self.contacts_pause * 2).min(JOIN_LATER);
        } else {
            self.contacts_due = now.time + CONTACT_EVERY;
            self.contacts_pause = JOIN_FIRST;
        }
        let wanted = if alone { CONTACTS_AT_ONCE } else { 1 };
        let mut asked = 0;
        for _ in 0..self.contacts.len() {
            let (node, addr) = self.contacts[self.next_contact % self.contacts.len()];
            self.next_contact = (self.next_contact + 1) % self.contacts.len();
            if !self.active.contains_key(&node) {
                self.introduce(addr, node, now);
                asked += 1;
            }
            if asked == wanted {
                break;
            }
        }
    }
}

fn config(tuning: &Tuning) -> foca::Config {
    let one = NonZeroUsize::MIN;
    let count = |n: usize| NonZeroUsize::new(n).unwrap_or(one);
    let periodic = |frequency, members| Some(foca::PeriodicParams { frequency, num_members: count(members) });
    foca::Config {
        probe_period: tuning.probe_period,
        probe_rtt: tuning.probe_rtt,
        num_indirect_probes: count(3),
        // 4 log10(2 001), memberlist's rule for the largest cell.
        max_transmissions: NonZeroU8::new(13).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: tuning.suspect_to_down,
        remove_down_after: Some(tuning.remember_down),
        max_packet_size: count(PACKET_MAX_BYTES - FURTHER_ROOM),
        notify_down_members: true,
        periodic_announce: periodic(Duration::from_secs(30), 1),
        periodic_announce_to_down_members: periodic(tuning.announce_to_down, 2),
        periodic_gossip: periodic(Duration::from_millis(200), 3),
    }
}
