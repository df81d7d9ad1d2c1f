//! The table of mounts: what is mounted where, remembered over restarts, switched to new revisions.
//!
//! The table decides and remembers; [`Mounter`] opens trees and talks to the kernel. Changes happen
//! one after the other. What must happen later because it could not happen now (a stratum that does
//! not answer when the machine boots, a catalog that no neighbour sends yet) is tried again by
//! [`MountTable::tend`], which the agent calls every [`TEND_EVERY`].

use super::api::{MountOptions, MountRequest, MountStatus, Refusal, RefusalKind};
use super::fill::{Fill, FillParts};
use crate::ambient;
use crate::catalog::{RecordedTrace, Tree};
use crate::chunk::ChunkSource;
use crate::fs::{Belongs, MountError, Profile};
use crate::model::{ChunkRef, ContentId, RepositoryName, Revision};
use crate::trust::{Repositories, Standing, VerifiedRoot};
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
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
/// Version of the file that remembers mounts.
const FILE_VERSION: u32 = 1;
/// Largest such file: [`MOUNTS_MAX`] of the longest paths and names.
const FILE_MAX_BYTES: u64 = (MOUNTS_MAX as u64) << 13;

/// Opens trees and mounts them.
pub(super) trait Mounter: Send + Sync + 'static {
    /// Asks the strata for the newest root of a repository, because none is known yet, or nobody is there to tell of a newer
    /// one. The registry has judged and adopted it then. An error says who was asked.
    fn find_root<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<(), String>>;

    /// Opens the tree that a root names: fetches its root catalog.
    fn open<'a>(&'a self, root: &'a VerifiedRoot) -> BoxFuture<'a, Result<Arc<dyn Tree>, String>>;

    /// Whether this node's certificate leaves the repository out, so that no member gives it anything of it.
    fn is_out_of_scope(&self, repository: &RepositoryName) -> bool;

    /// What a background fill of the repository works with.
    fn fill_parts(&self, repository: &RepositoryName) -> FillParts;

    /// Goes on with the mount that a predecessor of this agent has left on a directory, with the root that it shows; `None`
    /// when there is none, or it cannot be had.
    fn resume<'a>(
        &'a self,
        repository: &'a RepositoryName,
        directory: &'a Path,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Option<(Arc<dyn Mounted>, VerifiedRoot)>>;

    /// Ends mounts that a predecessor has left, but for those on these directories.
    fn let_go_but<'a>(&'a self, directories: &'a BTreeSet<PathBuf>) -> BoxFuture<'a, ()>;

    /// Mounts the tree of a root on an empty directory. What a predecessor that was killed has left there is cleared.
    fn mount<'a>(
        &'a self,
        root: &'a VerifiedRoot,
        directory: &'a Path,
        options: &'a MountOptions,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<Arc<dyn Mounted>, MountError>>;
}

/// A live mount.
pub(super) trait Mounted: Send + Sync + 'static {
    /// Shows another tree from now on, as a whole. Open files stay with theirs. After an error it shows
    /// the tree that it showed before.
    fn switch<'a>(&'a self, root: &'a VerifiedRoot, tree: Arc<dyn Tree>)
    -> BoxFuture<'a, Result<(), String>>;

    /// Whether the kernel still serves it: somebody may have unmounted it by hand.
    fn is_live(&self) -> bool;

    /// Begins to record what some tasks read; its number, or `None` when too many run.
    fn begin_recording(&self, belongs: Belongs) -> Option<u64> {
        drop(belongs);
        None
    }

    /// Ends a recording; `None` when there is none such. Whether the trace lacks something because of its bounds.
    fn end_recording(
        &self,
        number: u64,
        name: String,
    ) -> BoxFuture<'_, Result<Option<(RecordedTrace, bool)>, String>> {
        drop((number, name));
        async { Ok(None) }.boxed()
    }

    /// Leaves it to a successor of this agent, if one can take it over: from now on nobody is answered here, and whoever reads
    /// waits. False when it must be unmounted.
    fn leave(&self) -> bool;

    /// Unmounts; a mount that is still in use after `patience` is detached under its users.
    fn unmount(&self, patience: Duration) -> BoxFuture<'_, io::Result<()>>;
}

/// One line of the table.
struct Entry {
    repository: RepositoryName,
    state: State,
    options: MountOptions,
    /// Whether a background fill was asked for.
    wants_fill: bool,
    /// The fill of the revision that is shown.
    fill: Option<Fill>,
    /// The root about which a warning was logged last, so that each is warned about once.
    warned: Option<ContentId>,
}

