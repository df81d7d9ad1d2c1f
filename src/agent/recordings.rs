//! Recordings of what a command reads, for the control API.

use super::api::trace::{EndRecording, RecordRequest, Recorded, Recording};
use super::api::{Refusal, RefusalKind};
use super::mounts::{MountTable, Mounted};
use crate::fs::{Belongs, Profile, real_path};
use std::path::Path;
use std::sync::Arc;

/// Steps from a process to its parent, and its parent's, that are gone at most.
const DEPTH_MAX: usize = 64;

/// One of the numbers that `/proc` tells of a task, counted from behind its name.
fn of_task<T: std::str::FromStr>(task: u32, place: usize) -> Option<T> {
    let stat = std::fs::read_to_string(format!("/proc/{task}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(place)?.parse().ok()
}

/// The process in which a task's process was started.
fn parent(task: u32) -> Option<u32> {
    of_task(task, 1)
}

/// When a process was started, which tells it from a later one of the same number.
fn started(process: u32) -> Option<u64> {
    of_task(process, 19)
}

/// Whether a task belongs to `process` or one that descends from it.
fn descends(task: u32, process: u32) -> bool {
    std::iter::successors(Some(task), |task| parent(*task).filter(|parent| *parent > 1))
        .take(DEPTH_MAX)
        .any(|one| one == process)
}

impl MountTable {
    fn recorded(&self, directory: &Path) -> Result<Arc<dyn Mounted>, Refusal> {
        let not_mounted = || {
            let message = format!("{} is not mounted by this agent", directory.display());
            Refusal::new(RefusalKind::NotFound, message).hint("see `starling status`")
        };
        let found = self.live(directory).or_else(|| self.live(&real_path(directory)));
        let (mounted, profile) = found.ok_or_else(not_mounted)?;
        if profile == Profile::SmallFiles {
            let message = format!(
                "{} has the profile small-files, in which no opening of a file is seen",
                directory.display()
            );
            return Err(Refusal::new(RefusalKind::Conflict, message)
                .hint("mount the repository a second time with `--profile large-files`, and record there"));
        }
        Ok(mounted)
    }

    /// Begins to record.
    ///
    /// # Errors
    /// A [`Refusal`] when there is no such mount, or too many are recorded.
    pub(super) fn begin_recording(&self, request: &RecordRequest) -> Result<Recording, Refusal> {
        let process = request.process;
        let unseen = || {
            let message = format!("the agent sees no process {process}");
            Refusal::new(RefusalKind::Conflict, message)
                .hint("record in the container in which the agent runs")
        };
        let mounted = self.recorded(&request.directory)?;
        let since = started(process).ok_or_else(unseen)?;
        let belongs: Belongs =
            Box::new(move |task| descends(task, process) && started(process) == Some(since));
        let number = mounted.begin_recording(process, belongs);
        let too_many = || Refusal::new(RefusalKind::Conflict, "too many recordings run on this mount");
        Ok(Recording { number: number.ok_or_else(too_many)? })
    }

    /// Ends a recording.
    ///
    /// # Errors
    /// A [`Refusal`] when there is none such, or what was read cannot be named.
    pub(super) async fn end_recording(&self, request: EndRecording) -> Result<Recorded, Refusal> {
        let ended = self.recorded(&request.directory)?.end_recording(request.number, request.name).await;
        let ended = ended.map_err(|problem| Refusal::new(RefusalKind::Unavailable, problem))?;
        let unknown = || Refusal::new(RefusalKind::NotFound, "there is no such recording");
        let (trace, is_cut) = ended.ok_or_else(unknown)?;
        Ok(Recorded { is_cut, document: data_encoding::BASE64.encode(&trace.to_bytes()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_belong_to_a_process_and_others_do_not() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        assert!(descends(child.id(), own) && descends(own, own));
        assert!(!descends(own, child.id()) && !descends(1, own) && !descends(u32::MAX, own));
        assert!(started(child.id()).unwrap() >= started(own).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(started(child.id()), None);
    }
}
