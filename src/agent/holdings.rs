//! What the keeper has of this agent's mounts, and what it has of its predecessor's.

use super::api::MountOptions;
use super::keeper::{Keeper, Parts};
use super::shown::Shown;
use crate::ambient;
use crate::fs::clear_dead;
use crate::fs::fuse::{Agreement, Held};
use crate::model::{RepositoryName, Time};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Version of [`Notes`]. What another version wrote is not taken over.
const VERSION: u32 = 2;
/// Most bytes of them: nine revisions of about 1 KiB each, options with all their rules, and room.
const NOTES_MAX_BYTES: u64 = 256 << 10;

/// What an agent writes down of a mount, for its successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    version: u32,
    /// What is mounted.
    pub(super) repository: RepositoryName,
    /// How.
    pub(super) options: MountOptions,
    agreement: Agreement,
    /// The trees that are kept, by their numbers, oldest first.
    pub(super) trees: Vec<(u64, Shown)>,
    /// Which of them is shown; it is being switched to those behind it. Notes of an earlier program do not say: there it is the last.
    #[serde(default)]
    shown: Option<u64>,
    /// The greatest number that a tree had when it was written; 0 in notes of an earlier program.
    #[serde(default)]
    last: u64,
}

impl Notes {
    /// Those of a mount that begins with a tree.
    pub(super) fn new(options: MountOptions, agreement: Agreement, shown: Shown) -> Self {
        let repository = shown.repository.clone();
        let trees = vec![(0, shown)];
        Self { version: VERSION, repository, options, agreement, trees, shown: Some(0), last: 0 }
    }

    /// The tree that is shown, and its number.
    ///
    /// # Panics
    /// Without a tree; what is read is checked.
    pub(super) fn shown(&self) -> &(u64, Shown) {
        let shown = self.trees.iter().find(|(number, _)| Some(*number) == self.shown);
        shown.or(self.trees.last()).expect("a mount shows a tree")
    }

    /// The greatest number that a tree ever had, whether it is kept or not: the kernel may have something of it.
    pub(super) fn last(&self) -> u64 {
        self.trees.iter().map(|(number, _)| *number).fold(self.last, u64::max)
    }

    /// Adds a tree that the kernel may hear of from now on, and that is not shown before the kernel knows all that changes.
    pub(super) fn begin_switch(&mut self, number: u64, next: &Shown) {
        self.shown = Some(self.shown().0);
        self.last = self.last().max(number);
        self.trees.push((number, next.clone()));
    }

    /// From now on this one is shown, and the others are kept.
    pub(super) fn end_switch(&mut self, shown: u64, kept: &[u64]) {
        self.trees.retain(|(number, _)| kept.contains(number));
        self.shown = Some(shown);
    }
}

/// Whose the mounts are that the keeper holds. Locked while the keeper is told to hold a mount or to let one go: by what stands here it
/// is decided whether the one that it has of a directory may go.
#[derive(Default)]
struct Mounts {
    /// What a predecessor has left and nobody has taken over yet.
    left: BTreeMap<PathBuf, Parts>,
    /// What this agent serves and has had held.
    own: BTreeSet<PathBuf>,
}

/// The agent's use of its keeper. Calls block for a moment, at most for seconds.
pub(super) struct Holdings {
    keeper: Keeper,
    mounts: Mutex<Mounts>,
    patience: Duration,
    /// Until when who is inside of it may be kept waiting. `None` while the agent starts.
    wait_until: Mutex<Option<Time>>,
}

impl Holdings {
    /// Reaches the keeper, or starts one that holds mounts that nobody serves for `patience`. Where there is none, it is looked for
    /// again when there is something to hold.
    pub(super) fn open(socket: &Path, patience: Duration) -> Self {
        let keeper = Keeper::new(socket, patience);
        if let Err(error) = keeper.reach() {
            tracing::warn!(
                "mounts end with this agent, and those of the agent before wait, unless a keeper can be reached or started \
                 later: {error}"
            );
        }
        let holdings = Self { keeper, mounts: Mutex::default(), patience, wait_until: Mutex::new(None) };
        holdings.gather();
        holdings
    }

