//! Chunk FIFO: each link serves one chunk after the other, in the order in which their first bytes come to it.
//!
//! A chunk goes on to the next link as soon as a link begins to serve it, keeps each for its length by the link's rate, and has
//! arrived when the last of them is done with it. Nothing is shared, so there are no rates to find: it is the cheapest model, and
//! a preview only. What it leaves out makes it too fast: a chunk does not wait at its sender for a link that is full further on,
//! and those in line do not slow down the one that is served (identical decisions took 1.06 times the bound here where exact
//! max-min fairness said 1.25). What is broken off gives free the links that serve it, and is passed over where it waits.

use super::links::Path;
use super::{Network, Usage};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// What a link serves.
#[derive(Clone, Copy, Debug)]
struct Service {
    transfer: u32,
    /// Bytes that were left to serve at `since`.
    left: f64,
    since: f64,
}

#[derive(Clone, Debug)]
struct Link {
    rate: f64,
    serves: Option<Service>,
    /// Transfers that wait, each with its serial number: others may have the number of one that was broken off.
    line: VecDeque<(u32, u64)>,
    /// Counted up when an end of service that was put in line does not hold any more.
    version: u32,
    usage: Usage,
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    path: Path,
    bytes: f64,
    /// `None` when it is over.
    serial: Option<u64>,
    /// Links that are not done with it.
    open: u8,
    /// Links to which it came.
    reached: u8,
}

/// All links and transfers.
#[derive(Debug)]
pub(super) struct Fifo {
    links: Vec<Link>,
    transfers: Vec<Transfer>,
    serials: u64,
    /// In steps.
    now: f64,
    /// Ends of service, by time: link and its version.
    ends: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

impl Fifo {
    /// Links with nothing on them.
    pub(super) fn new(rates: &[f64]) -> Self {
        let link = |rate: &f64| Link {
            rate: *rate,
            serves: None,
            line: VecDeque::new(),
            version: 0,
            usage: Usage::default(),
        };
        Self {
            links: rates.iter().map(link).collect(),
            transfers: Vec::new(),
            serials: 0,
            now: 0.0,
            ends: BinaryHeap::new(),
        }
    }

    /// The first byte of a transfer comes to the next link, and from there to those after it that are free.
    fn go_on(&mut self, number: u32, at: f64) {
        loop {
            let transfer = &mut self.transfers[number as usize];
            let Some(serial) = transfer.serial else { return };
            let Some(link) = transfer.path.links().get(usize::from(transfer.reached)).copied() else {
                return;
            };
            transfer.reached += 1;
            let bytes = transfer.bytes;
            if self.links[link as usize].serves.is_some() {
                self.links[link as usize].line.push_back((number, serial));
                return;
            }
            self.serve(link, Service { transfer: number, left: bytes, since: at });
        }
    }

    /// A link begins with something, or goes on with it at another rate.
    fn serve(&mut self, link: u32, service: Service) {
        let own = &mut self.links[link as usize];
        own.serves = Some(service);
        own.version = own.version.wrapping_add(1);
        if own.rate > 0.0 {
            let end = service.since + service.left / own.rate;
            self.ends.push(Reverse((end.to_bits(), link, own.version)));
        }
    }

    /// A link is free: whoever waits for longest is next.
    fn serve_next(&mut self, link: u32, at: f64) {
        let own = &mut self.links[link as usize];
        own.serves = None;
        own.version = own.version.wrapping_add(1);
        while let Some((number, serial)) = self.links[link as usize].line.pop_front() {
            if self.transfers[number as usize].serial == Some(serial) {
                let left = self.transfers[number as usize].bytes;
                self.serve(link, Service { transfer: number, left, since: at });
                self.go_on(number, at);
                return;
            }
        }
    }

    /// Notes what a link did with what it serves, until then.
    fn note(&mut self, link: u32, until: f64) -> Option<Service> {
        let own = &mut self.links[link as usize];
        let mut service = own.serves?;
        let span = until - service.since;
        let served = (span * own.rate).min(service.left);
        own.usage.bytes += served;
        if own.rate > 0.0 {
            own.usage.busy_steps += span;
        }
        service.left -= served;
        service.since = until;
        own.serves = Some(service);
        Some(service)
    }
}

impl Network for Fifo {
    fn start(&mut self, number: u32, path: &Path, bytes: u32) {
        self.serials += 1;
        let open = u8::try_from(path.links().len()).unwrap_or(u8::MAX);
        let bytes = f64::from(bytes);
        let transfer = Transfer { path: *path, bytes, serial: Some(self.serials), open, reached: 0 };
        if self.transfers.len() <= number as usize {
            self.transfers.resize(number as usize + 1, transfer);
        }
        self.transfers[number as usize] = transfer;
        self.go_on(number, self.now);
    }

