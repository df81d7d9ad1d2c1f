//! Every word that is spoken with the core, on a few screens.

use crate::model::{Class, Time};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

macro_rules! interned {
    ($(#[$doc:meta] $name:ident;)+) => {$(
        #[$doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);
    )+};
}

interned! {
    /// A node of the mesh, interned by its [`crate::model::NodeId`].
    Peer;
    /// A chunk, interned by its whole [`crate::model::ChunkRef`].
    Chunk;
    /// A slice of a segment, interned.
    Slice;
    /// A segment, interned.
    Segment;
    /// A request that a peer made of this node; unique among those under way.
    Ask;
    /// A signed document (root or card), interned by its hash.
    NewsId;
    /// A repository, interned by its name.
    Repository;
}

/// Where a chunk came from or was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Source {
    /// A neighbour.
    Peer(Peer),
    /// The strata, which of them is the adapter's business.
    Strata,
}

/// Why a fetch from one source failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// No connection, or it broke.
    Unreachable,
    /// No progress in time.
    TimedOut,
    /// The bytes do not match the chunk's name. Only misbehaviour does that.
    WrongBytes,
    /// The source said that it will not.
    Refused,
}

/// Up to a handful of peers, named in an answer.
pub type Holders = SmallVec<[Peer; 4]>;

/// What a node says to an asker instead of data.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// It is under way here, or queued for upload: stay, data follows on the same stream.
    Wait,
    /// No upload slot is free; these hold it or are about to.
    Busy {
        /// Others to ask.
        holders: Holders,
    },
    /// It is not here and will not come; these may hold it.
    Missing {
        /// Others to ask.
        holders: Holders,
    },
}

/// What happened. The driver reports, the core decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// Someone on this node wants a chunk by `deadline`. A repeated want may raise the class or extend the deadline.
    Wanted {
        /// What.
        chunk: Chunk,
        /// How urgently.
        class: Class,
        /// When the last local reader gives up.
        deadline: Time,
    },
    /// Nobody on this node wants it any longer.
    Unwanted {
        /// What.
        chunk: Chunk,
    },
    /// Its bytes arrived and were verified; the driver can serve them from now on.
    Arrived {
        /// What.
        chunk: Chunk,
        /// From whom.
        from: Source,
    },
    /// A fetch that the core had ordered ended without bytes.
    Failed {
        /// What.
        chunk: Chunk,
        /// From whom.
        from: Source,
        /// Why.
        why: Failure,
    },
    /// The strata sent something of the call that also carries this chunk: its lease is used, the chunk may still come.
    Progress {
        /// What.
        chunk: Chunk,
    },
    /// A peer that was asked says something instead of data.
    Told {
        /// Who speaks.
        peer: Peer,
        /// About which chunk.
        chunk: Chunk,
        /// What it says.
        answer: Answer,
        /// Uploads running and queued at the speaker, saturating: load rides on replies.
        load: u8,
    },
    /// A peer asks this node for a chunk.
    Asked {
        /// Who asks.
        peer: Peer,
        /// The request, to name it in outputs.
        ask: Ask,
        /// What.
        chunk: Chunk,
        /// How urgently.
        class: Class,
    },
    /// An asker withdrew, or its connection broke. Ends the ask.
    AskGone {
        /// The request.
        ask: Ask,
    },
    /// An upload that the core ordered ended. Ends the ask.
    Served {
        /// The request.
        ask: Ask,
        /// Whether all bytes were handed to the peer.
        ok: bool,
    },
    /// The view of a peer changed to alive. (The `Peers` view is updated before the input.)
    PeerUp {
        /// Who.
        peer: Peer,
    },
    /// The view of a peer changed to dead or gone. (The `Peers` view is updated before the input.)
    PeerDown {
        /// Who.
        peer: Peer,
    },
    /// The DHT's answer to [`Output::FindProviders`]; empty when it found none or gave up.
    Providers {
        /// What was looked up.
        segment: Segment,
        /// Who announced it.
        peers: Vec<Peer>,
    },
    /// The store holds a chunk without having been told to fetch it (found at start, or under another name).
    Stored {
        /// What.
        chunk: Chunk,
    },
    /// The store no longer holds a chunk.
    Evicted {
        /// What.
        chunk: Chunk,
    },
    /// A peer of the own cell tells what it holds.
    Possession {
        /// Who speaks.
        peer: Peer,
        /// Sixty-fourths of slices in which chunks begin that it holds, at most [`super::POSSESSION_MAX`] slices.
        slices: Vec<(Slice, u64)>,
    },
    /// A valid document that is newer than what was known came in, from a peer or from this machine.
    NewsSeen {
        /// Which.
        news: NewsId,
        /// From whom, if from a peer.
        from: Option<Peer>,
    },
    /// Time passed: the moment of [`super::Node::next_deadline`] was reached.
    Tick,
}

