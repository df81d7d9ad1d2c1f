//! Members with valid certificates that misbehave, over the real endpoint. Each attack has a bound, a counter and an
//! end, and honest peers are served meanwhile. `docs/threat-model.md` holds the table.

use super::mesh_tests::until;
use super::world::address;
use super::{Link, World, run};
use crate::mesh::conduct::{BAN, Offence};
use crate::mesh::driver::tests::{Options, Stratum, TestNode, chunk, repository, root};
use crate::mesh::swim::{Swim, Tuning};
use crate::mesh::tls::{self, Rules};
use crate::mesh::transfer::{self, FrameReader, Reply, TransferError};
use crate::mesh::wire::{DataHeader, Holder, Message, REQUEST_MAX_CHUNKS, Request, SliceHeld, Told, VERSION};
use crate::mesh::{Alpn, Identity, Incoming, MemberConnection, News, NewsVerdict, Obtained};
use crate::model::{ChunkRef, Class, ContentId, NodeId, Place};
use quinn::{Connection, SendStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(10);

/// A member that speaks QUIC without this program's endpoint: it says whatever a test has it say.
pub(super) struct Raw {
    pub(super) identity: Arc<Identity>,
    quinn: quinn::Endpoint,
    /// Bytes that it lets others send before it reads, if it is miserly.
    window_bytes: Option<u32>,
}

impl Raw {
    /// A member at machine `number`.
    pub(super) fn member(world: &World, number: u8) -> Self {
        let mut config = quinn::EndpointConfig::default();
        config.grease_quic_bit(false);
        config.rng_seed(Some(crate::ambient::secret()));
        let socket = world.net.socket(address(number));
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime).unwrap();
        Self { identity: world.mesh.member(), quinn, window_bytes: None }
    }

    /// Dials a node, offering the protocols `alpns`.
    pub(super) async fn dial(
        &self,
        node: &TestNode,
        alpns: &[&[u8]],
    ) -> Result<Connection, quinn::ConnectionError> {
        let rules = Rules::Member { trust: self.identity.trust().clone(), desk: None };
        let wanted = node.identity.node();
        let tls = tls::client_config(&self.identity.certified(), rules, wanted, alpns).unwrap();
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        if let Some(window) = self.window_bytes {
            let mut transport = quinn::TransportConfig::default();
            transport.receive_window(window.into());
            client.transport_config(Arc::new(transport));
        }
        self.quinn.connect_with(client, node.addr, tls::SERVER_NAME).unwrap().await
    }

    /// Dials a node as any member does.
    async fn connect(&self, node: &TestNode) -> Connection {
        self.dial(node, &[b"starling/2"]).await.unwrap()
    }

    /// Opens a stream and says something.
    pub(super) async fn say(&self, connection: &Connection, bytes: &[u8]) -> (SendStream, FrameReader) {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, FrameReader::new(recv, LIMIT))
    }
}

fn spoken(message: &Message) -> Vec<u8> {
    [&[VERSION][..], &message.to_frame().unwrap()].concat()
}

fn wish(chunks: Vec<ChunkRef>) -> Vec<u8> {
    spoken(&Message::Request(Request { repository: repository(), class: Class::Read, chunks }))
}

/// A chunk that does not exist anywhere.
fn ghost(n: u64) -> ChunkRef {
    let id = ContentId::of(&[&b"ghost"[..], &n.to_le_bytes()].concat());
    let place = Place { segment: id, ordinal: 0, offset: 0, stored_len: 20_000 };
    ChunkRef { id, plain_len: 20_000, place }
}

fn offences(node: &TestNode, offence: Offence) -> u64 {
    node.mesh.offences().into_iter().find(|(known, _)| *known == offence).unwrap().1
}

/// A node with some chunks, an honest neighbour that has none, and a hostile member.
async fn victim(world: &World, chunks: u64) -> (TestNode, TestNode, Raw) {
    let stratum = Stratum::with(chunks);
    let victim = world.cell(1, &stratum).await.pop().unwrap();
    for n in 0..chunks {
        victim.get(n).await.unwrap();
    }
    stratum.dead.store(true, std::sync::atomic::Ordering::Relaxed);
    let options = Options { dht: false, ..Options::cell("eu/a/r1") };
    let honest = world.node(2, options, &[&victim], &stratum);
    for node in [&victim, &honest] {
        until("they see each other", 60, || async { node.up().await == 1 }).await;
    }
    (victim, honest, Raw::member(world, 9))
}

