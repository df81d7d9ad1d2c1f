//! When an upload has left, for a node's decisions. A real node's connections take in what they may have in flight and half as much again
//! (`src/mesh/transfer/outflow.rs`); what lies there is no upload any more, and makes room for another, though the link has not carried it.

use super::network::Links;
use super::scenario::Scenario;
use crate::mesh::proto::{Ask, Chunk};

/// An upload that has not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upload {
    pub(super) ask: Ask,
    pub(super) to: u32,
    pub(super) chunk: Chunk,
    pub(super) bytes: u32,
    /// Whether it lies in the connections' buffers.
    pub(super) is_sent: bool,
}

/// By node: its uploads, in their order.
#[derive(Debug)]
pub(super) struct Outflows {
    /// By node: bytes that its connections hold.
    most: Vec<f64>,
    uploads: Vec<Vec<Upload>>,
}

impl Outflows {
    /// Those of a scenario; `None` if connections hold nothing.
    pub(super) fn of(scenario: &Scenario, links: &Links, step_ns: u64) -> Option<Self> {
        let (nodes, hold_ms) = (scenario.fleet.nodes as usize, scenario.network.send_buffer_ms);
        let steps = hold_ms as f64 * 1e6 / step_ns as f64;
        let most = || links.rates()[..nodes].iter().map(|rate| rate * steps).collect();
        (hold_ms > 0).then(|| Self::new(most()))
    }

    /// Nodes whose connections hold so many bytes.
    fn new(most: Vec<f64>) -> Self {
        let uploads = vec![Vec::new(); most.len()];
        Self { most, uploads }
    }

    /// One begins.
    pub(super) fn push(&mut self, from: u32, upload: Upload) {
        self.uploads[from as usize].push(upload);
    }

    /// Takes in what there is room for, and hands that out: it counts as sent.
    pub(super) fn take_in(&mut self, from: u32) -> Vec<Upload> {
        let (most, uploads) = (self.most[from as usize], &mut self.uploads[from as usize]);
        let mut held: f64 =
            uploads.iter().filter(|upload| upload.is_sent).map(|upload| f64::from(upload.bytes)).sum();
        let mut taken = Vec::new();
        for upload in uploads.iter_mut().filter(|upload| !upload.is_sent) {
            held += f64::from(upload.bytes);
            if held > most {
                break;
            }
            upload.is_sent = true;
            taken.push(*upload);
        }
        taken
    }

    /// One ended, or was broken off.
    pub(super) fn end(&mut self, from: u32, to: u32, ask: Ask, chunk: Chunk) -> Option<Upload> {
        let uploads = &mut self.uploads[from as usize];
        let is_it = |upload: &Upload| (upload.to, upload.ask, upload.chunk) == (to, ask, chunk);
        let index = uploads.iter().position(is_it)?;
        Some(uploads.remove(index))
    }

    /// Nodes died.
    pub(super) fn forget(&mut self, dies: impl Fn(u32) -> bool) {
        for (from, uploads) in (0..).zip(&mut self.uploads) {
            if dies(from) {
                uploads.clear();
            } else {
                uploads.retain(|upload| !dies(upload.to));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(number: u32, to: u32) -> Upload {
        Upload { ask: Ask(number), to, chunk: Chunk(number), bytes: 100_000, is_sent: false }
    }

    fn numbers(taken: &[Upload]) -> Vec<u32> {
        taken.iter().map(|upload| upload.ask.0).collect()
    }

    #[test]
    fn as_much_is_taken_in_as_there_is_room_for_in_the_order_of_uploads() {
        let mut outflows = Outflows::new(vec![50_000.0, 250_000.0]);
        for number in 0..4 {
            outflows.push(1, upload(number, 7 + number));
        }
        assert_eq!(numbers(&outflows.take_in(1)), [0, 1]);
        assert!(outflows.take_in(1).is_empty());
        // One that is under way all the same may end before.
        let ended = outflows.end(1, 9, Ask(2), Chunk(2)).unwrap();
        assert!(!ended.is_sent && outflows.take_in(1).is_empty());
        assert!(outflows.end(1, 7, Ask(0), Chunk(0)).unwrap().is_sent);
        assert!(outflows.end(1, 7, Ask(0), Chunk(0)).is_none(), "it is over");
        assert_eq!(numbers(&outflows.take_in(1)), [3]);
        outflows.push(0, upload(5, 1));
        assert!(outflows.take_in(0).is_empty(), "what does not fit leaves with its last byte");
    }

    #[test]
    fn nothing_goes_on_from_or_to_the_dead() {
        let mut outflows = Outflows::new(vec![300_000.0; 3]);
        for (from, to) in [(0, 1), (1, 2), (2, 1), (2, 0)] {
            outflows.push(from, upload(from * 8 + to, to));
        }
        outflows.forget(|node| node == 1);
        let left = [0, 1, 2].map(|from| numbers(&outflows.take_in(from)));
        assert_eq!(left, [vec![], vec![], vec![16]]);
    }
}
