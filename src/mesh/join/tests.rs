//! Joining and late renewal over real sockets on loopback.

use super::desk::Introductions;
use super::used::{Usage, UsedTickets};
use super::*;
use crate::mesh::endpoint::tests::bind;
use crate::mesh::identity::tests::TestMesh;
use crate::mesh::office::{Office, OfficeConfig};
use crate::mesh::wire::RenewReply;
use crate::mesh::{Endpoint, Scope, Terms};
use futures::FutureExt as _;

struct Desk {
    mesh: TestMesh,
    authority: Arc<Identity>,
    office: Arc<Office>,
    address: SocketAddr,
    dir: tempfile::TempDir,
    _endpoint: Endpoint,
}

impl Desk {
    fn open() -> Self {
        Self::open_slow(Duration::ZERO)
    }

    /// A desk at which everybody stays for `stay`.
    fn open_slow(stay: Duration) -> Self {
        let mesh = TestMesh::new();
        let authority = mesh.authority();
        let dir = tempfile::tempdir().unwrap();
        let (endpoint, incoming, address) = bind(&authority);
        let config = OfficeConfig { life: Duration::from_secs(60), ..OfficeConfig::default() };
        let office = Office::open(authority.clone(), config).unwrap();
        let shown = authority.clone();
        let introductions: Introductions = Box::new(move |_| {
            let certificate = shown.membership().bytes().to_vec();
            async move {
                tokio::time::sleep(stay).await;
                vec![MemberRecord { certificate, addresses: vec![address] }]
            }
            .boxed()
        });
        let desk = JoinDesk::open(office.clone(), dir.path(), introductions).unwrap();
        tokio::spawn(desk.run(incoming.joins));
        Self { mesh, authority, office, address, dir, _endpoint: endpoint }
    }

    fn ticket_with(&self, change: impl FnOnce(&mut Terms)) -> Ticket {
        self.ticket_to(vec![self.address], change)
    }

    fn ticket_to(&self, addresses: Vec<SocketAddr>, change: impl FnOnce(&mut Terms)) -> Ticket {
        let now = crate::ambient::unix_now();
        let mut terms = Terms {
            issued: now,
            expires: now.after(Duration::from_secs(60)),
            uses: 1,
            role: Role::Member,
            scope: Scope::All,
            cell: None,
        };
        change(&mut terms);
        self.office.issue(addresses, terms).unwrap()
    }

    fn ticket(&self) -> Ticket {
        self.ticket_with(|_| ())
    }

    fn contact(&self) -> Contact {
        Contact { node: self.authority.node(), addresses: vec![self.address] }
    }

    fn revoke(&self, node: NodeId) {
        self.office.revoke(node, "stolen".into(), crate::ambient::unix_now()).unwrap();
    }
}

async fn join_in(dir: &tempfile::TempDir, ticket: &Ticket) -> Result<Joined, JoinError> {
    join(ticket, Some("eu/a/r1".parse().unwrap()), dir.path(), false).await
}

#[tokio::test]
async fn a_joiner_becomes_a_member_with_its_own_key_and_knows_whom_to_begin_with() {
    let desk = Desk::open();
    let dir = tempfile::tempdir().unwrap();
    let joined = join_in(&dir, &desk.ticket()).await.unwrap();
    assert_eq!((joined.membership.cell.as_str(), joined.membership.role), ("eu/a/r1", Role::Member));
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.membership(), joined.membership);
    assert!(identity.mesh_keys().is_none());
    let known = bootstrap(dir.path(), identity.trust()).unwrap();
    assert_eq!(known, vec![(desk.authority.membership(), vec![desk.address])]);
    assert_eq!(known, joined.members);
    // What it got lets it in.
    let (endpoint, _incoming, _) = bind(&Arc::new(identity));
    endpoint.connect(desk.authority.node(), desk.address, Alpn::Chunks).await.unwrap();
    assert_eq!(desk.office.counts().joined, 1);
}

