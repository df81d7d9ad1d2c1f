//! Starling distributes software trees to fleets: a tree is published once as content-addressed,
//! signed, static files; every node mounts it, fetches what is read, and asks its neighbours first.
//!
//! The map of the house, from the words to the walls. Who may use whom is checked by `tests/tidy.rs`.
//!
//! * [`model`]: identities, sizes, time, limits. Plain values that every other room uses.
//! * [`chunk`]: cut, hash, compress, verify; the port [`chunk::ChunkSource`].
//! * [`trust`]: keys, signed roots, roll-back refusal.
//! * [`catalog`]: metadata of a tree, in SQLite at rest and in columns in memory; the port [`catalog::Tree`] that the file system walks.
//! * [`store`]: objects and chunks at rest: ports, disk, memory.
//! * [`publish`]: a tree becomes chunks, segments, catalogs and a signed root, in that order.
//! * [`upstream`]: reading strata over HTTP, and serving one.
//! * [`mesh`]: the neighbours. [`mesh::proto`] decides, without I/O; the rest carries it out.
//! * [`cache`]: the disk cache of chunks and its eviction policy.
//! * [`fetch`]: the fetch path: cache, then mesh, then strata; implements `ChunkSource`.
//! * [`fs`]: file system semantics; `fs/fuse.rs` alone knows the kernel's protocol.
//! * [`agent`]: the daemon: wiring, lifecycle, control API, metrics.
//! * [`ambient`]: the only file that reads clocks and the kernel's random generator.
//! * [`seldom`]: warnings that others can provoke, at a bounded pace.
//! * [`sim`]: the fleet simulator, which runs the same [`mesh::proto`] in virtual time.
//! * [`lab`]: real agents in network namespaces, behind shaped links, among faults, measured.
//! * [`cli`]: one file a verb; the only place that reads arguments, environment and home.
//!
//! Built without the feature `node`, the library holds `model`, `mesh::proto`, `sim` and the
//! commands that need nothing else: the proof that the decision core does no I/O.

#[cfg(feature = "node")]
pub mod agent;
#[cfg(feature = "node")]
pub mod ambient;
#[cfg(feature = "node")]
pub mod cache;
#[cfg(feature = "node")]
pub mod catalog;
#[cfg(feature = "node")]
pub mod chunk;
pub mod cli;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod fetch;
#[cfg(feature = "node")]
pub mod fs;
#[cfg(feature = "node")]
pub mod lab;
pub mod mesh;
pub mod model;
#[cfg(feature = "node")]
pub mod publish;
#[cfg(feature = "node")]
pub mod seldom;
pub mod sim;
#[cfg(feature = "node")]
pub mod store;
#[cfg(feature = "node")]
pub mod trust;
#[cfg(feature = "node")]
pub mod upstream;
