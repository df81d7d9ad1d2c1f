//! The real endpoint and both sides of a transfer on the virtual network: loss, reordering, duplication, black holes,
//! half-open connections, addresses that change; and that the same seed gives the same run.

use super::world::address;
use super::{Link, World, run};
use crate::mesh::transfer::{self, Asking, PeerRequest, Reply, TransferError};
use crate::mesh::wire::Request;
use crate::mesh::{CloseCode, ConnectError, Endpoint, EndpointConfig, Incoming, RateLimits};
use crate::model::{ChunkRef, Class, ContentId, NodeId, Place};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

fn content(number: usize, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn chunk_of(bytes: &Bytes) -> ChunkRef {
    let len = u32::try_from(bytes.len()).unwrap();
    let place = Place { segment: ContentId::of(b"segment"), ordinal: 0, offset: 0, stored_len: len };
    ChunkRef { id: ContentId::of(bytes), plain_len: len, place }
}

/// Serves every connection from `stored`, each chunk after `pause`.
fn serve_all(mut incoming: Incoming, stored: Vec<Bytes>, pause: Duration) {
    let stored: Arc<BTreeMap<ContentId, Bytes>> =
        Arc::new(stored.into_iter().map(|bytes| (ContentId::of(&bytes), bytes)).collect());
    tokio::spawn(async move {
        while let Some(connection) = incoming.chunks.recv().await {
            let (requests, mut asked) = mpsc::channel(256);
            tokio::spawn(transfer::serve(connection, requests));
            let stored = stored.clone();
            tokio::spawn(async move {
                while let Some(request) = asked.recv().await {
                    let PeerRequest::Ask(ask) = request else { continue };
                    let bytes = stored[&ask.chunk.id].clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        ask.reply.data(bytes).await
                    });
                }
            });
        }
    });
}

async fn ask(from: &Endpoint, node: NodeId, number: u8, wanted: &[Bytes]) -> Result<Asking, ConnectError> {
    let connection = from.connection(node, address(number)).await?;
    let request = Request {
        repository: "sw.example.org".parse().unwrap(),
        class: Class::Read,
        chunks: wanted.iter().map(chunk_of).collect(),
    };
    Ok(transfer::ask(connection, request).unwrap())
}

/// Reads every reply; how many chunks arrived, and the errors.
async fn collect(mut asking: Asking, wanted: &[Bytes]) -> (usize, Vec<TransferError>) {
    let (mut arrived, mut errors) = (0, Vec::new());
    while let Some((index, reply)) = asking.next().await {
        match reply {
            Reply::Arrived(bytes) => {
                assert_eq!(bytes, wanted[index]);
                arrived += 1;
            }
            Reply::Failed(error) => errors.push(error),
            other => panic!("{other:?}"),
        }
    }
    (arrived, errors)
}

fn rough() -> Link {
    Link {
        latency: Duration::from_millis(5),
        jitter: Duration::from_millis(10),
        loss_permille: 100,
        duplicate_permille: 20,
        bytes_per_s: Some(12_500_000),
        ..Link::default()
    }
}

/// 40 chunks of 64 KiB and one of 1 MiB over a rough network; the time it took, and the trace.
async fn rough_transfer(world: World) -> (Duration, String) {
    let (serving, asking) = (world.mesh.member(), world.mesh.member());
    let (_server, incoming) = world.bind(&serving, 1);
    let (asker, _incoming) = world.bind(&asking, 2);
    let mut wanted: Vec<Bytes> = (0..40).map(|number| content(number, 64 << 10)).collect();
    wanted.push(content(40, 1 << 20));
    serve_all(incoming, wanted.clone(), Duration::ZERO);
    let replies = collect(ask(&asker, serving.node(), 1, &wanted).await.unwrap(), &wanted).await;
    assert!(matches!(replies, (41, errors) if errors.is_empty()));
    let counts = world.net.counts();
    assert!(counts.lost > 100 && counts.overtaken > 100 && counts.duplicated > 10, "{counts:?}");
    (world.began.elapsed(), world.net.trace())
}

#[test]
fn a_transfer_completes_under_loss_reordering_and_duplication() {
    let (took, _) = run(1, rough(), rough_transfer);
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_datagram_and_another_seed_another() {
    let runs: Vec<_> = [7, 7, 8].into_iter().map(|seed| run(seed, rough(), rough_transfer)).collect();
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0].1, runs[2].1);
}

