//! What a seed means: how large the swarm is, what it reads, and what goes wrong.
//!
//! Each swarm draws which kinds of trouble it has at all. Swarms that have everything find less than swarms that each
//! leave something out (Groce, Zhang, Eide, Chen, Regehr: "Swarm testing", ISSTA 2012), because one trouble hides another:
//! a node that crashes every second never gets its queues full.

use crate::mesh::proto::Settings;
use crate::model::limits::SLICE_BYTES;
use crate::model::{Generator, Rng};
use std::time::Duration;

/// Most nodes of a swarm.
pub const NODES_MAX: u32 = 200;
/// Most wants of the last phase, in all: nodes times chunks.
const WANTS_MAX: usize = 4_000;
/// Slices of a segment, as in the repository format.
const SEGMENT_SLICES: u32 = 8;

const MIB: u64 = 1 << 20;
const MS: Duration = Duration::from_millis(1);

/// Where a node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) cell: u32,
    pub(super) region: u32,
}

/// One chunk of the content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) slice: u32,
    pub(super) segment: u32,
    pub(super) part: u8,
    pub(super) len_bytes: u32,
}

/// What a liar does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lie {
    /// It sends other bytes.
    WrongBytes,
    /// It denies, and names anybody.
    Missing,
    /// It says that it is busy, and names anybody.
    Busy,
    /// It says `Wait` for ever.
    Wait,
    /// It says nothing.
    Silence,
    /// It sends the bytes, very late.
    Drip,
    /// It answers truly.
    Truth,
    /// Any of these, at each ask anew.
    Mixed,
}

/// A kind of trouble that comes from outside the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    /// A node dies, and starts again with or without its disk, or never.
    Crash,
    /// Some nodes do not reach some others, in both directions or in one.
    Partition,
    /// A connection breaks.
    Break,
    /// The strata are down, hang, are slow, fail now and then, or send rubbish.
    Strata,
    /// A disk takes nothing more.
    FullDisk,
    /// Stored chunks go: pushed out, or found rotten when they are read.
    Loss,
    /// A node's clock leaps forward.
    ClockJump,
    /// A member is believed to be dead that is not, or the other way round.
    FalseNews,
    /// A node does nothing for a while.
    Stall,
    /// The DHT does not answer, or names those who are long gone.
    Dht,
    /// Liars ask for all and everything.
    Flood,
}

const TROUBLES: [Trouble; 11] = [
    Trouble::Crash,
    Trouble::Partition,
    Trouble::Break,
    Trouble::Strata,
    Trouble::FullDisk,
    Trouble::Loss,
    Trouble::ClockJump,
    Trouble::FalseNews,
    Trouble::Stall,
    Trouble::Dht,
    Trouble::Flood,
];

/// What happens to messages, each as one chance in so many; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chances {
    /// Packets are lost: the message comes a few hundred milliseconds late.
    pub(super) late: usize,
    /// It never comes, and nobody is told.
    pub(super) lost: usize,
    /// The connection breaks under it.
    pub(super) broken: usize,
    /// The strata fail a fetch.
    pub(super) strata: usize,
}

/// All that a seed decides before the swarm begins.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seats: Vec<Seat>,
    pub(super) liars: Vec<Option<Lie>>,
    pub(super) content: Vec<Piece>,
    pub(super) settings: Settings,
    /// Nothing goes wrong, and everybody knows everybody: the stricter promises hold.
    pub(super) clean: bool,
    /// How long things go wrong.
    pub(super) storm: Duration,
    /// Whether liars go on lying when all else is well.
    pub(super) liars_stay: bool,
    pub(super) troubles: Vec<Trouble>,
    /// Mean time between two troubles.
    pub(super) trouble_every: Duration,
    pub(super) chances: Chances,
    /// One-way latency inside a cell, inside a region, and between regions: least and spread, in microseconds.
    pub(super) latency_us: [(usize, usize); 3],
    /// Uplinks: slowest and fastest, bytes a second.
    pub(super) up_bytes_per_s: (usize, usize),
    /// How late a node's loop may be at a deadline, in microseconds.
    pub(super) tick_late_us: usize,
    /// How long outputs wait until they are carried out, in microseconds; 0 is not at all.
    pub(super) turn_us: usize,
    /// Chunks that a disk takes; others push out.
    pub(super) disk_chunks: usize,
}

