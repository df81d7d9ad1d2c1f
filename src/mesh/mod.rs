//! The mesh: membership, decisions, the DHT and the transfer of chunks between neighbours.
//!
//! [`proto`] decides and does no I/O; everything else in this room carries its decisions out.

#[cfg(feature = "node")]
pub mod dht;
#[cfg(feature = "node")]
pub mod swim;
#[cfg(feature = "node")]
mod ports;
pub mod proto;

#[cfg(feature = "node")]
pub use ports::{Exchange, Local, News, NewsVerdict, ObtainError, Obtained, UpstreamFailure};
