//! Which revision a mount shows, how it comes to be shown, and which ones are shown now.

use super::{Entry, MountTable, OUT_OF_SCOPE, OpenError, State};
use crate::agent::api::{Choice, MountOptions, Refusal, RefusalKind};
use crate::agent::shown::{Shown, choose};
use crate::catalog::{PastRevision, Tree, ViewError};
use crate::fs::MountError;
use crate::model::{ChunkRef, RepositoryName, Revision};
use crate::trust::VerifiedRoot;
use std::path::Path;
use std::sync::Arc;

impl MountTable {
    /// The revision that is to be shown. What is not known yet the strata are asked for.
    pub(super) async fn choose(&self, newest: VerifiedRoot, choice: &Choice) -> Result<Shown, Refusal> {
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

    pub(super) async fn newest_root(&self, repository: &RepositoryName) -> Result<VerifiedRoot, Refusal> {
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

    pub(super) async fn activate(
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

    /// The tree of the newest revision of a repository that is known here.
    ///
    /// # Errors
    /// A [`Refusal`] when there is none, or its root catalog cannot be had.
    pub(in crate::agent) async fn newest_tree(
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
    pub(in crate::agent) fn newest_revision(&self, repository: &RepositoryName) -> Option<Revision> {
        self.registry.newest_root(repository).map(|root| root.root().revision)
    }

    /// The list of all catalogs of that revision.
    pub(in crate::agent) fn catalog_index(
        &self,
        repository: &RepositoryName,
    ) -> Option<(Revision, ChunkRef)> {
        self.registry.newest_root(repository).map(|root| (root.root().revision, root.root().catalog_index))
    }

    /// The repositories whose newest revision is mounted.
    pub(in crate::agent) fn following(&self) -> Vec<RepositoryName> {
        let entries = self.lock();
        let follows = |entry: &&Entry| entry.chosen.is_none() && entry.mounted().is_some();
        entries.values().filter(follows).map(|entry| entry.repository.clone()).collect()
    }

    /// The revisions that are mounted for good.
    pub(in crate::agent) fn chosen(&self) -> Vec<(RepositoryName, PastRevision)> {
        let entries = self.lock();
        let chosen = entries.values().filter_map(|entry| entry.chosen.as_ref());
        chosen.map(|shown| (shown.repository.clone(), shown.of.clone())).collect()
    }
}
