//! How peers behave: what each may do is paced, every offence is counted, and who offends too much is banned for a while.
//!
//! Each offence has a weight; a node that gathers [`PATIENCE`] is banned. What it gathered fades within [`MEMORY`]. So a
//! single lie about content is enough, while what an honest node may do in bad weather must come often.

use super::bucket::{Buckets, Pace};
use crate::model::{NodeId, Time};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a node is banned: as long as the core distrusts one that sent wrong bytes.
pub(super) const BAN: Duration = Duration::from_secs(600);
/// What a node may gather before it is banned.
const PATIENCE: u32 = 600;
/// How long what was gathered takes to fade: [`PATIENCE`] at one a second.
const MEMORY: Pace = Pace { burst: PATIENCE, per_s: 1 };
/// Nodes whose offences are remembered at once; who has gathered least makes room. Members only: names cannot be made up.
const OFFENDERS_MAX: usize = 4_096;

macro_rules! offences {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal, $weight:expr;)+) => {
        /// What a peer did that it should not have done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Offence {
            $($(#[$doc])+ $variant,)+
        }

        impl Offence {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in the metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            const fn weight(self) -> u32 {
                match self { $(Self::$variant => $weight,)+ }
            }
        }
    };
}

offences! {
    /// Bytes that do not match the name of the chunk.
    WrongBytes = "wrong_bytes", PATIENCE;
    /// A document whose signature is forged, or that cannot be read at all.
    ForgedDocument = "forged_document", PATIENCE;
    /// Frames that no version of the protocol has: malformed, oversized, out of turn, about chunks that were not asked
    /// for. Five a while are a broken program.
    Protocol = "protocol", PATIENCE / 5;
    /// A reply that came too slowly to be of use. A bad link does that, too: three hundred a while.
    Drip = "drip", PATIENCE / 300;
    /// More chunks asked for than anybody can take.
    AskFlood = "ask_flood", 1;
    /// More requests for lists, or more streams that ask nothing, than anybody needs.
    RequestFlood = "request_flood", PATIENCE / 30;
    /// More documents pushed than are published anywhere.
    NewsFlood = "news_flood", PATIENCE / 100;
    /// Takes what it asked for too slowly, or not at all. A busy disk does that, too.
    SlowReader = "slow_reader", PATIENCE / 300;
}

/// What a peer may do at a pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Open a stream. Beyond it, its next streams wait.
    Stream,
    /// Ask for chunks. Beyond it, they are answered busy.
    Chunk,
    /// Ask for a list: all documents, all members. Beyond it, the request ends without an answer.
    List,
    /// Push a document. Beyond it, the request ends without an answer.
    Document,
}

impl Use {
    const ALL: [Self; 4] = [Self::Stream, Self::Chunk, Self::List, Self::Document];

    const fn pace(self) -> Pace {
        match self {
            // One core serves about two hundred thousand small requests a second (measured: 5 µs each).
            Self::Stream => Pace { burst: 4_096, per_s: 32_768 },
            // Twice what 10 Gbit/s carries of 64 KiB chunks, half of it in vain.
            Self::Chunk => Pace { burst: 16_384, per_s: 65_536 },
            // A member asks about twice a minute (guess: sixty behind one name, for restarts in a row).
            Self::List => Pace { burst: 32, per_s: 1 },
            // A publisher of hundreds of repositories, then one in 60 ms (guess).
            Self::Document => Pace { burst: 512, per_s: 16 },
        }
    }
}

const KINDS: usize = Offence::ALL.len();

/// The book of offences. Cheap to ask; it never blocks for long.
#[derive(Debug)]
pub(super) struct Conduct {
    counts: [AtomicU64; KINDS],
    bans: AtomicU64,
    gathered: Mutex<Buckets<NodeId>>,
    paces: [Mutex<Buckets<NodeId>>; Use::ALL.len()],
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; KINDS],
            bans: AtomicU64::new(0),
            gathered: Mutex::new(Buckets::new(MEMORY, OFFENDERS_MAX)),
            paces: Use::ALL.map(|what| Mutex::new(Buckets::new(what.pace(), OFFENDERS_MAX))),
        }
    }
}

impl Conduct {
    /// Whether `node` may do something `tokens` times now.
    pub(super) fn allows(&self, node: NodeId, what: Use, tokens: u32, now: Time) -> bool {
        let mut paces = self.paces[what as usize].lock().unwrap_or_else(PoisonError::into_inner);
        paces.take(node, tokens, now)
    }

