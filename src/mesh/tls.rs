//! TLS of the mesh: the certificate that a node shows and the rules by which it judges those of others.
//!
//! A certificate is self-signed, made anew at each start, and carries two extensions: libp2p's own
//! (critical: it binds the certificate to the node's key) and one that says why the node may come in:
//! its membership, or a joiner's proof that it was invited. Both sides check both. Sessions are never
//! resumed, so that every connection is judged. A renewed membership is shown from the next handshake on.

use super::identity::{Identity, NodeKey, node_of};
use super::membership::{MembershipCert, MembershipError};
use super::mesh_trust::MeshTrust;
use super::ticket::{TicketKey, TicketProof};
use crate::model::{NodeId, UnixTime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// libp2p's extension (allocated to it by IANA).
const LIBP2P_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 53594, 1, 1];
const LIBP2P_SIGNING_PREFIX: &[u8] = b"libp2p-tls-handshake:";
/// The membership. The arc is the one below which anybody may place the parts of a fresh UUID (here
/// e0fd3e3d-de75-4ac1-af2f-010113bbe247), so that no registration is needed.
const MEMBERSHIP_OID: &[u64] =
    &[1, 2, 840, 113556, 1, 8000, 2554, 57597, 15933, 56949, 19137, 44847, 65811, 12313159, 1];
/// The ticket proof, beside it.
const TICKET_PROOF_OID: &[u64] =
    &[1, 2, 840, 113556, 1, 8000, 2554, 57597, 15933, 56949, 19137, 44847, 65811, 12313159, 2];
/// Most bytes of a certificate. One with a membership of the largest size has less.
const CERTIFICATE_MAX_BYTES: usize = 4_096;
/// The name that clients state as the server's; nobody looks at it, the key is what counts.
pub(super) const SERVER_NAME: &str = "starling";

/// The TLS machinery refused to be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("cannot make a TLS certificate: {0}")]
    Certificate(String),
    /// The configuration is not possible with this cryptographic library.
    #[error("cannot configure TLS: {0}")]
    Configuration(String),
}

/// Why a certificate that was shown is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the TLS certificate is not a libp2p certificate: {0}")]
    NotLibp2p(String),
    #[error("the TLS certificate carries neither a membership nor a ticket proof")]
    NoCredential,
    #[error("the TLS certificate's extensions contradict each other or are malformed")]
    Malformed,
    #[error("this is node {found}, not {expected}")]
    WrongNode { found: NodeId, expected: NodeId },
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error("a joiner's certificate, and this node does not certify")]
    NotAnAuthority,
    #[error("the ticket proof is not of a ticket of this authority")]
    TicketProof,
}

/// Why a node may come in.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// It is a member.
    Member(MembershipCert),
    /// It was invited.
    Joiner(TicketProof),
}

/// A verified peer.
#[derive(Clone, Debug)]
pub(super) enum Verified {
    /// A member of this mesh whose membership counts now.
    Member(MembershipCert),
    /// A node that holds a ticket of this authority, expired or not.
    Joiner(NodeId, TicketProof),
    /// A node whose membership no longer counts, because it lapsed or was revoked; only an authority takes notice, at
    /// whose desk it is renewed, or told why not.
    Lapsed(MembershipCert),
    /// A node that is known by its key alone, and the membership that it shows, not yet verified.
    Named(NodeId, Vec<u8>),
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u16::try_from(content.len()).map(u16::to_be_bytes) {
        Ok([0, short]) if short < 0x80 => out.push(short),
        Ok([0, one]) => out.extend([0x81, one]),
        Ok([high, low]) => out.extend([0x82, high, low]),
        Err(_) => unreachable!("extensions are bounded far below 64 KiB"),
    }
    out.extend(content);
    out
}

const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// A certificate for `key` that shows `credential`.
pub(super) fn make_certificate(
    key: &NodeKey,
    credential: &Credential,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError::Certificate(error.to_string());
    let tls_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| failed(&e))?;
    let keypair = key.libp2p();
    let binding =
        keypair.sign(&[LIBP2P_SIGNING_PREFIX, &tls_key.public_key_der()].concat()).map_err(|e| failed(&e))?;
    let signed_key =
        [der(OCTET_STRING, &keypair.public().encode_protobuf()), der(OCTET_STRING, &binding)].concat();
    let mut libp2p = rcgen::CustomExtension::from_oid_content(LIBP2P_OID, der(SEQUENCE, &signed_key));
    libp2p.set_criticality(true);
    let (oid, value): (_, &[u8]) = match credential {
        Credential::Member(membership) => (MEMBERSHIP_OID, membership.bytes()),
        Credential::Joiner(proof) => (TICKET_PROOF_OID, &proof.to_bytes()),
    };
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.custom_extensions =
        vec![libp2p, rcgen::CustomExtension::from_oid_content(oid, der(OCTET_STRING, value))];
    let certificate = params.self_signed(&tls_key).map_err(|e| failed(&e))?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(tls_key.serialize_der()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private).map_err(|e| failed(&e))?;
    // `CertifiedKey::new` does not look into the certificate: webpki would refuse the critical extension.
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)))
}

