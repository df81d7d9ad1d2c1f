//! The daemon: wiring, lifecycle, control API, metrics, shutdown.
//!
//! [`run`] is the composition root. [`api`] is what can be asked of a running agent, [`Client`] asks.

pub mod api;
mod authority;
mod automount;
mod books;
mod cached;
mod client;
mod company;
mod contacts;
mod descriptors;
mod error;
mod fill;
mod holdings;
mod interfaces;
mod keeper;
mod lifecycle;
mod memory;
mod metrics;
mod mounter;
mod mounts;
mod node;
mod offer;
mod pins;
mod recordings;
mod server;
mod shown;
mod state;
mod trees;
mod why;

pub use crate::mesh::Tamper;
pub use automount::{AutomountHow, AutomountOptions};
pub use client::{AgentAddress, Client, ClientError};
pub use descriptors::allow_many_files;
pub use error::AgentError;
pub use keeper::keep;
pub use lifecycle::{Options, run};
pub use memory::keep_small;
pub use server::{Control, ControlSocket, SocketError, control_router, open_router};
pub use state::StateFolder;
