//! Joining over real sockets on loopback.

use super::*;
use crate::mesh::endpoint::tests::bind;
use crate::mesh::identity::tests::TestMesh;
use crate::mesh::{Contact, Endpoint};

struct Office {
    mesh: TestMesh,
    authority: Arc<Identity>,
    address: SocketAddr,
    dir: tempfile::TempDir,
    _endpoint: Endpoint,
}

impl Office {
    fn open() -> Self {
        let mesh = TestMesh::new();
        let authority = mesh.authority();
        let dir = tempfile::tempdir().unwrap();
        let (endpoint, incoming, address) = bind(&authority);
        let desk = JoinDesk::open(&authority, dir.path()).unwrap();
        let certificate = authority.membership().bytes().to_vec();
        tokio::spawn(desk.run(incoming.joins, move || {
            vec![MemberRecord { certificate: certificate.clone(), addresses: vec![address] }]
        }));
        Self { mesh, authority, address, dir, _endpoint: endpoint }
    }

    fn ticket(&self, expires_in_s: i64) -> Ticket {
        let expires = UnixTime(crate::ambient::unix_now().0.saturating_add_signed(expires_in_s));
        let contact = Contact { node: self.authority.node(), addresses: vec![self.address] };
        Ticket::issue(&self.mesh.keys(), vec![contact], expires).unwrap()
    }
}

async fn join_in(dir: &tempfile::TempDir, ticket: &Ticket) -> Result<Joined, JoinError> {
    join(ticket, "eu/a/r1".parse().unwrap(), dir.path(), false).await
}

#[tokio::test]
async fn a_joiner_becomes_a_member_with_its_own_key_and_knows_whom_to_begin_with() {
    let office = Office::open();
    let dir = tempfile::tempdir().unwrap();
    let joined = join_in(&dir, &office.ticket(60)).await.unwrap();
    assert_eq!(joined.membership.cell.as_str(), "eu/a/r1");
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.membership(), &joined.membership);
    assert!(identity.mesh_keys().is_none());
    let known = bootstrap(dir.path(), identity.authority()).unwrap();
    assert_eq!(known, vec![(office.authority.membership().clone(), vec![office.address])]);
    assert_eq!(known, joined.members);
    // What it got lets it in.
    let (endpoint, _incoming, _) = bind(&Arc::new(identity));
    endpoint.connect(office.authority.node(), office.address, Alpn::Chunks).await.unwrap();
}

#[tokio::test]
async fn a_ticket_is_good_for_one_node_however_often_that_one_asks() {
    let office = Office::open();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ticket = office.ticket(60);
    let joined = join_in(&first, &ticket).await.unwrap();
    let error = join_in(&second, &ticket).await.unwrap_err();
    assert!(matches!(error, JoinError::Used { ticket: used } if used == ticket.id()), "{error}");
    assert!(matches!(Identity::load(second.path()), Err(IdentityError::NotAMember { .. })));
    // A member is not changed by accident, but it may ask again on purpose.
    let again = join_in(&first, &ticket).await.unwrap_err();
    assert!(matches!(again, JoinError::Identity(IdentityError::AlreadyAMember { .. })), "{again}");
    let moved = join(&ticket, "eu/b/r9".parse().unwrap(), first.path(), true).await.unwrap();
    assert_eq!((moved.membership.node, moved.membership.cell.as_str()), (joined.membership.node, "eu/b/r9"));
    // The authority remembers after a restart.
    let (node, expires) = (NodeId([5; 32]), ticket.expires());
    let state = StateDir::open(office.dir.path()).unwrap();
    let mut used = UsedTickets::open(state, crate::ambient::unix_now()).unwrap();
    assert_eq!(used.claim(ticket.id(), node, expires, UnixTime(0)).unwrap(), Usage::Other);
}

#[tokio::test]
async fn an_expired_ticket_is_refused_by_the_joiner_and_by_the_authority_with_the_time() {
    let office = Office::open();
    let dir = tempfile::tempdir().unwrap();
    let ticket = office.ticket(-10);
    let error = join_in(&dir, &ticket).await.unwrap_err().to_string();
    assert!(error.contains(&ticket.expires().to_string()), "{error}");
    // A joiner whose clock is behind still asks; the authority says the same.
    let key = crate::mesh::NodeKey::generate();
    let certified = tls::make_certificate(&key, &Credential::Joiner(ticket.prove(&key.node()))).unwrap();
    let rules = Rules { authority: *ticket.authority(), mesh_keys: None };
    let wanted = Wanted { node: Some(office.authority.node()), certifying: true };
    let tls = tls::client_config(&certified, rules.clone(), wanted, &[&b"starling-join/1"[..]]).unwrap();
    let endpoint = client_endpoint().unwrap();
    let cell = CellLabel::default();
    let (reply, _) = ask_authority(&endpoint, tls, office.address, &rules, &cell).await.unwrap();
    assert_eq!(reply, JoinReply::Expired { at: ticket.expires() });
}

#[tokio::test]
async fn a_ticket_of_another_mesh_and_an_address_where_nobody_answers_are_reported_each() {
    let office = Office::open();
    let dir = tempfile::tempdir().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    drop(office.ticket(60));
    let other = TestMesh::new();
    let contact = Contact {
        node: office.authority.node(),
        addresses: vec![office.address, silent.local_addr().unwrap()],
    };
    let expires = UnixTime(crate::ambient::unix_now().0 + 60);
    let ticket = Ticket::issue(&other.keys(), vec![contact], expires).unwrap();
    let error = join_in(&dir, &ticket).await.unwrap_err();
    let JoinError::Unreachable { tried } = error else { panic!("{error}") };
    assert_eq!(tried.len(), 2, "{tried:?}");
    assert!(matches!(Identity::load(dir.path()), Err(IdentityError::NotAMember { .. })));
}

#[tokio::test]
async fn an_ordinary_member_has_no_desk() {
    let mesh = TestMesh::new();
    let dir = tempfile::tempdir().unwrap();
    let error = JoinDesk::open(&mesh.member(), dir.path()).unwrap_err();
    assert!(matches!(error, JoinError::NotAnAuthority(_)));
}
