//! What a run costs: bytes on links, the machine's processors, what left the stratum.

use super::error::LabError;
use crate::ambient;
use crate::model::Time;
use crate::upstream::AccessLine;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the counters are read.
const EVERY: Duration = Duration::from_millis(500);
/// Most samples: two hours' worth, the longest run.
const SAMPLES_MAX: usize = 14_400;

/// Bytes through a port of the switch since the network was built, Ethernet headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// From the host behind the port: its uplink.
    pub(super) up: u64,
    /// To the host behind the port: its downlink.
    pub(super) down: u64,
}

/// Time that the machine's processors spent since it started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ticks {
    pub(super) busy: u64,
    pub(super) all: u64,
}

/// All counters at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Time,
    pub(super) processors: Ticks,
    /// In the order of the ports that [`Sampler::start`] was given.
    pub(super) ports: Vec<Traffic>,
}

/// Reads the counters until it is stopped, from a thread inside the switch's namespace.
pub(super) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Sample>>>,
}

impl Sampler {
    /// Starts in the namespace `hub`. `ports` are the names of devices there.
    pub(super) fn start(hub: File, ports: &[String]) -> Result<Self, LabError> {
        let failed = |source| LabError::System { what: "a thread that counts", source };
        let index: HashMap<String, usize> =
            ports.iter().enumerate().map(|(index, name)| (name.clone(), index)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let work = move || {
            // SAFETY: `setns` changes this thread only; the descriptor is open for the length of the call.
            if unsafe { libc::setns(hub.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut samples = Vec::new();
            loop {
                let is_last = seen.load(Ordering::SeqCst);
                if samples.len() < SAMPLES_MAX || is_last {
                    samples.push(sample(&index)?);
                }
                if is_last {
                    return Ok(samples);
                }
                std::thread::park_timeout(EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("counters".into()).spawn(work).map_err(failed)?;
        Ok(Self { stop, thread })
    }

    /// Takes a last sample and gives all: two at least.
    pub(super) fn stop(self) -> Result<Vec<Sample>, LabError> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        let counted = self.thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        counted.map_err(|source| LabError::System { what: "the counters of the links", source })
    }
}

fn sample(index: &HashMap<String, usize>) -> io::Result<Sample> {
    let at = ambient::now();
    let mut ports = vec![Traffic::default(); index.len()];
    for (name, traffic) in traffic(&fs::read_to_string("/proc/thread-self/net/dev")?) {
        if let Some(port) = index.get(name) {
            ports[*port] = traffic;
        }
    }
    let processors = ticks(&fs::read_to_string("/proc/stat")?)
        .ok_or_else(|| io::Error::other("/proc/stat does not begin with the sum of all processors"))?;
    Ok(Sample { at, processors, ports })
}

/// Devices with what they received and sent, from `/proc/net/dev`.
fn traffic(text: &str) -> impl Iterator<Item = (&str, Traffic)> {
    text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_whitespace();
        let up = numbers.next()?.parse().ok()?;
        let down = numbers.nth(7)?.parse().ok()?;
        Some((name.trim(), Traffic { up, down }))
    })
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, and guests, who are counted
/// among the first two already.
fn ticks(text: &str) -> Option<Ticks> {
    let numbers: Vec<u64> = text
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let all = numbers.get(..8)?.iter().sum();
    Some(Ticks { busy: all - numbers[3] - numbers[4], all })
}

/// Seconds that a process has spent on processors, in all its threads; `None` when it is gone.
pub(super) fn processor_seconds(process: u32) -> Option<f64> {
    // SAFETY: `sysconf` has no preconditions.
    let ticks_per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(
        process_ticks(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)? as f64
            / ticks_per_s as f64,
    )
}

/// User and system time from `/proc/PID/stat`, whose second field may hold blanks and brackets.
fn process_ticks(text: &str) -> Option<u64> {
    let mut after_name = text.rsplit_once(')')?.1.split_whitespace();
    let user: u64 = after_name.nth(11)?.parse().ok()?;
    let system: u64 = after_name.next()?.parse().ok()?;
    Some(user + system)
}

/// What left the stratum, by its access log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftStratum {
    /// Bytes of all bodies.
    pub(super) bytes: u64,
    /// Bytes of objects, those that were sent twice counted once.
    pub(super) distinct: u64,
    /// Requests.
    pub(super) requests: u64,
    /// Bytes of bodies by who asked.
    pub(super) by_host: BTreeMap<IpAddr, u64>,
}

impl LeftStratum {
    /// Reads the log from its beginning.
    pub(super) fn read(log: &Path) -> Result<Self, LabError> {
        let text = fs::read_to_string(log).map_err(LabError::file(log))?;
        // The last line may still be on its way.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        Ok(Self::of(whole.lines().filter_map(|line| line.parse().ok())))
    }

    /// What left since `before`, an earlier look.
    pub(super) fn since(mut self, before: &Self) -> Self {
        self.bytes -= before.bytes;
        self.distinct -= before.distinct;
        self.requests -= before.requests;
        for (host, bytes) in &before.by_host {
            *self.by_host.entry(*host).or_default() -= bytes;
        }
        self
    }

    fn of(lines: impl Iterator<Item = AccessLine>) -> Self {
        let mut left = Self::default();
        let mut parts: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for line in lines {
            left.requests += 1;
            left.bytes += line.body_bytes;
            *left.by_host.entry(line.remote.ip()).or_default() += line.body_bytes;
            if line.body_bytes > 0 && line.path.contains("/objects/") {
                let (first, _) = line.range.unwrap_or((0, 0));
                parts.entry(line.path).or_default().push((first, first + line.body_bytes));
            }
        }
        for mut sent in parts.into_values() {
            sent.sort_unstable();
            let mut covered = 0;
            for (first, end) in sent {
                left.distinct += end.saturating_sub(first.max(covered));
                covered = covered.max(end);
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_understood() {
        let table = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n   n12: 1000 2 0 0 0 0 0 0 34567 9 0 0 0 0 0 0\n";
        let found: Vec<_> = traffic(table).collect();
        assert_eq!(found[1], ("n12", Traffic { up: 1000, down: 34_567 }));
        let stat = "cpu  100 1 20 800 50 2 3 4 0 0\ncpu0 1 2 3\n";
        assert_eq!(ticks(stat), Some(Ticks { busy: 130, all: 980 }));
        assert_eq!(ticks("cpu  1 2\n"), None);
        let process = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 30 0 0 20";
        assert_eq!(process_ticks(process), Some(280));
    }

    #[test]
    fn bytes_that_leave_twice_are_counted_twice_and_are_distinct_once() {
        let line = |path: &str, range: &str, bytes: u64| -> AccessLine {
            format!("2026-05-01T12:00:00Z 10.77.1.1:50412 GET {path} {range} 206 {bytes} 0.412")
                .parse()
                .unwrap()
        };
        let lines = [
            line("/a.b/root", "-", 300),
            line("/a.b/objects/x", "0-99", 100),
            line("/a.b/objects/x", "50-149", 100),
            line("/a.b/objects/x", "60-69", 10),
            line("/a.b/objects/x", "300-309", 10),
            line("/a.b/objects/y", "-", 7),
        ];
        let of = |lines: &[AccessLine]| LeftStratum::of(lines.iter().cloned());
        let host = |bytes| BTreeMap::from([("10.77.1.1".parse().unwrap(), bytes)]);
        let left = of(&lines);
        assert_eq!(left, LeftStratum { bytes: 527, distinct: 167, requests: 6, by_host: host(527) });
        let later = left.since(&of(&lines[..2]));
        assert_eq!(later, LeftStratum { bytes: 127, distinct: 67, requests: 4, by_host: host(127) });
    }
}