fn oid_text(parts: &[u64]) -> String {
    parts.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

/// The rules by which this node judges certificates.
#[derive(Clone, Debug)]
pub(super) enum Rules {
    /// A member's: by what it believes of its mesh.
    Member {
        /// Who counts as a member.
        trust: Arc<MeshTrust>,
        /// The key of its tickets, where joiners are let in.
        desk: Option<TicketKey>,
    },
    /// A joiner's, which was told whom to trust by its ticket, and cannot judge memberships yet.
    ByName,
}

impl Rules {
    /// Judges a certificate at `now`.
    pub(super) fn judge(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<Verified, Refusal> {
        if certificate.len() > CERTIFICATE_MAX_BYTES {
            return Err(Refusal::NotLibp2p(format!("{} bytes long", certificate.len())));
        }
        let node = libp2p_tls::certificate::parse(certificate)
            .map_err(|error| Refusal::NotLibp2p(error.to_string()))
            .map(|parsed| node_of(&parsed.peer_id()))?
            .ok_or_else(|| Refusal::NotLibp2p("its key is not ed25519".into()))?;
        match (credential_bytes(certificate)?, self) {
            ((Some(membership), None), Self::ByName) => Ok(Verified::Named(node, membership)),
            ((Some(membership), None), Self::Member { trust, desk }) => {
                judge_member(&membership, node, trust, desk.is_some(), now)
            }
            ((None, Some(proof)), Self::Member { desk: Some(key), .. }) => {
                let proof = TicketProof::from_bytes(&proof).ok_or(Refusal::Malformed)?;
                // An expired ticket passes here: the join protocol can say so, a TLS alert cannot.
                if proof.is_right(key, &node) {
                    Ok(Verified::Joiner(node, proof))
                } else {
                    Err(Refusal::TicketProof)
                }
            }
            ((None, Some(_)), _) => Err(Refusal::NotAnAuthority),
            ((None, None), _) => Err(Refusal::NoCredential),
            ((Some(_), Some(_)), _) => Err(Refusal::Malformed),
        }
    }
}

/// A membership that counts, or, where `certifying`, one that did once. The desk renews it if it only lapsed, and tells
/// its node if it was revoked: members close their doors at once, so that nobody else can.
fn judge_member(
    bytes: &[u8],
    node: NodeId,
    trust: &MeshTrust,
    certifying: bool,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    let verified = match trust.verify(bytes, now) {
        Ok(membership) => Verified::Member(membership),
        Err(
            MembershipError::Expired { .. }
            | MembershipError::Signature { .. }
            | MembershipError::Revoked { .. },
        ) if certifying => Verified::Lapsed(trust.verify_signed(bytes)?),
        Err(error) => return Err(error.into()),
    };
    match &verified {
        Verified::Member(shown) | Verified::Lapsed(shown) if shown.node != node => {
            Err(MembershipError::WrongNode { certified: shown.node, shown_by: node }.into())
        }
        _ => Ok(verified),
    }
}

type CredentialBytes = (Option<Vec<u8>>, Option<Vec<u8>>);

fn credential_bytes(certificate: &CertificateDer<'_>) -> Result<CredentialBytes, Refusal> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| Refusal::NotLibp2p(error.to_string()))?;
    let find = |oid: &[u64]| -> Result<Option<Vec<u8>>, Refusal> {
        let oid = oid_text(oid);
        let mut found = parsed.extensions().iter().filter(|extension| extension.oid.to_id_string() == oid);
        let (first, second) = (found.next(), found.next());
        match (first, second) {
            (None, _) => Ok(None),
            (Some(extension), None) => octets(extension.value).map(Some).ok_or(Refusal::Malformed),
            (Some(_), Some(_)) => Err(Refusal::Malformed),
        }
    };
    Ok((find(MEMBERSHIP_OID)?, find(TICKET_PROOF_OID)?))
}

/// The content of a DER octet string that fills `value`.
fn octets(value: &[u8]) -> Option<Vec<u8>> {
    let (rest, octets) = x509_parser::der_parser::asn1_rs::OctetString::from_der(value).ok()?;
    rest.is_empty().then(|| octets.as_ref().to_vec())
}

/// Whom a client wants to find at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// This node.
    Node(NodeId),
    /// Whichever member is there.
    Anybody,
}

impl From<NodeId> for Wanted {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

impl Wanted {
    /// The node that was wanted, when `found` is another.
    fn missed(self, found: NodeId) -> Option<NodeId> {
        match self {
            Self::Node(node) if node != found => Some(node),
            Self::Node(_) | Self::Anybody => None,
        }
    }
}

#[derive(Debug)]
struct Verifier {
    rules: Rules,
    /// Whom a client wants to find at the other end.
    wanted: Option<Wanted>,
}

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let verified = self.rules.judge(certificate, now).and_then(|verified| {
            let Some(wanted) = self.wanted else { return Ok(()) };
            let found = match &verified {
                Verified::Member(member) => Some(member.node),
                Verified::Named(node, _) => Some(*node),
                Verified::Joiner(..) | Verified::Lapsed(_) => None,
            };
            if let Some(found) = found
                && let Some(expected) = wanted.missed(found)
            {
                return Err(Refusal::WrongNode { found, expected });
            }
            match verified {
                Verified::Member(_) | Verified::Named(..) => Ok(()),
                // Nobody is served by a node that is no member itself.
                Verified::Joiner(..) | Verified::Lapsed(_) => Err(Refusal::NoCredential),
            }
        });
        verified.map_err(|refusal| {
            tracing::debug!(%refusal, "TLS certificate refused");
            // The alert tells the other side as much as it may know: that it is too old, revoked, or not welcome.
            rustls::Error::InvalidCertificate(match refusal {
                Refusal::Membership(MembershipError::Expired { .. }) => CertificateError::Expired,
                Refusal::Membership(MembershipError::Revoked { .. }) => CertificateError::Revoked,
                Refusal::WrongNode { .. } => CertificateError::NotValidForName,
                _ => CertificateError::ApplicationVerificationFailure,
            })
        })
    }
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    libp2p_tls::certificate::parse(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?
        .verify_signature(signed.scheme, message, signed.signature())
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadSignature))?;
    Ok(HandshakeSignatureValid::assertion())
}

