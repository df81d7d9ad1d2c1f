//! The other cells of the region: which there are, and who is in them.
//!
//! Lease homes are computed from these views, and where two cells see the region differently a chunk leaves the strata
//! twice. So a view is looked after when it matters:
//! * *at the start*, often, until somebody was found, then ever more rarely;
//! * *when it is used*: before this node asks another cell or the strata, a view that is older than [`FRESH`] is
//!   refreshed, while the fetch goes on;
//! * *when a member of another cell fails*, and *when a node of a cell that is not known yet comes*: at once.
//!
//! Who knows cells? The first members of each cell by rank announce the region's key in the DHT. Contacts (from
//! tickets, from before a restart, from DNS or multicast) are asked as well, and whoever is asked for the members of its
//! cell also names a few members of each other cell that it knows. So a region finds together without a DHT, too. Whoever is
//! found is dialled by name; its certificate tells its cell, and one of each cell tells the cell's members, whose
//! certificates are checked. The loop gets the result as a [`CellView`].
//!
//! No member of a cell can hide the others. A search asks two of each cell; a refresh asks one, and others when that one lacks
//! somebody who was there before. What all of them told is put together ([`Answers`]). And each node chooses for itself, by
//! a hash, whom it asks again.

use super::super::dht::{Dht, DhtKey};
use super::super::endpoint::Endpoint;
use super::super::membership::MembershipCert;
use super::super::proto::Part;
use super::super::transfer;
use super::answers::{Answers, Next};
use super::cell_book::{Cell, CellBook};
use super::task::Message;
use crate::ambient;
use crate::model::{CellLabel, NodeId, Time, limits, mix};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Cells of the region that are kept track of.
pub(super) const CELLS_MAX: usize = 256;
/// Contacts of one look-up that are dialled, and how many at once.
const CONTACTS_MAX: usize = 64;
const DIALS_AT_ONCE: usize = 8;
/// Members of a cell that are asked again, and named to others.
pub(super) const CONTACTS_OF_CELL: usize = 3;
/// Pause between two searches of the region: at first, and at most. A search asks the DHT, which costs a small mesh a
/// connection with most of its members, and takes a list of each cell. An idle node need not: who is new searches at its
/// start and makes itself known, and who wants something searches then.
const SEARCH_FIRST: Duration = Duration::from_secs(1);
const SEARCH_LATER: Duration = Duration::from_secs(3_600);
const SEARCH_GROWTH: u32 = 4;
/// Pause up to which every member of a cell searches by itself; then those who announce the cell do it for all.
const SEARCH_ALL: Duration = Duration::from_secs(16);
/// Least pause between two searches that somebody wanted.
const SEARCH_LEAST: Duration = Duration::from_secs(60);
/// How old a view may be when it is used, and how much older for each member of its cells: a list is 350 bytes a
/// member (10 s and 30 ms: at most 12 KB/s while it is used).
const FRESH: Duration = Duration::from_secs(10);
const FRESH_MEMBER: Duration = Duration::from_millis(30);
/// Lists that are held until a second member of the cell says the same; of further ones nothing is believed in that round (guess: each
/// has at most two thousand members).
const DOUBTFUL_MAX: usize = 32;
/// Members of each cell that a search asks.
const OPINIONS: u8 = 2;
/// Least pause between two rounds, when a member of another cell failed.
const FAILED_LEAST: Duration = Duration::from_secs(2);
/// Hints that may wait for the watch; one too many is no loss, the next fetch gives another.
pub(super) const HINTS_MAX: usize = 64;

/// Why the region should be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// The view is being used.
    Used,
    /// A member of another cell does not answer.
    Failed,
    /// A node that may know another cell, or be in one.
    Contact(NodeId, SocketAddr),
}

/// The members of another cell of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CellView {
    pub(super) cell: Cell,
    pub(super) members: BTreeMap<NodeId, (SocketAddr, MembershipCert)>,
}

/// Whom to ask about a cell, and when it was last told.
struct Known {
    contacts: Vec<(NodeId, SocketAddr)>,
    members: Vec<NodeId>,
    asked: Time,
}

