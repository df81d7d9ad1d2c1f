//! The table of mounts: what is mounted where, remembered over restarts, switched to new revisions.
//!
//! The table decides and remembers; [`Mounter`] opens trees and talks to the kernel. Changes of one directory happen
//! one after the other; different directories wait for nobody, for a stratum may be silent for long. What must happen later because it could not happen now (a stratum that does
//! not answer when the machine boots, a catalog that no neighbour sends yet) is tried again by
//! [`MountTable::tend`], which the agent calls every [`TEND_EVERY`].
//!
//! Here is the table and what it is asked for. `port` has what it asks of others, `turns` who may change a directory, `tend` what
//! happens without being asked for, `revision` what is shown, `list` what is remembered, `leave` how it ends.

use super::api::{Choice, MountOptions, MountRequest, MountStatus, Refusal, RefusalKind};
use super::fill::Fill;
use super::shown::Shown;
use crate::ambient;
use crate::chunk::ChunkSource;
use crate::fs::{Profile, real_path};
use crate::model::{ContentId, RepositoryName};
use crate::trust::Repositories;
use list::Remembered;
pub(super) use port::{Left, Life, Mounted, Mounter, OpenError};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
pub(super) use tend::TEND_EVERY;

mod leave;
mod list;
mod port;
mod revision;
mod tend;
mod turns;

/// Most mounts of one agent: each is a FUSE session with its threads (a guess).
const MOUNTS_MAX: usize = 256;
/// Time for one unmount before the mount is detached under its users (a guess).
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(5);
/// What people are told of a mount of a repository that is not theirs among the members.
const OUT_OF_SCOPE: &str = "this node's certificate does not cover the repository: no member gives it anything of it, all is read from the strata";

/// One line of the table.
struct Entry {
    repository: RepositoryName,
    state: State,
    options: MountOptions,
    /// The revision that was chosen, where one is to be shown for good.
    chosen: Option<Shown>,
    /// Whether it was mounted because somebody looked, and goes when nobody does.
    automatic: bool,
    /// Whether the agent was started with it, so that it is to be there whatever happens.
    declared: bool,
    /// Whether a background fill was asked for.
    wants_fill: bool,
    /// The fill of the revision that is shown.
    fill: Option<Fill>,
    /// Why it does not show the newest revision although it should.
    lag: Option<String>,
    /// The root about which a warning was logged last, so that each is warned about once.
    warned: Option<ContentId>,
}

impl Entry {
    fn new(mount: Remembered, state: State) -> Self {
        let Remembered { repository, options, chosen, automatic, fill: wants_fill, .. } = mount;
        let (declared, fill, lag, warned) = (false, None, None, None);
        Self { repository, state, options, chosen, automatic, declared, wants_fill, fill, lag, warned }
    }