#[tokio::test]
async fn a_joiner_takes_the_address_that_answers_and_remembers_the_others() {
    let desk = Desk::open();
    // Nobody is there; what is sent there is lost, or refused at once.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nowhere = ["127.0.0.1:9".parse().unwrap(), silent.local_addr().unwrap()];
    let ticket = desk.ticket_to(vec![nowhere[0], nowhere[1], desk.address], |_| ());
    let dir = tempfile::tempdir().unwrap();
    let joining = tokio::time::timeout(ATTEMPT_LIMIT, join_in(&dir, &ticket));
    let joined = joining.await.expect("no address is waited for to the end").unwrap();
    let expected = vec![desk.address, nowhere[0], nowhere[1]];
    assert_eq!(joined.members, vec![(desk.authority.membership(), expected)]);
    assert_eq!(desk.office.counts().joined, 1, "the ticket is used once");
}

#[tokio::test]
async fn machines_that_start_together_with_one_ticket_all_get_in_though_the_desk_takes_fewer() {
    let desk = Desk::open_slow(Duration::from_millis(500));
    let ticket = desk.ticket_with(|terms| terms.uses = 100);
    let joiners = (0..80).map(|_| async {
        let dir = tempfile::tempdir().unwrap();
        join_in(&dir, &ticket).await.map(|joined| joined.membership.node)
    });
    let joined = futures::future::join_all(joiners).await;
    let nodes: Vec<_> = joined.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!((nodes.len(), desk.office.counts().joined), (80, 80));
}

#[tokio::test]
async fn role_scope_and_cell_are_what_the_ticket_says_and_a_new_authority_gets_the_key() {
    let desk = Desk::open();
    let repository = "sw.example.org".parse().unwrap();
    let ticket = desk.ticket_with(|terms| {
        terms.scope = Scope::Only(vec![repository]);
        terms.role = Role::Seed;
        terms.cell = Some("us/b/r2".parse().unwrap());
    });
    let dir = tempfile::tempdir().unwrap();
    let error = join_in(&dir, &ticket).await.unwrap_err();
    assert!(matches!(error, JoinError::Ticket(TicketError::Cell { .. })), "{error}");
    let joined = join(&ticket, None, dir.path(), false).await.unwrap();
    assert_eq!((joined.membership.role, joined.membership.cell.as_str()), (Role::Seed, "us/b/r2"));
    assert_eq!(joined.membership.scope.to_string(), "sw.example.org");

    let ticket = desk.ticket_with(|terms| terms.role = Role::Authority);
    let dir = tempfile::tempdir().unwrap();
    join_in(&dir, &ticket).await.unwrap();
    let second = Identity::load(dir.path()).unwrap();
    assert_eq!(second.mesh_keys().unwrap().seed(), desk.mesh.keys().seed());
    assert!(Office::open(Arc::new(second), OfficeConfig::default()).is_ok());
}

