//! Who gets in, on both planes, over real sockets on loopback.

use super::*;
use crate::mesh::identity::tests::TestMesh;
use crate::mesh::office::{Office, OfficeConfig};
use crate::mesh::ticket::tests::ticket;
use crate::mesh::tls::Credential;
use crate::mesh::{NodeKey, Role};
use crate::model::UnixTime;

const SOON: Duration = Duration::from_secs(5);
const PLANES: [Alpn; 2] = [Alpn::Libp2p, Alpn::Chunks];

pub(in crate::mesh) fn bind(identity: &Arc<Identity>) -> (Endpoint, Incoming, SocketAddr) {
    let config = EndpointConfig::new("127.0.0.1:0".parse().unwrap());
    let (endpoint, incoming) = Endpoint::bind(config, identity.clone()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, incoming, address)
}

impl Incoming {
    async fn accepted(&mut self, alpn: Alpn) -> MemberConnection {
        let door = if alpn == Alpn::Libp2p { &mut self.libp2p } else { &mut self.chunks };
        tokio::time::timeout(SOON, door.recv()).await.expect("somebody comes in").unwrap()
    }

    fn nobody_came(&mut self) -> bool {
        self.libp2p.is_empty() && self.chunks.is_empty() && self.joins.is_empty()
    }
}

/// Dials as a client that shows `credential`, and reports whether the server ever served a byte.
async fn is_served(
    mesh: &TestMesh,
    key: &NodeKey,
    credential: &Credential,
    (node, address): (NodeId, SocketAddr),
    alpn: Alpn,
) -> bool {
    let certified = tls::make_certificate(key, credential).unwrap();
    let rules = Rules::Member { trust: mesh.trust(), desk: None };
    let tls = tls::client_config(&certified, rules, node, &[alpn.name().as_bytes()]).unwrap();
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting =
        client.connect_with(quinn::ClientConfig::new(Arc::new(tls)), address, tls::SERVER_NAME).unwrap();
    let served = async {
        let connection = connecting.await.ok()?;
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(b"hello").await.ok()?;
        recv.read(&mut [0; 1]).await.ok()
    };
    tokio::time::timeout(SOON, served).await.expect("a refusal is told, not left to time out").is_some()
}

#[tokio::test]
async fn members_reach_each_other_on_both_planes_over_one_port() {
    let mesh = TestMesh::new();
    let (a, b) = (mesh.member(), mesh.member());
    let (_endpoint, mut incoming, address) = bind(&a);
    let (dialler, _incoming, dialler_address) = bind(&b);
    for alpn in PLANES {
        let out = dialler.connect(a.node(), address, alpn).await.unwrap();
        let come = incoming.accepted(alpn).await;
        assert_eq!((out.node(), come.node()), (a.node(), b.node()));
        assert_eq!((out.membership(), come.membership()), (a.membership(), b.membership()));
        assert_eq!((come.address(), come.alpn()), (dialler_address, alpn));
        let (mut send, _recv) = out.quinn().open_bi().await.unwrap();
        send.write_all(b"hello").await.unwrap();
        send.finish().unwrap();
        let (_send, mut recv) = come.quinn().accept_bi().await.unwrap();
        assert_eq!(recv.read_to_end(10).await.unwrap(), b"hello");
    }
}

#[tokio::test]
async fn strangers_of_every_kind_are_refused_on_both_planes() {
    let (mesh, foreign) = (TestMesh::new(), TestMesh::new());
    for server in [mesh.member(), mesh.authority()] {
        let (_endpoint, mut incoming, address) = bind(&server);
        let to = (server.node(), address);
        let key = NodeKey::generate();
        let foreigner = Credential::Member(foreign.keys().certify(foreign.statement(key.node())).unwrap());
        let mut statement = mesh.statement(key.node());
        statement.expires = UnixTime(crate::ambient::unix_now().0 - 1);
        let expired = Credential::Member(mesh.keys().certify(statement).unwrap());
        let stolen = Credential::Member(mesh.member().membership());
        let ticket = ticket(&server.key().ticket_key(), mesh.keys().mesh(), |_| ());
        let joiner = Credential::Joiner(ticket.prove(&key.node()));
        for (name, credential) in
            [("foreigner", foreigner), ("expired", expired), ("stolen", stolen), ("joiner", joiner)]
        {
            for alpn in PLANES {
                assert!(!is_served(&mesh, &key, &credential, to, alpn).await, "{name} on {alpn}");
            }
        }
        assert!(incoming.nobody_came());
    }
}