    /// Reaches the keeper where there is no connection to it. What it has of a predecessor can be taken over then.
    pub(super) fn look_again(&self) {
        if self.keeper.current().is_some() {
            return;
        }
        let was_reached = self.keeper.problem().is_none();
        match self.keeper.reach() {
            Ok(()) => tracing::info!("the keeper of the mounts is reached again"),
            // Once, and not whenever it is looked for.
            Err(error) if was_reached => {
                tracing::warn!(
                    "mounts end with this agent unless a keeper can be reached or started later: {error}"
                );
            }
            Err(error) => tracing::debug!("the keeper of the mounts is not reached: {error}"),
        }
        self.gather();
    }

    /// That there is no keeper, and why, as long as it is so. Never blocks.
    pub(super) fn trouble(&self) -> Option<String> {
        let cause = self.keeper.problem()?;
        Some(format!("no keeper: mounts end with this agent ({cause})"))
    }

    fn mounts(&self) -> MutexGuard<'_, Mounts> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks through what the keeper said it holds, should it have been reached a moment ago: what this agent does not serve, a
    /// predecessor has left. Descriptors of its own mounts are closed, lest they live on in them.
    fn gather(&self) {
        self.gather_into(&mut self.mounts());
    }

    fn gather_into(&self, mounts: &mut Mounts) {
        for (directory, parts) in self.keeper.found() {
            if !mounts.own.contains(&directory) {
                mounts.left.insert(directory, parts);
            }
        }
    }

    /// What a predecessor has written down of a mount that nobody has taken over yet.
    ///
    /// # Errors
    /// When it cannot be read; then the mount is lost.
    pub(super) fn notes(&self, directory: &Path) -> io::Result<Option<Notes>> {
        let file = match self.mounts().left.get(directory) {
            Some([_, _, notes]) => notes.try_clone()?,
            None => return Ok(None),
        };
        read_notes(file).map(Some)
    }

    /// Takes what a predecessor has left of a mount, once, to serve it.
    pub(super) fn take(&self, directory: &Path, notes: &Notes) -> Option<Held> {
        let parts = {
            let mut mounts = self.mounts();
            let parts = mounts.left.remove(directory)?;
            mounts.own.insert(directory.to_owned());
            parts
        };
        // For the keeper, its readers wait until it hears of it.
        if let Err(error) = self.keeper.hold(directory, &parts.each_ref().map(OwnedFd::as_fd)) {
            tracing::warn!(directory = %directory.display(), "the keeper was not told who serves a mount: {error}");
        }
        self.gather();
        let [device, open_files, _] = parts;
        Some(Held { device, open_files, agreement: notes.agreement.clone() })
    }

    fn wait_until(&self) -> MutexGuard<'_, Option<Time>> {
        self.wait_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent can take mounts over from now on.
    pub(super) fn end_start(&self) {
        *self.wait_until() = Some(ambient::now() + self.patience);
    }

    /// Whether the agent is not there yet that could take mounts over.
    pub(super) fn is_starting(&self) -> bool {
        self.wait_until().is_none()
    }

    /// Whether a mount that cannot be taken over yet may be tried again: once the agent has started, who is inside waits as long as
    /// without an agent.
    pub(super) fn may_wait(&self) -> bool {
        self.wait_until().is_none_or(|until| ambient::now() < until)
    }

    /// Ends all mounts that a predecessor has left and nobody has taken over.
    pub(super) fn end_leftovers(&self) {
        for directory in self.leftovers() {
            self.let_go(&directory);
        }
    }

    /// Ends what a predecessor has left on a directory, should nobody have taken it over or mounted there by now; whether there was
    /// something. Who is inside gets errors.
    pub(super) fn let_go(&self, directory: &Path) -> bool {
        {
            let mut mounts = self.mounts();
            if mounts.left.remove(directory).is_none() {
                return false;
            }
            self.tell_to_release(directory);
            self.gather_into(&mut mounts);
            // The keeper may have been reached anew, and have said first that it holds this.
            mounts.left.remove(directory);
        }
        // With the last descriptor it is dead, and what is dead is cleared away.
        let _ = clear_dead(directory);
        true
    }

    /// Directories of mounts that a predecessor has left and nobody has taken over.
    pub(super) fn leftovers(&self) -> Vec<PathBuf> {
        self.mounts().left.keys().cloned().collect()
    }

