//! The daemon: wiring, lifecycle, control API, metrics, shutdown.

pub mod api;
mod client;
mod contacts;
mod error;
mod metrics;
mod mount_point;
mod mounts;
mod server;
mod state;

pub use client::{AgentAddress, Client, ClientError};
pub use error::AgentError;
pub use server::{Control, ControlSocket, SocketError, control_router, open_router};
