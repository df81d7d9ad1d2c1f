//! What a member is asked for, and given, by what its certificate lets it read.

use super::*;
use crate::mesh::transfer::{self, Reply};
use crate::mesh::wire::Request;
use crate::mesh::{MemberConnection, Role, Scope};

/// The repository that the scoped member may read; [`repository`] it may not.
fn its_own() -> RepositoryName {
    "its-own.example.org".parse().unwrap()
}

fn scoped(mesh: &TestMesh, names: &[RepositoryName]) -> Arc<Identity> {
    mesh.member_with(|statement| {
        statement.cell = "eu/a/r1".parse().unwrap();
        statement.scope = Scope::Only(names.to_vec());
        statement.role = Role::Seed;
    })
}

/// Chunks below 32 lie in [`repository`], the others in [`its_own`].
fn stratum() -> Arc<Stratum> {
    let stratum = Stratum::with(64);
    let lies = |n| (chunk(n).id, if n < 32 { repository() } else { its_own() });
    *stratum.lies_in.lock().unwrap() = (0..64).map(lies).collect();
    stratum
}

/// Notes in which repositories peers ask.
fn noting(seen: &Arc<Mutex<Vec<RepositoryName>>>) -> Tamper {
    let seen = Arc::clone(seen);
    Box::new(move |mut asked| {
        let (pass, passed) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                if let PeerRequest::Ask(ask) = &request {
                    seen.lock().unwrap().push(ask.repository.clone());
                }
                if pass.send(request).await.is_err() {
                    return;
                }
            }
        });
        passed
    })
}

#[tokio::test]
async fn a_scoped_member_is_a_home_of_what_it_may_read_and_asked_for_nothing_else() {
    let (mesh, stratum, seen) = (TestMesh::new(), stratum(), Arc::default());
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    let options = Options { tamper: Some(noting(&seen)), ..Options::cell("eu/a/r1") };
    // As a seed it is the home of something whatever it is called.
    let s = TestNode::start_as(scoped(&mesh, &[its_own()]), options, &[&a], &stratum);
    let b = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&a], &stratum);
    all_see(&[&a, &b, &s], 2).await;
    let limit = Duration::from_secs(30);
    for n in 0..32 {
        a.get(n).await.unwrap();
        b.get(n).await.unwrap();
        assert!(!s.holds(n) && stratum.given(n) == 1, "chunk {n}");
        // It was not even thought of: nothing is lost on a refusal.
        for node in [&a, &b] {
            let story = node.mesh.story(&chunk(n).id);
            let steps = story.iter().flat_map(|story| &story.steps);
            for step in steps {
                assert_ne!(step.what, Happened::Asked(s.identity.node()), "chunk {n}");
            }
        }
    }
    for n in 32..64 {
        a.get_from(&its_own(), n, limit).await.unwrap();
        b.get_from(&its_own(), n, limit).await.unwrap();
        assert_eq!(stratum.given(n), 1, "chunk {n}");
    }
    assert!((32..64).any(|n| s.holds(n)), "of eight slices it is the home of some");
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|name| *name == its_own()));
}

/// The final answer of a node to one ask.
async fn answer(connection: &MemberConnection, repository: RepositoryName, chunk: ChunkRef) -> Reply {
    let request = Request { repository, class: Class::Read, chunks: vec![chunk] };
    let mut asking = transfer::ask(connection.clone(), request).unwrap();
    loop {
        match asking.next().await.unwrap().1 {
            Reply::Wait { .. } => {}
            last => return last,
        }
    }
}

#[tokio::test]
async fn a_chunk_is_missing_in_a_repository_in_which_it_does_not_lie() {
    let (mesh, stratum) = (TestMesh::new(), stratum());
    let a = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    a.get(0).await.unwrap();
    a.get_from(&its_own(), 32, Duration::from_secs(30)).await.unwrap();
    // Held since before it started: what it is, nobody told it.
    for n in [8, 40] {
        a.local.stored.lock().unwrap().insert(chunk(n).id, bytes_of(n));
    }
    let dial = async |names: &[RepositoryName]| {
        let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let (endpoint, incoming) = Endpoint::bind(config, scoped(&mesh, names)).unwrap();
        let connection = endpoint.connection(a.identity.node(), a.addr).await.unwrap();
        (connection, endpoint, incoming)
    };
    let (thief, _endpoint, _incoming) = dial(&[its_own()]).await;
    let missing = async |chunk: ChunkRef| {
        let reply = answer(&thief, its_own(), chunk).await;
        assert!(matches!(reply, Reply::Missing { .. }), "{reply:?}");
    };
    missing(chunk(0)).await;
    missing(chunk(8)).await;
    // Nor does it help to say that it lies in a segment of the other repository.
    missing(ChunkRef { place: chunk(33).place, ..chunk(0) }).await;
    missing(ChunkRef { place: chunk(41).place, ..chunk(8) }).await;
    let (reader, _endpoint, _incoming) = dial(&[repository()]).await;
    for n in [0, 8] {
        let reply = answer(&reader, repository(), chunk(n)).await;
        assert!(matches!(&reply, Reply::Arrived(bytes) if *bytes == bytes_of(n)), "{reply:?}");
    }
    for n in [32, 40] {
        let reply = answer(&thief, its_own(), chunk(n)).await;
        assert!(matches!(&reply, Reply::Arrived(bytes) if *bytes == bytes_of(n)), "{reply:?}");
    }
    missing(chunk(0)).await;
}
