//! How long messages wait at busy links. What a chunk waits is in the time that its transfer takes.

use super::Traffic;
use super::links::Path;
use crate::sim::scenario::Scenario;

/// How long a message waits at each link, in half steps: it grows while the link is busy and falls while it is not, half as fast as time
/// goes. It grows no further than until the link has carried what stands in front of it: of the transfers that pass it and find no
/// slower link on their way, all that is left.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Queues {
    /// By link.
    levels: Vec<u64>,
    /// By link: bytes that are left of what passes it, and those of them that stand in front of it.
    passing: Vec<f64>,
    standing: Vec<f64>,
    most: u64,
    last: u64,
}

impl Queues {
    /// In front of so many links, with steps of `step_ns`; `None` if nothing waits.
    pub(in crate::sim) fn new(scenario: &Scenario, links: u32, step_ns: u64) -> Option<Self> {
        let most = 2 * scenario.network.queue_ms * 1_000_000 / step_ns;
        (most > 0).then(|| Self::with(links, most))
    }

    fn with(links: u32, most: u64) -> Self {
        let none = vec![0.0; links as usize];
        Self { levels: vec![0; links as usize], passing: none.clone(), standing: none, most, last: 0 }
    }

    /// After what moved in a step.
    pub(in crate::sim) fn step<S: Copy>(&mut self, now: u64, traffic: &Traffic<S>) {
        let passed = now - self.last;
        self.last = now;
        self.passing.fill(0.0);
        self.standing.fill(0.0);
        let rates = traffic.links().rates();
        for (path, left) in traffic.under_way() {
            for link in path.links() {
                self.passing[*link as usize] += left;
            }
        }
        for (path, left) in traffic.under_way() {
            let takes = |link: &&u32| self.passing[**link as usize] / rates[**link as usize];
            if let Some(link) = path.links().iter().max_by(|a, b| takes(a).total_cmp(&takes(b))) {
                self.standing[*link as usize] += left;
            }
        }
        for ((link, level), (standing, rate)) in
            (0..).zip(&mut self.levels).zip(self.standing.iter().zip(rates))
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "positive, and it saturates"
            )]
            let most = self.most.min((2.0 * standing / rate) as u64);
            let busy = traffic.is_link_busy(link);
            *level = if busy && *level < most {
                level.saturating_add(passed).min(most)
            } else if busy {
                level.saturating_sub(passed).max(most)
            } else {
                level.saturating_sub(passed)
            };
        }
    }

    /// The waits on a way, in steps: at the two links where it is longest, so that they do not fall faster than time goes, and no message
    /// overtakes an earlier one.
    pub(in crate::sim) fn steps(&self, path: &Path) -> u64 {
        let mut longest = [0; 2];
        for link in path.links() {
            let level = self.levels[*link as usize];
            if level > longest[0] {
                longest = [level, longest[0]];
            } else if level > longest[1] {
                longest[1] = level;
            }
        }
        (longest[0] + longest[1]) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::network::{Flow, Links, Model};

    /// Links of 20 Mbit/s, which are 10 bytes in a step of 4 µs.
    fn set_up(most: u64) -> (Traffic<()>, Queues) {
        let text = include_str!("../../../simulations/scenarios/rollout-32.toml");
        let links = Links::new(&Scenario::parse(text).unwrap(), 1, 4_000);
        let queues = Queues::with(links.count(), most);
        (Traffic::alone(Model::Fluid, links), queues)
    }

    #[test]
    fn a_busy_link_makes_messages_wait_and_none_overtakes_another() {
        let (mut traffic, mut queues) = set_up(16);
        traffic.start(Flow { from: 0, to: 1, what: () }, 200);
        let path = traffic.links().path(0, 1);
        let (mut longest, mut last) = (0, 0);
        for now in 1..60 {
            traffic.step(&mut Vec::new());
            queues.step(now, &traffic);
            let arrives = now + queues.steps(&path);
            assert!(arrives >= last, "step {now}");
            last = arrives;
            longest = longest.max(queues.steps(&path));
        }
        assert!((5..=8).contains(&longest), "{longest}");
        assert_eq!([queues.steps(&path), queues.steps(&traffic.links().path(1, 0))], [0, 0]);
    }

    #[test]
    fn nobody_waits_for_longer_than_what_is_left_takes_and_that_at_one_link() {
        let (mut traffic, mut queues) = set_up(2_000);
        let path = traffic.links().path(0, 1);
        let (mut ended, mut longest) = (Vec::new(), 0);
        // One transfer after the other of 6 steps each, and none waits in the sender's queue.
        traffic.start(Flow { from: 0, to: 1, what: () }, 60);
        for now in 1..200 {
            traffic.step(&mut ended);
            if ended.pop().is_some() {
                traffic.start(Flow { from: 0, to: 1, what: () }, 60);
            }
            queues.step(now, &traffic);
            longest = longest.max(queues.steps(&path));
        }
        assert!((1..=6).contains(&longest), "{longest}");
    }

    #[test]
    fn what_many_send_to_one_stands_in_front_of_its_link() {
        let (mut traffic, mut queues) = set_up(100);
        for from in 1..9 {
            traffic.start(Flow { from, to: 0, what: () }, 10_000);
        }
        for now in 1..200 {
            traffic.step(&mut Vec::new());
            queues.step(now, &traffic);
        }
        let waits = |from: u32, to: u32| queues.steps(&traffic.links().path(from, to));
        assert_eq!([waits(1, 0), waits(9, 0), waits(0, 1), waits(1, 9)], [50, 50, 0, 0]);
    }
}
