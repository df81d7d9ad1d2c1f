//! Both sides of a transfer over real sockets on loopback, and peers that lie.

use super::*;
use crate::mesh::endpoint::tests::bind;
use crate::mesh::identity::tests::TestMesh;
use crate::mesh::wire::{DataHeader, Holder, MemberRecord, Message, Request, Told, VERSION};
use crate::mesh::{Endpoint, Identity, MemberConnection, News, Scope};
use crate::model::{ChunkRef, Class, ContentId, NodeId, Place, limits};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(20);

fn content(number: usize, len: usize) -> Bytes {
    (0..len)
        .map(|at| u8::try_from((at * 31 + number * 7 + at / 251) % 256).unwrap())
        .collect::<Vec<_>>()
        .into()
}

fn chunk_of(bytes: &[u8]) -> ChunkRef {
    let len = u32::try_from(bytes.len()).unwrap();
    let place = Place { segment: ContentId::of(b"segment"), ordinal: 0, offset: 0, stored_len: len };
    ChunkRef { id: ContentId::of(bytes), plain_len: len, place }
}

fn request(chunks: Vec<ChunkRef>) -> Request {
    Request { repository: "sw.example.org".parse().unwrap(), class: Class::Read, chunks }
}

struct Pair {
    asker: MemberConnection,
    server: MemberConnection,
    server_identity: Arc<Identity>,
    _endpoints: [Endpoint; 2],
}

async fn pair(scope: Scope) -> Pair {
    let mesh = TestMesh::new();
    let (asking, serving) = (mesh.member_with(|statement| statement.scope = scope), mesh.member());
    let (endpoint, mut incoming, address) = bind(&serving);
    let (dialler, _incoming, _) = bind(&asking);
    let asker = dialler.connection(serving.node(), address).await.unwrap();
    let server = incoming.chunks.recv().await.unwrap();
    Pair { asker, server, server_identity: serving, _endpoints: [endpoint, dialler] }
}

fn served(pair: &Pair) -> mpsc::Receiver<PeerRequest> {
    let (requests, asked) = mpsc::channel(2_048);
    tokio::spawn(serve(pair.server.clone(), requests));
    asked
}

async fn next_ask(asked: &mut mpsc::Receiver<PeerRequest>) -> Ask {
    match tokio::time::timeout(SOON, asked.recv()).await.unwrap().unwrap() {
        PeerRequest::Ask(ask) => ask,
        other => panic!("{other:?}"),
    }
}

async fn next_reply(asking: &mut Asking) -> Option<(usize, Reply)> {
    tokio::time::timeout(SOON, asking.next()).await.expect("a reply comes in time")
}

#[tokio::test]
async fn a_thousand_chunks_arrive_in_batches_and_in_any_order() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let contents: Vec<Bytes> = (0..1_000).map(|i| content(i, 1 + (i * 977) % 60_000)).collect();
    let chunks: Vec<ChunkRef> = contents.iter().map(|bytes| chunk_of(bytes)).collect();
    let stored: std::collections::BTreeMap<_, _> =
        chunks.iter().map(|chunk| chunk.id).zip(contents.clone()).collect();
    let server = tokio::spawn(async move {
        let mut held: Vec<Ask> = Vec::new();
        for _ in 0..1_000 {
            held.push(next_ask(&mut asked).await);
            // Of each twenty the last first; a batch is a hundred, so none is left over.
            if held.len() == 20 {
                while let Some(ask) = held.pop() {
                    let bytes = stored[&ask.chunk.id].clone();
                    tokio::spawn(async move { assert!(ask.reply.data(bytes).await) });
                }
            }
        }
    });
    let mut arrived = 0;
    for (batch, chunks) in chunks.chunks(100).enumerate() {
        let mut asking = ask(pair.asker.clone(), request(chunks.to_vec())).unwrap();
        while let Some((index, reply)) = next_reply(&mut asking).await {
            let Reply::Arrived(bytes) = reply else { panic!("{reply:?}") };
            assert_eq!(bytes, contents[batch * 100 + index]);
            arrived += 1;
        }
    }
    assert_eq!(arrived, 1_000);
    server.await.unwrap();
}

#[tokio::test]
async fn a_large_chunk_arrives_whole() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let bytes = content(3, 20 << 20);
    let mut asking = ask(pair.asker.clone(), request(vec![chunk_of(&bytes)])).unwrap();
    let mut wish = next_ask(&mut asked).await;
    assert_eq!(wish.peer, pair.server.node());
    wish.reply.wait(3);
    let sent = tokio::spawn(wish.reply.data(bytes.clone()));
    assert!(matches!(next_reply(&mut asking).await, Some((0, Reply::Wait { load: 3 }))));
    assert!(matches!(next_reply(&mut asking).await, Some((0, Reply::Arrived(got))) if got == bytes));
    assert!(next_reply(&mut asking).await.is_none());
    assert!(sent.await.unwrap());
}