#[test]
fn a_black_holed_peer_costs_the_time_out_and_the_reader_goes_on_elsewhere() {
    run(2, Link::default(), |world| async move {
        let (dead, alive, asking) = (world.mesh.member(), world.mesh.member(), world.mesh.member());
        let wanted: Vec<Bytes> = (0..8).map(|number| content(number, 64 << 10)).collect();
        let (_dead, incoming) = world.bind(&dead, 1);
        serve_all(incoming, wanted.clone(), Duration::from_secs(1));
        let (_alive, incoming) = world.bind(&alive, 2);
        serve_all(incoming, wanted.clone(), Duration::ZERO);
        let (asker, _incoming) = world.bind(&asking, 3);
        let under_way = ask(&asker, dead.node(), 1, &wanted).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.net.black_hole(address(1));
        let began = Instant::now();
        let (arrived, errors) = collect(under_way, &wanted).await;
        assert_eq!((arrived, errors.len()), (0, 8));
        assert!(errors.iter().all(|error| matches!(error, TransferError::NoProgress(_))), "{errors:?}");
        assert_eq!(
            began.elapsed().as_secs(),
            transfer::NO_PROGRESS.as_secs() - 1,
            "counted from the last byte"
        );
        // Whoever dials it anew waits for the handshake's time-out only.
        asker.disconnect(&dead.node());
        let began = Instant::now();
        let refused = ask(&asker, dead.node(), 1, &wanted).await.unwrap_err();
        assert!(matches!(refused, ConnectError::TimedOut { .. }), "{refused}");
        assert_eq!(began.elapsed().as_secs(), 5);
        let replies = collect(ask(&asker, alive.node(), 2, &wanted).await.unwrap(), &wanted).await;
        assert!(matches!(replies, (8, errors) if errors.is_empty()));
    });
}

/// A transfer over a path that carries jumbo frames until, in the middle of it, it does not; the trace.
async fn narrowed(world: World) -> String {
    let (serving, asking) = (world.mesh.member(), world.mesh.member());
    let jumbo =
        |number| EndpointConfig { mtu: EndpointConfig::MTU_MAX, ..EndpointConfig::new(address(number)) };
    let (server, incoming) = world.bind_with(jumbo(1), &serving);
    let (asker, _incoming) = world.bind_with(jumbo(2), &asking);
    let wanted: Vec<Bytes> = (0..64).map(|number| content(number, 64 << 10)).collect();
    serve_all(incoming, wanted.clone(), Duration::ZERO);
    let get =
        async |wanted: &[Bytes]| collect(ask(&asker, serving.node(), 1, wanted).await.unwrap(), wanted).await;
    let path = |bytes_per_s, largest| {
        for (from, to) in [(1, 2), (2, 1)] {
            let link = Link { bytes_per_s, largest, ..Link::default() };
            world.net.set_link(address(from), address(to), link);
        }
    };
    let mtu = || usize::from(server.one_of_each()[0].quinn().stats().path.current_mtu);

    assert!(matches!(get(&wanted).await, (64, errors) if errors.is_empty()));
    assert!(mtu() > 6_500, "the path's jumbo frames are found and used: {}", mtu());
    path(Some(2 << 20), None);
    let under_way = ask(&asker, serving.node(), 1, &wanted).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    path(Some(2 << 20), Some(1_400));
    let (arrived, errors) = collect(under_way, &wanted).await;
    assert_eq!((arrived, errors.len()), (64, 0), "what was under way arrives: {errors:?}");
    assert!(world.net.counts().too_large > 0 && mtu() <= 1_400);
    for endpoint in [&server, &asker] {
        assert!(endpoint.conduct().counts().all(|(_, count)| count == 0), "nobody is blamed for it");
        assert_eq!(endpoint.connections(), 1, "it is the connection of before");
    }
    // Once the path has been left in peace, what it takes now is searched for again.
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(matches!(get(&wanted[..4]).await, (4, errors) if errors.is_empty()));
    }
    assert!((1_350..=1_400).contains(&mtu()), "{}", mtu());
    assert_eq!(server.connections(), 1);
    world.net.trace()
}

