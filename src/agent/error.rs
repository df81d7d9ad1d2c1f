//! Why an agent does not start, or does not end as it should.

use super::server::SocketError;
use crate::cache::CacheError;
use crate::mesh::{EndpointError, IdentityError};
use crate::trust::RegistryError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A failure of the agent as a whole.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An agent works in this state folder already.
    #[error("{}: an agent works in this state folder", .0.display())]
    StateInUse(PathBuf),
    /// A file or folder of the state cannot be used.
    #[error("{}: {source}", .path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Key or membership.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Cards and roots.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The chunk cache.
    #[error("cache: {0}")]
    Cache(#[from] CacheError),
    /// The UDP endpoint of the mesh.
    #[error("mesh: {0}")]
    Endpoint(#[from] EndpointError),
    /// The mesh's driver.
    #[error("mesh: {0}")]
    Mesh(io::Error),
    /// The client of strata.
    #[error("strata: {0}")]
    Strata(String),
    /// The open HTTP address.
    #[error("http_listen {address}: {source}")]
    Http {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A signal handler, a task or the socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AgentError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::StateInUse(_) | Self::Socket(SocketError::InUse(_)) => {
                Some("stop it first, or give this one its own --state and --socket")
            }
            Self::State { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root, or choose folders of your own with --state and --socket")
            }
            Self::Socket(SocketError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run it as root, or choose a socket of your own with --socket")
            }
            Self::Endpoint(_) => Some("is the port taken? choose another with --listen"),
            _ => None,
        }
    }
}