#[tokio::test]
async fn answers_without_data_carry_holders_and_load() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let chunks = (0..3).map(|i| chunk_of(&content(i, 10))).collect();
    let mut asking = ask(pair.asker.clone(), request(chunks)).unwrap();
    let holder = Holder { node: NodeId([4; 32]), address: "10.1.2.3:4".parse().unwrap() };
    next_ask(&mut asked).await.reply.busy(vec![holder; 20], 9);
    next_ask(&mut asked).await.reply.missing(vec![holder], 1);
    drop(next_ask(&mut asked).await);
    let first = next_reply(&mut asking).await;
    assert!(matches!(first, Some((0, Reply::Busy { holders, load: 9 })) if holders == vec![holder; 8]));
    let second = next_reply(&mut asking).await;
    assert!(matches!(second, Some((1, Reply::Missing { holders, load: 1 })) if holders == vec![holder]));
    let third = next_reply(&mut asking).await;
    assert!(matches!(third, Some((2, Reply::Failed(TransferError::NotAnswered)))), "{third:?}");
    assert!(next_reply(&mut asking).await.is_none());
}

#[tokio::test]
async fn withdrawing_one_chunk_or_dropping_the_request_is_told_to_the_server() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let chunks = (0..2).map(|i| chunk_of(&content(i, 10))).collect();
    let asking = ask(pair.asker.clone(), request(chunks)).unwrap();
    let (first, second) = (next_ask(&mut asked).await, next_ask(&mut asked).await);
    asking.withdraw(0);
    let gone = tokio::time::timeout(SOON, asked.recv()).await.unwrap().unwrap();
    assert!(matches!(gone, PeerRequest::Withdrawn { number } if number == first.number), "{gone:?}");
    assert!(!first.reply.data(content(0, 10)).await, "data for a withdrawn chunk is not sent");
    drop(asking);
    let gone = tokio::time::timeout(SOON, asked.recv()).await.unwrap().unwrap();
    assert!(matches!(gone, PeerRequest::Withdrawn { number } if number == second.number), "{gone:?}");
    assert!(!second.reply.data(content(1, 10)).await);
}

