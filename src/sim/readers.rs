//! How those who read the content waited: distributions over all readers.

use super::reader::Outcome;
use super::rollout::quantile;
use serde::Serialize;

/// What half of the readers had at most, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Half of them.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All of them.
    pub max: f64,
}

impl Distribution {
    /// Of values in any order; all `NaN` of none.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let [p50, p90, p99, max] = [50, 90, 99, 100].map(|per_cent| quantile(&values, per_cent));
        Self { p50, p90, p99, max }
    }
}

/// How the readers of honest nodes waited. A stall is a wait for any chunk but the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Readers {
    /// Readers.
    pub readers: u32,
    /// Those of them whose node got everything. All else is about these.
    pub read_all: u32,
    /// From its beginning to a reader's first chunk, in seconds.
    pub first_chunk_s: Distribution,
    /// From its beginning until a reader had read all, in seconds.
    pub read_s: Distribution,
    /// Stalls of all readers together.
    pub stalls: u64,
    /// Stalls of a reader.
    pub stalls_each: Distribution,
    /// Seconds that a reader stalled in all.
    pub stalled_s: Distribution,
    /// The longest stall of a reader, in seconds.
    pub longest_stall_s: Distribution,
    /// Share of the readers who did not stall.
    pub without_stall: f64,
}

impl Readers {
    /// Of these, each with how it was if it read all; nothing of none.
    pub(super) fn of(readers: impl Iterator<Item = Option<Outcome>>) -> Option<Self> {
        let mut count = 0_u32;
        let mut outcomes = Vec::new();
        for outcome in readers {
            count += 1;
            outcomes.extend(outcome);
        }
        let all = |value: &dyn Fn(&Outcome) -> f64| Distribution::of(outcomes.iter().map(value).collect());
        let smooth = outcomes.iter().filter(|one| one.waits.stalls == 0).count();
        (count > 0).then(|| Self {
            readers: count,
            read_all: u32::try_from(outcomes.len()).unwrap_or(u32::MAX),
            first_chunk_s: all(&|one| one.waits.first.as_secs_f64()),
            read_s: all(&|one| one.ended.since(one.began).as_secs_f64()),
            stalls: outcomes.iter().map(|one| u64::from(one.waits.stalls)).sum(),
            stalls_each: all(&|one| f64::from(one.waits.stalls)),
            stalled_s: all(&|one| one.waits.stalled.as_secs_f64()),
            longest_stall_s: all(&|one| one.waits.longest.as_secs_f64()),
            without_stall: smooth as f64 / outcomes.len() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::{ReadPlan, Reader};
    use super::*;
    use crate::mesh::proto::Chunk;
    use crate::model::Time;
    use std::sync::Arc;

    #[test]
    fn distributions_are_over_those_who_read_to_the_end() {
        let plan = Arc::new(ReadPlan { chunks: 2, order: None, ahead: 1, nanos_per_byte: 0.0 });
        // Reader n gets its first chunk after n seconds, its second n - 1 seconds later; the last never does.
        let readers: Vec<Reader> = (1..=11)
            .map(|number: u64| {
                let mut reader = Reader::new(&plan);
                let go_on = |reader: &mut Reader, seconds: u64| {
                    drop(reader.go_on(Time::from_nanos(seconds * 1_000_000_000), Time::NEVER, |_| 1));
                };
                go_on(&mut reader, 100);
                reader.note(Chunk(0));
                go_on(&mut reader, 100 + number);
                if number <= 10 {
                    reader.note(Chunk(1));
                    go_on(&mut reader, 99 + 2 * number);
                }
                reader
            })
            .collect();
        let readers = Readers::of(readers.iter().map(|reader| reader.outcome(|_| 1))).unwrap();
        assert_eq!((readers.readers, readers.read_all, readers.stalls), (11, 10, 9));
        let of = |p50, p90, p99, max| Distribution { p50, p90, p99, max };
        assert_eq!(readers.first_chunk_s, of(5.0, 9.0, 10.0, 10.0));
        assert_eq!(readers.stalled_s, of(4.0, 8.0, 9.0, 9.0));
        assert_eq!(
            (readers.longest_stall_s, readers.stalls_each),
            (readers.stalled_s, of(1.0, 1.0, 1.0, 1.0))
        );
        assert_eq!((readers.read_s, readers.without_stall), (of(9.0, 17.0, 19.0, 19.0), 0.1));
        assert_eq!(Readers::of(std::iter::empty()), None);
    }
}