impl Plan {
    /// The plan of `seed`; `nodes` overrides the number of nodes.
    pub(super) fn draw(seed: u64, nodes: Option<u32>) -> Self {
        let rng = &mut Generator::stream(seed, 1);
        let drawn = draw_nodes(rng);
        let nodes = nodes.unwrap_or(drawn).clamp(2, NODES_MAX);
        let seats = draw_seats(nodes, rng);
        let content = draw_content(nodes, rng);
        let clean = rng.below(8) == 0;
        let liars = draw_liars(nodes, clean, rng);
        let mut troubles: Vec<Trouble> = TROUBLES.into_iter().filter(|_| rng.below(3) == 0).collect();
        if liars.iter().all(Option::is_none) {
            troubles.retain(|trouble| *trouble != Trouble::Flood);
        }
        let one_in = |rng: &mut Generator, choices: &[usize]| {
            if clean { 0 } else { choices[rng.below(choices.len())] }
        };
        let chances = Chances {
            late: one_in(rng, &[0, 10, 50]),
            lost: one_in(rng, &[0, 0, 20, 100, 500]),
            broken: one_in(rng, &[0, 0, 100, 1_000]),
            strata: one_in(rng, &[0, 0, 3, 10]),
        };
        if clean {
            troubles.clear();
        }
        let settings = if clean { Settings::default() } else { draw_settings(rng) };
        let disk_chunks =
            if clean || rng.below(3) > 0 { usize::MAX } else { (content.len() / 2).max(1 + rng.below(16)) };
        let span = 5 + rng.below(30);
        Self {
            seats,
            liars,
            settings,
            clean,
            storm: Duration::from_secs(span as u64),
            liars_stay: rng.below(2) == 0,
            troubles,
            trouble_every: MS * u32::try_from(200 + rng.below(4_000)).unwrap_or(1),
            chances,
            latency_us: [
                (100, [100, 400, 2_000][rng.below(3)]),
                (200 + rng.below(1_000), 1_000),
                (5_000 + rng.below(40_000), 10_000),
            ],
            up_bytes_per_s: if clean {
                (100_000_000, 400_000_000)
            } else {
                [(100_000_000, 400_000_000), (2_000_000, 200_000_000), (500_000, 50_000_000)][rng.below(3)]
            },
            tick_late_us: [0, 100, 2_000, 20_000][rng.below(if clean { 2 } else { 4 })],
            turn_us: [0, 0, 200, 2_000][rng.below(if clean { 2 } else { 4 })],
            disk_chunks,
            content,
        }
    }

    /// One line that says what kind of swarm it is.
    pub(super) fn line(&self) -> String {
        let liars = self.liars.iter().flatten().count();
        let cells = self.seats.iter().map(|seat| seat.cell + 1).max().unwrap_or(0);
        let regions = self.seats.iter().map(|seat| seat.region + 1).max().unwrap_or(0);
        format!(
            "{} nodes, {cells} cells, {regions} regions, {liars} liars, {} chunks, {} s of {:?}, {:?}{}",
            self.seats.len(),
            self.content.len(),
            self.storm.as_secs(),
            self.troubles,
            self.chances,
            if self.clean { ", clean" } else { "" }
        )
    }
}

/// Half of the swarms are tiny, one in twenty is large.
fn draw_nodes(rng: &mut Generator) -> u32 {
    let (least, most) = match rng.below(20) {
        0..10 => (2, 12),
        10..16 => (12, 40),
        16..19 => (40, 100),
        _ => (100, NODES_MAX as usize),
    };
    u32::try_from(least + rng.below(most - least + 1)).unwrap_or(NODES_MAX)
}

fn draw_seats(nodes: u32, rng: &mut Generator) -> Vec<Seat> {
    let cells = 1 + rng.below((nodes as usize / 2).clamp(1, 8));
    let regions = 1 + rng.below(cells.min(3));
    let seat = |node: u32| {
        // Cells of different sizes: the first takes whoever is left.
        let cell = if (node as usize) < cells { node as usize } else { rng.below(cells + 1) % cells };
        let region = cell % regions;
        Seat { cell: u32::try_from(cell).unwrap_or(0), region: u32::try_from(region).unwrap_or(0) }
    };
    (0..nodes).map(seat).collect()
}

