//! The daemon: wiring, lifecycle, control API, metrics, shutdown.

pub mod api;
mod client;
mod metrics;
mod mount_point;
mod mounts;
mod server;

pub use client::{AgentAddress, Client, ClientError};
pub use server::{Control, ControlSocket, SocketError, control_router, open_router};
