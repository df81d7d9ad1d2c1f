//! The fetch path: cache, then mesh, then strata; one fetch per chunk however many readers wait.
//!
//! * [`FetchPath`] implements [`crate::chunk::ChunkSource`] for one repository over the [`Fetcher`] that all
//!   repositories of the process share.
//! * [`LocalNode`] is the node under the mesh: it gives the mesh this node's store, its strata and
//!   its judgement of signed documents.
//! * [`Books`] is where obtained bytes are counted: by the disk cache, nowhere else.

mod disk;
mod flight;
mod local;
mod path;
mod recent;

pub use local::{Books, LocalNode, StrataOptions};
pub use path::{FetchPath, FetchSettings, Fetcher};
