//! The network: transfers move through links that they share, and messages take their time.
//!
//! [`Links`] says which links there are and which of them a transfer passes. How those that are under way share them is one of
//! three models behind the trait [`Network`]: `fluid` (the default), `exact` (max-min fairness from event to event, to see how
//! far off the others are) and `fifo` (a preview). [`Traffic`] is what the engine holds: the model, what each transfer is, and
//! a [`Handle`] for each by which it can be stopped. `delays` has what messages need, who take no bandwidth, and `changes` what
//! becomes of links during a run.

mod changes;
mod delays;
mod exact;
mod fifo;
mod fluid;
mod keys;
mod links;
mod load;
#[cfg(test)]
mod oracle_tests;
mod queues;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(super) use changes::Changes;
pub(super) use delays::Delays;
pub(super) use keys::{Change, LinkRates, Model, RegionLatency, check_network};
pub use keys::{NodeClass, check_classes};
pub use links::class_rates;
pub(super) use links::{Links, Servers, classes, node_rates};
pub use load::NetworkLoad;
pub(super) use queues::Queues;

use super::crew::Crew;
use crate::mesh::proto::prefetch;
use exact::Exact;
use fifo::Fifo;
use fluid::Fluid;
use links::Path;
use serde::Serialize;
use std::num::NonZeroU32;
use std::sync::Arc;

/// How many transfers ahead of its turn what is known of one that ended is called into the processor's cache (guess).
const AHEAD: usize = 8;

/// At this share of its capacity, a link is busy.
pub(super) const BUSY: f64 = 0.98;

/// What a link did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Bytes that it carried.
    pub(super) bytes: f64,
    /// Steps in which it was busy.
    pub(super) busy_steps: f64,
}

/// A link that many share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SharedLink {
    /// Its number.
    pub(super) number: u32,
    /// What a report calls it.
    pub(super) name: String,
    /// What it can carry at first.
    pub(super) bytes_per_step: f64,
}

/// How transfers share links. Transfers have numbers below the most that were ever under way at once; links have those of
/// [`Links`]. Rates are in bytes a step.
trait Network: std::fmt::Debug {
    /// Begins a transfer whose number is free.
    fn start(&mut self, number: u32, path: &Path, bytes: u32);

    /// Breaks off one that is under way, in a time that does not grow with the number of transfers.
    fn stop(&mut self, number: u32);

    /// Moves everything by one step and appends the numbers of those that ended, which are free then.
    fn step(&mut self, ended: &mut Vec<u32>);

    /// From now on, a link has this capacity. Nothing passes a link with none.
    fn set_rate(&mut self, link: u32, rate: f64);

    /// Whether a link was busy at the end of the last step and is not free since.
    fn is_busy(&self, link: u32) -> bool;

    /// What a link did until now.
    fn usage(&self, link: u32) -> Usage;

    /// Bytes that a transfer has left to move.
    fn left(&self, number: u32) -> f64;

    /// Bytes on the heap, without the small lists of some models.
    fn heap_bytes(&self) -> usize;
}

/// The model that a scenario names. The fluid one is made for the number of shared links that the scenario has on the longest
/// way, so that those which it has not cost nothing.
fn network(model: Model, links: &Links, crew: &Arc<Crew>) -> Box<dyn Network> {
    let (rates, ends) = (links.rates(), links.ends());
    match (model, links.most_shared()) {
        (Model::Exact, _) => Box::new(Exact::new(rates)),
        (Model::Fifo, _) => Box::new(Fifo::new(rates)),
        (Model::Fluid, 0) => Box::new(Fluid::<0>::new(rates, ends, crew)),
        (Model::Fluid, 1) => Box::new(Fluid::<1>::new(rates, ends, crew)),
        (Model::Fluid, 2) => Box::new(Fluid::<2>::new(rates, ends, crew)),
        (Model::Fluid, 3 | 4) => Box::new(Fluid::<4>::new(rates, ends, crew)),
        (Model::Fluid, _) => Box::new(Fluid::<{ links::SHARED_MAX }>::new(rates, ends, crew)),
    }
}

/// A transfer under way. `S` says to the caller what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow<S> {
    /// The sending end.
    pub(super) from: u32,
    /// The receiving end.
    pub(super) to: u32,
    /// What it carries.
    pub(super) what: S,
}

/// Names a transfer. It outlives it without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    number: u32,
    /// Which of those that had the number.
    generation: NonZeroU32,
}

#[derive(Debug)]
struct Entry<S> {
    flow: Option<Flow<S>>,
    generation: NonZeroU32,
}

/// All links and transfers of a run.
#[derive(Debug)]
pub(super) struct Traffic<S> {
    network: Box<dyn Network>,
    links: Links,
    /// By number of the transfer.
    entries: Vec<Entry<S>>,
    free: Vec<u32>,
    under_way: usize,
    /// Empty between two steps.
    ended: Vec<u32>,
}

impl<S: Copy> Traffic<S> {
    /// The same on one thread.
    pub(super) fn alone(model: Model, links: Links) -> Self {
        Self::new(model, links, &Crew::new(1))
    }

    /// Links with nothing on them.
    pub(super) fn new(model: Model, links: Links, crew: &Arc<Crew>) -> Self {
        let network = network(model, &links, crew);
        Self { network, links, entries: Vec::new(), free: Vec::new(), under_way: 0, ended: Vec::new() }
    }