#[tokio::test]
async fn a_ticket_is_good_for_as_many_nodes_as_it_says_however_often_those_ask() {
    let desk = Desk::open();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let ticket = desk.ticket_with(|terms| terms.uses = 2);
    let joined = join_in(&dirs[0], &ticket).await.unwrap();
    join_in(&dirs[1], &ticket).await.unwrap();
    let error = join_in(&dirs[2], &ticket).await.unwrap_err();
    assert!(matches!(error, JoinError::Used { ticket: used } if used == ticket.id()), "{error}");
    assert!(matches!(Identity::load(dirs[2].path()), Err(IdentityError::NotAMember { .. })));
    // A member is not changed by accident, but it may ask again on purpose.
    let again = join_in(&dirs[0], &ticket).await.unwrap_err();
    assert!(matches!(again, JoinError::Identity(IdentityError::AlreadyAMember { .. })), "{again}");
    let cell = Some("eu/b/r9".parse().unwrap());
    let moved = join(&ticket, cell, dirs[0].path(), true).await.unwrap();
    assert_eq!((moved.membership.node, moved.membership.cell.as_str()), (joined.membership.node, "eu/b/r9"));
    // It stays where it is, unless it is told otherwise or nobody can tell.
    let stayed = join(&ticket, None, dirs[0].path(), true).await.unwrap();
    assert_eq!(stayed.membership.cell.as_str(), "eu/b/r9");
    let bound = desk.ticket_with(|terms| terms.cell = Some("us/c/r7".parse().unwrap()));
    let bound = join(&bound, None, dirs[0].path(), true).await.unwrap();
    assert_eq!(bound.membership.cell.as_str(), "us/c/r7");
    std::fs::remove_file(dirs[0].path().join("charter")).unwrap();
    let unknown = join(&ticket, None, dirs[0].path(), true).await.unwrap_err();
    assert!(matches!(unknown, JoinError::CellUnknown(_)), "{unknown}");
    join(&ticket, Some("eu/b/r9".parse().unwrap()), dirs[0].path(), true).await.unwrap();
    // The authority remembers after a restart.
    let state = StateDir::open(desk.dir.path()).unwrap();
    let mut used = UsedTickets::open(state, crate::ambient::unix_now()).unwrap();
    let expires = ticket.terms().expires;
    let claim = used.claim(ticket.id(), NodeId([5; 32]), 2, expires, UnixTime(0)).unwrap();
    assert_eq!(claim, Usage::Spent);
}

#[tokio::test]
async fn an_expired_ticket_is_refused_by_the_joiner_and_by_the_authority_with_the_time() {
    let desk = Desk::open();
    let dir = tempfile::tempdir().unwrap();
    let ticket = desk.ticket_with(|terms| terms.expires.0 -= 70);
    let at = ticket.terms().expires;
    let error = join_in(&dir, &ticket).await.unwrap_err().to_string();
    assert!(error.contains(&at.to_string()), "{error}");
    // A joiner whose clock is behind still asks; the authority says the same.
    let key = NodeKey::generate();
    let credential = Credential::Joiner(ticket.prove(&key.node()));
    let request = Message::JoinRequest(JoinRequest { cell: CellLabel::default() });
    let answer = approach(&key, &credential, ticket.contacts(), request, Duration::ZERO).await.unwrap();
    assert_eq!(answer.first, Message::JoinReply(JoinReply::Expired { at }));
}

#[tokio::test]
async fn a_ticket_of_another_authority_and_an_address_where_nobody_answers_are_reported_each() {
    let (desk, other) = (Desk::open(), Desk::open());
    let dir = tempfile::tempdir().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let contact =
        Contact { node: desk.authority.node(), addresses: vec![desk.address, silent.local_addr().unwrap()] };
    let terms = other.ticket().terms().clone();
    let key = other.authority.key().ticket_key();
    let ticket = Ticket::issue(&key, other.mesh.keys().mesh(), vec![contact], terms).unwrap();
    let error = join_in(&dir, &ticket).await.unwrap_err();
    let JoinError::Unreachable { tried } = error else { panic!("{error}") };
    assert_eq!(tried.len(), 2, "{tried:?}");
    assert!(matches!(Identity::load(dir.path()), Err(IdentityError::NotAMember { .. })));
}

#[tokio::test]
async fn a_ticket_from_before_a_rotation_works_after_it() {
    let desk = Desk::open();
    let ticket = desk.ticket();
    let now = crate::ambient::unix_now();
    let charter = desk.office.rotate(Duration::from_secs(120), now).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let joined = join_in(&dir, &ticket).await.unwrap();
    assert_eq!(joined.membership.signer(), charter.newest());
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.trust().charter(), charter);
}

