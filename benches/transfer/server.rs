//! The server's process: a node with its cache, and the three that it is compared with.

use super::{CELL, wires};
use serde::{Deserialize, Serialize};
use starling::cache::{CacheConfig, DiskCache};
use starling::fetch::{LocalNode, StrataOptions};
use starling::mesh::{Endpoint, EndpointConfig, Identity, Incoming, Mesh, MeshStart, Network};
use starling::trust::Repositories;
use starling::upstream::{HttpClient, HttpOptions};
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Where everything is served.
#[derive(Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) starling: SocketAddr,
    pub(crate) echo: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) http: SocketAddr,
    /// Of the echo and of TLS, in DER.
    pub(crate) certificate: Vec<u8>,
}

/// A node in the folder `base`.
fn node(base: &Path, mtu: u16) -> (Arc<Mesh>, SocketAddr) {
    let identity = Arc::new(Identity::load(base).unwrap());
    assert_eq!(identity.membership().cell, CELL.parse().unwrap());
    let cache = Arc::new(DiskCache::open(&base.join("cache"), CacheConfig::default()).unwrap());
    let repositories = Arc::new(Repositories::open(&base.join("repositories")).unwrap());
    let http = HttpClient::new(HttpOptions::default()).unwrap();
    let trust = Some(identity.trust().clone());
    let local =
        Arc::new(LocalNode::new(cache.clone(), cache, repositories, trust, http, StrataOptions::default()));
    let config = EndpointConfig { mtu, ..EndpointConfig::new("127.0.0.1:0".parse().unwrap()) };
    let (endpoint, incoming) = Endpoint::bind(config, identity).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let Incoming { libp2p, chunks, joins: _, datagrams } = incoming;
    let network = Network {
        endpoint,
        libp2p,
        chunks,
        datagrams,
        addr,
        contacts: Vec::new(),
        bootstrap: Vec::new(),
        mdns: false,
        dht: false,
        tuning: Default::default(),
        tamper: None,
        more: Vec::new(),
        office: None,
    };
    let start = MeshStart { local, network: Some(network), settings: Default::default(), record: None };
    (Mesh::start(start).unwrap(), addr)
}

/// Serves until the client's process closes the pipe.
pub(crate) fn run(base: &Path, mtu: u16) {
    let runtime = super::runtime();
    let (_mesh, addresses) = runtime.block_on(async {
        let (mesh, starling) = node(base, mtu);
        let identity = wires::identity();
        let certificate = identity.0.to_vec();
        let echo = wires::serve_quic(mtu, &identity);
        let (tls, http) = (wires::serve_tls(&identity).await, wires::serve_http().await);
        (mesh, Addresses { starling, echo, tls, http, certificate })
    });
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(&addresses).unwrap()).unwrap();
    for _ in std::io::stdin().lock().lines() {
        writeln!(out, "{}", super::cpu().as_nanos()).unwrap();
        out.flush().unwrap();
    }
}
