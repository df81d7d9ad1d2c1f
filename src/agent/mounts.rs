//! The table of mounts: what is mounted where, remembered over restarts, switched to new revisions.
//!
//! The table decides and remembers; [`Mounter`] opens trees and talks to the kernel. Changes of one directory happen
//! one after the other; different directories wait for nobody, for a stratum may be silent for long. What must happen later because it could not happen now (a stratum that does
//! not answer when the machine boots, a catalog that no neighbour sends yet) is tried again by
//! [`MountTable::tend`], which the agent calls every [`TEND_EVERY`].

use super::api::{Choice, MountOptions, MountRequest, MountStatus, Refusal, RefusalKind};
use super::fill::{Fill, FillParts};
use super::shown::{Shown, choose};
use crate::ambient;
use crate::catalog::{History, PastRevision, RecordedTrace, Tree, ViewError};
use crate::chunk::ChunkSource;
use crate::fs::{Belongs, MountError, Profile, real_path};
use crate::model::{ChunkRef, ContentId, RepositoryName, Revision};
use crate::trust::{Repositories, VerifiedRoot};
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, StreamExt as _};
use list::Remembered;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often mounts that lag or failed are tried again: soon for a person, rare for a stratum (a guess).
pub(super) const TEND_EVERY: Duration = Duration::from_secs(10);
/// Most mounts of one agent: each is a FUSE session with its threads (a guess).
const MOUNTS_MAX: usize = 256;
/// Repositories whose strata are asked at once for a newer root (guess).
const ASKED_AT_ONCE: usize = 8;
/// Time for one unmount before the mount is detached under its users (a guess).
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(5);
/// What people are told of a mount of a repository that is not theirs among the members.
const OUT_OF_SCOPE: &str = "this node's certificate does not cover the repository: no member gives it anything of it, all is read from the strata";
mod list;

/// What became of a mount without the agent's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It is there.
    Live,
    /// The kernel has ended it, and its remains are in the way.
    Dead,
    /// Somebody has unmounted it.
    Unmounted,
}

/// What became of a mount that a predecessor of this agent may have left.
#[expect(clippy::large_enum_variant, reason = "it is looked at once and goes")]
pub(super) enum Left {
    /// There is none, or it could not be kept: it is to be mounted anew.
    Nothing,
    /// It goes on, with the revision that it showed.
    Resumed(Arc<dyn Mounted>, Shown),
    /// Somebody has unmounted it since.
    Unmounted,
    /// It is there, and who is inside waits, for it cannot be taken over yet.
    NotYet(String),
}

/// Why a tree was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Its catalogs could not be had.
    #[error("{0}")]
    Catalogs(String),
    /// It has no such directory as was asked for.
    #[error("{0}")]
    Path(ViewError),
}

/// Opens trees and mounts them.
pub(super) trait Mounter: Send + Sync + 'static {
    /// Asks the strata for the newest root of a repository, because none is known yet, or nobody is there to tell of a newer
    /// one. The registry has judged and adopted it then. An error says who was asked.
    fn find_root<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<(), String>>;

    /// What a root says of the revisions before it, and of tags.
    fn history<'a>(&'a self, root: &'a VerifiedRoot) -> BoxFuture<'a, Result<History, String>>;

    /// Opens the tree of a revision, seen as the options say: fetches its root catalog.
    fn open<'a>(
        &'a self,
        shown: &'a Shown,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Tree>, OpenError>>;

    /// Whether this node's certificate leaves the repository out, so that no member gives it anything of it.
    fn is_out_of_scope(&self, repository: &RepositoryName) -> bool;

    /// What a background fill of the repository works with.
    fn fill_parts(&self, repository: &RepositoryName) -> FillParts;

    /// Goes on with the mount that a predecessor of this agent has left on a directory.
    fn resume<'a>(
        &'a self,
        repository: &'a RepositoryName,
        directory: &'a Path,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Left>;

    /// Ends mounts that a predecessor has left, but for those on these directories.
    fn let_go_but<'a>(&'a self, directories: &'a BTreeSet<PathBuf>) -> BoxFuture<'a, ()>;

    /// Clears away what a predecessor that was killed has left on a directory, if nobody serves it any more.
    fn clear<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, ()>;

    /// Mounts a tree, that of the revision, on an empty directory. What a predecessor that was killed has left there is cleared.
    fn mount<'a>(
        &'a self,
        shown: &'a Shown,
        directory: &'a Path,
        options: &'a MountOptions,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<Arc<dyn Mounted>, MountError>>;
}