#[tokio::test]
async fn a_revoked_node_joins_with_no_earlier_ticket_and_with_a_new_one_it_does() {
    let desk = Desk::open();
    let (unused, shared) = (desk.ticket(), desk.ticket_with(|terms| terms.uses = 5));
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = join_in(&dir, &shared).await.unwrap().membership.node;
    desk.revoke(node);
    for ticket in [&unused, &shared] {
        let error = join(ticket, None, dir.path(), true).await.unwrap_err();
        assert!(matches!(error, JoinError::Revoked { .. }), "{error}");
    }
    let error = join_in(&other, &shared).await.unwrap_err();
    assert!(matches!(error, JoinError::Revoked { .. }), "another name with the same ticket: {error}");
    join_in(&other, &unused).await.unwrap();
    let again = join(&desk.ticket(), None, dir.path(), true).await.unwrap();
    assert_eq!(desk.authority.trust().check(&again.membership, crate::ambient::unix_now()), Ok(()));
    // It was told of its own revocation, and knows that its new certificate is not covered.
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.trust().check(&again.membership, crate::ambient::unix_now()), Ok(()));
    assert_eq!(identity.trust().revocations().number(), 1);
}

#[tokio::test]
async fn a_lapsed_member_is_renewed_by_name_and_a_revoked_one_or_a_stranger_is_not() {
    let desk = Desk::open();
    let now = crate::ambient::unix_now();
    let lapsed = desk.mesh.member_with(|statement| {
        (statement.issued, statement.expires) = (UnixTime(now.0 - 100), UnixTime(now.0 - 10));
    });
    let renewal = ask_to_renew(&lapsed, &[desk.contact()]).await.unwrap();
    let RenewReply::Granted { certificate, .. } = renewal.reply else { panic!("{renewal:?}") };
    let renewed = lapsed.trust().verify(&certificate, now).unwrap();
    assert_eq!(renewed.node, lapsed.node());
    assert!(renewal.documents.iter().any(|document| matches!(document, News::Charter(_))));
    desk.revoke(lapsed.node());
    let told = ask_to_renew(&lapsed, &[desk.contact()]).await.unwrap();
    assert!(matches!(told.reply, RenewReply::Revoked { .. }), "{told:?}");
    assert!(told.members.is_empty());
    assert!(told.documents.iter().any(|document| matches!(document, News::Revocations(_))));
    let stranger = TestMesh::new().member();
    assert!(ask_to_renew(&stranger, &[desk.contact()]).await.is_err());
}

/// A node of its own that is at the desk with `ticket` and says nothing.
async fn silent_joiner(desk: &Desk, ticket: &Ticket, endpoint: &quinn::Endpoint) -> quinn::Connection {
    let key = NodeKey::generate();
    let certified = tls::make_certificate(&key, &Credential::Joiner(ticket.prove(&key.node()))).unwrap();
    let names = [Alpn::Join.name().as_bytes()];
    let tls = tls::client_config(&certified, Rules::ByName, desk.authority.node(), &names).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(tls));
    endpoint.connect_with(client, desk.address, tls::SERVER_NAME).unwrap().await.unwrap()
}

#[tokio::test]
async fn an_expired_ticket_under_many_names_keeps_nobody_from_the_desk() {
    let desk = Desk::open();
    let expired = desk.ticket_with(|terms| terms.expires.0 -= 70);
    let endpoint = client_endpoint().unwrap();
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(silent_joiner(&desk, &expired, &endpoint).await);
    }
    let dir = tempfile::tempdir().unwrap();
    join_in(&dir, &desk.ticket()).await.unwrap();
    // The last had no place, and was told so at once.
    let reason = silent.pop().unwrap().closed().await;
    assert!(reason.to_string().contains("busy"), "{reason}");
}

#[tokio::test]
async fn who_is_at_the_desk_and_says_nothing_has_one_place_and_not_for_long() {
    let desk = Desk::open();
    let (silent, _incoming, _) = bind(&desk.mesh.member());
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(silent.connect(desk.authority.node(), desk.address, Alpn::Join).await.unwrap());
        // In this order to the desk.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for second in &held[1..] {
        let reason = second.quinn().closed().await;
        assert!(reason.to_string().contains("busy"), "{reason}");
    }
    assert!(held[0].is_open());
    let dir = tempfile::tempdir().unwrap();
    join_in(&dir, &desk.ticket()).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(8), held[0].quinn().closed());
    assert!(first.await.is_ok(), "it is sent away in less than the desk's whole time");
}
