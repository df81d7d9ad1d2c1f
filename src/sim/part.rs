//! A thread's part of the fleet: what reaches its machines, and what they cause.

use super::calendar::Calendar;
use super::fleet::{EVENT_KINDS, Effects, Event, Machine};
use super::line::{Glance, Letter, Line};
use super::network::Delays;
use crate::mesh::proto::Outbox;
use crate::model::Time;

/// How many events ahead of its turn an event, its machine, that one's tables, the place of its fetch and the fetch are called into
/// the processor's cache (guess: each call has the time of a few events, and all of it fits into the nearest cache).
const AHEAD: [usize; 5] = [18, 12, 8, 4, 2];
/// Machines for each event of a step from which on it is quicker to compare events than to count all machines.
const SPARSE: usize = 8;
/// The place of a wake-up, which comes after a machine's other events.
const WAKE: u64 = u32::MAX as u64;
/// No wake-up is in line that counts.
const NEVER: u64 = u64::MAX;

/// What a thread needs for its machines, but for the machines.
#[derive(Debug)]
pub(super) struct Part {
    /// Its first machine.
    first: u32,
    pub(super) calendar: Calendar,
    /// What is due.
    events: Line,
    wakes: Vec<u32>,
    /// By machine: the step of the wake-up that counts; all others in line are outdated.
    wake_at: Vec<u64>,
    /// What is due by machine and by its place.
    order: Vec<u64>,
    places: Vec<u32>,
    out: Outbox,
    pub(super) effects: Effects,
    /// The ways of messages to its machines.
    delays: Delays,
    pub(super) messages: u64,
    /// Events by kind that machines reacted to.
    pub(super) counts: [u64; EVENT_KINDS.len()],
    /// Machines that reacted in a step, summed up.
    pub(super) visits: u64,
}

/// The step in which everything happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) number: u64,
    pub(super) ns: u64,
}

impl Step {
    pub(super) fn time(self) -> Time {
        Time::from_nanos(self.number.saturating_mul(self.ns))
    }
}

impl Part {
    /// Of so many machines from `first` on, in one of so many parts of `each`.
    pub(super) fn new(first: u32, machines: usize, parts: usize, each: u32, delays: Delays) -> Self {
        Self {
            first,
            calendar: Calendar::new(),
            events: Line::default(),
            wakes: Vec::new(),
            wake_at: vec![NEVER; machines],
            order: Vec::new(),
            places: Vec::new(),
            out: Outbox::default(),
            effects: Effects::new(parts, each),
            delays,
            messages: 0,
            counts: [0; EVENT_KINDS.len()],
            visits: 0,
        }
    }

    /// Takes out what is due.
    pub(super) fn take(&mut self, now: u64) {
        self.calendar.take(now, &mut self.events, &mut self.wakes);
    }

    /// Events that are due.
    pub(super) fn due(&self) -> usize {
        self.events.len() + self.wakes.len()
    }

    /// Another machine has this number now: nobody wakes it.
    pub(super) fn renew(&mut self, machine: u32) {
        self.wake_at[(machine - self.first) as usize] = NEVER;
    }

    /// The connections of those who died are no more.
    pub(super) fn disconnect(&mut self, dies: impl Fn(u32) -> bool) {
        self.delays.forget(dies);
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.calendar.heap_bytes()
            + self.effects.heap_bytes()
            + (self.order.capacity() + self.wake_at.capacity()) * size_of::<u64>()
            + self.places.capacity() * size_of::<u32>()
    }

