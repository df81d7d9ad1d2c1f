//! A test's world: paused time, one seed, a virtual network, a mesh in memory.

use super::net::{Link, Net};
use crate::ambient::{self, seeded};
use crate::mesh::identity::NodeKey;
use crate::mesh::identity::tests::TestMesh;
use crate::mesh::tls::{self, Credential};
use crate::mesh::{Endpoint, EndpointConfig, Identity, Incoming};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Everything that a test in virtual time needs.
pub(in crate::mesh) struct World {
    pub(in crate::mesh) net: Net,
    pub(in crate::mesh) mesh: TestMesh,
    pub(in crate::mesh) began: Instant,
}

/// Runs `test` in a world of its own. What it does is the same each time for the same seed.
pub(in crate::mesh) fn run<T, F: Future<Output = T>>(
    seed: u64,
    link: Link,
    test: impl FnOnce(World) -> F,
) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let _seeded = seeded::enter(seed);
        let world = World { net: Net::new(seed, link), mesh: TestMesh::new(), began: Instant::now() };
        test(world).await
    })
}

/// The address of machine `number`.
pub(in crate::mesh) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 4_000))
}

impl World {
    /// The real endpoint of `identity` at machine `number`.
    pub(in crate::mesh) fn bind(&self, identity: &Arc<Identity>, number: u8) -> (Endpoint, Incoming) {
        self.bind_with(EndpointConfig::new(address(number)), identity)
    }

    /// The same, with settings.
    pub(in crate::mesh) fn bind_with(
        &self,
        config: EndpointConfig,
        identity: &Arc<Identity>,
    ) -> (Endpoint, Incoming) {
        let wire = self.net.wire(config.listen);
        let seed = Some(ambient::secret());
        Endpoint::bind_over(config, identity.clone(), wire, Arc::new(quinn::TokioRuntime), seed).unwrap()
    }
}

/// Bytes of a P-256 signature in DER, most often. Its length varies with chance, and the network's time with it.
const SIGNATURE_BYTES: usize = 71;

/// A certificate for `key` of one length, that signs with one length. The bytes differ from run to run.
pub(in crate::mesh) fn steady_certificate(key: &NodeKey, credential: &Credential) -> Arc<CertifiedKey> {
    loop {
        let certified = tls::make_certificate(key, credential).unwrap();
        let (_, parsed) = X509Certificate::from_der(&certified.cert[0]).unwrap();
        if parsed.signature_value.data.len() == SIGNATURE_BYTES && parsed.raw_serial().len() == 20 {
            let signer = Arc::new(SteadyKey(certified.key.clone()));
            return Arc::new(CertifiedKey::new(certified.cert.clone(), signer));
        }
    }
}

#[derive(Debug)]
struct SteadyKey(Arc<dyn SigningKey>);

impl SigningKey for SteadyKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(SteadySigner(self.0.choose_scheme(offered)?)))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct SteadySigner(Box<dyn Signer>);

impl Signer for SteadySigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        loop {
            let signature = self.0.sign(message)?;
            if signature.len() == SIGNATURE_BYTES {
                return Ok(signature);
            }
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}
