//! File system semantics, without the kernel's types.
//!
//! [`FileSystem`] answers look-ups, listings and reads over a [`crate::catalog::Tree`] and a
//! [`crate::chunk::ChunkSource`]; it can be tested without a kernel. [`fuse`] alone speaks the
//! kernel's protocol, and `mountpoint.rs` attaches and detaches mounts. `docs/file-system.md` says
//! what a user may rely on.
//!
//! **Revisions.** [`FileSystem::switch`] exchanges the tree at once. What the kernel holds of the old
//! revision goes on: an open file keeps its content, and an inode that the kernel has not forgotten
//! is answered from the tree that it came from. Inode numbers change with content, so the kernel's
//! page cache never mixes revisions; what must go are names, listings and attributes that changed,
//! and `switch.rs` finds exactly those by comparing the directories that the kernel knows.

mod autofs;
mod content;
mod error;
mod files;
mod foresight;
pub mod fuse;
mod ledger;
mod listing;
mod magic;
mod modes;
mod mountpoint;
mod recorder;
mod switch;
mod system;
mod table;

pub use autofs::{Autofs, Request as AutofsRequest, Requests as AutofsRequests};
pub use error::FsError;
pub use fuse::Profile;
pub use listing::{ListedEntry, Listing};
pub use mountpoint::{MountError, Restrictions, clear_dead, is_mounted, real_path};
pub use recorder::Belongs;
pub use switch::{Notifier, Stale, Switched};
pub use system::{ExtendedAttribute, FileSystem, FileSystemStatistics};