/// What the watch is started with.
pub(super) struct Watch {
    pub(super) endpoint: Endpoint,
    pub(super) dht: Option<Dht>,
    pub(super) inbox: mpsc::Sender<Message>,
    pub(super) hints: mpsc::Receiver<Hint>,
    /// This node's own cell.
    pub(super) own: watch::Receiver<Cell>,
    pub(super) contacts: Vec<(NodeId, SocketAddr)>,
    /// Whether this node is one of those who announce its cell.
    pub(super) announces: Arc<AtomicBool>,
    pub(super) stop: CancellationToken,
}

/// Looks until it is stopped.
pub(super) async fn watch(watch: Watch) {
    let Watch { endpoint, dht, inbox, mut hints, own, contacts, announces, stop } = watch;
    let book = CellBook::new(own.borrow().clone());
    let mut region = Region {
        own,
        book,
        endpoint,
        dht,
        inbox,
        cells: BTreeMap::new(),
        contacts: contacts.into_iter().take(CONTACTS_MAX).collect(),
        looked: Time::ZERO,
        searched: Time::ZERO,
        pause: SEARCH_FIRST,
        announces,
    };
    loop {
        let due = (region.searched + region.pause).since(ambient::now());
        let work = async {
            tokio::select! {
                biased;
                hint = hints.recv() => match hint {
                    Some(hint) => region.heed(hint).await,
                    None => std::future::pending().await,
                },
                () = tokio::time::sleep(due) => region.search().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

struct Region {
    own: watch::Receiver<Cell>,
    /// Which cells there are, as their members tell.
    book: CellBook,
    endpoint: Endpoint,
    dht: Option<Dht>,
    inbox: mpsc::Sender<Message>,
    cells: BTreeMap<Cell, Known>,
    /// Nodes that may know more, oldest first.
    contacts: VecDeque<(NodeId, SocketAddr)>,
    /// When the cells were last asked, and when the DHT was.
    looked: Time,
    searched: Time,
    pause: Duration,
    announces: Arc<AtomicBool>,
}

impl Region {
    async fn heed(&mut self, hint: Hint) {
        let now = ambient::now();
        match hint {
            Hint::Used => {
                let members = self.cells.values().map(|known| known.members.len()).sum::<usize>();
                let fresh = FRESH + FRESH_MEMBER * u32::try_from(members).unwrap_or(u32::MAX);
                if now.since(self.searched) >= SEARCH_LEAST.max(fresh) {
                    self.search().await;
                } else if now.since(self.looked) >= fresh {
                    self.refresh().await;
                }
            }
            Hint::Failed => {
                if now.since(self.looked) >= FAILED_LEAST {
                    self.refresh().await;
                }
            }
            Hint::Contact(node, addr) => {
                let known = self.cells.values().any(|known| known.contacts.contains(&(node, addr)));
                if !known && self.remember(node, addr) {
                    self.ask_all(vec![vec![(node, addr)]], OPINIONS).await;
                }
            }
        }
    }

    /// Keeps a contact; whether it is a new one.
    fn remember(&mut self, node: NodeId, addr: SocketAddr) -> bool {
        if node == self.endpoint.node() || self.contacts.contains(&(node, addr)) {
            return false;
        }
        if self.contacts.len() >= CONTACTS_MAX {
            self.contacts.pop_front();
        }
        self.contacts.push_back((node, addr));
        true
    }

    /// Looks for cells that are not known yet, and asks those that are.
    async fn search(&mut self) {
        let before: Vec<Cell> = self.cells.keys().cloned().collect();
        let mut contacts: Vec<(NodeId, SocketAddr)> = match &self.dht {
            Some(dht) => dht.find(DhtKey::region(self.book.own().label.region())).await,
            None => Vec::new(),
        };
        contacts.truncate(CONTACTS_MAX);
        contacts.extend(self.contacts.iter().copied());
        self.round(contacts, OPINIONS).await;
        self.searched = ambient::now();
        let changed = !self.cells.keys().eq(before.iter());
        // A region that is still growing together is looked at often; alone in it is the rule in a small mesh.
        self.pause = if changed {
            SEARCH_FIRST
        } else if self.pause >= SEARCH_ALL && !self.announces.load(Ordering::Relaxed) {
            SEARCH_LATER
        } else {
            (self.pause * SEARCH_GROWTH).min(SEARCH_LATER)
        };
    }

    /// Asks the cells that are known.
    async fn refresh(&mut self) {
        self.round(Vec::new(), 1).await;
    }

    /// Asks those who answered before, who know their cells best, and `others`.
    async fn round(&mut self, others: Vec<(NodeId, SocketAddr)>, opinions: u8) {
        let began = ambient::now();
        // As many groups of each cell as members of it are to be asked.
        let step = usize::from(opinions);
        let groups_of = |known: &Known| -> Vec<Vec<_>> {
            (0..step)
                .map(|first| known.contacts.iter().skip(first).step_by(step).copied().collect())
                .collect()
        };
        let known = self.cells.values().flat_map(groups_of);
        let groups = known.chain(others.into_iter().map(|contact| vec![contact])).collect();
        self.ask_all(groups, opinions).await;
        // A cell of which nobody answers: nobody there can be a home.
        let silent: Vec<Cell> = self
            .cells
            .iter()
            .filter(|(_, known)| known.asked < began)
            .map(|(cell, _)| cell.clone())
            .collect();
        for cell in silent {
            self.cells.remove(&cell);
            self.book.forget(&cell);
            let view = CellView { cell, members: BTreeMap::new() };
            let _ = self.inbox.send(Message::Cell(view)).await;
        }
        self.looked = ambient::now();
    }

    /// Asks one of each group, and then those whom they named, each node once, and of each cell `opinions` members.
    async fn ask_all(&mut self, groups: Vec<Vec<(NodeId, SocketAddr)>>, opinions: u8) {
        self.follow_own();
        let began = ambient::now();
        let (claims, mut round) = (Claims::new(self.endpoint.node(), opinions), Round::new());
        let mut open = groups;
        // Each step asks only nodes that were not asked before, and there is a most of them.
        while !open.is_empty() && claims.nodes() < 2 * CONTACTS_MAX + CONTACTS_OF_CELL * CELLS_MAX {
            let (endpoint, book, claims) = (&self.endpoint, &self.book, &claims);
            let asks: Vec<Option<Found>> = futures::stream::iter(std::mem::take(&mut open))
                .map(|group| ask_one(endpoint, book, claims, group))
                .buffer_unordered(DIALS_AT_ONCE)
                .collect()
                .await;
            for found in asks.into_iter().flatten() {
                open.extend(
                    self.take(found, claims, &mut round).await.into_iter().map(|contact| vec![contact]),
                );
            }
        }
        // Of whom but one member said that it is a cell now, though others said nothing else.
        for (cell, members) in std::mem::take(&mut round.doubtful) {
            let denied = self.cells.iter().any(|(known, at)| known.overlaps(&cell) && at.asked >= began);
            if !denied {
                self.accept(CellView { cell, members }, &claims, &mut round.answers).await;
            }
        }
        for (cell, members) in round.answers.rest() {
            // Unless somebody told meanwhile that it is another part of its label.
            if members.keys().all(|node| self.book.cell_of(&cell.label, node) == cell) {
                self.tell(CellView { cell, members }).await;
            }
        }
    }

    /// This node's cell may be another by now, and then others are, too.
    fn follow_own(&mut self) {
        let own = self.own.borrow().clone();
        if own != *self.book.own() {
            self.book.set_own(own.part);
            self.cells.retain(|cell, _| cell.label != own.label);
        }
    }

    /// Hands on what was found; whom to ask next.
    async fn take(&mut self, found: Found, claims: &Claims, round: &mut Round) -> Vec<(NodeId, SocketAddr)> {
        let Found { own, view, named } = found;
        let mut next = Vec::new();
        if let Some((node, addr)) = own {
            let _ = self.inbox.send(Message::SwimContact { node, addr }).await;
        }
        if let Some(view) = view {
            let others = self.contradicted(&view.cell);
            let cell = view.cell.clone();
            let mut said = vec![view.members];
            if let Some(others) = others {
                // That a cell is another now moves all who were in it, so one member's word is not enough.
                let before = round.doubtful.remove(&cell);
                if let Some(before) = before {
                    said.push(before);
                } else {
                    let cells: BTreeSet<Cell> =
                        others.iter().map(|(node, _)| self.book.cell_of(&cell.label, node)).collect();
                    cells.iter().for_each(|cell| claims.ask_more(cell));
                    next.extend(others);
                    if round.doubtful.len() < DOUBTFUL_MAX {
                        round.doubtful.extend(said.pop().map(|members| (cell.clone(), members)));
                    }
                    said.clear();
                }
            }
            for members in said {
                let view = CellView { cell: cell.clone(), members };
                next.extend(self.accept(view, claims, &mut round.answers).await);
            }
        }
        let is_wanted = |(label, node, _): &(CellLabel, NodeId, SocketAddr)| {
            claims.is_open(&self.book.cell_of(label, node))
        };
        next.extend(named.into_iter().filter(is_wanted).map(|(_, node, addr)| (node, addr)));
        next
    }

    /// If there cannot be such a cell beside those that are known: who are in those, whoever would be in it first.
    fn contradicted(&self, cell: &Cell) -> Option<Vec<(NodeId, SocketAddr)>> {
        let others = || self.cells.iter().filter(|(known, _)| *known != cell && known.overlaps(cell));
        others().next()?;
        let mut contacts: Vec<_> = others().flat_map(|(_, known)| known.contacts.iter().copied()).collect();
        contacts.sort_by_key(|(node, _)| !cell.part.holds(node.key()));
        Some(contacts)
    }

    /// Believes who is in a cell; whom to ask about it next.
    async fn accept(
        &mut self,
        view: CellView,
        claims: &Claims,
        answers: &mut Answers<Cell, (SocketAddr, MembershipCert)>,
    ) -> Vec<(NodeId, SocketAddr)> {
        if !self.book.learn(&view.cell) {
            return Vec::new();
        }
        // Cells that are one now, or one that is several.
        let stale = |cell: &Cell| cell.label == view.cell.label && *cell != view.cell;
        let book = &self.book;
        self.cells.retain(|cell, known| {
            !stale(cell) || known.contacts.iter().all(|(node, _)| book.cell_of(&cell.label, node) == *cell)
        });
        if self.cells.len() >= CELLS_MAX && !self.cells.contains_key(&view.cell) {
            return Vec::new();
        }
        let known = self.cells.get(&view.cell);
        let members = known.map_or(&[][..], |known| &known.members);
        match answers.take(&view.cell, view.members, members) {
            Next::Tell(members) => {
                self.tell(CellView { cell: view.cell, members }).await;
                Vec::new()
            }
            Next::AskAnother => {
                claims.ask_more(&view.cell);
                known.iter().flat_map(|known| known.contacts.iter().copied()).collect()
            }
            Next::Nothing => Vec::new(),
        }
    }

    /// Tells the loop who is in a cell.
    async fn tell(&mut self, view: CellView) {
        let contacts = some_of(&view.members, self.endpoint.node());
        let members = view.members.keys().copied().collect();
        self.cells.insert(view.cell.clone(), Known { contacts, members, asked: ambient::now() });
        let _ = self.inbox.send(Message::Cell(view)).await;
    }
}

/// What was told in one round.
struct Round {
    answers: Answers<Cell, (SocketAddr, MembershipCert)>,
    /// What one member told of cells that cannot be beside those that are known.
    doubtful: BTreeMap<Cell, BTreeMap<NodeId, (SocketAddr, MembershipCert)>>,
}

impl Round {
    const fn new() -> Self {
        Self { answers: Answers::new(), doubtful: BTreeMap::new() }
    }
}

/// A few members of a cell, chosen by a hash, for each node `me` others: nobody can have a name that all choose.
fn some_of(
    members: &BTreeMap<NodeId, (SocketAddr, MembershipCert)>,
    me: NodeId,
) -> Vec<(NodeId, SocketAddr)> {
    let mut all: Vec<_> = members.iter().map(|(node, (addr, _))| (*node, *addr)).collect();
    all.sort_by_cached_key(|(node, _)| mix(node.key() ^ me.key()));
    all.truncate(CONTACTS_OF_CELL);
    all
}

/// What one node told.
#[derive(Default)]
struct Found {
    /// It is a member of this node's own cell.
    own: Option<(NodeId, SocketAddr)>,
    /// The members of its cell, if that is another.
    view: Option<CellView>,
    /// Members of further cells of the region.
    named: Vec<(CellLabel, NodeId, SocketAddr)>,
}

/// Who was asked in one round, and how often each cell was for its members. A list may be long, so as often as is wanted, and once more
/// should that fail.
struct Claims {
    opinions: u8,
    nodes: Mutex<BTreeSet<NodeId>>,
    by_cell: Mutex<BTreeMap<Cell, Claim>>,
}

#[derive(Clone, Copy)]
struct Claim {
    asked: u8,
    answered: u8,
    wanted: u8,
}

impl Claim {
    const fn is_open(self) -> bool {
        self.answered < self.wanted && self.asked <= self.wanted
    }
}

impl Claims {
    fn new(me: NodeId, opinions: u8) -> Self {
        Self { opinions, nodes: Mutex::new([me].into()), by_cell: Mutex::default() }
    }

    fn nodes(&self) -> usize {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether a node was not asked yet. Now it is.
    fn is_first(&self, node: NodeId) -> bool {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(node)
    }

    /// What was asked of a cell so far, and after `change`.
    fn of(&self, cell: &Cell, change: impl FnOnce(&mut Claim)) -> Claim {
        let mut claims = self.by_cell.lock().unwrap_or_else(PoisonError::into_inner);
        let claim =
            claims.entry(cell.clone()).or_insert(Claim { asked: 0, answered: 0, wanted: self.opinions });
        let before = *claim;
        change(claim);
        before
    }

    fn is_open(&self, cell: &Cell) -> bool {
        self.of(cell, |_| ()).is_open()
    }

    fn claim(&self, cell: &Cell) -> bool {
        self.of(cell, |claim| claim.asked = claim.asked.saturating_add(1)).is_open()
    }

    fn is_done(&self, cell: &Cell) {
        self.of(cell, |claim| claim.answered = claim.answered.saturating_add(1));
    }

    /// The answer lacks somebody: others of the cell may be asked as well.
    fn ask_more(&self, cell: &Cell) {
        self.of(cell, |claim| claim.wanted = claim.asked.max(claim.wanted).saturating_add(1));
    }
}

/// Asks the members of a group in turn until one answers.
async fn ask_one(
    endpoint: &Endpoint,
    book: &CellBook,
    claims: &Claims,
    group: Vec<(NodeId, SocketAddr)>,
) -> Option<Found> {
    for (node, addr) in group {
        if !claims.is_first(node) {
            continue;
        }
        let connection = match endpoint.connection(node, addr).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "asking another cell");
                continue;
            }
        };
        let (own, label) = (book.own(), connection.membership().cell.clone());
        let (cell, is_own) = (book.cell_of(&label, &node), own.holds(&label, &node));
        let found_own = || is_own.then(|| Found { own: Some((node, addr)), ..Found::default() });
        if label.region() != own.label.region() || !claims.claim(&cell) {
            return found_own();
        }
        match transfer::members(&connection, endpoint.identity().trust(), ambient::unix_now()).await {
            Ok((bits, list)) => {
                // Who takes this node for a member of its cell, though it is not, means what remains of it.
                let told = Cell { label, part: Part::of(node.key(), bits) };
                let cell = if told.label == own.label && told.part.covers(own.part) { cell } else { told };
                claims.is_done(&cell);
                // Only of itself does anybody know where else it is.
                if let Some((_, addresses)) = list.iter().find(|(member, _)| member.node == node) {
                    endpoint.know(node, addresses);
                }
                let mut found = sort_out(own, &cell, list);
                found.own = is_own.then_some((node, addr));
                return Some(found);
            }
            Err(error) => {
                tracing::debug!(%node, %error, "asking for the members of another cell");
                if is_own {
                    return found_own();
                }
            }
        }
    }
    None
}

/// Who is in the asked node's cell, and whom it named in others of the region.
fn sort_out(own: &Cell, cell: &Cell, list: Vec<(MembershipCert, Vec<SocketAddr>)>) -> Found {
    let mut found = Found::default();
    let mut view = CellView { cell: cell.clone(), members: BTreeMap::new() };
    for (certificate, addresses) in list.into_iter().take(limits::CELL_MAX_MEMBERS) {
        let Some(addr) = addresses.first().copied() else { continue };
        let is_own = own.holds(&certificate.cell, &certificate.node);
        if cell.holds(&certificate.cell, &certificate.node) && !is_own {
            view.members.insert(certificate.node, (addr, certificate));
        } else if !is_own && certificate.cell.region() == own.label.region() {
            found.named.push((certificate.cell.clone(), certificate.node, addr));
        }
    }
    found.named.truncate(CONTACTS_OF_CELL * CELLS_MAX);
    found.view = (cell != own).then_some(view).filter(|view| !view.members.is_empty());
    found
}

#[cfg(test)]
mod tests;