    /// Has the keeper hold a mount, or hold it with other notes. As long as [`Holdings::current`] is the number that is
    /// returned, it does.
    ///
    /// # Errors
    /// When it cannot; the mount then ends with this agent.
    pub(super) fn hold(&self, directory: &Path, held: &Held, notes: &Notes) -> io::Result<u64> {
        let written = memfd_create("starling-mount-notes", MemfdFlags::CLOEXEC)?;
        let written = File::from(written);
        written.write_all_at(&serde_json::to_vec(notes)?, 0)?;
        let parts = [held.device.as_fd(), held.open_files.as_fd(), written.as_fd()];
        let mut mounts = self.mounts();
        let told = self.keeper.hold(directory, &parts);
        if told.is_ok() {
            mounts.left.remove(directory);
            mounts.own.insert(directory.to_owned());
        }
        self.gather_into(&mut mounts);
        told
    }

    /// Names the keeper that there is.
    pub(super) fn current(&self) -> Option<u64> {
        self.keeper.current()
    }

    /// Has the keeper let a mount go.
    pub(super) fn release(&self, directory: &Path) {
        let mut mounts = self.mounts();
        self.tell_to_release(directory);
        self.gather_into(&mut mounts);
        mounts.left.remove(directory);
        mounts.own.remove(directory);
    }

    fn tell_to_release(&self, directory: &Path) {
        if let Err(error) = self.keeper.release(directory) {
            tracing::warn!(directory = %directory.display(), "the keeper did not let a mount go: {error}");
        }
    }
}