#[tokio::test]
async fn a_repository_outside_the_askers_scope_is_not_passed_on() {
    let pair = pair(Scope::Only(vec!["other.example.org".parse().unwrap()])).await;
    let mut asked = served(&pair);
    let mut asking = ask(pair.asker.clone(), request(vec![chunk_of(b"secret")])).unwrap();
    let reply = next_reply(&mut asking).await;
    assert!(
        matches!(reply, Some((0, Reply::Failed(TransferError::Refused(RefusedBecause::Scope))))),
        "{reply:?}"
    );
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_driver_that_is_overloaded_answers_busy_instead_of_queueing() {
    let pair = pair(Scope::All).await;
    let (requests, mut asked) = mpsc::channel(1);
    tokio::spawn(serve(pair.server.clone(), requests));
    let chunks = (0..3).map(|i| chunk_of(&content(i, 10))).collect();
    let mut asking = ask(pair.asker.clone(), request(chunks)).unwrap();
    for expected in [1, 2] {
        let reply = next_reply(&mut asking).await;
        assert!(matches!(reply, Some((i, Reply::Busy { load: 255, .. })) if i == expected), "{reply:?}");
    }
    assert_eq!(next_ask(&mut asked).await.chunk, chunk_of(&content(0, 10)));
}

#[tokio::test]
async fn documents_and_members_pass_and_forged_members_are_dropped() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let member = pair.server_identity.membership();
    let right = MemberRecord { certificate: member.bytes().to_vec(), addresses: vec![pair.server.address()] };
    let forged = MemberRecord { certificate: vec![1; 100], addresses: vec![] };
    let driver = tokio::spawn(async move {
        let mut pushed = Vec::new();
        while let Some(request) = asked.recv().await {
            match request {
                PeerRequest::News { news, .. } => pushed.push(news),
                PeerRequest::AllNews { reply } => reply.send(pushed.clone()).unwrap(),
                PeerRequest::Members { reply } => {
                    reply.send((3, [vec![right.clone(); 100], vec![forged.clone()]].concat())).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let news = [News::Root(vec![1; limits::ROOT_MAX_BYTES]), News::Card(vec![2; 3])];
    for document in &news {
        push_news(&pair.asker, document.clone()).await.unwrap();
    }
    let mut known = Vec::new();
    all_news(&pair.asker, &mut known).await.unwrap();
    assert_eq!(known, news);
    let authority = pair.server_identity.trust();
    let (bits, known) = members(&pair.asker, authority, crate::ambient::unix_now()).await.unwrap();
    assert_eq!((bits, known.len()), (3, 100));
    assert_eq!(known[0].0, member);
    driver.abort();
}

/// A peer that answers the first request with `answer`, whatever was asked.
fn liar(pair: &Pair, answer: Vec<u8>) {
    let connection = pair.server.clone();
    tokio::spawn(async move {
        let (mut send, recv) = connection.quinn().accept_bi().await.unwrap();
        let mut reader = FrameReader::new(recv, NO_PROGRESS);
        reader.version().await.unwrap();
        reader.message().await.unwrap();
        let _ = send.write_all(&answer).await;
        let _ = send.finish();
        connection.quinn().closed().await;
    });
}

fn data(index: u16, bytes: &[u8]) -> Vec<u8> {
    let header = DataHeader::plain(index, u32::try_from(bytes.len()).unwrap());
    [&Message::Data(header).to_frame().unwrap()[..], bytes].concat()
}

async fn outcome(answer: Vec<u8>, chunks: Vec<ChunkRef>) -> Vec<(usize, Reply)> {
    let pair = pair(Scope::All).await;
    liar(&pair, answer);
    let mut asking = ask(pair.asker.clone(), request(chunks)).unwrap();
    let mut replies = Vec::new();
    while let Some(reply) = next_reply(&mut asking).await {
        replies.push(reply);
    }
    replies
}

#[tokio::test]
async fn wrong_bytes_are_reported_as_such_and_nothing_of_them_is_delivered() {
    let (one, two) = (content(1, 1_000), content(2, 1_000));
    let mut altered = one.to_vec();
    altered[999] ^= 1;
    for lie in [data(0, &altered), data(0, &one[..999]), data(0, &[&one[..], b"x"].concat())] {
        let answer = [data(1, &two), lie].concat();
        let replies = outcome(answer, vec![chunk_of(&one), chunk_of(&two), chunk_of(b"three")]).await;
        assert!(matches!(&replies[0], (1, Reply::Arrived(bytes)) if *bytes == two), "what was right counts");
        let (0, Reply::Failed(error)) = &replies[1] else { panic!("{replies:?}") };
        assert_eq!(error.failure(), Failure::WrongBytes, "{error}");
        assert!(matches!(&replies[2], (2, Reply::Failed(error)) if error.failure() == Failure::Refused));
        assert_eq!(replies.len(), 3);
    }
}

#[tokio::test]
async fn answers_that_break_the_protocol_end_the_request() {
    let bytes = content(1, 100);
    let told = Told { index: 1, holders: vec![], load: 0 };
    let mut encoded = DataHeader::plain(0, 100);
    encoded.encoding = 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("oversized frame", vec![17, 0xff, 0xff, 0xff, 0x7f]),
        ("index out of the request", Message::Busy(told).to_frame().unwrap()),
        ("unknown encoding", Message::Data(encoded).to_frame().unwrap()),
        ("not a reply", Message::AllNews.to_frame().unwrap()),
        ("noise", [200, 0, 0, 0, 0].repeat(3_000)),
        ("garbage", vec![18, 3, 0, 0, 0, 0xff, 0xff, 0xff]),
    ];
    for (name, answer) in cases {
        let replies = outcome(answer, vec![chunk_of(&bytes)]).await;
        assert!(
            matches!(&replies[..], [(0, Reply::Failed(TransferError::Protocol(_)))]),
            "{name}: {replies:?}"
        );
    }
    let cut = outcome(data(0, &bytes)[..50].to_vec(), vec![chunk_of(&bytes)]).await;
    assert!(matches!(&cut[..], [(0, Reply::Failed(TransferError::NotAnswered))]), "{cut:?}");
    let twice =
        outcome([data(0, &bytes), data(0, &bytes)].concat(), vec![chunk_of(&bytes), chunk_of(b"x")]).await;
    assert!(matches!(&twice[..], [(0, Reply::Arrived(_)), (1, Reply::Failed(TransferError::Protocol(_)))]));
    let unknown = [vec![200, 2, 0, 0, 0, 9, 9], data(0, &bytes)].concat();
    let skipped = outcome(unknown, vec![chunk_of(&bytes)]).await;
    assert!(matches!(&skipped[..], [(0, Reply::Arrived(_))]), "an unknown type is skipped: {skipped:?}");
}

#[tokio::test]
async fn a_request_that_is_too_large_or_of_another_version_is_refused() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    for opening in
        [vec![VERSION, 1, 0xff, 0xff, 0xff, 0xff], vec![VERSION + 1], vec![VERSION, 16, 0, 0, 0, 0]]
    {
        let (mut send, recv) = pair.asker.quinn().open_bi().await.unwrap();
        send.write_all(&opening).await.unwrap();
        let answer = FrameReader::new(recv, SOON).message().await;
        assert_eq!(answer, Ok(Some(Message::Refused(RefusedBecause::NotUnderstood))), "{opening:?}");
    }
    assert!(asked.try_recv().is_err());
    let too_many = ask(pair.asker.clone(), request(vec![chunk_of(b"x"); 257]));
    assert!(matches!(too_many, Err(TransferError::Request(_))));
}

#[tokio::test]
async fn a_peer_that_vanishes_fails_every_open_chunk() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let chunks = (0..5).map(|i| chunk_of(&content(i, 10))).collect();
    let mut asking = ask(pair.asker.clone(), request(chunks)).unwrap();
    let held = next_ask(&mut asked).await;
    pair.server.close(crate::mesh::CloseCode::Closing);
    for expected in 0..5 {
        let reply = next_reply(&mut asking).await;
        let Some((index, Reply::Failed(error))) = reply else { panic!("{reply:?}") };
        assert_eq!((index, error.failure()), (expected, Failure::Unreachable));
    }
    drop(held);
}

#[tokio::test]
async fn a_silent_peer_is_given_up_after_the_time_out() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let mut asking = ask(pair.asker.clone(), request(vec![chunk_of(b"x")])).unwrap();
    let _held = next_ask(&mut asked).await;
    tokio::time::pause();
    let reply = asking.next().await;
    let Some((0, Reply::Failed(error))) = reply else { panic!("{reply:?}") };
    assert!(matches!(error.failure(), Failure::TimedOut | Failure::Unreachable), "{error}");
}

/// Carries datagrams between an asker and `server` until it is told to drop all that come back.
async fn relay(server: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let (outer, inner) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    inner.connect(server).await.unwrap();
    let (address, swallows) = (outer.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
    let swallowing = swallows.clone();
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; 65_536], vec![0; 65_536]);
        let mut asker = None;
        loop {
            tokio::select! {
                Ok((len, from)) = outer.recv_from(&mut there) => {
                    asker = Some(from);
                    let _ = inner.send(&there[..len]).await;
                }
                Ok(len) = inner.recv(&mut back) => {
                    if let (Some(asker), false) = (asker, swallowing.load(Ordering::Relaxed)) {
                        let _ = outer.send_to(&back[..len], asker).await;
                    }
                }
            }
        }
    });
    (address, swallows)
}