#[test]
fn a_path_that_suddenly_swallows_large_datagrams_costs_moments_and_no_connection() {
    let runs: Vec<_> = [14, 14, 15].into_iter().map(|seed| run(seed, Link::default(), narrowed)).collect();
    assert_eq!(runs[0], runs[1], "the same to the datagram");
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn a_half_open_connection_is_noticed_by_the_next_ask_and_dialled_anew() {
    run(3, Link::default(), |world| async move {
        let (serving, asking) = (world.mesh.member(), world.mesh.member());
        let wanted: Vec<Bytes> = (0..4).map(|number| content(number, 64 << 10)).collect();
        let (server, incoming) = world.bind(&serving, 1);
        serve_all(incoming, wanted.clone(), Duration::ZERO);
        let (asker, _incoming) = world.bind(&asking, 2);
        let replies = collect(ask(&asker, serving.node(), 1, &wanted).await.unwrap(), &wanted).await;
        assert!(matches!(replies, (4, errors) if errors.is_empty()));
        let before = asker.connection(serving.node(), address(1)).await.unwrap();
        // The server loses its power and comes back: nobody was told.
        world.net.black_hole(address(1));
        drop(server);
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.net.unplug(address(1));
        world.net.heal(address(1));
        let (_server, incoming) = world.bind(&serving, 1);
        serve_all(incoming, wanted.clone(), Duration::ZERO);
        assert!(before.is_open(), "nothing told the asker");
        // The asker gives up as the core does, after two seconds.
        let began = Instant::now();
        let asking = ask(&asker, serving.node(), 1, &wanted).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_secs(2), collect(asking, &wanted)).await;
        assert!(silent.is_err(), "{silent:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!before.is_open());
        let replies = collect(ask(&asker, serving.node(), 1, &wanted).await.unwrap(), &wanted).await;
        assert!(matches!(replies, (4, errors) if errors.is_empty()));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    });
}

#[test]
fn a_node_whose_address_changes_is_connected_anew() {
    run(4, Link::default(), |world| async move {
        let (serving, asking) = (world.mesh.member(), world.mesh.member());
        let wanted: Vec<Bytes> = (0..4).map(|number| content(number, 64 << 10)).collect();
        let (_server, incoming) = world.bind(&serving, 1);
        serve_all(incoming, wanted.clone(), Duration::ZERO);
        let (asker, _incoming) = world.bind(&asking, 2);
        let replies = collect(ask(&asker, serving.node(), 1, &wanted).await.unwrap(), &wanted).await;
        assert!(matches!(replies, (4, errors) if errors.is_empty()));
        world.net.see_at(address(2), address(77));
        // Connections do not migrate: the server hears nothing that comes from elsewhere.
        let asking = ask(&asker, serving.node(), 1, &wanted).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(2), collect(asking, &wanted)).await.is_err());
        tokio::time::sleep(Duration::from_millis(10)).await;
        let replies = collect(ask(&asker, serving.node(), 1, &wanted).await.unwrap(), &wanted).await;
        assert!(matches!(replies, (4, errors) if errors.is_empty()));
    });
}

#[test]
fn a_bad_link_in_one_direction_slows_down_nobody_else() {
    run(5, Link::default(), |world| async move {
        let (bad, good, asking) = (world.mesh.member(), world.mesh.member(), world.mesh.member());
        let wanted: Vec<Bytes> = (0..8).map(|number| content(number, 64 << 10)).collect();
        let mut endpoints = Vec::new();
        for (number, identity) in [(1, &bad), (2, &good)] {
            let (endpoint, incoming) = world.bind(identity, number);
            serve_all(incoming, wanted.clone(), Duration::ZERO);
            endpoints.push(endpoint);
        }
        let lossy = Link { loss_permille: 300, latency: Duration::from_millis(40), ..Link::default() };
        world.net.set_link(address(1), address(3), lossy);
        let (asker, _incoming) = world.bind(&asking, 3);
        let slow = async {
            collect(ask(&asker, bad.node(), 1, &wanted).await.unwrap(), &wanted).await;
            world.began.elapsed()
        };
        let fast = async {
            collect(ask(&asker, good.node(), 2, &wanted).await.unwrap(), &wanted).await;
            world.began.elapsed()
        };
        let (slow, fast) = tokio::join!(slow, fast);
        assert!(fast < Duration::from_millis(200) && slow > 4 * fast, "{slow:?} and {fast:?}");
    });
}

