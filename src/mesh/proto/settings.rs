//! Every constant of the core: unit, default, and where the default comes from.

use serde::{Deserialize, Serialize};

/// What the core's decisions are tuned by. The defaults are the node's and the simulator's alike.
///
/// "Simulated" means that copies of `simulations/scenarios/flash-crowd-10k.toml` with 1 000 or 2 000 nodes in one cell were
/// run with neighbouring values, of which `docs/mesh-decisions.md` has the table; "guess" means that nothing but judgement speaks for the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Wanted chunks that are under way at once in any case: some of them may stand at a liar who says `Wait` (swarms: with 8 wants ran late).
    pub window_min: u32,
    /// As many if they take no longer than `window_ms`; beyond that only what is on its way (simulated: twice `uploads_even`, since a
    /// want waits for its turn and then for its bytes; with less links stand idle, with more asks outnumber the places in the queues).
    pub window_even: u32,
    /// So many bytes if they take no longer, however many chunks they are (measured: twice `uploads_even_bytes`, for the same reason).
    pub window_even_bytes: u64,
    /// Milliseconds of the downlink that wants under way may take together, twice (guess: what a reader may have to wait behind).
    pub window_ms: u32,
    /// Bytes of wanted chunks that are under way at once at most (guess: 25 Gbit/s for 10 ms).
    pub window_bytes: u64,
    /// Wanted chunks that are under way at once at most (guess: 4 MiB of small files).
    pub window_chunks: u32,
    /// Milliseconds after which a want that waits for others and gets no bytes stands aside: it no longer keeps others from beginning. Longer where
    /// the link takes longer for all that is under way (guess: twice `keep_alive_ms`, which tells waiting from coming).
    pub aside_ms: u32,
    /// Wants that stand aside at once at most (guess: four times `window_even`).
    pub aside_max: u32,
    /// Wanted chunks that are remembered, under way or not. More are given up at once (guess).
    pub wants_max: u32,
    /// `Fill` picks at random among the oldest pending wants of this many bytes: nodes that copy the same
    /// tree then differ in what they hold, yet work on the same part of it (simulated: with 64 and 128 slices the makespan
    /// is 2 to 7 % longer, with 512 it is no shorter).
    pub fill_window_bytes: u64,
    /// At first `Fill` picks among as many wants for each member of the cell, and as many more as it has begun: whatever comes first is
    /// wanted by many at once.
    pub fill_first: u32,
    /// But among no more than so many at first: each of them must leave the strata before it goes from node to node, and a node
    /// whose window waits for what is still there has nothing to give (simulated with 1 000 nodes: 32 1.129 times the bound, 64 1.124, 128 1.123,
    /// 256 1.135).
    pub fill_first_max: u32,
    /// A fill that this node is the home of begins before others, and further ahead by what the downlink moves in so many
    /// milliseconds: then it has left the strata when others want it, who else wait for it with a place of their window each. Not where that is
    /// less than sixteen chunks (simulated with 4 000 nodes in two cells and 10 Gbit/s: 0 1.153 times the bound, 27 1.146, 40 1.147, 80 1.150;
    /// half of the nodes end at 1.129, 1.116, 1.115 and 1.111 times the bound).
    pub fill_own_ms: u32,
    /// `Prefetch` picks at random among as many of its oldest wants: readers in the same order then have something to give each other
    /// (measured: 128 to 256. Simulated: in order, 1 000 such readers take 1.29 times the bound, and a few of them 8 times; with 32 1.26,
    /// with 64 and 128 1.21).
    pub prefetch_window: u32,
    /// But so many of a hundred prefetches are the oldest, that is, the next that a reader comes to: who goes on steadily wants what is new
    /// one by one, and who jumps from gap to gap wants a whole window at once that nobody has yet (simulated: 0 1.196 times the bound, 50 1.185).
    pub prefetch_oldest_percent: u8,

    /// Uploads that run at once in any case (measured: with one or two real transfers take a third longer, with four 2 %).
    pub uploads_min: u32,
    /// As many if they take no longer than `uploads_ms`; beyond that only what is on its way (simulated: with 6 the
    /// makespan is 2 % longer, with 16 no shorter).
    pub uploads_even: u32,
    /// So many bytes if they take no longer, however many chunks they are: with small chunks on slow links the connections of real
    /// transfers stand idle between two of them (measured: 12 real nodes with 20 Mbit/s 1.150 against 1.18 without).
    pub uploads_even_bytes: u64,
    /// Milliseconds of the uplink that uploads may take together (guess: half of `ask_ms`, after which askers turn elsewhere).
    pub uploads_ms: u32,
    /// Bytes that are uploaded at once at most (guess: 25 Gbit/s for 10 ms).
    pub upload_bytes: u64,
    /// Uploads that run at once at most (guess).
    pub uploads_max: u32,
    /// Uploads of one chunk that run at once before askers of the own cell are sent to those who get it, unless somebody reads there. What
    /// few have spreads fastest if few get it at a time, and soon (simulated with 1 000 nodes: 2 1.149 times the bound, 4 and 6 1.136, without
    /// this 1.149).
    pub same_chunk_max: u16,
    /// Asks that wait for an upload before askers are redirected, if their turn comes within half of `uploads_ms`; where many uploads run,
    /// a quarter of their bytes (simulated: with 16 the makespan is 11 % longer than with 8, with 4 it is 2 % shorter and with 2 no shorter).
    pub queue_even: u32,
    /// Bytes that may wait for an upload at most (guess).
    pub upload_queue_bytes: u64,
    /// Asks that may wait for an upload slot, however small (guess).
    pub upload_queue_max: u32,
    /// Longest wait for an upload slot, in milliseconds; then the asker is redirected (guess).
    pub upload_queue_ms: u32,
    /// Asks of others that are kept track of; more are told `Busy` (guess).
    pub asks_max: u32,

    /// Homes of a slice in a cell that keep a copy of what one of them got from outside; at most [`Self::home_ranks`]. 1: only
    /// who reads it and the home (each further one is a copy of everything a cell reads, and the operator's to decide).
    pub min_copies: u8,
    /// Ranks that count as homes of a slice: they fetch what they are asked for. The asker may see others dead,
    /// so it is more than one (design: the next two ranks stand in).
    pub home_ranks: u8,
    /// Next ranks that a new and empty home asks before it goes further (design: two).
    pub peek_ranks: u8,
    /// Other cells of the region that a new and empty home with the lease asks, those first that would hold it in its cell's place: they
    /// were the lease cell before a new cell joined (guess: two, as of ranks).
    pub peek_cells: u8,
    /// Ranks of the lease cell that are tried before the strata are asked without it (guess).
    pub lease_ranks: u8,
    /// Members that are asked, in the order of rank, when every other source failed (guess).
    pub sweep_ranks: u8,
    /// Holders of a slice that its home remembers (simulated: in a cell of 2 000 128 take 1.143 times the bound and 256 1.137, for
    /// those who ask push out those who have it; 512 are no better).
    pub holders_max: u16,
    /// Milliseconds after which a redirected asker probably holds what it asked for and is named first (simulated with 4 000 nodes in two
    /// cells: 15 1.147 times the bound, 8 1.141 and 8 % fewer messages, 4 1.143; 2 000 readers in order take 1.235 times the bound with 15, 1.254
    /// with 8).
    pub holder_ripe_ms: u32,
    /// Slices of which holders are remembered, as home or from answers (guess).
    pub slices_max: u32,
    /// Seconds that holders from an answer are remembered for the other chunks of the slice (guess).
    pub hints_s: u32,
    /// Waiters for one chunk at a home; further askers are redirected (simulated: 64 is no better and costs 4 % more messages).
    pub home_waiters_max: u16,
    /// Waiters for one chunk at a node that is not its home (simulated: 8 is no better; without such waits the
    /// makespan is half as long again).
    pub waiters_max: u16,
    /// Longest wait at a node that is not a home, in milliseconds. Short, because two such nodes might wait for
    /// each other (simulated: 10 is no better and costs 16 % more messages).
    pub waiter_ms: u32,
    /// Fetches that are under way for others only (guess).
    pub relays_max: u32,

    /// Members that are told what is held here; 0 tells nobody and claims of others are not used (design: 8 to 16).
    pub neighbours: u8,
    /// Tellings after which one of them gives its place to another (guess: some minutes while something happens).
    pub neighbours_renew: u32,
    /// Milliseconds between two tellings (guess: 8 neighbours with 64 slices of 13 bytes and their names are 20 KB/s at
    /// most, while more than that changes).
    pub possession_ms: u32,
    /// Claims of others that are remembered: a slice and a peer each (guess: 16 neighbours with 1 024 slices).
    pub claims_max: u32,

    /// Named holders that are tried before the home is asked again (simulated: 8 is no better).
    pub tries_max: u8,
    /// Choices between named holders by their last known load (measured: two to four are enough).
    pub choices: u8,
    /// Seconds that one home may say `Busy` before the next rank is tried: its holders may all be lies (guess: longer than
    /// a window takes on slow links).
    pub busy_max_s: u32,
    /// First pause before a busy home is asked again, in microseconds; drawn from 0 to this, doubled at each
    /// visit up to four times (simulated: 500 is no better).
    pub backoff_us: u32,
    /// Milliseconds without an answer after which another source is asked (design: a lease lapses after 2 s).
    pub ask_ms: u32,
    /// Asks beside a slow source, of a hundred asks (design: they must not melt an overloaded mesh; Dean, Barroso: "The tail
    /// at scale", 2013, found 2 to 5 enough).
    pub hedge_percent: u8,
    /// Such asks that may be made at once after a pause (guess).
    pub hedge_burst: u8,
    /// Least milliseconds before a source counts as slow (guess: below, it is the scheduler's noise).
    pub hedge_min_ms: u32,
    /// Peers whose pace is remembered; a power of two (guess).
    pub speeds_max: u16,
    /// Milliseconds after which who waits hears `Wait` again (guess: well below `ask_ms`).
    pub keep_alive_ms: u32,
    /// Seconds that one authority may make this node wait (guess). Who was named by another has less: `upload_queue_ms`
    /// and `ask_ms`.
    pub wait_max_s: u32,
    /// Slowest transfer that still counts as progress, in bytes a second: added to the time-outs by length (guess).
    pub slowest_bytes_per_s: u32,
    /// Seconds that a peer which sent wrong bytes is not asked (guess).
    pub distrust_s: u32,
    /// Seconds that a peer which took asks and delivered nothing is passed over; doubled each time (guess: some times what finding
    /// it out costs).
    pub doubt_s: u32,

    /// Chunks that are fetched from the strata at once in any case; more wait in line (guess: one comes while the next is asked for).
    pub upstream_min: u32,
    /// Milliseconds of the way from the strata that fetches under way may take together (guess: well below `lease_ms`, longer than
    /// any way there and back).
    pub upstream_ms: u32,
    /// Bytes that are fetched from the strata at once while their speed is not known (guess: little, for all homes
    /// begin at once and share one stratum).
    pub upstream_first_bytes: u64,
    /// Bytes that are fetched from the strata at once at most (guess).
    pub upstream_bytes: u64,
    /// Chunks that are fetched from the strata at once at most (guess: 4 MiB of small files).
    pub upstream_max: u32,
    /// Fetches of one chunk from the strata before another source is tried (guess).
    pub upstream_tries: u8,
    /// Pause before a failed fetch from the strata is repeated, in milliseconds, half of it random (guess).
    pub upstream_retry_ms: u32,
    /// Bytes a second that this node takes from the strata, whoever they are for; more wait in line. 0 is no budget: leases
    /// already keep it at one copy a region, and what his strata bear only an operator knows.
    pub origin_bytes_per_s: u64,
    /// Bytes that it may take at once after a pause (guess: eight segments).
    pub origin_burst_bytes: u64,
    /// Milliseconds in line for the strata after which other sources are looked for again (guess: well below the time that
    /// a reader waits).
    pub origin_look_ms: u32,
    /// Milliseconds without progress after which a lease lapses (design).
    pub lease_ms: u32,

    /// Look-ups in the DHT that are under way or cached (guess).
    pub lookups_max: u32,
    /// Look-ups under way beyond which none begins ahead of need (guess: a look-up takes a node some 10 ms of processor time, measured
    /// with 100 nodes, so that as many take half a second).
    pub lookups_ahead: u32,
    /// Seconds that the answer of a look-up is used (guess: shorter than a provider record's life).
    pub lookup_fresh_s: u32,
    /// Milliseconds to wait for a look-up (measured: a look-up is 43 requests; guess for the time).
    pub lookup_ms: u32,
    /// Milliseconds between two announcements (measured: one costs 68 requests and 13 ms of CPU).
    pub announce_every_ms: u32,
    /// Announcements that wait for their turn (guess).
    pub announces_max: u32,

    /// Documents whose spreading is remembered (guess).
    pub news_max: u32,
    /// Members beyond ln n to whom a document is handed on: the chance that one is missed falls as e^-c
    /// (Kermarrec, Massoulie, Ganesh: "Probabilistic reliable dissemination", 2003).
    pub news_extra: u8,
    /// How often it is handed to one more member later, in case a message was lost (guess: each halves and more the chance
    /// that somebody is missed).
    pub news_repeats: u8,
    /// Milliseconds to the first of these times; doubled each time (guess: two round trips and a handshake, so that most
    /// repeats lie within the second that a root may take).
    pub news_repeat_ms: u32,
    /// Contacts in other cells to whom a document is handed on, drawn at random (guess).
    pub news_contacts: u8,

    /// Peers whose last known load is remembered; a power of two (guess).
    pub loads_max: u16,
    /// Largest chunk and slice number plus one: the core's tables are as long (guess: 16 million chunks of 64 KiB
    /// are 1 TiB).
    pub numbers_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            window_min: 16,
            window_even: 24,
            window_even_bytes: 4 * MIB,
            window_ms: 1_000,
            window_bytes: 64 * MIB,
            window_chunks: 1_024,
            aside_ms: 1_000,
            aside_max: 96,
            wants_max: 16_384,
            fill_window_bytes: 256 * MIB,
            fill_first: 8,
            fill_first_max: 128,
            fill_own_ms: 40,
            prefetch_window: 128,
            prefetch_oldest_percent: 50,
            uploads_min: 4,
            uploads_even: 12,
            uploads_even_bytes: 2 * MIB,
            uploads_ms: 1_000,
            upload_bytes: 32 * MIB,
            uploads_max: 256,
            same_chunk_max: 4,
            queue_even: 4,
            upload_queue_bytes: 4 * MIB,
            upload_queue_max: 256,
            upload_queue_ms: 2_000,
            asks_max: 4_096,
            min_copies: 1,
            home_ranks: 3,
            peek_ranks: 2,
            peek_cells: 2,
            lease_ranks: 2,
            sweep_ranks: 16,
            holders_max: 256,
            holder_ripe_ms: 8,
            slices_max: 16_384,
            hints_s: 30,
            home_waiters_max: 256,
            waiters_max: 4,
            waiter_ms: 20,
            relays_max: 1_024,
            neighbours: 8,
            neighbours_renew: 64,
            possession_ms: 2_000,
            claims_max: 16_384,
            tries_max: 4,
            choices: 2,
            busy_max_s: 30,
            backoff_us: 2_000,
            ask_ms: 2_000,
            hedge_percent: 5,
            hedge_burst: 8,
            hedge_min_ms: 20,
            speeds_max: 64,
            keep_alive_ms: 500,
            wait_max_s: 15,
            slowest_bytes_per_s: 1 << 18,
            distrust_s: 600,
            doubt_s: 30,
            upstream_min: 2,
            upstream_ms: 500,
            upstream_first_bytes: MIB / 4,
            upstream_bytes: 32 * MIB,
            upstream_max: 1_024,
            upstream_tries: 3,
            upstream_retry_ms: 200,
            origin_bytes_per_s: 0,
            origin_burst_bytes: 64 * MIB,
            origin_look_ms: 5_000,
            lease_ms: 2_000,
            lookups_max: 1_024,
            lookups_ahead: 48,
            lookup_fresh_s: 60,
            lookup_ms: 5_000,
            announce_every_ms: 50,
            announces_max: 65_536,
            news_max: 1_024,
            news_extra: 3,
            news_repeats: 5,
            news_repeat_ms: 250,
            news_contacts: 8,
            loads_max: 64,
            numbers_max: 1 << 24,
        }
    }
}
