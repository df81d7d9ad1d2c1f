//! Why an agent does not start, or does not end as it should.

use super::server::SocketError;
use crate::cache::CacheError;
use crate::mesh::{EndpointError, IdentityError, TrustChangeError};
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
            // The only file of the agent's own whose content keeps it from starting.
            Self::State { source, .. } if source.kind() == io::ErrorKind::InvalidData => Some(
                "remove it, start the agent, and mount again with `starling mount`: it only remembers mounts",
            ),
            Self::Identity(
                IdentityError::State(error) | IdentityError::Trust(TrustChangeError::State(error)),
            ) => error.hint(),
            Self::Registry(RegistryError::Damaged { .. }) => Some(
                "put it back from a backup, or remove it: a card comes again from the mesh or by `starling repo add`; without \
                 a root an older one could be taken for new once",
            ),
            Self::Endpoint(_) => Some("is the port taken? choose another with --listen"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::StateError;

    #[test]
    fn a_damaged_file_is_named_once_with_what_to_do() {
        let mounts = io::Error::new(io::ErrorKind::InvalidData, "version 9 is not known, only 1");
        let damaged = |path: &str| StateError::Damaged { path: path.into(), detail: "20 bytes".into() };
        let errors = [
            AgentError::State { path: "/s/mounts.json".into(), source: mounts },
            IdentityError::State(damaged("/s/node.key")).into(),
            IdentityError::Trust(TrustChangeError::State(damaged("/s/charter"))).into(),
            IdentityError::Trust(TrustChangeError::State(damaged("/s/revocations"))).into(),
            RegistryError::Damaged { path: "/s/root".into(), detail: "20 bytes".into() }.into(),
        ];
        for error in errors {
            assert_eq!(error.to_string().matches("/s/").count(), 1, "{error}");
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains("remove it") || hint.contains("put it back"), "{error}: {hint}");
        }
    }
}