    /// The links.
    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<S>>()
            + self.free.capacity() * size_of::<u32>()
            + self.network.heap_bytes()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// Begins a transfer.
    pub(super) fn start(&mut self, flow: Flow<S>, bytes: u32) -> Handle {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { flow: None, generation: NonZeroU32::MIN });
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        let entry = &mut self.entries[number as usize];
        entry.flow = Some(flow);
        self.under_way += 1;
        self.network.start(number, &self.links.path(flow.from, flow.to), bytes);
        Handle { number, generation: entry.generation }
    }

    /// Breaks off a transfer, if it is still under way.
    pub(super) fn stop(&mut self, handle: Handle) -> Option<Flow<S>> {
        let entry = self.entries.get(handle.number as usize)?;
        if entry.generation != handle.generation {
            return None;
        }
        self.break_off(handle.number)
    }

    /// Breaks off all transfers from and to some ends, which are in ascending order, and hands out what they were. It looks at
    /// all transfers, as each step does, once for all ends that fail together.
    pub(super) fn stop_ends(&mut self, ends: &[u32]) -> Vec<Flow<S>> {
        let fails = |end: u32| ends.binary_search(&end).is_ok();
        let mut stopped = Vec::new();
        for number in 0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX) {
            let flow = &self.entries[number as usize].flow;
            if flow.as_ref().is_some_and(|flow| fails(flow.from) || fails(flow.to)) {
                stopped.extend(self.break_off(number));
            }
        }
        stopped
    }

    fn break_off(&mut self, number: u32) -> Option<Flow<S>> {
        let flow = self.release(number)?;
        self.network.stop(number);
        Some(flow)
    }

    /// Frees a number.
    fn release(&mut self, number: u32) -> Option<Flow<S>> {
        let entry = &mut self.entries[number as usize];
        let flow = entry.flow.take()?;
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free.push(number);
        self.under_way -= 1;
        Some(flow)
    }

    /// Moves everything by one step; what ended is appended to `ended`.
    pub(super) fn step(&mut self, ended: &mut Vec<Flow<S>>) {
        let mut numbers = std::mem::take(&mut self.ended);
        self.network.step(&mut numbers);
        for place in 0..numbers.len() {
            if let Some(next) = numbers.get(place + AHEAD) {
                prefetch(self.entries.as_ptr().wrapping_add(*next as usize));
            }
            ended.extend(self.release(numbers[place]));
        }
        numbers.clear();
        self.ended = numbers;
    }

    /// From now on, a link has so many times the capacity that it had at first.
    fn scale(&mut self, link: u32, factor: f64) {
        self.network.set_rate(link, self.links.rates()[link as usize] * factor);
    }

    /// The ways of all transfers under way, and what each has left to move.
    pub(super) fn under_way(&self) -> impl Iterator<Item = (Path, f64)> + '_ {
        let of = |(number, entry): (u32, &Entry<S>)| {
            let flow = entry.flow.as_ref()?;
            Some((self.links.path(flow.from, flow.to), self.network.left(number)))
        };
        (0..).zip(&self.entries).filter_map(of)
    }

    /// Whether a link was busy in the last step.
    pub(super) fn is_link_busy(&self, link: u32) -> bool {
        self.network.is_busy(link)
    }

    /// The receiving ends of all transfers under way.
    pub(super) fn receivers(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().filter_map(|entry| entry.flow.as_ref()).map(|flow| flow.to)
    }

    /// The links that many share: the stratum's uplink, then those of servers, racks, cells and regions.
    pub(super) fn shared(&self) -> Vec<SharedLink> {
        let links = std::iter::once(self.links.stratum()).chain(self.links.of_servers());
        let links = links.chain(self.links.first_shared()..self.links.count());
        let shared = |number| SharedLink {
            number,
            name: self.links.name(number),
            bytes_per_step: self.links.rates()[number as usize],
        };
        links.map(shared).collect()
    }

    /// What a link did until now, by its number.
    pub(super) fn usage_of_link(&self, number: u32) -> Usage {
        self.network.usage(number)
    }

    /// What the links did, kind by kind, in the first `steps` steps.
    pub(super) fn usage(&self, steps: u64) -> Vec<LinksOfAKind> {
        let kinds = self.links.kinds().into_iter();
        kinds.map(|(kind, links)| self.usage_of(kind, links, steps)).collect()
    }

    fn usage_of(&self, kind: String, links: std::ops::Range<u32>, steps: u64) -> LinksOfAKind {
        let background = self.links.background(links.clone()) * steps as f64;
        let (mut bytes, mut busy_steps, mut busiest) = (background, 0.0, (links.start, Usage::default()));
        let count = links.len();
        for link in links {
            let usage = self.network.usage(link);
            bytes += usage.bytes;
            busy_steps += usage.busy_steps;
            let of = |usage: &Usage| (usage.busy_steps, usage.bytes);
            if of(&usage) > of(&busiest.1) {
                busiest = (link, usage);
            }
        }
        let steps = steps.max(1) as f64;
        LinksOfAKind {
            kind,
            links: count,
            gigabytes: bytes / 1e9,
            busy_share: busy_steps / steps / count.max(1) as f64,
            busiest: self.links.name(busiest.0),
            busiest_gigabytes: busiest.1.bytes / 1e9,
            busiest_share: busiest.1.busy_steps / steps,
        }
    }
}

/// What links of one kind did in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinksOfAKind {
    /// What they are.
    pub kind: String,
    /// How many there are.
    pub links: usize,
    /// What they carried together, in GB (10^9 bytes); what was broken off counts as far as it got.
    pub gigabytes: f64,
    /// How much of the time a link was busy, that is, carried 98 % of what it can or more; the mean of all.
    pub busy_share: f64,
    /// The one that was busy for longest.
    pub busiest: String,
    /// What it carried, in GB.
    pub busiest_gigabytes: f64,
    /// How much of the time it was busy.
    pub busiest_share: f64,
}