    fn mounted(&self) -> Option<Arc<dyn Mounted>> {
        match &self.state {
            State::Active { mounted, .. } => Some(mounted.clone()),
            State::Failed { .. } | State::Left { .. } => None,
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "a few hundred bytes, for a few hundred mounts at most")]
enum State {
    Active {
        mounted: Arc<dyn Mounted>,
        shown: Shown,
    },
    Failed {
        problem: String,
    },
    /// A predecessor's mount is there, and could not be taken over yet.
    Left {
        problem: String,
    },
}

/// All mounts of an agent.
pub(super) struct MountTable {
    mounter: Box<dyn Mounter>,
    registry: Arc<Repositories>,
    file: PathBuf,
    entries: Mutex<BTreeMap<PathBuf, Entry>>,
    /// Why the list could not be written, as long as what is written is not what is wanted.
    unwritten: Mutex<Option<String>>,
    /// Each directory that is being changed. Never held while somebody looks.
    changing: Mutex<BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while the list is written.
    writing: Mutex<()>,
    /// Whether the agent stops: the list stays as it is then, and what is mounted now would be left over.
    stopping: AtomicBool,
}

impl MountTable {
    /// A table that remembers its mounts in `file`. What the file holds is in the table at once, as
    /// failed; [`Self::tend`] mounts it.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or is not ours.
    pub(super) fn open(
        mounter: Box<dyn Mounter>,
        registry: Arc<Repositories>,
        file: PathBuf,
    ) -> io::Result<Self> {
        let remembered = list::read(&file)?;
        let entries = remembered
            .into_iter()
            .map(|mount| {
                let state = State::Failed { problem: "not mounted yet after the agent's start".into() };
                (mount.directory.clone(), Entry::new(mount, state))
            })
            .collect();
        Ok(Self {
            mounter,
            registry,
            file,
            entries: Mutex::new(entries),
            unwritten: Mutex::default(),
            changing: Mutex::default(),
            writing: Mutex::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Adds what is to be mounted in any case, as failed until [`Self::tend`] mounts it. A line that there is already for
    /// the same directory is replaced: what is declared today counts. It need not be remembered to be mounted: the disk may
    /// be full.
    ///
    /// # Errors
    /// When there are too many, or two for one directory.
    pub(super) fn declare(&self, mounts: Vec<MountRequest>) -> io::Result<()> {
        if mounts.is_empty() {
            return Ok(());
        }
        let mut entries = self.lock();
        for request in mounts {
            let options = request.options.clone().checked().map_err(io::Error::other)?;
            let directory = real_path(&request.directory);
            let mount = Remembered::from(MountRequest { options, directory, ..request });
            if let Some(other) = entries.get(&mount.directory).filter(|entry| entry.declared) {
                let (at, one, other) = (mount.directory.display(), &mount.repository, &other.repository);
                return Err(io::Error::other(format!(
                    "{at} is to show {other} and {one}; only one can be there"
                )));
            }
            let same = |entry: &&Entry| {
                entry.repository == mount.repository && entry.options.show == mount.options.show
            };
            let before = entries.get(&mount.directory).filter(same);
            let chosen = before.and_then(|entry| entry.chosen.clone());
            let state = State::Failed { problem: "not mounted yet".into() };
            let directory = mount.directory.clone();
            entries.insert(directory, Entry { chosen, declared: true, ..Entry::new(mount, state) });
        }
        if entries.len() > MOUNTS_MAX {
            let found = entries.len();
            return Err(io::Error::other(format!("{found} mounts are declared, {MOUNTS_MAX} are the most")));
        }
        drop(entries);
        self.remember();
        Ok(())
    }

    /// All mounts, by directory.
    pub(super) fn list(&self) -> Vec<MountStatus> {
        let entry_of =
            |(directory, entry): (&PathBuf, &Entry)| (self.status(directory, entry), entry.mounted());
        let all: Vec<_> = self.lock().iter().map(entry_of).collect();
        // Without the lock: a mount that is just being looked at answers when that is done.
        all.into_iter().map(|(status, mounted)| described(status, mounted)).collect()
    }

    /// Mounts a repository and remembers it.
    ///
    /// # Errors
    /// A [`Refusal`] that says what to do.
    pub(super) async fn mount(&self, request: MountRequest) -> Result<MountStatus, Refusal> {
        self.mount_remembered(Remembered::from(request)).await
    }

    /// Mounts a repository because somebody looked: it may be unmounted when nobody uses it.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub(super) async fn mount_automatically(&self, request: MountRequest) -> Result<(), Refusal> {
        self.mount_remembered(Remembered { automatic: true, ..request.into() }).await.map(drop)
    }

    async fn mount_remembered(&self, mount: Remembered) -> Result<MountStatus, Refusal> {
        let options = mount.options.clone().checked().map_err(|m| Refusal::new(RefusalKind::Invalid, m))?;
        if !mount.directory.is_absolute() {
            let message = format!("{} is not an absolute path", mount.directory.display());
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        // The keeper and the list of mounts know it by the path without links.
        let directory = real_path_of(mount.directory.clone()).await;
        let mut mount = Remembered { options, directory, ..mount };
        let (repository, directory) = (mount.repository.clone(), mount.directory.clone());
        let _changing = self.change(&directory).await;
        self.notice_unmounted(&directory).await;
        if mount.automatic {
            // One of the last run that nobody has kept.
            let is_lost = |entry: &Entry| entry.automatic && matches!(entry.state, State::Failed { .. });
            self.lock().retain(|at, entry| *at != directory || !is_lost(entry));
        }
        if let Some(entry) = self.lock().get(&directory) {
            let message = format!("{} is taken by {}", directory.display(), entry.repository);
            return Err(Refusal::new(RefusalKind::Conflict, message)
                .hint(format!("unmount it first: starling umount {}", directory.display())));
        }
        let too_many = || Refusal::new(RefusalKind::Conflict, format!("{MOUNTS_MAX} mounts are the most"));
        if self.lock().len() >= MOUNTS_MAX {
            return Err(too_many());
        }
        let root = self.newest_root(&repository).await?;
        // What was unmounted only because nobody looked for a while is as good as mounted, and that goes on reading.
        let expired = Shown::newest(&root).expired_at(ambient::unix_now()).filter(|_| !mount.automatic);
        if let Some(since) = expired {
            let message = format!("the newest root of {repository} that is known here expired at {since}");
            return Err(Refusal::new(RefusalKind::Untrusted, message)
                .hint("its publisher must publish or sign it again, and announce it"));
        }
        let shown = self.choose(root, &mount.options.show).await?;
        let state = self.activate(&directory, &mount.options, &shown).await?;
        mount.chosen = (mount.options.show != Choice::Newest).then_some(shown);
        let mut entry = Entry::new(mount, state);
        // Others may have come meanwhile, or the end.
        let refused = match self.lock().len() {
            _ if self.is_stopping() => Some(Refusal::new(RefusalKind::Unavailable, "the agent stops")),
            MOUNTS_MAX.. => Some(too_many()),
            _ => None,
        };
        if let (Some(refusal), Some(mounted)) = (refused, entry.mounted()) {
            let _ = mounted.unmount(Duration::ZERO).await;
            return Err(refusal);
        }
        self.fill(&mut entry);
        let mounted = self.insert(directory, entry);
        self.remember();
        Ok(mounted)
    }

    /// Unmounts what was mounted because somebody looked, if nobody uses it; whether it is gone.
    pub(super) async fn unmount_idle(&self, directory: &Path) -> bool {
        // Whoever enters it meanwhile waits: what takes long is not waited for, and this is asked again.
        let Some(changing) = self.try_change(directory) else { return false };
        let mounted = match self.lock().get(directory) {
            Some(entry) if entry.automatic => entry.mounted(),
            Some(_) => return false,
            // Nothing of this agent's is there.
            None => return true,
        };
        if let Some(mounted) = mounted
            && !mounted.unmount_if_idle().await
        {
            return false;
        }
        self.lock().remove(directory);
        self.remember();
        drop(changing);
        self.let_go_others().await;
        true
    }

    /// Unmounts and forgets.
    ///
    /// # Errors
    /// A [`Refusal`] when nothing is mounted there, or the kernel refuses.
    pub(super) async fn unmount(&self, directory: &Path) -> Result<MountStatus, Refusal> {
        // Of one that leads elsewhere now the line is meant that bears this name.
        let is_named = self.lock().contains_key(directory);
        let real = if is_named { directory.to_owned() } else { real_path_of(directory.to_owned()).await };
        let directory = &real;
        let changing = self.change(directory).await;
        let (shown, mounted) = match self.lock().get(directory) {
            None => {
                let message = format!("{} is not mounted by this agent", directory.display());
                return Err(Refusal::new(RefusalKind::NotFound, message).hint("see `starling status`"));
            }
            Some(entry) => (self.status(directory, entry), entry.mounted()),
        };
        if let Some(mounted) = mounted {
            mounted.unmount(UNMOUNT_DEADLINE).await.map_err(|error| {
                Refusal::new(RefusalKind::Internal, format!("{}: {error}", directory.display()))
            })?;
        }
        self.lock().remove(directory);
        self.remember();
        drop(changing);
        self.let_go_others().await;
        Ok(shown)
    }

    /// Ends what a predecessor has left and the list does not name any more. A directory that somebody changes is left alone, for he may
    /// be about to mount there: this is called again.
    pub(super) async fn let_go_others(&self) {
        for directory in self.mounter.leftovers() {
            let Some(_changing) = self.try_change(&directory) else { continue };
            let is_named = self.lock().contains_key(&directory);
            if !is_named {
                self.mounter.let_go(&directory).await;
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The mount on a directory, if it is live, and its profile.
    pub(super) fn live(&self, directory: &Path) -> Option<(Arc<dyn Mounted>, Profile)> {
        let entries = self.lock();
        let entry = entries.get(directory)?;
        match &entry.state {
            State::Active { mounted, .. } => Some((mounted.clone(), mounted.profile())),
            State::Failed { .. } | State::Left { .. } => None,
        }
    }

    /// What is wrong with the table itself.
    pub(super) fn trouble(&self) -> Option<String> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the chunks of a repository come from.
    pub(super) fn source(&self, repository: &RepositoryName) -> Arc<dyn ChunkSource> {
        self.mounter.fill_parts(repository).source
    }

    /// Begins the fill of what `entry` shows, if one was asked for and is not under way.
    fn fill(&self, entry: &mut Entry) {
        match &entry.state {
            State::Active { shown, .. } if entry.wants_fill => {
                let revision = shown.revision();
                if entry.fill.as_ref().is_none_or(|fill| fill.revision() != revision) {
                    let parts = self.mounter.fill_parts(&entry.repository);
                    entry.fill = Some(Fill::start(&shown.of, &entry.options.path, parts));
                }
            }
            State::Active { .. } | State::Failed { .. } | State::Left { .. } => entry.fill = None,
        }
    }

    fn status(&self, directory: &Path, entry: &Entry) -> MountStatus {
        let (shown, problem) = match &entry.state {
            State::Active { shown, .. } => (Some(shown), None),
            State::Failed { problem } | State::Left { problem } => (None, Some(problem.clone())),
        };
        let out_of_scope = self.mounter.is_out_of_scope(&entry.repository);
        MountStatus {
            repository: entry.repository.clone(),
            directory: directory.to_owned(),
            revision: shown.map(Shown::revision),
            root: shown.map(|shown| shown.of.root),
            options: entry.options.clone(),
            automatic: entry.automatic,
            expired: shown.is_some_and(|shown| shown.expired_at(ambient::unix_now()).is_some()),
            problem,
            profile: None,
            lacks: Vec::new(),
            note: entry.lag.clone().or_else(|| out_of_scope.then(|| OUT_OF_SCOPE.to_owned())),
            fill: entry.fill.as_ref().map(Fill::status),
        }
    }

    fn insert(&self, directory: PathBuf, entry: Entry) -> MountStatus {
        let shown = described(self.status(&directory, &entry), entry.mounted());
        self.lock().insert(directory, entry);
        shown
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Entry>> {
        // Entries are replaced whole, so a panic elsewhere leaves no half of one.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With what a mount tells of itself.
fn described(status: MountStatus, mounted: Option<Arc<dyn Mounted>>) -> MountStatus {
    let Some(mounted) = mounted else { return status };
    // One that is just being unmounted has none.
    let profile = Some(mounted.profile()).filter(|profile| *profile != Profile::Auto);
    MountStatus { profile, lacks: mounted.lacks(), ..status }
}

/// As [`real_path`], which may block for a moment.
async fn real_path_of(directory: PathBuf) -> PathBuf {
    let as_written = directory.clone();
    tokio::task::spawn_blocking(move || real_path(&directory)).await.unwrap_or(as_written)
}

#[cfg(test)]
mod tests;