#[tokio::test]
async fn a_client_without_any_certificate_and_one_with_libp2ps_own_are_refused() {
    let mesh = TestMesh::new();
    let server = mesh.member();
    let (_endpoint, mut incoming, address) = bind(&server);
    for alpn in PLANES {
        let mut tls = libp2p_tls::make_client_config(&NodeKey::generate().libp2p(), None).unwrap();
        tls.alpn_protocols = vec![alpn.name().as_bytes().to_vec()];
        let mut bare = tls.clone();
        bare.client_auth_cert_resolver = Arc::new(NoCertificate);
        for config in [tls, bare] {
            let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
            let config = quinn::ClientConfig::new(Arc::new(crypto));
            let refused = async {
                match client.connect_with(config, address, "l").unwrap().await {
                    Err(error) => error,
                    Ok(connection) => connection.closed().await,
                }
            };
            let error = tokio::time::timeout(SOON, refused).await.expect("a refusal is told");
            assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error:?}");
        }
    }
    assert!(incoming.nobody_came());
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_node_that_answers_in_anothers_place_is_not_accepted() {
    let (mesh, foreign) = (TestMesh::new(), TestMesh::new());
    let (dialler, _incoming, _) = bind(&mesh.member());
    let (wanted, impostor, stranger) = (mesh.member(), mesh.member(), foreign.member());
    for answering in [impostor, stranger] {
        let (_endpoint, mut incoming, address) = bind(&answering);
        let error = dialler.connect(wanted.node(), address, Alpn::Chunks).await.unwrap_err();
        assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
        assert!(incoming.nobody_came());
    }
}