#[expect(clippy::large_enum_variant, reason = "a few hundred bytes, for a few hundred mounts at most")]
enum State {
    Active { mounted: Arc<dyn Mounted>, root: VerifiedRoot },
    Failed { problem: String },
}

/// What is remembered over restarts.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    mounts: Vec<MountRequest>,
}

/// All mounts of an agent.
pub(super) struct MountTable {
    mounter: Box<dyn Mounter>,
    registry: Arc<Repositories>,
    file: PathBuf,
    entries: Mutex<BTreeMap<PathBuf, Entry>>,
    /// Why the list could not be written, as long as what is written is not what is wanted.
    unwritten: Mutex<Option<String>>,
    /// Held over each change, so that changes do not overlap. Never held while somebody looks.
    changing: tokio::sync::Mutex<()>,
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
        let remembered = read_file(&file)?;
        let entries = remembered
            .into_iter()
            .map(|m| {
                let state = State::Failed { problem: "not mounted yet after the agent's start".into() };
                let wants_fill = m.fill;
                let (repository, options) = (m.repository, m.options);
                (m.directory, Entry { repository, state, options, wants_fill, fill: None, warned: None })
            })
            .collect();
        Ok(Self {
            mounter,
            registry,
            file,
            entries: Mutex::new(entries),
            unwritten: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
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
        for MountRequest { repository, directory, fill, options } in mounts {
            let state = State::Failed { problem: "not mounted yet".into() };
            let entry = Entry { repository, state, options, wants_fill: fill, fill: None, warned: None };
            entries.insert(directory, entry);
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
        self.lock().iter().map(|(directory, entry)| self.status(directory, entry)).collect()
    }

    /// Mounts the newest verified revision of a repository and remembers it.
    ///
    /// # Errors
    /// A [`Refusal`] that says what to do.
    pub(super) async fn mount(&self, request: MountRequest) -> Result<MountStatus, Refusal> {
        let MountRequest { repository, directory, fill: wants_fill, options } = request;
        let _changing = self.changing.lock().await;
        if let Some(entry) = self.lock().get(&directory) {
            let message = format!("{} is taken by {}", directory.display(), entry.repository);
            return Err(Refusal::new(RefusalKind::Conflict, message)
                .hint(format!("unmount it first: starling umount {}", directory.display())));
        }
        if self.lock().len() >= MOUNTS_MAX {
            return Err(Refusal::new(RefusalKind::Conflict, format!("{MOUNTS_MAX} mounts are the most")));
        }
        if !directory.is_absolute() {
            let message = format!("{} is not an absolute path", directory.display());
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        let root = self.newest_root(&repository).await?;
        if let Standing::Expired { since } = root.standing_at(ambient::unix_now()) {
            let message = format!("the newest root of {repository} that is known here expired at {since}");
            return Err(Refusal::new(RefusalKind::Untrusted, message)
                .hint("its publisher must publish or sign it again, and announce it"));
        }
        let state = self.activate(&repository, &directory, &options, root).await?;
        let mut entry = Entry { repository, state, options, wants_fill, fill: None, warned: None };
        self.fill(&mut entry);
        let mounted = self.insert(directory, entry);
        self.remember();
        Ok(mounted)
    }

    /// Unmounts and forgets.
    ///
    /// # Errors
    /// A [`Refusal`] when nothing is mounted there, or the kernel refuses.
    pub(super) async fn unmount(&self, directory: &Path) -> Result<MountStatus, Refusal> {
        let _changing = self.changing.lock().await;
        let (shown, mounted) = match self.lock().get(directory) {
            None => {
                let message = format!("{} is not mounted by this agent", directory.display());
                return Err(Refusal::new(RefusalKind::NotFound, message).hint("see `starling status`"));
            }
            Some(entry) => {
                let mounted = match &entry.state {
                    State::Active { mounted, .. } => Some(mounted.clone()),
                    State::Failed { .. } => None,
                };
                (self.status(directory, entry), mounted)
            }
        };
        if let Some(mounted) = mounted {
            mounted.unmount(UNMOUNT_DEADLINE).await.map_err(|error| {
                Refusal::new(RefusalKind::Internal, format!("{}: {error}", directory.display()))
            })?;
        }
        self.lock().remove(directory);
        self.remember();
        Ok(shown)
    }

    /// Switches lagging mounts to the newest root, mounts what failed, and notices mounts that were
    /// taken away by hand.
    pub(super) async fn tend(&self) {
        if self.trouble().is_some() {
            let _changing = self.changing.lock().await;
            // It may be over by now, or everything unmounted for a stop.
            if self.trouble().is_some() {
                self.remember();
            }
        }
        let directories: Vec<_> = self.lock().keys().cloned().collect();
        for directory in directories {
            // Taken anew for each mount, so that a request waits for one of them at most.
            let _changing = self.changing.lock().await;
            let Some((repository, options, active)) = self.lock().get(&directory).map(|entry| {
                let active = match &entry.state {
                    State::Active { mounted, root } => Some((mounted.clone(), root.clone())),
                    State::Failed { .. } => None,
                };
                (entry.repository.clone(), entry.options.clone(), active)
            }) else {
                continue;
            };
            let changed = match active {
                Some((mounted, _)) if !mounted.is_live() => {
                    tracing::warn!(directory = %directory.display(), "was unmounted by somebody else");
                    // Its session is over; what is left of it is tidied up.
                    let _ = mounted.unmount(Duration::ZERO).await;
                    Some(State::Failed { problem: "was unmounted by somebody else".into() })
                }
                Some((mounted, root)) => self.catch_up(&directory, &repository, mounted, root).await,
                None => self.retry(&directory, &repository, &options).await,
            };
            if let (Some(state), Some(entry)) = (changed, self.lock().get_mut(&directory)) {
                entry.state = state;
                self.fill(entry);
            }
        }
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
            State::Active { mounted, .. } => Some((mounted.clone(), entry.options.profile)),
            State::Failed { .. } => None,
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
        {
            let _changing = self.changing.lock().await;
            let leave =
                |entry: &Entry| matches!(&entry.state, State::Active { mounted, .. } if mounted.leave());
            self.lock().retain(|_, entry| !leave(entry));
        }
        self.unmount_all(patience).await;
    }

    /// Unmounts everything, all at once, and remembers it for the next start.
    pub(super) async fn unmount_all(&self, patience: Duration) {
        let _changing = self.changing.lock().await;
        let active: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(directory, entry)| match &entry.state {
                State::Active { mounted, .. } => Some((directory.clone(), mounted.clone())),
                State::Failed { .. } => None,
            })
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
        repository: &RepositoryName,
        mounted: Arc<dyn Mounted>,
        shown: VerifiedRoot,
    ) -> Option<State> {
        let newest = self.registry.newest_root(repository)?;
        let (revision, directory_shown) = (newest.root().revision, directory.display());
        if let Standing::Expired { since } = newest.standing_at(ambient::unix_now()) {
            if self.first_warning(directory, &newest) {
                tracing::warn!(
                    %repository, directory = %directory_shown, %revision, %since,
                    "the newest root has expired: the mount goes on with what it shows"
                );
            }
            return None;
        }
        if newest.id() == shown.id() {
            return None;
        }
        if revision == shown.root().revision {
            // The same revision, signed again: nothing to switch but the expiry.
            return Some(State::Active { mounted, root: newest });
        }
        let switched = match self.mounter.open(&newest).await {
            Ok(tree) => mounted.switch(&newest, tree).await,
            Err(problem) => Err(problem),
        };
        match switched {
            Ok(()) => {
                tracing::info!(
                    %repository, directory = %directory_shown, from = %shown.root().revision, to = %revision,
                    "switched"
                );
                Some(State::Active { mounted, root: newest })
            }
            Err(problem) => {
                if self.first_warning(directory, &newest) {
                    tracing::warn!(
                        %repository, directory = %directory_shown, %revision, problem,
                        "not switched yet: its catalogs could not be had"
                    );
                }
                None
            }
        }
    }

    /// Whether nothing was said yet about this root at this mount.
    fn first_warning(&self, directory: &Path, root: &VerifiedRoot) -> bool {
        self.lock().get_mut(directory).is_some_and(|entry| entry.warned.replace(root.id()) != Some(root.id()))
    }

    /// Tries to mount what failed. An expired root does not hinder it: a mount that was there before
    /// the restart goes on reading.
    async fn retry(
        &self,
        directory: &Path,
        repository: &RepositoryName,
        options: &MountOptions,
    ) -> Option<State> {
        let attempt = async {
            if let Some((mounted, root)) = self.mounter.resume(repository, directory, options).await {
                return Ok(State::Active { mounted, root });
            }
            let root = self.newest_root(repository).await?;
            self.activate(repository, directory, options, root).await
        };
        match attempt.await {
            Ok(state) => {
                tracing::info!(%repository, directory = %directory.display(), "mounted again");
                Some(state)
            }
            Err(refusal) => {
                let problem = refusal.to_string();
                let known = matches!(
                    self.lock().get(directory).map(|entry| &entry.state),
                    Some(State::Failed { problem: known }) if *known == problem
                );
                if !known {
                    tracing::warn!(%repository, directory = %directory.display(), problem, "not mounted");
                }
                Some(State::Failed { problem })
            }
        }
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
        repository: &RepositoryName,
        directory: &Path,
        options: &MountOptions,
        root: VerifiedRoot,
    ) -> Result<State, Refusal> {
        let tree = self.mounter.open(&root).await.map_err(|problem| {
            let revision = root.root().revision;
            let message = format!("the root catalog of {repository} revision {revision}: {problem}");
            Refusal::new(RefusalKind::Unavailable, message)
                .hint("is a stratum up, or a neighbour that has it? see `starling status`")
        })?;
        let mounted = self.mounter.mount(&root, directory, options, tree).await.map_err(|error| {
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
        Ok(State::Active { mounted, root })
    }

    /// Begins the fill of what `entry` shows, if one was asked for and is not under way.
    fn fill(&self, entry: &mut Entry) {
        match &entry.state {
            State::Active { root, .. } if entry.wants_fill => {
                let revision = root.root().revision;
                if entry.fill.as_ref().is_none_or(|fill| fill.revision() != revision) {
                    let parts = self.mounter.fill_parts(&entry.repository);
                    entry.fill = Some(Fill::start(root, parts));
                }
            }
            State::Active { .. } | State::Failed { .. } => entry.fill = None,
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
        let unavailable = |problem: String| Refusal::new(RefusalKind::Unavailable, problem);
        let tree = self.mounter.open(&root).await.map_err(unavailable)?;
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

    /// Where the chunks of a repository come from.
    pub(super) fn source(&self, repository: &RepositoryName) -> Arc<dyn ChunkSource> {
        self.mounter.fill_parts(repository).source
    }

    fn status(&self, directory: &Path, entry: &Entry) -> MountStatus {
        let (revision, expired, problem): (Option<Revision>, _, _) = match &entry.state {
            State::Active { root, .. } => {
                let expired = matches!(root.standing_at(ambient::unix_now()), Standing::Expired { .. });
                (Some(root.root().revision), expired, None)
            }
            State::Failed { problem } => (None, false, Some(problem.clone())),
        };
        MountStatus {
            repository: entry.repository.clone(),
            directory: directory.to_owned(),
            revision,
            expired,
            problem,
            note: self.mounter.is_out_of_scope(&entry.repository).then(|| OUT_OF_SCOPE.to_owned()),
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

    /// Writes, syncs, renames: after a crash the old or the new list is there.
    fn write(&self) -> io::Result<()> {
        let mounts = self
            .lock()
            .iter()
            .map(|(directory, entry)| MountRequest {
                repository: entry.repository.clone(),
                directory: directory.clone(),
                fill: entry.wants_fill,
                options: entry.options.clone(),
            })
            .collect();
        let bytes = serde_json::to_vec_pretty(&File { version: FILE_VERSION, mounts })?;
        let beside = self.file.with_extension("new");
        let mut new = fs::File::create(&beside)?;
        new.write_all(&bytes)?;
        new.sync_all()?;
        fs::rename(&beside, &self.file)?;
        match self.file.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Entry>> {
        // Entries are replaced whole, so a panic elsewhere leaves no half of one.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_file(path: &Path) -> io::Result<Vec<MountRequest>> {
    // The caller names the file.
    let bad = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(found) if found.len() > FILE_MAX_BYTES => {
            return Err(bad(format!("{} bytes, at most {FILE_MAX_BYTES} belong there", found.len())));
        }
        Ok(_) => {}
    }
    let file: File = serde_json::from_slice(&fs::read(path)?).map_err(|e| bad(e.to_string()))?;
    if file.version != FILE_VERSION {
        return Err(bad(format!("version {} is not known, only {FILE_VERSION}", file.version)));
    }
    Ok(file.mounts)
}

#[cfg(test)]
mod tests;