    /// Sorts what is due by machine, and for each in the order in which it was put in line. Moving the places is less
    /// than moving the events.
    fn sort(&mut self, step: Step) {
        let Self { events, wakes, wake_at, order, places, first, .. } = self;
        // Of wake-ups those that count.
        wakes.retain(|to| {
            let at = &mut wake_at[(*to - *first) as usize];
            let counts = *at == step.number;
            *at = if counts { NEVER } else { *at };
            counts
        });
        let due = events.len() + wakes.len();
        order.clear();
        // Not twice as much as there ever is: there are many nodes in a simulation.
        order.reserve_exact(due);
        let all = |see: &mut dyn FnMut(u64)| {
            events.each(|place, to| see(u64::from(to) << 32 | u64::from(place)));
            wakes.iter().for_each(|to| see(u64::from(*to) << 32 | WAKE));
        };
        if due * SPARSE < wake_at.len() {
            all(&mut |key| order.push(key));
            order.sort_unstable();
        } else {
            places.clear();
            places.resize(wake_at.len() + 1, 0);
            let machine = |key: u64| usize::try_from(key >> 32).unwrap_or(0) - *first as usize;
            all(&mut |key| places[machine(key) + 1] += 1);
            let mut sum = 0;
            for place in &mut *places {
                sum += *place;
                *place = sum;
            }
            order.resize(due, 0);
            all(&mut |key| {
                let place = &mut places[machine(key)];
                order[*place as usize] = key;
                *place += 1;
            });
        }
        wakes.clear();
    }

    /// Lets the machines react to what is due.
    pub(super) fn react(&mut self, step: Step, machines: &mut [Machine]) {
        self.sort(step);
        let now = step.time();
        let Self { events, order, first, calendar, wake_at, effects, counts, out, .. } = self;
        let mut last = None;
        let machine_of = |key: u64| usize::try_from(key >> 32).unwrap_or(0) - *first as usize;
        let place_of = |key: u64| (key & WAKE != WAKE).then(|| u32::try_from(key & WAKE).unwrap_or(0));
        for (place, key) in order.iter().enumerate() {
            let [event, machine, tables, slot, fetch] = AHEAD.map(|ahead| order.get(place + ahead).copied());
            let is_new = |key: u64, ahead: usize| order[place + ahead - 1] >> 32 != key >> 32;
            if let Some(place) = event.and_then(place_of) {
                events.prefetch(place);
            }
            if let Some(key) = machine.filter(|key| is_new(*key, AHEAD[1])) {
                machines[machine_of(key)].prefetch();
            }
            let glance = |key: u64| place_of(key).map_or(Glance::Wake, |place| events.glance(place));
            if let Some(key) = tables {
                machines[machine_of(key)].prefetch_tables(glance(key));
            }
            if let Some(key) = slot {
                machines[machine_of(key)].prefetch_slot(glance(key));
            }
            if let Some(key) = fetch {
                machines[machine_of(key)].prefetch_fetch(glance(key));
            }
            let index = machine_of(*key);
            let event = place_of(*key).map_or(Event::Wake, |place| events.take(place));
            if let Some(before) = last.filter(|before| *before != index) {
                rest(step, &machines[before], calendar, &mut wake_at[before]);
            }
            if machines[index].dead {
                continue;
            }
            counts[event.kind()] += 1;
            self.visits += u64::from(last != Some(index));
            last = Some(index);
            machines[index].react(now, event, out, effects);
        }
        if let Some(last) = last {
            rest(step, &machines[last], calendar, &mut wake_at[last]);
        }
        calendar.recycle(events);
    }

    /// Puts messages to its machines in line. `waits` says for how many steps one waits at links, and `None` if it reaches nobody.
    pub(super) fn receive(&mut self, now: u64, mail: &mut [Line], waits: impl Fn(&Letter) -> Option<u64>) {
        for line in mail {
            self.messages += line.len() as u64;
            line.pour(|letter| {
                if let Some(waits) = waits(&letter) {
                    let (from, to) = (letter.from(), letter.to());
                    let connects =
                        if letter.is_ask() { self.delays.connects(now, from, to, waits) } else { 0 };
                    let arrival = self.delays.arrival(now + connects, from, to, letter.stream(), waits);
                    self.calendar.push_letter(now, arrival, letter);
                }
            });
        }
    }
}

/// After all events of a step: sees to it that a machine is woken in time.
fn rest(step: Step, machine: &Machine, calendar: &mut Calendar, wake_at: &mut u64) {
    let Some(at) = machine.rest(step.time(), step.ns) else { return };
    if at < *wake_at {
        *wake_at = at;
        calendar.push_wake(step.number, at, machine.me);
    }
}