#[tokio::test]
async fn who_looks_for_a_desk_where_none_is_does_not_seem_to_be_of_another_version() {
    let mesh = TestMesh::new();
    let (a, b) = (mesh.member(), mesh.member());
    let ((one, _in_a, address), (two, _in_b, _)) = (bind(&a), bind(&b));
    let error = two.connect(a.node(), address, Alpn::Join).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    tokio::time::timeout(SOON, async {
        while one.door().snapshot().failed == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is counted as any other that fails");
    assert_eq!(one.door().snapshot().no_common_version, 0);
}

#[tokio::test]
async fn a_ban_closes_both_planes_and_lets_nobody_in_either_way() {
    let mesh = TestMesh::new();
    let (a, b) = (mesh.member(), mesh.member());
    let (banning, mut incoming, address) = bind(&a);
    let (other, mut other_incoming, other_address) = bind(&b);
    let mut open = Vec::new();
    for alpn in PLANES {
        open.push(other.connect(a.node(), address, alpn).await.unwrap());
        open.push(incoming.accepted(alpn).await);
        open.push(banning.connect(b.node(), other_address, alpn).await.unwrap());
        open.push(other_incoming.accepted(alpn).await);
    }
    banning.ban(b.node(), Duration::from_secs(3_600));
    for connection in &open {
        tokio::time::timeout(SOON, connection.quinn().closed()).await.expect("closed on both sides");
    }
    let error = banning.connect(b.node(), other_address, Alpn::Chunks).await.unwrap_err();
    assert!(matches!(error, ConnectError::Banned { .. }));
    assert!(matches!(banning.connection(b.node(), other_address).await, Err(ConnectError::Banned { .. })));
    for alpn in PLANES {
        // The client may believe itself connected for a moment; then it is told.
        if let Ok(connection) = other.connect(a.node(), address, alpn).await {
            tokio::time::timeout(SOON, connection.quinn().closed()).await.expect("closed at once");
        }
    }
    assert!(incoming.nobody_came());
}

#[tokio::test]
async fn however_many_wait_one_connection_is_dialled_and_a_lost_one_is_replaced() {
    let mesh = TestMesh::new();
    let a = mesh.member();
    let (_endpoint, mut incoming, address) = bind(&a);
    let (dialler, _incoming, _) = bind(&mesh.member());
    let dials = (0..50).map(|_| dialler.connection(a.node(), address));
    let connections = futures::future::try_join_all(dials).await.unwrap();
    let ids: std::collections::BTreeSet<_> = connections.iter().map(|c| c.quinn().stable_id()).collect();
    assert_eq!((ids.len(), dialler.connections()), (1, 1));
    incoming.accepted(Alpn::Chunks).await.close(CloseCode::Done);
    tokio::time::timeout(SOON, connections[0].quinn().closed()).await.unwrap();
    let again = dialler.connection(a.node(), address).await.unwrap();
    assert!(again.is_open() && !ids.contains(&again.quinn().stable_id()));
}

#[tokio::test]
async fn the_pool_keeps_its_bound_and_gives_up_only_what_nobody_uses() {
    let mesh = TestMesh::new();
    let config = EndpointConfig { pool: 2, ..EndpointConfig::new("127.0.0.1:0".parse().unwrap()) };
    let (dialler, _incoming) = Endpoint::bind(config, mesh.member()).unwrap();
    let members: Vec<_> = (0..3).map(|_| mesh.member()).collect();
    let servers: Vec<_> = members.iter().map(bind).collect();
    let used = dialler.connection(members[0].node(), servers[0].2).await.unwrap();
    let other = dialler.connection(members[1].node(), servers[1].2).await.unwrap();
    let third = || dialler.connection(members[2].node(), servers[2].2);
    assert!(matches!(third().await, Err(ConnectError::TooMany { open: 2 })));
    drop(other);
    third().await.unwrap();
    assert!(used.is_open());
}

#[tokio::test]
async fn membership_datagrams_pass_beside_connections_between_both_address_families() {
    let mesh = TestMesh::new();
    let config = EndpointConfig::new("[::]:0".parse().unwrap());
    let (six, mut incoming) = Endpoint::bind(config, mesh.member()).unwrap();
    let port = six.local_addr().unwrap().port();
    let (four, mut four_incoming, four_address) = bind(&mesh.member());
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    let _connection = four.connect(six.node(), to, Alpn::Chunks).await.unwrap();
    four.send_datagram(to, b"\x01ping").unwrap();
    let (from, content) = tokio::time::timeout(SOON, incoming.datagrams.recv()).await.unwrap().unwrap();
    assert_eq!((from, &content[..]), (four_address, &b"\x01ping"[..]));
    six.send_datagram(from, b"\x02pong").unwrap();
    let (from, content) = tokio::time::timeout(SOON, four_incoming.datagrams.recv()).await.unwrap().unwrap();
    assert_eq!((from, &content[..]), (to, &b"\x02pong"[..]));
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_their_value() {
    let mesh = TestMesh::new();
    let config = EndpointConfig { mtu: 8_952, ..EndpointConfig::new("127.0.0.1:0".parse().unwrap()) };
    let error = Endpoint::bind(config, mesh.member()).unwrap_err().to_string();
    assert!(error.contains("8952") && error.contains("6550"), "{error}");
    let (_endpoint, _incoming, taken) = bind(&mesh.authority());
    let error = Endpoint::bind(EndpointConfig::new(taken), mesh.member()).unwrap_err().to_string();
    assert!(error.contains(&taken.to_string()), "{error}");
    assert_eq!(mesh.authority().membership().role, Role::Authority);
}

/// Two members that are connected on both planes, in both directions.
struct Couple {
    one: Endpoint,
    two: Endpoint,
    addresses: [SocketAddr; 2],
    open: Vec<MemberConnection>,
    incoming: [Incoming; 2],
}

async fn couple(one: &Arc<Identity>, two: &Arc<Identity>) -> Couple {
    let (first, mut first_in, first_at) = bind(one);
    let (second, mut second_in, second_at) = bind(two);
    let mut open = Vec::new();
    for alpn in PLANES {
        open.push(second.connect(one.node(), first_at, alpn).await.unwrap());
        open.push(first_in.accepted(alpn).await);
        open.push(first.connect(two.node(), second_at, alpn).await.unwrap());
        open.push(second_in.accepted(alpn).await);
    }
    Couple {
        one: first,
        two: second,
        addresses: [first_at, second_at],
        open,
        incoming: [first_in, second_in],
    }
}

#[tokio::test]
async fn a_revocation_closes_both_planes_at_once_and_lets_nobody_in_either_way() {
    let mesh = TestMesh::new();
    let (a, b) = (mesh.member(), mesh.member());
    let mut couple = couple(&a, &b).await;
    a.trust().revoke(&mesh.keys(), b.node(), String::new(), crate::ambient::unix_now()).unwrap();
    for connection in &couple.open {
        tokio::time::timeout(SOON, connection.quinn().closed()).await.expect("closed on both sides");
    }
    for alpn in PLANES {
        assert!(couple.one.connect(b.node(), couple.addresses[1], alpn).await.is_err());
        // The client may believe itself connected for a moment; then it is told.
        if let Ok(connection) = couple.two.connect(a.node(), couple.addresses[0], alpn).await {
            tokio::time::timeout(SOON, connection.quinn().closed()).await.expect("closed at once");
        }
    }
    assert!(couple.incoming[0].nobody_came());
}

#[tokio::test]
async fn connections_end_with_the_certificate_unless_a_renewed_one_was_shown() {
    let mesh = TestMesh::new();
    let soon = UnixTime(crate::ambient::unix_now().0 + 3);
    let short = || mesh.member_with(|statement| statement.expires = soon);
    let (a, renewing, lapsing) = (mesh.member(), short(), short());
    let (kept, ended) = (couple(&a, &renewing).await, couple(&a, &lapsing).await);
    let mut statement = mesh.statement(renewing.node());
    statement.issued.0 += 1;
    let renewed = mesh.keys().certify(statement).unwrap();
    renewing.renew(renewed.clone(), None, crate::ambient::unix_now()).unwrap();
    kept.one.renewed(&renewed);
    for connection in &ended.open {
        tokio::time::timeout(SOON, connection.quinn().closed()).await.expect("closed at expiry");
    }
    // Of the renewed one's connections this side, which was told, closed none.
    for connection in kept.open.iter().filter(|connection| connection.node() == renewing.node()) {
        assert!(connection.is_open() && connection.membership() == renewed);
    }
    // New handshakes show the renewed certificate without a new endpoint.
    let again = kept.two.connect(a.node(), kept.addresses[0], Alpn::Chunks).await;
    assert!(again.is_ok(), "{again:?}");
    assert!(
        ended.two.connect(a.node(), ended.addresses[0], Alpn::Chunks).await.is_err() || {
            tokio::time::sleep(Duration::from_millis(500)).await;
            !ended.one.connections_by_node().contains_key(&lapsing.node())
        }
    );
}

#[tokio::test]
async fn members_of_the_old_and_the_new_key_reach_each_other_in_the_overlap() {
    let mesh = TestMesh::new();
    let (authority, old, now) = (mesh.authority(), mesh.member(), crate::ambient::unix_now());
    let office = Office::open(authority.clone(), OfficeConfig::default()).unwrap();
    let charter = office.rotate(Duration::from_secs(3_600), now).unwrap();
    office.renew_own(now).unwrap();
    old.trust().judge(&crate::mesh::News::Charter(charter.bytes().to_vec()), None).unwrap();
    assert_ne!(old.membership().signer(), authority.membership().signer());
    let couple = couple(&authority, &old).await;
    assert!(couple.open.iter().all(MemberConnection::is_open));
    // One that has not heard of the new key does not know its members, who know it.
    let unaware = mesh.member();
    let (other, _incoming, _) = bind(&unaware);
    let refused = other.connect(authority.node(), couple.addresses[0], Alpn::Chunks).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Handshake { .. }), "{refused}");
}