/// A live mount.
pub(super) trait Mounted: Send + Sync + 'static {
    /// Shows another tree from now on, as a whole. Open files stay with theirs. After an error it shows
    /// the tree that it showed before.
    fn switch<'a>(&'a self, shown: &'a Shown, tree: Arc<dyn Tree>) -> BoxFuture<'a, Result<(), String>>;

    /// Whether the kernel still has it: somebody may have unmounted it by hand.
    fn life(&self) -> Life;

    /// What it is tuned for.
    fn profile(&self) -> Profile {
        Profile::default()
    }

    /// Begins to record, for a process, what some tasks read; its number, or `None` when too many run.
    fn begin_recording(&self, process: u32, belongs: Belongs) -> Option<u64> {
        drop((process, belongs));
        None
    }

    /// Ends the recordings whose process is gone.
    fn end_orphaned_recordings(&self) {}

    /// Ends a recording; `None` when there is none such. Whether the trace lacks something because of its bounds.
    fn end_recording(
        &self,
        number: u64,
        name: String,
    ) -> BoxFuture<'_, Result<Option<(RecordedTrace, bool)>, String>> {
        drop((number, name));
        async { Ok(None) }.boxed()
    }

    /// Sees to it that a successor of this agent can take it over, if that is wanted and was lost.
    fn keep(&self) {}

    /// Leaves it to a successor of this agent, if one can take it over: from now on nobody is answered here, and whoever reads
    /// waits. False when it must be unmounted.
    fn leave(&self) -> bool;

    /// Unmounts if nobody uses it; whether that was done.
    fn unmount_if_idle(&self) -> BoxFuture<'_, bool>;

    /// Unmounts; a mount that is still in use after `patience` is detached under its users.
    fn unmount(&self, patience: Duration) -> BoxFuture<'_, io::Result<()>>;
}

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