fn read_notes(file: OwnedFd) -> io::Result<Notes> {
    let bad = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    let file = File::from(file);
    let len = file.metadata()?.len();
    if len > NOTES_MAX_BYTES {
        return Err(bad(format!("notes of {len} bytes, at most {NOTES_MAX_BYTES} belong there")));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    let version = serde_json::from_slice::<serde_json::Value>(&bytes)?["version"].as_u64();
    if version != Some(u64::from(VERSION)) {
        return Err(bad(format!("notes of version {version:?}; this program reads {VERSION}")));
    }
    let notes: Notes = serde_json::from_slice(&bytes)?;
    if notes.trees.is_empty() { Err(bad("notes of a mount without a tree".to_owned())) } else { Ok(notes) }
}

#[cfg(test)]
mod tests {
    use super::super::keeper::{keep_for, listen_on};
    use super::super::shown::tests::past;
    use super::*;

    fn notes() -> Notes {
        let agreement = serde_json::from_str(r#"{"request":[],"reply":[]}"#).unwrap();
        Notes::new(MountOptions::default(), agreement, past(1))
    }

    #[test]
    fn a_switch_that_was_not_ended_is_none() {
        let mut notes = notes();
        notes.begin_switch(1, &past(2));
        assert_eq!(*notes.shown(), (0, past(1)));
        // The agent was killed, and so was its successor while it switched anew.
        let text = serde_json::to_string(&notes).unwrap();
        let mut notes: Notes = serde_json::from_str(&text).unwrap();
        notes.begin_switch(2, &past(3));
        assert_eq!((notes.shown(), notes.trees.len()), (&(0, past(1)), 3));
        notes.end_switch(2, &[0, 2]);
        assert_eq!((notes.shown(), notes.trees.len()), (&(2, past(3)), 2));
        // One that failed has changed nothing.
        notes.begin_switch(3, &past(4));
        notes.end_switch(2, &[0, 2]);
        assert_eq!((notes.shown(), notes.trees.len()), (&(2, past(3)), 2));
    }

    #[test]
    fn the_number_of_a_tree_that_is_lost_is_not_forgotten() {
        let read = |notes: &Notes| -> Notes {
            serde_json::from_str(&serde_json::to_string(notes).unwrap()).unwrap()
        };
        let mut notes = notes();
        notes.begin_switch(1, &past(2));
        // The agent was killed, and its successor could not open that tree, nor switch to the next one.
        let mut notes = read(&notes);
        assert_eq!(notes.last(), 1);
        notes.begin_switch(2, &past(3));
        notes.end_switch(0, &[0]);
        let mut notes = read(&notes);
        assert_eq!((notes.last(), notes.trees.len()), (2, 1));
        notes.begin_switch(3, &past(3));
        notes.end_switch(3, &[3]);
        assert_eq!((read(&notes).last(), notes.shown()), (3, &(3, past(3))));
    }

    #[test]
    fn notes_of_an_earlier_program_are_read() {
        let mut value = serde_json::to_value(notes()).unwrap();
        for later in ["shown", "last"] {
            value.as_object_mut().unwrap().remove(later).unwrap();
        }
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(value.to_string().as_bytes(), 0).unwrap();
        let mut notes = read_notes(file.into()).unwrap();
        assert_eq!(*notes.shown(), (0, past(1)));
        notes.begin_switch(1, &past(2));
        assert_eq!((notes.shown(), notes.last()), (&(0, past(1)), 1));
    }

    /// What an agent has of a mount.
    fn held() -> Held {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        Held { device: file(), open_files: file(), agreement: notes().agreement }
    }

    #[test]
    fn who_is_inside_waits_for_the_start_and_what_is_given_up_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (path, patience) = (dir.path().join("keeper.sock"), Duration::from_secs(60));
        // It listens before it is reached: whoever finds nobody starts a process.
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, patience));
        let (first, at) = (Holdings::open(&path, patience), Path::new("/mnt/a"));
        first.hold(at, &held(), &notes()).unwrap();
        drop(first);
        let second = Holdings::open(&path, Duration::ZERO);
        assert_eq!(second.notes(at).unwrap(), Some(notes()));
        assert!(second.is_starting() && second.may_wait() && second.trouble().is_none());
        second.end_start();
        assert!(!second.is_starting() && !second.may_wait(), "its patience is over at once");
        assert_eq!(second.leftovers(), [at]);
        second.end_leftovers();
        assert!(second.leftovers().is_empty() && second.take(at, &notes()).is_none());
        drop(second);
        keeper.join().unwrap();
    }

    #[test]
    fn what_was_left_is_found_when_the_keeper_is_reached_late_and_own_mounts_are_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, patience) = (dir.path().join("keeper.sock"), Duration::from_secs(60));
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, patience));
        let (first, left) = (Holdings::open(&path, patience), Path::new("/mnt/left"));
        first.hold(left, &held(), &notes()).unwrap();
        // Another agent is served, and this one finds that its connection has ended.
        let (second, own) = (Holdings::open(&path, patience), Path::new("/mnt/own"));
        assert_eq!(second.leftovers(), [left]);
        second.hold(own, &held(), &notes()).unwrap();
        second.look_again();
        let third = Holdings::open(&path, patience);
        assert_eq!(third.leftovers(), [left, own]);
        third.hold(Path::new("/mnt/third"), &held(), &notes()).unwrap();
        drop(third);
        wait_until_gone(&second);
        second.look_again();
        assert_eq!(second.leftovers(), [left, Path::new("/mnt/third")]);
        assert!(second.take(left, &notes()).is_some() && second.take(own, &notes()).is_none());
        // What is let go is nobody's: should it be there still, it is somebody else's.
        for at in [left, own, Path::new("/mnt/third")] {
            second.release(at);
        }
        assert!(second.leftovers().is_empty());
        drop(second);
        keeper.join().unwrap();
    }

    #[test]
    fn without_a_keeper_the_trouble_names_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = listen_on(&path).unwrap();
        // One that answers nothing; it is gone when it is asked.
        let silent = std::thread::spawn(move || {
            drop(rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC).unwrap());
        });
        let holdings = Holdings::open(&path, Duration::from_secs(60));
        silent.join().unwrap();
        let trouble = holdings.trouble().unwrap();
        let cause = trouble.strip_prefix("no keeper: mounts end with this agent (").unwrap();
        assert!(cause.ends_with(')') && cause.len() > 2, "{trouble}");
        // Not looked for again so soon.
        holdings.look_again();
        assert_eq!(holdings.trouble(), Some(trouble));
    }

    #[test]
    fn a_mount_that_is_made_on_a_leftovers_directory_is_not_let_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, patience) = (dir.path().join("keeper.sock"), Duration::from_secs(60));
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, patience));
        let at = Path::new("/mnt/at");
        let mut agent = Holdings::open(&path, patience);
        agent.hold(at, &held(), &notes()).unwrap();
        assert!(!agent.let_go(at), "it is this agent's");
        for round in 0..100 {
            // The agent before is gone; what it had mounted is held, or the round before has lost it.
            drop(agent);
            agent = Holdings::open(&path, patience);
            assert_eq!(agent.leftovers(), [at], "round {round}");
            std::thread::scope(|scope| {
                scope.spawn(|| agent.hold(at, &held(), &notes()).unwrap());
                scope.spawn(|| {
                    for left in agent.leftovers() {
                        agent.let_go(&left);
                    }
                });
            });
            assert!(agent.leftovers().is_empty());
        }
        agent.release(at);
        drop(agent);
        keeper.join().unwrap();
    }

    fn wait_until_gone(holdings: &Holdings) {
        for _ in 0..500 {
            if holdings.current().is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("its connection lives");
    }
}