    fn stop(&mut self, number: u32) {
        self.transfers[number as usize].serial = None;
        let path = self.transfers[number as usize].path;
        for link in path.links() {
            if self.links[*link as usize].serves.is_some_and(|service| service.transfer == number) {
                self.note(*link, self.now);
                self.serve_next(*link, self.now);
            }
        }
    }

    fn step(&mut self, ended: &mut Vec<u32>) {
        let until = self.now + 1.0;
        while let Some(Reverse((end, link, version))) = self.ends.peek().copied()
            && f64::from_bits(end) <= until
        {
            self.ends.pop();
            if self.links[link as usize].version != version {
                continue;
            }
            let at = f64::from_bits(end);
            let Some(service) = self.note(link, at) else { continue };
            let transfer = &mut self.transfers[service.transfer as usize];
            transfer.open -= 1;
            if transfer.open == 0 {
                transfer.serial = None;
                ended.push(service.transfer);
            }
            self.serve_next(link, at);
        }
        self.now = until;
    }

    fn set_rate(&mut self, link: u32, rate: f64) {
        let service = self.note(link, self.now);
        self.links[link as usize].rate = rate;
        if let Some(service) = service {
            self.serve(link, service);
        }
    }

    fn is_busy(&self, link: u32) -> bool {
        let link = &self.links[link as usize];
        link.serves.is_some() && link.rate > 0.0
    }

    fn usage(&self, link: u32) -> Usage {
        let link = &self.links[link as usize];
        let mut usage = link.usage;
        if let Some(service) = link.serves.filter(|_| link.rate > 0.0) {
            let span = self.now - service.since;
            usage.bytes += (span * link.rate).min(service.left);
            usage.busy_steps += span;
        }
        usage
    }

    fn left(&self, number: u32) -> f64 {
        self.transfers[number as usize].bytes
    }

    fn heap_bytes(&self) -> usize {
        let waiting: usize = self.links.iter().map(|link| link.line.capacity()).sum();
        self.links.capacity() * size_of::<Link>()
            + waiting * size_of::<(u32, u64)>()
            + self.transfers.capacity() * size_of::<Transfer>()
            + self.ends.capacity() * size_of::<Reverse<(u64, u32, u32)>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(fifo: &mut Fifo, steps: u32) -> Vec<(u32, u32)> {
        let (mut all, mut ended) = (Vec::new(), Vec::new());
        for step in 1..=steps {
            fifo.step(&mut ended);
            all.extend(ended.drain(..).map(|number| (step, number)));
        }
        all
    }

    #[test]
    fn chunks_leave_one_after_the_other_and_pass_the_next_link_meanwhile() {
        // One sender with 10 a step to two receivers with 10 and 5.
        let mut fifo = Fifo::new(&[10.0, 0.0, 0.0, 0.0, 10.0, 5.0]);
        for (number, to) in [(0, 1), (1, 2), (2, 1)] {
            fifo.start(number, &Path::plain(0, to, 3), 100);
        }
        assert_eq!(ends(&mut fifo, 31), [(10, 0), (30, 2), (30, 1)]);
        assert_eq!(
            (fifo.usage(0).bytes, fifo.usage(0).busy_steps, fifo.usage(5).busy_steps),
            (300.0, 30.0, 20.0)
        );
    }

    #[test]
    fn what_is_broken_off_frees_the_link_and_is_passed_over_in_line_though_its_number_is_used_again() {
        let mut fifo = Fifo::new(&[10.0, 0.0, 0.0, 10.0]);
        for number in 0..4 {
            fifo.start(number, &Path::plain(0, 1, 2), 100);
        }
        fifo.stop(2);
        fifo.start(2, &Path::plain(0, 1, 2), 50);
        fifo.stop(0);
        assert_eq!(ends(&mut fifo, 40), [(10, 1), (20, 3), (25, 2)]);
    }

    #[test]
    fn what_is_served_goes_on_at_the_new_rate_and_waits_while_there_is_none() {
        let mut fifo = Fifo::new(&[10.0, 0.0, 0.0, 100.0]);
        fifo.start(0, &Path::plain(0, 1, 2), 100);
        assert_eq!(ends(&mut fifo, 4), []);
        fifo.set_rate(0, 0.0);
        assert_eq!(ends(&mut fifo, 10), []);
        fifo.set_rate(0, 20.0);
        assert_eq!(ends(&mut fifo, 3), [(3, 0)]);
    }
}