fn tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled))
}

fn one_certificate(more: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
    if more.is_empty() { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        one_certificate(more)?;
        self.check(certificate, crate::ambient::unix_now())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        one_certificate(more)?;
        self.check(certificate, crate::ambient::unix_now())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// AES-128-GCM first: on processors with AES instructions it costs half of ChaCha20 (measured).
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The client's side of a connection to `wanted` by one of the protocols `alpns`.
pub(super) fn client_config(
    certified: &Arc<CertifiedKey>,
    rules: Rules,
    wanted: impl Into<Wanted>,
    alpns: &[&[u8]],
) -> Result<quinn::crypto::rustls::QuicClientConfig, TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError::Configuration(error.to_string());
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { rules, wanted: Some(wanted.into()) }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    quinn::crypto::rustls::QuicClientConfig::try_from(config).map_err(|e| failed(&e))
}

/// Shows whatever certificate the identity has at the moment.
#[derive(Debug)]
struct Current {
    identity: Arc<Identity>,
    /// A protocol that others of the mesh speak, and this node does not: who wants nothing else came to the wrong node,
    /// perhaps because it was another's address before, and is denied access. Without this it would seem to be of
    /// another version.
    elsewhere: Option<Vec<u8>>,
}

impl rustls::server::ResolvesServerCert for Current {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut wanted = hello.alpn().into_iter().flatten().peekable();
        let is_astray = wanted.peek().is_some() && wanted.all(|name| Some(name) == self.elsewhere.as_deref());
        (!is_astray).then(|| self.identity.certified())
    }
}

