//! The kernel's protocol, and the only place that imports fuser: requests become calls of
//! [`FileSystem`](super::FileSystem), its answers become replies, its errors become numbers.

mod awake;
mod handshake;
mod kernel;
mod mount;

pub use handshake::Agreement;
pub use mount::{Held, MountConfig, Mounted, Profile, Unmounted, mount, take_over};
