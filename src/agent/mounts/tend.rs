//! What must happen later because it could not happen now: mounts that lag behind are switched, what failed is mounted, what
//! somebody has unmounted by hand is noticed, and the strata are asked where nobody else tells.

use super::{Entry, Left, Life, MountTable, Mounted, State, real_path_of};
use crate::agent::api::{Choice, MountOptions, Refusal, RefusalKind};
use crate::agent::shown::Shown;
use crate::ambient;
use crate::model::RepositoryName;
use futures::StreamExt as _;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often mounts that lag or failed are tried again: soon for a person, rare for a stratum (a guess).
pub(in crate::agent) const TEND_EVERY: Duration = Duration::from_secs(10);
/// Repositories whose strata are asked at once for a newer root (guess).
const ASKED_AT_ONCE: usize = 8;

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

impl MountTable {
    /// Forgets a mount that somebody has unmounted by hand, unless the agent was started with it.
    pub(super) async fn notice_unmounted(&self, directory: &Path) {
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

    /// Switches lagging mounts to the newest root, mounts what failed, and notices mounts that were
    /// taken away by hand. What is being changed by somebody else, an earlier call of this one too, is left alone.
    pub(in crate::agent) async fn tend(&self) {
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

    /// Asks the strata for newer roots of repositories that are mounted, several at once: of all, or of those of which no member
    /// tells this node. Whether there is one.
    pub(in crate::agent) async fn ask_strata(&self, all: bool) -> bool {
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
            self.leads_there(directory).await?;
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

    /// Whether a directory is still the one that was asked for. Who owns one on the way to it could have a link there by now, and
    /// anything mounted anywhere.
    async fn leads_there(&self, directory: &Path) -> Result<(), Refusal> {
        let real = real_path_of(directory.to_owned()).await;
        if real == directory {
            return Ok(());
        }
        let (directory, real) = (directory.display(), real.display());
        let message = format!("{directory} leads elsewhere now: {real}; unmount it, or mount it anew");
        Err(Refusal::new(RefusalKind::Conflict, message))
    }

    fn has_problem(&self, directory: &Path, problem: &str) -> bool {
        let entries = self.lock();
        let state = entries.get(directory).map(|entry| &entry.state);
        matches!(state, Some(State::Failed { problem: known } | State::Left { problem: known }) if known == problem)
    }
}
