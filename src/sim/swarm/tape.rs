//! What a swarm leaves behind: a hash of everything that happened, and on request a log that people can read.

use super::Count;
use crate::mesh::proto::{Event, Output};
use crate::model::{Time, mix};
use std::hash::{Hash, Hasher};
use std::io::Write;

/// A hash that is the same on every machine, unlike the standard library's.
#[derive(Clone, Debug, Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0.rotate_left(5) ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_i64(number as i64);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }
}

/// Records as it goes.
pub(super) struct Tape<'a> {
    fold: Fold,
    log: Option<&'a mut dyn Write>,
    pub(super) count: Count,
}

impl<'a> Tape<'a> {
    pub(super) fn new(log: Option<&'a mut dyn Write>) -> Self {
        Self { fold: Fold::default(), log, count: Count::default() }
    }

    pub(super) fn hash(&self) -> u64 {
        self.fold.finish()
    }

    /// Something reached a node.
    pub(super) fn event(&mut self, at: Time, node: u32, event: &Event) {
        self.count.events += 1;
        (at, node, event).hash(&mut self.fold);
        if self.log.is_some() {
            match event {
                Event::Input(input) => self.line(at, Some(node), &format!("<- {input:?}")),
                other => self.line(at, Some(node), &format!("<- {other:?}")),
            }
        }
    }

    /// A node decided.
    pub(super) fn output(&mut self, at: Time, node: u32, output: &Output) {
        output.hash(&mut self.fold);
        match output {
            Output::Ask { .. } => self.count.asks += 1,
            Output::FetchUpstream { .. } => self.count.upstream += 1,
            Output::Deliver { .. } => self.count.delivered += 1,
            Output::GiveUp { .. } => self.count.given_up += 1,
            _ => {}
        }
        if self.log.is_some() {
            self.line(at, Some(node), &format!("   -> {output:?}"));
        }
    }

    /// Something happened in the world. `what` is only made when somebody reads it.
    pub(super) fn note(&mut self, at: Time, what: impl FnOnce() -> String) {
        if self.log.is_some() {
            self.line(at, None, &format!("** {}", what()));
        }
    }

    fn line(&mut self, at: Time, node: Option<u32>, text: &str) {
        let Some(log) = &mut self.log else { return };
        let node = node.map_or_else(|| "    ".to_owned(), |node| format!("n{node:<3}"));
        // A reader of the log that went away does not change the swarm.
        let _ = writeln!(log, "{:>11.6} {node} {text}", at.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_on_all_machines() {
        let mut fold = Fold::default();
        (7_u32, -1_isize, "ab", [1_u8, 2].as_slice(), Time::from_nanos(9)).hash(&mut fold);
        assert_eq!(fold.finish(), PINNED);
    }

    const PINNED: u64 = 17_618_310_949_262_110_370;
}