/// The server's side, offering the protocols `alpns`, and knowing of one that is spoken `elsewhere` only.
pub(super) fn server_config(
    identity: Arc<Identity>,
    rules: Rules,
    alpns: &[&[u8]],
    elsewhere: Option<&str>,
) -> Result<quinn::crypto::rustls::QuicServerConfig, TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError::Configuration(error.to_string());
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .with_client_cert_verifier(Arc::new(Verifier { rules, wanted: None }))
        .with_cert_resolver(Arc::new(Current {
            identity,
            elsewhere: elsewhere.map(|name| name.as_bytes().to_vec()),
        }));
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    quinn::crypto::rustls::QuicServerConfig::try_from(config).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::super::identity::tests::TestMesh;
    use super::super::ticket::tests::ticket;
    use super::*;

    fn rules(mesh: &TestMesh, desk: Option<TicketKey>) -> Rules {
        Rules::Member { trust: mesh.trust(), desk }
    }

    fn joiner(mesh: &TestMesh, desk: &TicketKey, key: &NodeKey, for_node: NodeId) -> Arc<CertifiedKey> {
        let ticket = ticket(desk, mesh.keys().mesh(), |_| ());
        make_certificate(key, &Credential::Joiner(ticket.prove(&for_node))).unwrap()
    }

    #[test]
    fn a_member_is_recognised_in_its_own_mesh_and_time_only() {
        let (mesh, foreign) = (TestMesh::new(), TestMesh::new());
        let member = mesh.member();
        let certificate = &member.certified().cert[0];
        let now = crate::ambient::unix_now();
        let judged = rules(&mesh, None).judge(certificate, now).unwrap();
        assert!(matches!(judged, Verified::Member(m) if m == member.membership()));
        let refused = rules(&foreign, None).judge(certificate, now).unwrap_err();
        assert!(matches!(refused, Refusal::Membership(MembershipError::Signature { .. })));
        let refused = rules(&mesh, None).judge(certificate, UnixTime(now.0 + 3_600)).unwrap_err();
        assert!(matches!(refused, Refusal::Membership(MembershipError::Expired { .. })));
    }

    #[test]
    fn a_membership_that_was_copied_from_another_node_is_refused() {
        let mesh = TestMesh::new();
        let stolen = mesh.member().membership();
        let thief = make_certificate(&NodeKey::generate(), &Credential::Member(stolen)).unwrap();
        let refused = rules(&mesh, Some(TicketKey([1; 32])))
            .judge(&thief.cert[0], crate::ambient::unix_now())
            .unwrap_err();
        assert!(matches!(refused, Refusal::Membership(MembershipError::WrongNode { .. })));
    }

    #[test]
    fn a_joiner_is_recognised_by_the_authority_of_its_ticket_only_and_with_its_own_proof_only() {
        let mesh = TestMesh::new();
        let (key, desk) = (NodeKey::generate(), NodeKey::generate().ticket_key());
        let now = crate::ambient::unix_now();
        let own = joiner(&mesh, &desk, &key, key.node());
        let judged = rules(&mesh, Some(desk.clone())).judge(&own.cert[0], now).unwrap();
        assert!(matches!(judged, Verified::Joiner(node, _) if node == key.node()));
        let refused =
            |rules: Rules, certified: &CertifiedKey| rules.judge(&certified.cert[0], now).unwrap_err();
        assert_eq!(refused(rules(&mesh, None), &own), Refusal::NotAnAuthority);
        assert_eq!(refused(Rules::ByName, &own), Refusal::NotAnAuthority);
        let other = NodeKey::generate().ticket_key();
        assert_eq!(refused(rules(&mesh, Some(other)), &own), Refusal::TicketProof);
        let stolen = joiner(&mesh, &desk, &key, NodeId([9; 32]));
        assert_eq!(refused(rules(&mesh, Some(desk)), &stolen), Refusal::TicketProof);
    }

    #[test]
    fn a_membership_that_lapsed_or_was_revoked_is_noticed_by_authorities_only() {
        let mesh = TestMesh::new();
        let member = mesh.member();
        let (certificate, now) = (&member.certified().cert[0], crate::ambient::unix_now());
        let late = UnixTime(now.0 + 3_600);
        let trust = mesh.trust();
        let authority = Rules::Member { trust: trust.clone(), desk: Some(TicketKey([1; 32])) };
        assert!(matches!(authority.judge(certificate, now), Ok(Verified::Member(_))));
        assert!(matches!(authority.judge(certificate, late), Ok(Verified::Lapsed(_))));
        assert!(rules(&mesh, None).judge(certificate, late).is_err());
        trust.revoke(&mesh.keys(), member.node(), String::new(), now).unwrap();
        let ordinary = Rules::Member { trust, desk: None };
        for at in [now, late] {
            assert!(matches!(authority.judge(certificate, at), Ok(Verified::Lapsed(_))), "to be told");
            let refused = ordinary.judge(certificate, at).unwrap_err();
            let expected = matches!(
                refused,
                Refusal::Membership(MembershipError::Revoked { .. } | MembershipError::Expired { .. })
            );
            assert!(expected, "{refused}");
        }
    }

    #[test]
    fn a_plain_libp2p_certificate_is_refused() {
        let mesh = TestMesh::new();
        let (certificate, _) = libp2p_tls::certificate::generate(&NodeKey::generate().libp2p()).unwrap();
        let refused = rules(&mesh, None).judge(&certificate, crate::ambient::unix_now()).unwrap_err();
        assert_eq!(refused, Refusal::NoCredential);
    }

    #[test]
    fn the_cheap_cipher_comes_first_and_only_tls_1_3_is_there() {
        let provider = provider();
        assert_eq!(provider.cipher_suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert!(provider.cipher_suites.iter().all(|suite| suite.tls13().is_some()));
    }

    #[test]
    fn lengths_are_encoded_as_der_wants_them() {
        for len in [0, 1, 127, 128, 255, 256, 700] {
            assert_eq!(octets(&der(OCTET_STRING, &vec![5; len])).unwrap(), vec![5; len]);
        }
        assert_eq!(octets(&[4, 2, 0]), None);
        assert_eq!(octets(&[4, 1, 0, 0]), None, "nothing may follow");
    }
}