fn draw_content(nodes: u32, rng: &mut Generator) -> Vec<Piece> {
    let most = (WANTS_MAX / nodes as usize).clamp(4, 160);
    let count = 4 + rng.below(most - 3);
    let (least, spread) = [(1 << 16, 1), (4_096, 60_000), (1 << 20, 1), (1 << 18, 1 << 22)][rng.below(4)];
    let mut at: u64 = 0;
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        let len_bytes = least + rng.below(spread);
        let slice = u32::try_from(at / SLICE_BYTES).unwrap_or(u32::MAX);
        let part = u8::try_from(at % SLICE_BYTES / (SLICE_BYTES / 64)).unwrap_or(0);
        pieces.push(Piece {
            slice,
            segment: slice / SEGMENT_SLICES,
            part,
            len_bytes: u32::try_from(len_bytes).unwrap_or(1),
        });
        // Some content lies in between that nobody here wants.
        at += len_bytes as u64 + if rng.below(8) == 0 { rng.below(3 << 20) as u64 } else { 0 };
    }
    pieces
}

fn draw_liars(nodes: u32, clean: bool, rng: &mut Generator) -> Vec<Option<Lie>> {
    let mut liars = vec![None; nodes as usize];
    let share = [0, 0, 5, 20][rng.below(4)];
    // At least two honest nodes are left to be looked at.
    let count = if clean { 0 } else { (nodes as usize * share).div_ceil(100).min(nodes as usize - 2) };
    let kinds = [
        Lie::WrongBytes,
        Lie::Missing,
        Lie::Busy,
        Lie::Wait,
        Lie::Silence,
        Lie::Drip,
        Lie::Truth,
        Lie::Mixed,
    ];
    let common = rng.below(2 * kinds.len());
    for _ in 0..count {
        let kind = kinds.get(common).copied().unwrap_or_else(|| kinds[rng.below(kinds.len())]);
        liars[rng.below(nodes as usize)] = Some(kind);
    }
    liars
}

/// Small bounds are reached in small swarms.
fn draw_settings(rng: &mut Generator) -> Settings {
    let mut settings = Settings::default();
    if rng.below(2) == 0 {
        return settings;
    }
    let mut pick = |choices: &[u64]| choices[rng.below(choices.len())];
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    settings.window_bytes = pick(&[MIB, 4 * MIB, 16 * MIB]);
    settings.window_chunks = small(pick(&[2, 16, 256]));
    // Not drawn: seeds stay what they are.
    settings.aside_max = settings.window_chunks / 4;
    settings.upload_bytes = pick(&[1 << 16, MIB, 32 * MIB]);
    settings.uploads_max = small(pick(&[1, 4, 64]));
    settings.upload_queue_bytes = pick(&[1, MIB, 4 * MIB]);
    settings.upload_queue_max = small(pick(&[1, 8, 256]));
    settings.asks_max = small(pick(&[64, 4_096]));
    settings.relays_max = small(pick(&[16, 1_024]));
    settings.home_waiters_max = u16::try_from(pick(&[2, 16, 64])).unwrap_or(64);
    settings.waiters_max = u16::try_from(pick(&[1, 4])).unwrap_or(4);
    settings.holders_max = u16::try_from(pick(&[4, 128])).unwrap_or(128);
    settings.slices_max = small(pick(&[2, 16, 16_384]));
    settings.lookups_max = small(pick(&[1, 4, 1_024]));
    settings.lookups_ahead = settings.lookups_ahead.min(settings.lookups_max);
    settings.announces_max = small(pick(&[1, 65_536]));
    settings.news_max = small(pick(&[4, 1_024]));
    settings.upstream_bytes = pick(&[MIB, 32 * MIB]);
    settings.upstream_max = small(pick(&[1, 256]));
    settings.origin_bytes_per_s = pick(&[0, 8 * MIB, 64 * MIB]);
    settings.origin_burst_bytes = pick(&[1, MIB, 64 * MIB]);
    settings.hedge_percent = u8::try_from(pick(&[0, 5, 20])).unwrap_or(5);
    settings.neighbours = u8::try_from(pick(&[0, 3, 8])).unwrap_or(8);
    settings.claims_max = small(pick(&[4, 16_384]));
    settings.min_copies = u8::try_from(pick(&[1, 1, 2])).unwrap_or(1);
    settings
}