async fn crowded(world: World) {
    let members: Vec<_> = (0..5).map(|_| world.mesh.member()).collect();
    let config = EndpointConfig { max_connections: 2, ..EndpointConfig::new(address(1)) };
    let (server, incoming) = world.bind_with(config, &members[0]);
    let wanted = [content(0, 10_000)];
    // Each request takes five seconds.
    serve_all(incoming, wanted.to_vec(), Duration::from_secs(5));
    let clients: Vec<_> =
        (2..6_u8).map(|number| world.bind(&members[usize::from(number) - 1], number)).collect();
    let node = members[0].node();
    let get = async |client: usize| {
        collect(ask(&clients[client].0, node, 1, &wanted).await.unwrap(), &wanted).await
    };
    let open = |client: usize| server.connections_by_node().contains_key(&members[client + 1].node());
    for client in [0, 1, 0] {
        assert_eq!(get(client).await.0, 1);
    }
    assert!(open(0) && open(1));
    assert_eq!(get(2).await.0, 1, "one that nobody used made room");
    assert!(open(0) && !open(1) && open(2), "the one that was idle for longer");
    // Both are in use now: who comes has to wait.
    let (first, second, (third, ())) = tokio::join!(get(0), get(2), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        (get(3).await, assert!(open(0) && open(2) && !open(3)))
    });
    assert_eq!((first.0, second.0), (1, 1));
    assert!(matches!(&third.1[..], [TransferError::Connection(_)]), "{third:?}");
}

#[test]
fn the_longest_idle_connection_makes_room_for_another_and_one_in_use_does_not() {
    run(11, Link::default(), crowded);
}

/// How long 8 MiB take between two nodes with these limits.
async fn limited(world: World, serving: RateLimits, asking: RateLimits) -> Duration {
    let (one, two) = (world.mesh.member(), world.mesh.member());
    let at = |number, limits| EndpointConfig { limits, ..EndpointConfig::new(address(number)) };
    let (server, incoming) = world.bind_with(at(1, serving), &one);
    let (asker, _incoming) = world.bind_with(at(2, asking), &two);
    let wanted: Vec<Bytes> = (0..8).map(|number| content(number, 1 << 20)).collect();
    serve_all(incoming, wanted.clone(), Duration::ZERO);
    let began = Instant::now();
    let replies = collect(ask(&asker, one.node(), 1, &wanted).await.unwrap(), &wanted).await;
    assert!(matches!(&replies, (8, errors) if errors.is_empty()), "{replies:?}");
    for endpoint in [server, asker] {
        assert!(endpoint.conduct().counts().all(|(_, count)| count == 0), "nobody is blamed for it");
    }
    began.elapsed()
}

#[test]
fn a_limit_of_either_side_holds_and_nobody_is_blamed_for_being_slow() {
    let none = RateLimits::default();
    let up = RateLimits { upload_bytes_per_s: 2 << 20, ..none };
    let down = RateLimits { download_bytes_per_s: 1 << 20, ..none };
    let free = run(12, Link::default(), |world| limited(world, none, none));
    assert!(free < Duration::from_secs(1), "{free:?}");
    for (serving, asking, seconds) in [(up, none, 4.0), (none, down, 8.0), (up, down, 8.0)] {
        let took = run(12, Link::default(), |world| limited(world, serving, asking)).as_secs_f64();
        // The first burst comes at once, and what is owed for the last piece is not waited for.
        assert!((0.85 * seconds..1.05 * seconds).contains(&took), "{took} s with {serving:?} and {asking:?}");
    }
}

#[test]
fn a_node_is_reached_at_whichever_of_its_addresses_answers() {
    run(13, Link::default(), |world| async move {
        let (one, two) = (world.mesh.member(), world.mesh.member());
        let (_server, _incoming) = world.bind(&one, 1);
        let (dialler, _incoming) = world.bind(&two, 2);
        let nobody = [address(7), address(8)];
        let alone = dialler.connection(one.node(), nobody[0]).await;
        assert!(matches!(alone, Err(ConnectError::TimedOut { .. })), "{alone:?}");
        let began = Instant::now();
        dialler.know(one.node(), &[nobody[0], nobody[1], address(1)]);
        let connection = dialler.connection(one.node(), nobody[0]).await.unwrap();
        assert_eq!((connection.node(), connection.address()), (one.node(), address(1)));
        let took = began.elapsed();
        assert!((500..600).contains(&took.as_millis()), "two that are silent were waited for: {took:?}");
        // One that says who else it is, is left at once.
        let (other, _incoming) = world.bind(&world.mesh.member(), 7);
        connection.close(CloseCode::Done);
        let began = Instant::now();
        dialler.know(one.node(), &[address(7), address(1)]);
        let again = dialler.connection(one.node(), address(7)).await.unwrap();
        assert_eq!(again.address(), address(1));
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        drop(other);
    });
}