/// Why the core gave up on a chunk that was wanted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GiveUp {
    /// Every source that could be found failed.
    NoSource,
    /// The deadline of the last reader passed.
    Deadline,
    /// More is wanted at once than the core keeps track of.
    TooMany,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Output {
    /// Ask `peer` for `chunk`. Consecutive asks of one peer may travel in one request. The driver
    /// answers with `Arrived`, `Told` or `Failed`.
    Ask {
        /// Whom.
        peer: Peer,
        /// For what.
        chunk: Chunk,
        /// How urgently.
        class: Class,
    },
    /// Withdraw an ask.
    Cancel {
        /// From whom.
        peer: Peer,
        /// What.
        chunk: Chunk,
    },
    /// Send the bytes. The driver answers with `Served`.
    Serve {
        /// To which request.
        ask: Ask,
    },
    /// Answer without data. After `Busy` and `Missing` the ask is over; after `Wait` it is not.
    Answer {
        /// To which request.
        ask: Ask,
        /// What.
        answer: Answer,
        /// Uploads running and queued here, saturating.
        load: u8,
    },
    /// Take a chunk from the strata, under this node's lease. The driver answers with `Arrived` or `Failed`.
    FetchUpstream {
        /// What.
        chunk: Chunk,
    },
    /// Stop a fetch from the strata.
    CancelUpstream {
        /// What.
        chunk: Chunk,
    },
    /// Look a segment up in the DHT. The driver answers with `Providers`.
    FindProviders {
        /// Which.
        segment: Segment,
    },
    /// Announce in the DHT that this node, a home, holds something of a segment.
    Announce {
        /// Which.
        segment: Segment,
    },
    /// A chunk that was wanted here is there.
    Deliver {
        /// What.
        chunk: Chunk,
    },
    /// A chunk that was wanted here will not come.
    GiveUp {
        /// What.
        chunk: Chunk,
        /// Why.
        why: GiveUp,
    },
    /// Hand a document on.
    Spread {
        /// Which.
        news: NewsId,
        /// To whom.
        to: Peer,
    },
    /// Tell a neighbour what is held here. When it is lost, nothing is wrong but that the neighbour knows less.
    TellPossession {
        /// Whom.
        to: Peer,
        /// As in [`Input::Possession`].
        slices: Vec<(Slice, u64)>,
    },
    /// `peer` sent wrong bytes: close its connections and do not ask it again for a while.
    Distrust {
        /// Whom.
        peer: Peer,
    },
}

/// Outputs in the order in which they were decided. The caller drains it after each `handle`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    outputs: Vec<Output>,
}

impl Outbox {
    /// Appends an output.
    pub fn push(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// What was decided, oldest first.
    pub fn as_slice(&self) -> &[Output] {
        &self.outputs
    }

    /// Takes all outputs, keeping the memory.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Output> {
        self.outputs.drain(..)
    }
}

/// How near a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nearness {
    /// In this node's cell.
    Cell,
    /// In another cell of this node's region.
    Region,
    /// In another region, or not known where.
    Far,
}

