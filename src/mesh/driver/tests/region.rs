//! Cells of a region that find each other, and nodes that find the mesh again.

use super::*;

fn no_dht(cell: &'static str) -> Options {
    Options { dht: false, ..Options::cell(cell) }
}

#[tokio::test]
async fn cells_of_a_region_find_together_by_contacts_alone_and_take_one_copy() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(64));
    let a = TestNode::start(&mesh, no_dht("eu/a/r1"), &[], &stratum);
    let b = TestNode::start(&mesh, no_dht("eu/a/r2"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    // C was told of B only, who names A to it.
    let c = TestNode::start(&mesh, no_dht("eu/b/r3"), &[&b], &stratum);
    all_see(&[&a, &b, &c], 2).await;
    let nodes = [&a, &b, &c];
    let reads = nodes.into_iter().flat_map(|node| (0..64).map(move |n| node.get(n)));
    for read in futures::future::join_all(reads).await {
        read.unwrap();
    }
    for n in 0..64 {
        assert_eq!(stratum.given(n), 1, "chunk {n}");
    }
}

#[tokio::test]
async fn a_node_that_starts_waits_for_its_neighbours_rather_than_ask_the_strata_for_what_they_hold() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(16));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    for n in 0..16 {
        a.get(n).await.unwrap();
    }
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    // At once: nobody is seen yet.
    for read in futures::future::join_all((0..16).map(|n| b.get(n))).await {
        assert_eq!(read, Ok(Obtained::Peer(a.identity.node())));
    }
    assert!((0..16).all(|n| stratum.given(n) == 1));
}

#[tokio::test]
async fn a_node_whose_contacts_are_all_dead_finds_the_mesh_by_name() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(8));
    let dead = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    a.get(0).await.unwrap();
    dead.mesh.shutdown().await;
    // One name leads nowhere, one has an address more than there are listeners.
    let port = a.addr.port();
    let bootstrap = vec!["no-such-host.invalid:7400".into(), format!("localhost:{port}")];
    for dht in [true, false] {
        let options = Options { bootstrap: bootstrap.clone(), dht, ..Options::cell("eu/a/r1") };
        let b = TestNode::start(&mesh, options, &[&dead], &stratum);
        all_see(&[&b], 1).await;
        assert_eq!(b.get(0).await, Ok(Obtained::Peer(a.identity.node())));
        b.mesh.shutdown().await;
    }
}

#[tokio::test]
async fn a_node_whose_contacts_are_all_dead_finds_the_mesh_on_its_local_network() {
    let (mesh, other, stratum) = (TestMesh::new(), TestMesh::new(), Stratum::with(8));
    let lan = || Options { mdns: true, ..Options::cell("eu/a/r1") };
    let dead = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let stranger = TestNode::start(&other, lan(), &[], &stratum);
    let a = TestNode::start(&mesh, lan(), &[], &stratum);
    dead.mesh.shutdown().await;
    let b = TestNode::start(&mesh, lan(), &[&dead], &stratum);
    all_see(&[&a, &b], 1).await;
    assert_eq!(stranger.up().await, 0, "of another mesh");
    let seen: Vec<_> = b.mesh.peers().await.into_iter().filter(|p| p.up).map(|p| p.node).collect();
    assert_eq!(seen, [a.identity.node()]);
}

#[tokio::test]
async fn a_name_that_leads_to_another_mesh_leads_nowhere() {
    let (mesh, other, stratum) = (TestMesh::new(), TestMesh::new(), Stratum::with(1));
    let stranger = TestNode::start(&other, Options::cell("eu/a/r1"), &[], &stratum);
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (endpoint, _incoming) = Endpoint::bind(config, mesh.member()).unwrap();
    let error = endpoint.connect_any(stranger.addr).await.unwrap_err().to_string();
    assert!(
        error.contains("no member of this mesh") && error.contains(&stranger.addr.to_string()),
        "{error}"
    );
    assert_eq!(stranger.up().await, 0);
}

#[tokio::test]
async fn what_is_known_of_the_region_is_told_to_who_asks_and_only_that() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(0));
    let a = TestNode::start(&mesh, no_dht("eu/a/r1"), &[], &stratum);
    let b = TestNode::start(&mesh, no_dht("eu/a/r2"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (asker, _incoming) = Endpoint::bind(config, mesh.member()).unwrap();
    let connection = asker.connection(a.identity.node(), a.addr).await.unwrap();
    let authority = asker.identity().trust();
    let (bits, list) =
        super::super::super::transfer::members(&connection, authority, ambient::unix_now()).await.unwrap();
    assert_eq!(bits, 0);
    let named: Vec<_> =
        list.iter().map(|(certificate, _)| (certificate.node, certificate.cell.as_str())).collect();
    assert_eq!(named, [(a.identity.node(), "eu/a/r1"), (b.identity.node(), "eu/a/r2")]);
}

#[tokio::test]
async fn a_node_whose_address_changes_is_found_at_the_new_one() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(4));
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let identity = mesh.member_with(|membership| membership.cell = "eu/a/r1".parse().unwrap());
    let config = EndpointConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)));
    let bound = Endpoint::bind(config, Arc::clone(&identity)).unwrap();
    let b = TestNode::over(bound, identity, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], b.addr.port()));
    b.mesh.reached_at(vec![elsewhere]).await;
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (asker, _incoming) = Endpoint::bind(config, mesh.member()).unwrap();
    for told_by in [&b, &a] {
        eventually("others are told of it", || async {
            let connection = asker.connection(told_by.identity.node(), told_by.addr).await.unwrap();
            let (authority, now) = (asker.identity().trust(), ambient::unix_now());
            let (_, list) =
                super::super::super::transfer::members(&connection, authority, now).await.unwrap();
            list.iter().any(|(member, at)| member.node == b.identity.node() && at[0] == elsewhere)
        })
        .await;
    }
}
