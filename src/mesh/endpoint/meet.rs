//! Dialling an address of which nobody said whose it is: a DNS name, a neighbour's multicast.

use super::{Alpn, CloseCode, ConnectError, Endpoint, rules};
use crate::mesh::registry::MemberConnection;
use crate::mesh::tls::{self, Wanted};
use std::net::SocketAddr;
use std::sync::Arc;

impl Endpoint {
    /// Dials whoever is at `address`, for chunks. Whoever answers must be a member of this mesh, which the handshake
    /// checks as always, and is named by its certificate. Ends within [`super::EndpointConfig::handshake`].
    ///
    /// # Errors
    /// [`ConnectError::NoMember`].
    pub async fn connect_any(&self, address: SocketAddr) -> Result<MemberConnection, ConnectError> {
        let shared = &self.inner.shared;
        let failed = |detail: String| ConnectError::NoMember { address, detail };
        shared.make_room()?;
        let (rules, alpn) = (rules(&shared.identity), Alpn::Chunks);
        let (identity, offered) = (shared.identity.certified(), alpn.names(shared.config.versions));
        let tls = tls::client_config(&identity, rules.clone(), Wanted::Anybody, &offered)
            .map_err(|error| ConnectError::Tls(Arc::new(error)))?;
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(shared.transport.clone());
        let connecting = shared
            .quinn
            .connect_with(client, address, tls::SERVER_NAME)
            .map_err(|source| ConnectError::Dial { address, source })?;
        let quinn = tokio::time::timeout(shared.config.handshake, connecting)
            .await
            .map_err(|_| failed(format!("no answer within {:?}", shared.config.handshake)))?
            .map_err(|error| failed(error.to_string()))?;
        let refuse = |code: CloseCode, detail: String| {
            quinn.close(code.into(), code.reason());
            failed(detail)
        };
        let membership = shared
            .member_behind(&quinn, &rules, alpn)
            .map_err(|detail| refuse(CloseCode::Refused, detail))?;
        shared
            .registry
            .admit(quinn.clone(), alpn, membership)
            .map_err(|turned| refuse(CloseCode::Busy, format!("not taken: {turned:?}")))
    }
}