#[tokio::test]
async fn a_chunk_counts_as_sent_only_when_the_peer_has_it() {
    let mesh = TestMesh::new();
    let (asking, serving) = (mesh.member(), mesh.member());
    let (_endpoint, mut incoming, address) = bind(&serving);
    let (dialler, _incoming, _) = bind(&asking);
    let (through, swallows) = relay(address).await;
    let connection = dialler.connection(serving.node(), through).await.unwrap();
    let (requests, mut asked) = mpsc::channel(16);
    tokio::spawn(serve(incoming.chunks.recv().await.unwrap(), requests));
    // It would fit into the largest send window several times.
    let bytes = content(3, 1 << 20);
    let _asking = ask(connection, request(vec![chunk_of(&bytes)])).unwrap();
    let wish = next_ask(&mut asked).await;
    swallows.store(true, Ordering::Relaxed);
    tokio::time::pause();
    assert!(!wish.reply.data(bytes).await, "nobody acknowledged anything");
}

#[tokio::test]
async fn a_very_large_chunk_does_not_stand_in_the_way_of_small_ones() {
    let pair = pair(Scope::All).await;
    let mut asked = served(&pair);
    let (large, small) = (content(1, 64 << 20), content(2, 4_096));
    let mut first = ask(pair.asker.clone(), request(vec![chunk_of(&large)])).unwrap();
    let wish = next_ask(&mut asked).await;
    let large_sent = tokio::spawn(wish.reply.data(large.clone()));
    let mut second = ask(pair.asker.clone(), request(vec![chunk_of(&small)])).unwrap();
    let wish = next_ask(&mut asked).await;
    assert!(wish.reply.data(small.clone()).await);
    assert!(matches!(next_reply(&mut second).await, Some((0, Reply::Arrived(got))) if got == small));
    assert!(!large_sent.is_finished(), "the small one overtook it");
    assert!(matches!(next_reply(&mut first).await, Some((0, Reply::Arrived(got))) if got == large));
    assert!(large_sent.await.unwrap());
}
