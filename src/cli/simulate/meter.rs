//! How far all runs are: a bar on a terminal, in the build that has one.

use crate::sim::Progress;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts what all runs did so far.
pub(super) struct Meter {
    #[cfg(feature = "node")]
    bar: indicatif::ProgressBar,
    runs: usize,
    ended: AtomicUsize,
    events: AtomicU64,
}

impl Meter {
    /// For so many runs, in which nodes want so many chunks together.
    pub(super) fn new(wanted: u64, runs: usize) -> Self {
        #[cfg(not(feature = "node"))]
        let _ = wanted;
        Self {
            #[cfg(feature = "node")]
            bar: bar(wanted),
            runs,
            ended: AtomicUsize::new(0),
            events: AtomicU64::new(0),
        }
    }

    /// The part of one run, in which nodes want so many chunks.
    pub(super) fn share(&self, wanted: u64) -> Share<'_> {
        Share { meter: self, wanted, transfers: 0, events: 0 }
    }

    /// Lets something be printed that does not run into the bar.
    pub(super) fn print(&self, print: impl FnOnce()) {
        #[cfg(feature = "node")]
        self.bar.suspend(print);
        #[cfg(not(feature = "node"))]
        print();
    }

    /// The bar goes.
    pub(super) fn end(&self) {
        #[cfg(feature = "node")]
        self.bar.finish_and_clear();
    }

    fn advance(&self, transfers: u64, events: u64, now_s: f64) {
        let events = self.events.fetch_add(events, Ordering::Relaxed) + events;
        let ended = self.ended.load(Ordering::Relaxed);
        #[cfg(feature = "node")]
        {
            self.bar.inc(transfers);
            let pace = events as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
            let run = match self.runs {
                1 => format!("virtual time {now_s:.3} s"),
                runs => format!("{ended} of {runs} runs"),
            };
            self.bar.set_message(format!("{run}, {:.2} M events/s", pace / 1e6));
        }
        #[cfg(not(feature = "node"))]
        let _ = (transfers, events, ended, now_s, self.runs);
    }
}

#[cfg(feature = "node")]
fn bar(wanted: u64) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(wanted);
    match indicatif::ProgressStyle::with_template("{bar:30} {percent:>3} %, {msg}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What one run did so far. When it is dropped, the run has ended, with all of its part.
pub(super) struct Share<'a> {
    meter: &'a Meter,
    wanted: u64,
    transfers: u64,
    events: u64,
}

impl Share<'_> {
    /// The run is so far.
    pub(super) fn note(&mut self, progress: Progress) {
        // Who dies and is replaced fetches again; the part of the run stays what it is.
        let transfers = progress.transfers.min(self.wanted);
        let new = transfers.saturating_sub(self.transfers);
        let events = progress.events.saturating_sub(self.events);
        (self.transfers, self.events) = (transfers, progress.events);
        self.meter.advance(new, events, progress.now.as_secs_f64());
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.meter.ended.fetch_add(1, Ordering::Relaxed);
        self.meter.advance(self.wanted - self.transfers, 0, 0.0);
    }
}
