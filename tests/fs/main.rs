//! Proves that the file system shows exactly what its tree says: against a naive model without FUSE,
//! and through a real mount.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod ahead;
mod busy;
mod double;
mod held;
mod live;
mod mapped;
mod model;
mod mounted;
mod resumed;
mod sources;
mod spans;
mod view;
mod watchdog;
