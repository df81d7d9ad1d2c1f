//! What the table of mounts asks of the kernel and of trees: the ports behind which a real mount and a test's double stand.

use crate::agent::api::MountOptions;
use crate::agent::fill::FillParts;
use crate::agent::shown::Shown;
use crate::catalog::{History, RecordedTrace, Tree, ViewError};
use crate::fs::{Belongs, MountError, Profile};
use crate::model::RepositoryName;
use crate::trust::VerifiedRoot;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What became of a mount without the agent's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Life {
    /// It is there.
    Live,
    /// The kernel has ended it, and its remains are in the way.
    Dead,
    /// Somebody has unmounted it.
    Unmounted,
}

/// What became of a mount that a predecessor of this agent may have left.
#[expect(clippy::large_enum_variant, reason = "it is looked at once and goes")]
pub(in crate::agent) enum Left {
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
pub(in crate::agent) enum OpenError {
    /// Its catalogs could not be had.
    #[error("{0}")]
    Catalogs(String),
    /// It has no such directory as was asked for.
    #[error("{0}")]
    Path(ViewError),
}

/// Opens trees and mounts them.
pub(in crate::agent) trait Mounter: Send + Sync + 'static {
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

    /// Directories of mounts that a predecessor has left and nobody has taken over.
    fn leftovers(&self) -> Vec<PathBuf>;

    /// Ends what a predecessor has left on a directory, if nobody has taken it over or mounted there by now. Whose turn it is at the
    /// directory calls this: what is dead there is cleared away, and must not be what another one is just mounting.
    fn let_go<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, ()>;

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
pub(in crate::agent) trait Mounted: Send + Sync + 'static {
    /// Shows another tree from now on, as a whole. Open files stay with theirs. After an error it shows
    /// the tree that it showed before.
    fn switch<'a>(&'a self, shown: &'a Shown, tree: Arc<dyn Tree>) -> BoxFuture<'a, Result<(), String>>;

    /// Whether the kernel still has it: somebody may have unmounted it by hand.
    fn life(&self) -> Life;

    /// What it is tuned for.
    fn profile(&self) -> Profile {
        Profile::default()
    }

    /// What it has not got of what would make it faster, or was asked for; in words.
    fn lacks(&self) -> Vec<String> {
        Vec::new()
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
