//! What can go wrong with the endpoint and with dialling.

use super::EndpointConfig;
use crate::mesh::tls::TlsError;
use crate::model::NodeId;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The UDP port.
    #[error("cannot open UDP {listen}: {source}")]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The MTU setting.
    #[error("mtu {mtu}: {} to {} bytes work", EndpointConfig::MTU_MIN, EndpointConfig::MTU_MAX)]
    Mtu {
        /// The setting.
        mtu: u16,
    },
    /// The idle time-out does not fit QUIC's number format.
    #[error("an idle time-out of {idle:?} is too long")]
    Idle {
        /// The setting.
        idle: Duration,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The node is banned here.
    #[error("{node} is banned here")]
    Banned {
        /// The node.
        node: NodeId,
    },
    /// The address cannot be dialled, or the endpoint is closing.
    #[error("cannot dial {address}: {source}")]
    Dial {
        /// The address.
        address: SocketAddr,
        /// What QUIC said.
        source: quinn::ConnectError,
    },
    /// The handshake failed.
    #[error("no connection with {node} at {address}: {source}")]
    Handshake {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
        /// What QUIC said.
        source: quinn::ConnectionError,
    },
    /// It speaks no version of the protocol that this node speaks.
    #[error("{node} at {address} speaks none of this node's versions of the protocol: {spoken}")]
    NoCommonVersion {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
        /// What this node offered.
        spoken: String,
    },
    /// No answer in time.
    #[error("{node} at {address} did not answer within {waited:?}")]
    TimedOut {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
        /// How long was waited.
        waited: Duration,
    },
    /// The certificate passed the handshake and failed right after it (it expired in between).
    #[error("{node} at {address} is not accepted: {detail}")]
    NotAccepted {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
        /// Why.
        detail: String,
    },
    /// An address of which it was not known whose it is does not lead to a member.
    #[error("no member of this mesh at {address}: {detail}")]
    NoMember {
        /// The address.
        address: SocketAddr,
        /// Why not.
        detail: String,
    },
    /// Too many connections are in use.
    #[error("{open} connections are open, and that is the bound")]
    TooMany {
        /// Connections now.
        open: usize,
    },
    /// The TLS configuration.
    #[error("{0}")]
    Tls(Arc<TlsError>),
    /// The dialling task was lost with its runtime.
    #[error("the endpoint is closing")]
    Closing,
}
