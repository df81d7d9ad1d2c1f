//! A tree becomes chunks, segments, catalogs and a signed root, in that write order.
//!
//! [`publish`] runs the whole: `scan` walks the tree and cuts what is new into chunks, `pack`
//! compresses them and stores full segments, `inodes` numbers the entries, `assemble` writes the
//! catalogs, and at the very end the root is signed and replaced. Whatever is stored is durable before
//! anything that names it is written; see `docs/repository-format.md`.

mod assemble;
pub mod check;
mod error;
mod inodes;
mod pack;
mod previous;
mod run;
mod scan;
mod table;
mod traces;

pub use error::PublishError;
pub use run::{Options, Outcome, Progress, publish};
pub use traces::TraceSummary;
