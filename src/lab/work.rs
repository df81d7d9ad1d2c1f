//! What a node does, from a thread of its own in this process.

use super::content::{Buffers, Part, Tree};
use super::node::{Node, Stage};
use super::scenario::How;
use crate::ambient;
use crate::model::{Generator, Rng as _, Time};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most errors of one node that are kept; the first tell enough.
const ERRORS_MAX: usize = 8;
/// How often a mount is looked at for a new revision.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// How often an agent is asked how far its fill is: often enough for the makespan, seldom enough for the processors.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The file that only the new revision has.
pub(super) const NEW_FILE: &str = "new";

/// How it went with one node.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// When it began to mount; `None`: it had mounted before.
    pub(super) began: Option<Time>,
    /// When it had everything; `None`: it did not.
    pub(super) finished: Option<Time>,
    /// What its readers saw and should not have.
    pub(super) errors: Vec<String>,
}

/// Works until all is done, the node is killed, the user interrupts, or `end`.
pub(super) fn work(stage: &Stage, tree: &Tree, node: &Node, start: Time, end: Time) -> Outcome {
    let mut outcome = Outcome::default();
    let own = Generator::stream(stage.scenario.seed, u64::from(node.place)).next_u64();
    let span = stage.scenario.work.start_within_ms;
    let delay = Duration::from_millis(own % (u64::from(span) + 1));
    sleep_until(start + delay);
    if !stage.scenario.work.how.mounts_before() {
        outcome.began = Some(ambient::now());
        let fill = stage.scenario.work.how == How::Fill || stage.scenario.work.with_fill;
        if let Err(error) = node.mount(stage, fill) {
            note(&mut outcome.errors, node, error.to_string());
            return outcome;
        }
    }
    match stage.scenario.work.how {
        How::Fill => fill(stage, node, end, &mut outcome),
        How::Read => {
            read(stage, tree, node, &tree.recorded(stage.scenario.seed), end, &mut outcome);
        }
        How::Random => read(stage, tree, node, &tree.at_random(own), end, &mut outcome),
        How::Revision => {
            let file = node.mount.join(NEW_FILE);
            while !stage.interrupt.is_set() && ambient::now() < end {
                if file.exists() {
                    outcome.finished = Some(ambient::now());
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        How::Idle => {
            while !stage.interrupt.is_set() && ambient::now() < end {
                std::thread::sleep(ASK_EVERY);
            }
            outcome.finished = Some(ambient::now());
        }
    }
    outcome
}

/// Waits until the agent says that its background fill is complete.
fn fill(stage: &Stage, node: &Node, end: Time, outcome: &mut Outcome) {
    while !stage.interrupt.is_set() && !node.is_gone() && ambient::now() < end {
        match node.mounted(stage) {
            Ok(Some(mount)) if mount.fill.as_ref().is_some_and(|fill| fill.complete) => {
                outcome.finished = Some(ambient::now());
                return;
            }
            Ok(Some(mount)) => {
                if let Some(problem) = mount.problem.or_else(|| mount.fill.and_then(|fill| fill.problem)) {
                    tracing::debug!(node = node.name, problem, "a fill is held up");
                }
            }
            Ok(None) => return note(&mut outcome.errors, node, "the mount is gone".to_owned()),
            Err(error) => return note(&mut outcome.errors, node, error.to_string()),
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// Reads parts in their order, by as many threads as the scenario says, and compares each with the source.
pub(super) fn read(
    stage: &Stage,
    tree: &Tree,
    node: &Node,
    parts: &[Part],
    end: Time,
    outcome: &mut Outcome,
) {
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(Vec::new());
    let reader = || {
        let mut buffers = Buffers::new();
        loop {
            if stage.interrupt.is_set() || node.is_gone() || ambient::now() > end {
                return false;
            }
            let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) else { return true };
            if let Err(error) = tree.compare(&node.mount, *part, &mut buffers) {
                note(&mut errors.lock().unwrap_or_else(PoisonError::into_inner), node, error.to_string());
            }
        }
    };
    let all_done = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..stage.scenario.work.readers).map(|_| scope.spawn(reader)).collect();
        // A reader that panicked has not read its part.
        readers.into_iter().all(|reader| reader.join().unwrap_or(false))
    });
    outcome.errors.append(&mut errors.into_inner().unwrap_or_else(PoisonError::into_inner));
    if all_done && outcome.errors.is_empty() && !node.is_gone() {
        outcome.finished = Some(ambient::now());
    }
}

/// Keeps an error, unless the node was killed: then its readers cannot but fail.
fn note(errors: &mut Vec<String>, node: &Node, error: String) {
    if !node.is_gone() && errors.len() < ERRORS_MAX {
        errors.push(error);
    }
}

fn sleep_until(moment: Time) {
    std::thread::sleep(moment.since(ambient::now()));
}