    /// Notes an offence. `true`: it was one too many, and the node is to be banned.
    pub(super) fn note(&self, node: NodeId, offence: Offence, now: Time) -> bool {
        self.counts[offence as usize].fetch_add(1, Ordering::Relaxed);
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = offence.weight();
        // The last offence that patience has room for is the one too many.
        let ban = weight >= PATIENCE || !gathered.take_with_room(node, weight, now);
        self.bans.fetch_add(u64::from(ban), Ordering::Relaxed);
        ban
    }

    /// Nodes banned so far.
    pub(super) fn bans(&self) -> u64 {
        self.bans.load(Ordering::Relaxed)
    }

    /// How often each offence was seen.
    pub(super) fn counts(&self) -> impl Iterator<Item = (Offence, u64)> + '_ {
        Offence::ALL.iter().map(|offence| (*offence, self.counts[*offence as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([1; 32]);

    fn until_banned(conduct: &Conduct, offence: Offence, every: Duration) -> Option<usize> {
        let start = Time::ZERO + Duration::from_secs(10_000);
        (0..2_000_u32).position(|n| conduct.note(NODE, offence, start + every * n))
    }

    #[test]
    fn one_lie_about_content_is_enough_and_bad_weather_must_come_often() {
        for offence in [Offence::WrongBytes, Offence::ForgedDocument] {
            assert_eq!(until_banned(&Conduct::default(), offence, Duration::ZERO), Some(0));
        }
        let at_once = |offence| until_banned(&Conduct::default(), offence, Duration::ZERO);
        assert_eq!(at_once(Offence::Protocol), Some(5));
        assert_eq!(at_once(Offence::Drip), Some(300));
        assert_eq!(at_once(Offence::AskFlood), Some(600));
        let rare = |offence| until_banned(&Conduct::default(), offence, Duration::from_secs(120));
        assert_eq!((rare(Offence::Protocol), rare(Offence::Drip)), (None, None), "it fades");
    }

    #[test]
    fn everybody_has_a_pace_of_its_own_for_each_use() {
        let conduct = Conduct::default();
        for what in Use::ALL {
            let mut allowed = 0;
            while conduct.allows(NODE, what, 1, Time::ZERO) {
                allowed += 1;
            }
            assert_eq!(allowed, what.pace().burst, "{what:?}");
            assert!(conduct.allows(NodeId([2; 32]), what, 1, Time::ZERO));
            assert!(conduct.allows(NODE, what, 1, Time::ZERO + Duration::from_secs(1)));
        }
    }

    #[test]
    fn the_newest_offender_is_judged_by_what_it_does_however_many_there_are() {
        let conduct = Conduct::default();
        let node = NodeId::numbered;
        let worst = node(OFFENDERS_MAX - 1);
        for _ in 0..4 {
            assert!(!conduct.note(worst, Offence::Protocol, Time::ZERO));
        }
        assert!((0..OFFENDERS_MAX - 1).all(|n| !conduct.note(node(n), Offence::Drip, Time::ZERO)));
        // The table is full. A newcomer is not banned for a trifle, and is for what others are.
        let newcomer = node(OFFENDERS_MAX);
        assert!(!conduct.note(newcomer, Offence::Drip, Time::ZERO));
        let offences = (0..10).position(|_| conduct.note(newcomer, Offence::Protocol, Time::ZERO));
        assert_eq!(offences, Some(4));
        assert!(!conduct.note(worst, Offence::Protocol, Time::ZERO));
        assert!(conduct.note(worst, Offence::Protocol, Time::ZERO), "what it did was not forgotten");
    }

    #[test]
    fn every_offence_is_counted_under_its_name_and_nobody_pays_for_another() {
        let conduct = Conduct::default();
        for offence in Offence::ALL {
            conduct.note(NODE, *offence, Time::ZERO);
        }
        assert!(conduct.counts().all(|(_, count)| count == 1));
        let names: std::collections::BTreeSet<_> =
            Offence::ALL.iter().map(|offence| offence.name()).collect();
        assert_eq!(names.len(), KINDS);
        while !conduct.note(NODE, Offence::Drip, Time::ZERO) {}
        assert!(!conduct.note(NodeId([2; 32]), Offence::Drip, Time::ZERO));
    }
}