/// The view of the mesh: members of the own cell, homes, other cells. Kept by the adapter; for one
/// state of the view the answers are always the same.
pub trait Peers {
    /// This node.
    fn me(&self) -> Peer;
    /// How near the peer is.
    fn nearness(&self, peer: Peer) -> Nearness;
    /// The home of `slice` of the given rank (0 is the first) among the live members of the own
    /// cell, this node included. `None` past the last member.
    fn home(&self, slice: Slice, rank: usize) -> Option<Peer>;
    /// The home of the given rank in the cell that rendezvous hashing picks for `slice` among the
    /// region's cells. May lie in the own cell. `None` past the last, or when that cell's members are
    /// not known (the own cell then stands in).
    fn lease_home(&self, slice: Slice, rank: usize) -> Option<Peer>;
    /// The home of the slice in another cell of the region: in the `place`-th of those that would hold the lease in this
    /// cell's place, best first. `None` past the last that is known.
    fn home_elsewhere(&self, slice: Slice, place: usize) -> Option<Peer>;
    /// Whether the peer is believed to be alive.
    fn is_up(&self, peer: Peer) -> bool;
    /// Whether the peer may read what lies in `slice`, as far as is known.
    fn may_read(&self, _peer: Peer, _slice: Slice) -> bool {
        true
    }
    /// Whether the mesh has members outside this node's region: only then is the DHT worth a look-up
    /// before the strata.
    fn has_other_regions(&self) -> bool;
    /// Live members of the own cell, this node included.
    fn members(&self) -> usize;
    /// The `index`-th live member of the own cell, in an order that is fixed for one state of the view.
    fn member(&self, index: usize) -> Peer;
    /// Some known contacts in other cells, of which some are in other regions if any are known.
    fn contacts(&self) -> &[Peer];
}

/// What the core must know of interned content.
pub trait Content {
    /// The slice that a chunk lies in.
    fn slice(&self, chunk: Chunk) -> Slice;
    /// The segment that a slice lies in.
    fn segment(&self, slice: Slice) -> Segment;
    /// The sixty-fourth of its slice that a chunk begins in, 0 to 63.
    fn part(&self, chunk: Chunk) -> u8;
    /// Bytes that a transfer of the chunk costs.
    fn len_bytes(&self, chunk: Chunk) -> u32;
}

/// Most repositories in a node's scope: as many as a certificate may name.
pub const SCOPE_MAX: usize = 32;

/// A change of the node's view of its peers, for the table that implements [`Peers`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PeerUpdate {
    /// A node is known: its rendezvous key, its cell and region as interned numbers, its weight.
    Met {
        /// Its number.
        peer: Peer,
        /// Rendezvous key, [`crate::model::NodeId::key`].
        key: u64,
        /// Number of its cell.
        cell: u32,
        /// Rendezvous key of its cell's label: the same on all nodes.
        cell_key: u64,
        /// Number of its region.
        region: u32,
        /// Share of placements relative to others; 100 is ordinary, 0 never a home.
        weight: u16,
    },
    /// A node may read certain repositories only, as its certificate says: it is a home of their slices alone. Follows
    /// `Met`; without it the node may read all.
    Scoped {
        /// Who.
        peer: Peer,
        /// Which, at most [`SCOPE_MAX`]. `None`: all.
        repositories: Option<Vec<Repository>>,
    },
    /// It answers.
    Up {
        /// Who.
        peer: Peer,
    },
    /// It does not answer.
    Down {
        /// Who.
        peer: Peer,
    },
    /// Its number may be given to another.
    Forgotten {
        /// Who.
        peer: Peer,
    },
}

/// A change of the interned content, for the table that implements [`Content`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContentUpdate {
    /// A chunk is known.
    Learned {
        /// Its number.
        chunk: Chunk,
        /// Number of its slice.
        slice: Slice,
        /// Number of its segment.
        segment: Segment,
        /// Rendezvous key of the slice: the same on all nodes.
        slice_key: u64,
        /// Sixty-fourth of the slice that it begins in.
        part: u8,
        /// Bytes that a transfer costs.
        len_bytes: u32,
    },
    /// A slice lies in a repository: its homes are members that may read that. Follows `Learned`; without it, any member
    /// is a home.
    Belongs {
        /// Number of the slice.
        slice: Slice,
        /// Number of the repository.
        repository: Repository,
    },
    /// Its number may be given to another. It is neither stored, wanted nor asked for.
    Forgotten {
        /// What.
        chunk: Chunk,
    },
}

/// Everything that reaches the core of a running agent, in order: what is recorded and replayed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Event {
    /// The view of the mesh changed.
    Peers(PeerUpdate),
    /// The interned content changed.
    Content(ContentUpdate),
    /// Something happened.
    Input(Input),
}