/// The honest neighbour reads a chunk that only the victim has, within `limit`.
async fn is_served(honest: &TestNode, victim: &TestNode, n: u64, limit: Duration) {
    let began = Instant::now();
    assert_eq!(honest.get(n).await, Ok(Obtained::Peer(victim.identity.node())), "chunk {n}");
    assert!(began.elapsed() <= limit, "{:?}", began.elapsed());
}

async fn is_banned(connection: &Connection) {
    let closed = tokio::time::timeout(Duration::from_secs(60), connection.closed()).await.expect("closed");
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { panic!("{closed:?}") };
    assert_eq!(close.error_code, crate::mesh::CloseCode::Banned.into());
}

#[test]
fn frames_that_no_version_has_lead_to_a_ban_that_ends() {
    run(1, Link::default(), |world| async move {
        let (victim, honest, hostile) = victim(&world, 2).await;
        let connection = hostile.connect(&victim).await;
        let oversized = [VERSION, 1, 0xff, 0xff, 0xff, 0x7f];
        let garbage = [VERSION, 1, 3, 0, 0, 0, 0xff, 0xff, 0xff];
        let no_request = spoken(&Message::NewsAck);
        for bytes in [&oversized[..], &garbage, &no_request, &oversized, &garbage, &no_request] {
            let _stream = hostile.say(&connection, bytes).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        is_banned(&connection).await;
        assert_eq!((offences(&victim, Offence::Protocol), victim.mesh.counts().bans), (6, 1));
        is_served(&honest, &victim, 0, Duration::from_secs(1)).await;
        // TLS lets it in, and it is told right after.
        is_banned(&hostile.connect(&victim).await).await;
        assert!(victim.mesh.door_counts().turned_away >= 1);
        tokio::time::sleep(BAN).await;
        let again = hostile.connect(&victim).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(again.close_reason().is_none(), "the ban is over");
    });
}

#[test]
fn a_flood_of_asks_is_answered_busy_and_others_are_served_meanwhile() {
    run(2, Link::default(), |world| async move {
        let (victim, honest, hostile) = victim(&world, 8).await;
        let mut connections = Vec::new();
        for _ in 0..8 {
            connections.push(hostile.connect(&victim).await);
        }
        // Eight connections with as many asks as fit the streams that one may open.
        let mut streams = Vec::new();
        for (index, connection) in connections.iter().enumerate() {
            for stream in 0..20 {
                let first = u64::try_from((index * 20 + stream) * REQUEST_MAX_CHUNKS).unwrap();
                let chunks = (first..first + REQUEST_MAX_CHUNKS as u64).map(ghost).collect();
                streams.push(hostile.say(connection, &wish(chunks)).await);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(offences(&victim, Offence::AskFlood) > 100);
        let asked = victim.mesh.counts().asks_received;
        assert!(asked <= 2 * 1_024, "of {} asks {asked} reached the driver", 160 * REQUEST_MAX_CHUNKS);
        is_served(&honest, &victim, 0, Duration::from_secs(3)).await;
        // It goes on until patience ends.
        for round in 0..10_u64 {
            for connection in &connections {
                let chunks: Vec<ChunkRef> =
                    (0..REQUEST_MAX_CHUNKS as u64).map(|n| ghost(round * 1_000 + n)).collect();
                let bytes = wish(chunks);
                for _ in 0..20 {
                    let Ok((mut send, recv)) = connection.open_bi().await else { break };
                    let _ = send.write_all(&bytes).await;
                    streams.push((send, FrameReader::new(recv, LIMIT)));
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        is_banned(&connections[0]).await;
        is_served(&honest, &victim, 1, Duration::from_secs(3)).await;
    });
}

#[test]
fn who_opens_streams_and_says_nothing_or_asks_for_lists_again_and_again_is_banned() {
    run(3, Link::default(), |world| async move {
        for silent in [true, false] {
            let number = if silent { 10 } else { 20 };
            let stratum = Stratum::with(1);
            let node = world.node(number, Options { dht: false, ..Options::cell("eu/a/r1") }, &[], &stratum);
            let hostile = Raw::member(&world, number + 1);
            let connection = hostile.connect(&node).await;
            let mut streams = Vec::new();
            for n in 0..64 {
                let list = spoken(if n % 2 == 0 { &Message::AllNews } else { &Message::Members });
                let Ok((mut send, recv)) = connection.open_bi().await else { break };
                let _ = send.write_all(if silent { &[VERSION] } else { &list }).await;
                streams.push((send, recv));
            }
            is_banned(&connection).await;
            assert!(offences(&node, Offence::RequestFlood) >= 30);
        }
    });
}

#[test]
fn who_asks_and_never_reads_holds_an_upload_for_seconds_only() {
    run(4, Link::default(), |world| async move {
        let (victim, honest, mut hostile) = victim(&world, 24).await;
        hostile.window_bytes = Some(5_000);
        let connection = hostile.connect(&victim).await;
        let mut streams = Vec::new();
        for _ in 0..200 {
            streams.push(hostile.say(&connection, &wish((0..24).map(chunk).collect())).await);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        is_served(&honest, &victim, 0, Duration::from_secs(8)).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(offences(&victim, Offence::SlowReader) > 0);
        is_served(&honest, &victim, 1, Duration::from_secs(8)).await;
    });
}

#[test]
fn who_reads_none_of_several_chunks_loses_all_of_them_with_the_first() {
    run(14, Link::default(), |world| async move {
        let (victim, _, mut hostile) = victim(&world, 24).await;
        hostile.window_bytes = Some(5_000);
        let connection = hostile.connect(&victim).await;
        let mut streams = Vec::new();
        for one in 0..8 {
            streams.push(hostile.say(&connection, &wish(vec![chunk(one)])).await);
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
        let slow = offences(&victim, Offence::SlowReader);
        assert!((7..=8).contains(&slow), "not one after the other: {slow}");
    });
}

#[test]
fn a_flood_of_documents_is_cut_short_and_news_of_others_arrive() {
    run(5, Link::default(), |world| async move {
        let (victim, honest, hostile) = victim(&world, 1).await;
        let connection = hostile.connect(&victim).await;
        assert_eq!(victim.mesh.announce_local(root(5)).await, NewsVerdict::Fresh);
        let known = spoken(&Message::News(root(5)));
        for _ in 0..700 {
            let Ok((mut send, recv)) = connection.open_bi().await else { break };
            if send.write_all(&known).await.is_err() {
                break;
            }
            let _ = FrameReader::new(recv, LIMIT).message().await;
        }
        is_banned(&connection).await;
        assert!(offences(&victim, Offence::NewsFlood) > 100);
        assert!(victim.mesh.counts().news_repeated > 400, "{:?}", victim.mesh.counts());
        assert_eq!(honest.mesh.announce_local(root(6)).await, NewsVerdict::Fresh);
        until("the honest one's news arrive", 5, || async { *victim.local.revision.lock().unwrap() == 6 })
            .await;
    });
}

#[test]
fn a_flood_of_connections_leaves_eight_and_costs_a_bounded_number_of_handshakes() {
    run(6, Link::default(), |world| async move {
        let (victim, honest, hostile) = victim(&world, 2).await;
        let mut open = Vec::new();
        for _ in 0..600 {
            if let Ok(connection) = hostile.dial(&victim, &[b"starling/2"]).await {
                open.push(connection);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let live = open.iter().filter(|connection| connection.close_reason().is_none()).count();
        assert_eq!(live, 8);
        let door = victim.mesh.door_counts();
        assert!(door.refused > 50 && door.turned_away > 100, "{door:?}");
        is_served(&honest, &victim, 0, Duration::from_secs(1)).await;
    });
}

/// A member that answers each request on its connection with `answer`, in pieces of `step` bytes with `pause` between.
fn liar(world: &World, number: u8, answer: Vec<u8>, step: usize, pause: Duration) -> NodeId {
    let identity = world.mesh.member();
    let (endpoint, mut incoming) = world.bind(&identity, number);
    tokio::spawn(async move {
        while let Some(connection) = incoming.chunks.recv().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Ok((mut send, recv)) = connection.quinn().accept_bi().await {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        let mut reader = FrameReader::new(recv, LIMIT);
                        let _ = (reader.version().await, reader.message().await);
                        for piece in answer.chunks(step) {
                            if send.write_all(piece).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(pause).await;
                        }
                        let _ = send.finish();
                    });
                }
            });
        }
        drop(endpoint);
    });
    identity.node()
}

async fn asked_of(connection: &MemberConnection, chunks: Vec<ChunkRef>) -> Vec<Reply> {
    let request = Request { repository: repository(), class: Class::Read, chunks };
    let mut asking = transfer::ask(connection.clone(), request).unwrap();
    let mut replies = Vec::new();
    while let Some((_, reply)) = asking.next().await {
        replies.push(reply);
    }
    replies
}

#[test]
fn a_reply_that_drips_is_given_up_long_before_it_ends_and_noted() {
    run(7, Link::default(), |world| async move {
        let bytes = crate::mesh::driver::tests::bytes_of(0);
        let header = DataHeader::plain(0, chunk(0).plain_len);
        let reply = [&Message::Data(header).to_frame().unwrap()[..], &bytes].concat();
        // A byte a second: never silent for ten seconds, and done after five hours.
        let node = liar(&world, 1, reply, 1, Duration::from_secs(1));
        let (asker, _incoming) = world.bind(&world.mesh.member(), 2);
        let connection = asker.connection(node, address(1)).await.unwrap();
        let began = Instant::now();
        let replies = asked_of(&connection, vec![chunk(0)]).await;
        assert!(
            matches!(&replies[..], [Reply::Failed(TransferError::Drip { len: 20_000, .. })]),
            "{replies:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let drips = asker.conduct().counts().find(|(offence, _)| *offence == Offence::Drip);
        assert_eq!(drips, Some((Offence::Drip, 1)));
    });
}

#[test]
fn a_server_that_answers_out_of_turn_is_banned_by_its_asker() {
    run(8, Link::default(), |world| async move {
        let (asker, _incoming) = world.bind(&world.mesh.member(), 2);
        let wrong_index = Message::Data(DataHeader::plain(7, 10)).to_frame().unwrap();
        let node = liar(&world, 1, wrong_index, 1_000, Duration::ZERO);
        let connection = asker.connection(node, address(1)).await.unwrap();
        for _ in 0..6 {
            let replies = asked_of(&connection, vec![chunk(0)]).await;
            assert!(matches!(&replies[..], [Reply::Failed(_)]), "{replies:?}");
        }
        assert!(asker.is_banned(&node) && !connection.is_open());
    });
}

#[test]
fn a_list_that_never_ends_is_given_up() {
    run(9, Link::default(), |world| async move {
        let document = Message::News(News::Root(vec![1; 10])).to_frame().unwrap();
        let node = liar(&world, 1, document.repeat(2_000), document.len(), Duration::from_secs(5));
        let (asker, _incoming) = world.bind(&world.mesh.member(), 2);
        let connection = asker.connection(node, address(1)).await.unwrap();
        let began = Instant::now();
        let mut news = Vec::new();
        assert!(transfer::all_news(&connection, &mut news).await.is_err());
        assert!(began.elapsed() <= Duration::from_secs(16), "{:?}", began.elapsed());
        assert!((2..=4).contains(&news.len()), "what came before counts: {}", news.len());
    });
}

#[test]
fn an_answer_that_drips_keeps_nobody_for_long() {
    run(9, Link::default(), |world| async move {
        // Frames of a type that nobody knows are skipped, and each is progress.
        let unknown = [200, 0, 0, 0, 0];
        let node = liar(&world, 1, unknown.repeat(100), unknown.len(), Duration::from_secs(5));
        let identity = world.mesh.member();
        let (asker, _incoming) = world.bind(&identity, 2);
        let connection = asker.connection(node, address(1)).await.unwrap();
        let slice = SliceHeld { segment: ContentId::of(b"a segment"), slice: 0, parts: 1 };
        let now = crate::ambient::unix_now();
        let began = Instant::now();
        assert!(transfer::push_news(&connection, News::Root(vec![1])).await.is_err());
        assert!(transfer::tell_possession(&connection, vec![slice]).await.is_err());
        assert!(transfer::show(&connection, identity.membership().bytes().to_vec()).await.is_err());
        assert!(transfer::renew(&connection).await.is_err());
        assert!(transfer::members(&connection, identity.trust(), now).await.is_err());
        assert!(began.elapsed() <= Duration::from_secs(60), "{:?}", began.elapsed());
    });
}

#[test]
fn a_flood_of_forged_membership_datagrams_is_dropped_unseen_and_nobody_is_lost() {
    run(10, Link::default(), |world| async move {
        let (victim, honest, _hostile) = victim(&world, 1).await;
        let mut junk = vec![0x01, 0];
        junk.resize(300, 7);
        for _ in 0..60 {
            for n in 0..200_u16 {
                // From its own address, and from many forged ones.
                let from = if n % 2 == 0 { address(9) } else { ([172, 16, 0, 1], 1_000 + n).into() };
                world.net.send(from, victim.addr, None, &junk);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let swim = victim.mesh.swim_counters().unwrap();
        let (paced, dropped) = (
            swim.paced.load(std::sync::atomic::Ordering::Relaxed),
            swim.dropped.load(std::sync::atomic::Ordering::Relaxed),
        );
        assert!(paced > 5_000, "{paced} not looked at, {dropped} looked at and dropped");
        assert_eq!((victim.up().await, honest.up().await), (1, 1));
        is_served(&honest, &victim, 0, Duration::from_secs(1)).await;
    });
}

#[test]
fn a_membership_that_ends_closes_its_connections_and_gets_nothing_more() {
    run(11, Link::default(), |world| async move {
        let identity = world.mesh.member_with(|statement| {
            statement.expires = statement.issued.after(Duration::from_secs(100));
        });
        let stratum = Stratum::with(1);
        let node = world.node(1, Options { dht: false, ..Options::cell("eu/a/r1") }, &[], &stratum);
        let (ending, _incoming) = world.bind(&identity, 2);
        tokio::time::sleep(Duration::from_secs(90)).await;
        let connection = ending.connection(node.identity.node(), node.addr).await.unwrap();
        node.get(0).await.unwrap();
        let keeps_alive = asked_of(&connection, vec![chunk(0)]).await;
        assert!(keeps_alive.iter().any(|reply| matches!(reply, Reply::Arrived(_))), "{keeps_alive:?}");
        tokio::time::sleep(Duration::from_secs(11)).await;
        let late = asked_of(&connection, vec![chunk(0)]).await;
        assert!(late.iter().all(|reply| matches!(reply, Reply::Failed(_))), "{late:?}");
        tokio::time::timeout(Duration::from_secs(31), connection.quinn().closed()).await.expect("closed");
        if let Ok(refused) = ending.connection(node.identity.node(), node.addr).await {
            // TLS 1.3: the dialler believes itself connected until it is told.
            tokio::time::timeout(Duration::from_secs(2), refused.quinn().closed())
                .await
                .expect("told at once");
        }
    });
}

/// A member of the cell, and so a home of its share, that answers each ask with what `answer` makes of it.
fn impostor(world: &World, number: u8, contact: &TestNode, answer: fn(Told) -> Message) {
    let identity = world.mesh.member_with(|statement| statement.cell = "eu/a/r1".parse().unwrap());
    let (endpoint, incoming) = world.bind(&identity, number);
    let Incoming { datagrams, mut chunks, .. } = incoming;
    let sender = endpoint.clone();
    let send = Box::new(move |to, bytes: bytes::Bytes| drop(sender.send_datagram(to, &bytes)));
    let (events, mut members) = tokio::sync::mpsc::channel(256);
    let contacts = vec![(contact.identity.node(), contact.addr)];
    let swim =
        Swim::start(identity, (address(number), &[]), contacts, &Tuning::default(), datagrams, send, events);
    tokio::spawn(async move {
        while members.recv().await.is_some() {}
        drop(swim);
    });
    tokio::spawn(async move {
        while let Some(connection) = chunks.recv().await {
            tokio::spawn(async move {
                while let Ok((mut send, recv)) = connection.quinn().accept_bi().await {
                    tokio::spawn(async move {
                        let mut reader = FrameReader::new(recv, LIMIT);
                        let _ = reader.version().await;
                        let Ok(Some(Message::Request(request))) = reader.message().await else { return };
                        for index in (0..).take(request.chunks.len()) {
                            let told = Told { index, holders: Vec::new(), load: 0 };
                            let _ = send.write_all(&answer(told).to_frame().unwrap()).await;
                        }
                        let _ = send.finish();
                    });
                }
            });
        }
        drop(endpoint);
    });
}

/// Two honest nodes and an impostor in a cell: all reads of both succeed, and cost one copy, or as many as there are
/// honest nodes where the impostor was the only home that both asked.
async fn reads_beside(world: World, answer: fn(Told) -> Message) -> crate::mesh::MeshCounts {
    let stratum = Stratum::with(24);
    let nodes = world.cell(2, &stratum).await;
    impostor(&world, 3, &nodes[0], answer);
    for node in &nodes {
        until("the impostor is a member", 60, || async { node.up().await == 2 }).await;
    }
    let began = Instant::now();
    for node in &nodes {
        for n in 0..24 {
            node.get(n).await.unwrap();
        }
    }
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
    assert!((0..24).all(|n| stratum.given(n) <= 2));
    nodes[0].mesh.counts()
}

#[test]
fn false_busy_costs_time_and_no_read() {
    run(12, Link::default(), |world| async move {
        let counts = reads_beside(world, Message::Busy).await;
        assert!(counts.told_busy > 0, "{counts:?}");
    });
}

#[test]
fn false_possession_and_false_absence_cost_time_and_no_read() {
    run(13, Link::default(), |world| async move {
        let counts = reads_beside(world, |mut told| {
            // Nobody has these names, and nobody is there.
            told.holders =
                (0..8).map(|n| Holder { node: NodeId([200 + n; 32]), address: address(200 + n) }).collect();
            Message::Missing(told)
        })
        .await;
        assert!(counts.told_missing > 0, "{counts:?}");
    });
}

#[test]
fn promises_that_are_not_kept_cost_time_and_no_read() {
    run(14, Link::default(), |world| async move {
        reads_beside(world, Message::Wait).await;
    });
}

#[test]
fn who_sends_ahead_of_what_is_read_is_held_up_by_flow_control() {
    run(15, Link::default(), |world| async move {
        let serving = world.mesh.member();
        // Nobody serves what comes in.
        let (_server, mut incoming) = world.bind(&serving, 1);
        let (asker, _incoming) = world.bind(&world.mesh.member(), 2);
        let connection = asker.connect(serving.node(), address(1), Alpn::Chunks).await.unwrap();
        let _held = incoming.chunks.recv().await.unwrap();
        let junk = vec![0; 1 << 20];
        let mut streams = Vec::new();
        for _ in 0..16 {
            let (mut send, recv) = connection.quinn().open_bi().await.unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(1), send.write_all(&junk)).await;
            streams.push((send, recv));
        }
        let sent = connection.quinn().stats().udp_tx.bytes;
        assert!((500 << 10..700 << 10).contains(&sent), "{sent} bytes");
    });
}

#[test]
fn withdrawals_without_end_end_the_request() {
    run(16, Link::default(), |world| async move {
        let (victim, honest, hostile) = victim(&world, 1).await;
        let connection = hostile.connect(&victim).await;
        for _ in 0..6 {
            let (mut send, _reader) = hostile.say(&connection, &wish(vec![ghost(0)])).await;
            let frames = Message::Withdraw(0).to_frame().unwrap().repeat(20);
            let _ = send.write_all(&frames).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        is_banned(&connection).await;
        assert_eq!(offences(&victim, Offence::Protocol), 6);
        is_served(&honest, &victim, 0, Duration::from_secs(1)).await;
    });
}

#[test]
fn waits_without_end_end_the_request() {
    run(17, Link::default(), |world| async move {
        let told = Told { index: 0, holders: Vec::new(), load: 1 };
        let waits = Message::Wait(told).to_frame().unwrap().repeat(100);
        let node = liar(&world, 1, waits, 1_000, Duration::ZERO);
        let (asker, _incoming) = world.bind(&world.mesh.member(), 2);
        let connection = asker.connection(node, address(1)).await.unwrap();
        let replies = asked_of(&connection, vec![chunk(0)]).await;
        assert_eq!(replies.len(), 61, "sixty waits and the end");
        assert!(matches!(replies[60], Reply::Failed(TransferError::Protocol(_))), "{:?}", replies[60]);
    });
}

#[test]
fn asks_for_chunks_that_do_not_exist_do_not_keep_a_home_from_fetching_for_others() {
    run(18, Link::default(), |world| async move {
        let stratum = Stratum::with(24);
        let nodes = world.cell(2, &stratum).await;
        let mut hostile = Raw::member(&world, 9);
        hostile.identity = world.mesh.member_with(|statement| statement.cell = "eu/a/r1".parse().unwrap());
        let mut streams = Vec::new();
        for node in &nodes {
            let connection = hostile.connect(node).await;
            for first in [0, 300, 600, 900] {
                let chunks = (first..first + REQUEST_MAX_CHUNKS as u64).map(ghost).collect();
                streams.push(hostile.say(&connection, &wish(chunks)).await);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let refused: u64 = nodes.iter().map(|node| node.mesh.counts().overload).sum();
        assert!(refused >= 2 * (1_024 - 256), "{refused} of 2 048 asks were turned away");
        let began = Instant::now();
        for node in &nodes {
            for n in 0..24 {
                node.get(n).await.unwrap();
            }
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let copies: u32 = (0..24).map(|n| stratum.given(n)).sum();
        assert!(copies <= 30, "{copies} fetches from the stratum for 24 chunks");
    });
}