/// Held over a change of one directory, so that changes of it do not overlap.
struct Changing<'a> {
    table: &'a MountTable,
    directory: PathBuf,
    /// `None` only while it is dropped.
    turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut changing = self.table.all_changing();
        self.turn = None;
        // Those who wait have it, too, and those who come take it from here.
        if changing.get(&self.directory).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            changing.remove(&self.directory);
        }
    }
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
                let mount = Remembered { directory: real_path(&mount.directory), ..mount };
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
    /// When there are too many.
    pub(super) fn declare(&self, mounts: Vec<MountRequest>) -> io::Result<()> {
        if mounts.is_empty() {
            return Ok(());
        }
        let mut entries = self.lock();
        for request in mounts {
            let options = request.options.clone().checked().map_err(io::Error::other)?;
            let directory = real_path(&request.directory);
            let mount = Remembered::from(MountRequest { options, directory, ..request });
            let same =
                |entry: &&Entry| entry.repository == mount.repository && entry.options == mount.options;
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

    fn all_changing(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>> {
        // Each change is one call.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody changes a directory any more.
    async fn change(&self, directory: &Path) -> Changing<'_> {
        let lock = self.all_changing().entry(directory.to_owned()).or_default().clone();
        let turn = Some(lock.lock_owned().await);
        Changing { table: self, directory: directory.to_owned(), turn }
    }

    /// The turn at a directory, if nobody else has it.
    fn try_change(&self, directory: &Path) -> Option<Changing<'_>> {
        let mut changing = self.all_changing();
        let lock = changing.entry(directory.to_owned()).or_default().clone();
        let turn = Some(lock.try_lock_owned().ok()?);
        Some(Changing { table: self, directory: directory.to_owned(), turn })
    }

    /// All mounts, by directory.
    pub(super) fn list(&self) -> Vec<MountStatus> {
        self.lock().iter().map(|(directory, entry)| self.status(directory, entry)).collect()
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
    pub(super) async fn mount_automatically(
        &self,
        repository: RepositoryName,
        directory: PathBuf,
    ) -> Result<(), Refusal> {
        let request = MountRequest { repository, directory, fill: false, options: MountOptions::default() };
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

    /// Forgets a mount that somebody has unmounted by hand, unless the agent was started with it.
    async fn notice_unmounted(&self, directory: &Path) {
        let found = self
            .lock()
            .get(directory)
            .and_then(|entry| Some((entry.mounted()?, entry.declared, entry.automatic)));
        let Some((mounted, declared, automatic)) = found else { return };
        let life = mounted.life();
        let is_over = match life {
            Life::Live => false,
            Life::Unmounted => !declared,
            // It is mounted anew when somebody looks.
            Life::Dead => automatic,
        };
        if !is_over {
            return;
        }
        tracing::info!(directory = %directory.display(), "was unmounted by hand and is forgotten");
        // Its session is over; what is left of it is tidied up.
        let _ = mounted.unmount(Duration::ZERO).await;
        if life == Life::Dead {
            self.mounter.clear(directory).await;
        }
        self.lock().remove(directory);
        self.remember();
    }

    /// Unmounts what was mounted because somebody looked, if nobody uses it; whether it is gone.
    pub(super) async fn unmount_idle(&self, directory: &Path) -> bool {
        // Whoever enters it meanwhile waits: what takes long is not waited for, and this is asked again.
        let Some(_changing) = self.try_change(directory) else { return false };
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
        self.let_go_others().await;
        true
    }

    /// Unmounts and forgets.
    ///
    /// # Errors
    /// A [`Refusal`] when nothing is mounted there, or the kernel refuses.
    pub(super) async fn unmount(&self, directory: &Path) -> Result<MountStatus, Refusal> {
        let directory = &real_path_of(directory.to_owned()).await;
        let _changing = self.change(directory).await;
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
        self.let_go_others().await;
        Ok(shown)
    }

    /// Switches lagging mounts to the newest root, mounts what failed, and notices mounts that were
    /// taken away by hand. What is being changed by somebody else, an earlier call of this one too, is left alone.
    pub(super) async fn tend(&self) {
        // It may be over by now.
        if self.trouble().is_some() {
            self.remember();
        }
        let directories: Vec<_> = self.lock().keys().cloned().collect();
        let look = async |directory: PathBuf| {
            if let Some(_changing) = self.try_change(&directory) {
                self.tend_one(&directory).await;
            }
        };
        join_all(directories.into_iter().map(look)).await;
    }

    async fn tend_one(&self, directory: &Path) {
        self.notice_unmounted(directory).await;
        let Some(looked_at) = self.lock().get(directory).map(LookedAt::of) else { return };
        let changed = match looked_at.active.clone() {
            Some((mounted, _)) if mounted.life() != Life::Live => {
                tracing::warn!(directory = %directory.display(), "was ended by somebody else");
                let _ = mounted.unmount(Duration::ZERO).await;
                Some(State::Failed { problem: "was ended by somebody else".into() })
            }
            Some((mounted, shown)) => {
                mounted.keep();
                mounted.end_orphaned_recordings();
                // What was chosen stays.
                let stays = looked_at.chosen.is_some();
                if stays { None } else { self.catch_up(directory, &looked_at, mounted, shown).await }
            }
            None => self.retry(directory, &looked_at).await,
        };
        let Some(state) = changed else { return };
        if self.is_stopping() {
            // It came too late to be left with the others.
            if let State::Active { mounted, .. } = state
                && !mounted.leave()
            {
                let _ = mounted.unmount(Duration::ZERO).await;
            }
            return;
        }
        if looked_at.automatic && matches!(state, State::Failed { .. }) {
            // It is mounted again when somebody looks again.
            self.lock().remove(directory);
            self.remember();
            return;
        }
        let is_chosen = looked_at.chosen.is_some() || looked_at.options.show == Choice::Newest;
        if let Some(entry) = self.lock().get_mut(directory) {
            if let (State::Active { shown, .. }, false) = (&state, is_chosen) {
                entry.chosen = Some(shown.clone());
            }
            entry.state = state;
            entry.lag = None;
            self.fill(entry);
        }
        if !is_chosen {
            self.remember();
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Asks the strata for newer roots of repositories that are mounted, several at once: of all, or of those of which no member
    /// tells this node. Whether there is one.
    pub(super) async fn ask_strata(&self, all: bool) -> bool {
        let mounted: BTreeSet<_> = self.lock().values().map(|entry| entry.repository.clone()).collect();
        let asked = mounted.into_iter().filter(|name| all || !self.is_told(name));
        let newest = |name: &RepositoryName| self.registry.newest_root(name).map(|root| root.id());
        let ask = async |repository: RepositoryName| {
            let before = newest(&repository);
            match self.mounter.find_root(&repository).await {
                Ok(()) => newest(&repository) != before,
                Err(problem) => {
                    tracing::debug!(%repository, problem, "asking the strata for a newer root");
                    false
                }
            }
        };
        let answers: Vec<bool> =
            futures::stream::iter(asked.map(ask)).buffer_unordered(ASKED_AT_ONCE).collect().await;
        answers.contains(&true)
    }

    /// Whether members tell this node newer roots of a repository: its card went through the mesh, so that they know it, and
    /// this node's certificate covers it.
    fn is_told(&self, repository: &RepositoryName) -> bool {
        self.registry.is_spread(repository) && !self.mounter.is_out_of_scope(repository)
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

    /// Ends what a predecessor has left and the list does not name any more.
    pub(super) async fn let_go_others(&self) {
        let directories = self.lock().keys().cloned().collect();
        self.mounter.let_go_but(&directories).await;
    }

    /// Leaves all mounts to a successor where one can take them over, unmounts the others, all at once, and remembers them for
    /// the next start.
    pub(super) async fn leave_all(&self, patience: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        let until = ambient::now() + patience;
        let all: Vec<_> = self.lock().keys().cloned().collect();
        for directory in all {
            // Who changes it is not waited for beyond that.
            let left = until.since(ambient::now());
            let _changing = tokio::time::timeout(left, self.change(&directory)).await;
            let mounted = self.lock().get(&directory).and_then(Entry::mounted);
            if mounted.is_some_and(|mounted| mounted.leave()) {
                self.lock().remove(&directory);
            }
        }
        self.unmount_all(until.since(ambient::now())).await;
    }

    /// Unmounts everything, all at once, and remembers it for the next start.
    pub(super) async fn unmount_all(&self, patience: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        let active: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(directory, entry)| Some((directory.clone(), entry.mounted()?)))
            .collect();
        join_all(active.iter().map(|(directory, mounted)| async move {
            match mounted.unmount(patience).await {
                Ok(()) => tracing::info!(directory = %directory.display(), "unmounted"),
                Err(error) => {
                    tracing::error!(directory = %directory.display(), %error, "could not be unmounted");
                }
            }
        }))
        .await;
        *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lock().clear();
    }

    async fn catch_up(
        &self,
        directory: &Path,
        looked_at: &LookedAt,
        mounted: Arc<dyn Mounted>,
        shown: Shown,
    ) -> Option<State> {
        let repository = &looked_at.repository;
        let newest = Shown::newest(&self.registry.newest_root(repository)?);
        let (revision, directory_shown) = (newest.revision(), directory.display());
        if let Some(since) = newest.expired_at(ambient::unix_now()) {
            if self.first_warning(directory, &newest) {
                tracing::warn!(
                    %repository, directory = %directory_shown, %revision, %since,
                    "the newest root has expired: the mount goes on with what it shows"
                );
            }
            return None;
        }
        if newest.of.root == shown.of.root {
            return None;
        }
        if revision == shown.revision() {
            // The same revision, signed again: nothing to switch but the expiry.
            return Some(State::Active { mounted, shown: newest });
        }
        let switched = match self.mounter.open(&newest, &looked_at.options).await {
            Ok(tree) => mounted.switch(&newest, tree).await,
            Err(problem) => Err(problem.to_string()),
        };
        match switched {
            Ok(()) => {
                tracing::info!(
                    %repository, directory = %directory_shown, from = %shown.revision(), to = %revision,
                    "switched"
                );
                Some(State::Active { mounted, shown: newest })
            }
            Err(problem) => {
                let from = shown.revision();
                let lag = format!(
                    "it goes on showing revision {from}, for revision {revision} could not be shown: {problem}"
                );
                if self.first_warning(directory, &newest) {
                    tracing::warn!(%repository, directory = %directory_shown, "{lag}");
                }
                if let Some(entry) = self.lock().get_mut(directory) {
                    entry.lag = Some(lag);
                }
                None
            }
        }
    }

    /// Whether nothing was said yet about this root at this mount.
    fn first_warning(&self, directory: &Path, newest: &Shown) -> bool {
        let root = newest.of.root;
        self.lock().get_mut(directory).is_some_and(|entry| entry.warned.replace(root) != Some(root))
    }

    /// Tries to mount what failed. An expired root does not hinder it: a mount that was there before
    /// the restart goes on reading.
    async fn retry(&self, directory: &Path, looked_at: &LookedAt) -> Option<State> {
        let LookedAt { repository, options, chosen, .. } = looked_at;
        let left = match self.mounter.resume(repository, directory, options).await {
            Left::NotYet(problem) => {
                let problem = format!("who is inside waits, for it cannot be taken over yet: {problem}");
                if !self.has_problem(directory, &problem) {
                    tracing::warn!(%repository, directory = %directory.display(), "{problem}");
                }
                return Some(State::Left { problem });
            }
            Left::Unmounted if !looked_at.declared => {
                tracing::info!(directory = %directory.display(), "was unmounted by hand and is forgotten");
                self.lock().remove(directory);
                self.remember();
                return None;
            }
            Left::Resumed(mounted, shown) => Some(State::Active { mounted, shown }),
            Left::Nothing | Left::Unmounted => None,
        };
        let attempt = async {
            if let Some(resumed) = left {
                return Ok(resumed);
            }
            if looked_at.automatic {
                self.mounter.clear(directory).await;
                return Err(Refusal::new(RefusalKind::Unavailable, "it is mounted when somebody looks"));
            }
            let shown = match chosen {
                Some(chosen) => chosen.clone(),
                None => self.choose(self.newest_root(repository).await?, &options.show).await?,
            };
            self.activate(directory, options, &shown).await
        };
        match attempt.await {
            Ok(state) => {
                tracing::info!(%repository, directory = %directory.display(), "mounted again");
                Some(state)
            }
            Err(refusal) => {
                let problem = refusal.to_string();
                if !self.has_problem(directory, &problem) && !looked_at.automatic {
                    tracing::warn!(%repository, directory = %directory.display(), problem, "not mounted");
                }
                Some(State::Failed { problem })
            }
        }
    }

    fn has_problem(&self, directory: &Path, problem: &str) -> bool {
        let entries = self.lock();
        let state = entries.get(directory).map(|entry| &entry.state);
        matches!(state, Some(State::Failed { problem: known } | State::Left { problem: known }) if known == problem)
    }

    /// The revision that is to be shown. What is not known yet the strata are asked for.
    async fn choose(&self, newest: VerifiedRoot, choice: &Choice) -> Result<Shown, Refusal> {
        if *choice == Choice::Newest {
            return Ok(Shown::newest(&newest));
        }
        let repository = newest.root().repository.clone();
        let refusal = match self.choose_from(&newest, choice).await {
            Err(refusal) if refusal.kind == RefusalKind::NotFound => refusal,
            chosen => return chosen,
        };
        // It may have been published a moment ago.
        let asked = self.mounter.find_root(&repository).await;
        match self.registry.newest_root(&repository) {
            Some(newer) if asked.is_ok() && newer.id() != newest.id() => {
                self.choose_from(&newer, choice).await
            }
            _ => Err(refusal),
        }
    }

    async fn choose_from(&self, newest: &VerifiedRoot, choice: &Choice) -> Result<Shown, Refusal> {
        let history = self.mounter.history(newest).await.map_err(|problem| {
            let name = &newest.root().repository;
            Refusal::new(RefusalKind::Unavailable, format!("the history of {name}: {problem}"))
                .hint("is a stratum up, or a neighbour that has it? see `starling status`")
        })?;
        choose(newest, &history, choice)
    }

    async fn newest_root(&self, repository: &RepositoryName) -> Result<VerifiedRoot, Refusal> {
        if self.registry.card(repository).is_none() {
            let message = format!("repository {repository} is not known here");
            let add = format!("starling repo add {repository}@FINGERPRINT --stratum URL");
            return Err(Refusal::new(RefusalKind::NotFound, message).hint(
                if self.mounter.is_out_of_scope(repository) {
                    format!(
                        "this node's certificate does not cover it: join again with a ticket that does, or read it from its strata only, with {add}"
                    )
                } else {
                    format!("make it known: {add}")
                },
            ));
        }
        if let Some(root) = self.registry.newest_root(repository) {
            return Ok(root);
        }
        let unavailable = |detail: String| {
            Refusal::new(RefusalKind::Unavailable, format!("no root of {repository} could be had: {detail}"))
                .hint("is a stratum up, and is something published? `starling repo list` shows the strata")
        };
        self.mounter.find_root(repository).await.map_err(unavailable)?;
        self.registry.newest_root(repository).ok_or_else(|| unavailable("nobody has one".into()))
    }

    async fn activate(
        &self,
        directory: &Path,
        options: &MountOptions,
        shown: &Shown,
    ) -> Result<State, Refusal> {
        let (repository, revision) = (&shown.repository, shown.revision());
        let tree = self.mounter.open(shown, options).await.map_err(|problem| match problem {
            OpenError::Path(error) => {
                let refused =
                    Refusal::new(RefusalKind::NotFound, format!("{repository} revision {revision}: {error}"));
                match error {
                    ViewError::Link { .. } => refused.hint("give the directory itself"),
                    _ => refused,
                }
            }
            OpenError::Catalogs(problem) => {
                let message = format!("the root catalog of {repository} revision {revision}: {problem}");
                Refusal::new(RefusalKind::Unavailable, message)
                    .hint("is a stratum up, or a neighbour that has it? see `starling status`")
            }
        })?;
        let mounted = self.mounter.mount(shown, directory, options, tree).await.map_err(|error| {
            let kind = match error {
                MountError::NotThere { .. } => RefusalKind::NotFound,
                MountError::NotADirectory { .. }
                | MountError::NotEmpty { .. }
                | MountError::AlreadyMounted { .. } => RefusalKind::Conflict,
                MountError::NoDevice { .. } | MountError::NotPermitted { .. } | MountError::Failed { .. } => {
                    RefusalKind::Internal
                }
            };
            Refusal::new(kind, error)
        })?;
        if self.mounter.is_out_of_scope(repository) {
            tracing::warn!(%repository, directory = %directory.display(), "{OUT_OF_SCOPE}");
        }
        Ok(State::Active { mounted, shown: shown.clone() })
    }

    /// Begins the fill of what `entry` shows, if one was asked for and is not under way.
    fn fill(&self, entry: &mut Entry) {
        match &entry.state {
            State::Active { shown, .. } if entry.wants_fill => {
                let revision = shown.revision();
                if entry.fill.as_ref().is_none_or(|fill| fill.revision() != revision) {
                    let parts = self.mounter.fill_parts(&entry.repository);
                    entry.fill = Some(Fill::start(&shown.of, parts));
                }
            }
            State::Active { .. } | State::Failed { .. } | State::Left { .. } => entry.fill = None,
        }
    }

    /// The tree of the newest revision of a repository that is known here.
    ///
    /// # Errors
    /// A [`Refusal`] when there is none, or its root catalog cannot be had.
    pub(super) async fn newest_tree(
        &self,
        repository: &RepositoryName,
    ) -> Result<(Arc<dyn Tree>, Revision), Refusal> {
        let root = self.newest_root(repository).await?;
        let unavailable = |problem: OpenError| Refusal::new(RefusalKind::Unavailable, problem);
        let opened = self.mounter.open(&Shown::newest(&root), &MountOptions::default()).await;
        let tree = opened.map_err(unavailable)?;
        Ok((tree, root.root().revision))
    }

    /// The newest revision of a repository that is known here.
    pub(super) fn newest_revision(&self, repository: &RepositoryName) -> Option<Revision> {
        self.registry.newest_root(repository).map(|root| root.root().revision)
    }

    /// The list of all catalogs of that revision.
    pub(super) fn catalog_index(&self, repository: &RepositoryName) -> Option<(Revision, ChunkRef)> {
        self.registry.newest_root(repository).map(|root| (root.root().revision, root.root().catalog_index))
    }

    /// The repositories whose newest revision is mounted.
    pub(super) fn following(&self) -> Vec<RepositoryName> {
        let entries = self.lock();
        let follows = |entry: &&Entry| entry.chosen.is_none() && entry.mounted().is_some();
        entries.values().filter(follows).map(|entry| entry.repository.clone()).collect()
    }

    /// The revisions that are mounted for good.
    pub(super) fn chosen(&self) -> Vec<(RepositoryName, PastRevision)> {
        let entries = self.lock();
        let chosen = entries.values().filter_map(|entry| entry.chosen.as_ref());
        chosen.map(|shown| (shown.repository.clone(), shown.of.clone())).collect()
    }

    /// Where the chunks of a repository come from.
    pub(super) fn source(&self, repository: &RepositoryName) -> Arc<dyn ChunkSource> {
        self.mounter.fill_parts(repository).source
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
            note: entry.lag.clone().or_else(|| out_of_scope.then(|| OUT_OF_SCOPE.to_owned())),
            fill: entry.fill.as_ref().map(Fill::status),
        }
    }

    fn insert(&self, directory: PathBuf, entry: Entry) -> MountStatus {
        let shown = self.status(&directory, &entry);
        self.lock().insert(directory, entry);
        shown
    }

    /// Writes the list. What is mounted does not hang on it: a failure is told, and it is tried again.
    fn remember(&self) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stopping() {
            return;
        }
        let trouble = self.write().err().map(|error| {
            let file = self.file.display();
            format!("the next start will not mount what is mounted now, for the list cannot be written: {file}: {error}")
        });
        let before = std::mem::replace(
            &mut *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner),
            trouble.clone(),
        );
        if let Some(trouble) = trouble.filter(|trouble| before.as_ref() != Some(trouble)) {
            tracing::error!("{trouble}");
        }
    }

    fn write(&self) -> io::Result<()> {
        let remembered = |(directory, entry): (&PathBuf, &Entry)| Remembered {
            repository: entry.repository.clone(),
            directory: directory.clone(),
            fill: entry.wants_fill,
            options: entry.options.clone(),
            chosen: entry.chosen.clone(),
            automatic: entry.automatic,
        };
        let mounts = self.lock().iter().map(remembered).collect();
        list::write(&self.file, mounts)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Entry>> {
        // Entries are replaced whole, so a panic elsewhere leaves no half of one.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As [`real_path`], which may block for a moment.
async fn real_path_of(directory: PathBuf) -> PathBuf {
    let as_written = directory.clone();
    tokio::task::spawn_blocking(move || real_path(&directory)).await.unwrap_or(as_written)
}

/// What a look at a line of the table needs to know of it.
struct LookedAt {
    repository: RepositoryName,
    options: MountOptions,
    chosen: Option<Shown>,
    automatic: bool,
    declared: bool,
    active: Option<(Arc<dyn Mounted>, Shown)>,
}

impl LookedAt {
    fn of(entry: &Entry) -> Self {
        let active = match &entry.state {
            State::Active { mounted, shown } => Some((mounted.clone(), shown.clone())),
            State::Failed { .. } | State::Left { .. } => None,
        };
        Self {
            repository: entry.repository.clone(),
            options: entry.options.clone(),
            chosen: entry.chosen.clone(),
            automatic: entry.automatic,
            declared: entry.declared,
            active,
        }
    }
}

#[cfg(test)]
mod tests;
