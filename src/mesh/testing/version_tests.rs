//! Nodes of neighbouring versions work together, what is new is skipped, and what cannot work is refused with a clear
//! word.

use super::hostile_tests::Raw;
use super::world::address;
use super::{Link, World, run};
use crate::mesh::conduct::Offence;
use crate::mesh::driver::tests::{Options, Stratum, TestNode, bytes_of, chunk, repository};
use crate::mesh::transfer::FrameReader;
use crate::mesh::wire::{
    DataHeader, HEADER_BYTES, Message, RefusedBecause, Request, VERSION, VERSION_OLDEST,
};
use crate::mesh::{Alpn, ConnectError, EndpointConfig, News, Obtained};
use crate::model::Class;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

fn alone(world: &World, number: u8, stratum: &Arc<Stratum>) -> TestNode {
    world.node(number, Options { dht: false, ..Options::cell("eu/a/r1") }, &[], stratum)
}

#[test]
fn nodes_of_neighbouring_versions_agree_on_the_newest_that_both_speak() {
    run(1, Link::default(), |world| async move {
        let both: &[u8] = &[VERSION, VERSION_OLDEST];
        let (old, new): (&[u8], &[u8]) = (&[VERSION_OLDEST], &[VERSION]);
        let mut number = 0;
        for (server, client, agreed) in [
            (both, both, Some(2)),
            (both, old, Some(1)),
            (old, both, Some(1)),
            (new, both, Some(2)),
            (old, new, None),
        ] {
            number += 2;
            let (serving, asking) = (world.mesh.member(), world.mesh.member());
            let at = |machine, versions| EndpointConfig { versions, ..EndpointConfig::new(address(machine)) };
            let (endpoint, mut incoming) = world.bind_with(at(number, server), &serving);
            let (dialler, _incoming) = world.bind_with(at(number + 1, client), &asking);
            match (dialler.connect(serving.node(), address(number), Alpn::Chunks).await, agreed) {
                (Ok(connection), Some(version)) => {
                    assert_eq!(connection.version(), version);
                    assert_eq!(incoming.chunks.recv().await.unwrap().version(), version);
                }
                (Err(error @ ConnectError::NoCommonVersion { .. }), None) => {
                    assert!(error.to_string().contains("starling/2"), "{error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    assert_eq!(endpoint.door().snapshot().no_common_version, 1);
                }
                (other, _) => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_fleet_that_is_half_upgraded_reads_from_each_other() {
    run(2, Link::default(), |world| async move {
        let stratum = Stratum::with(8);
        let options = || Options { dht: false, ..Options::cell("eu/a/r1") };
        let new = world.node(1, options(), &[], &stratum);
        let identity = world.mesh.member_with(|statement| statement.cell = "eu/a/r1".parse().unwrap());
        let config = EndpointConfig { versions: &[VERSION_OLDEST], ..EndpointConfig::new(address(2)) };
        let bound = world.bind_with(config, &identity);
        let old = TestNode::over(bound, identity, options(), &[&new], &stratum);
        super::mesh_tests::until("they see each other", 60, || async {
            new.up().await == 1 && old.up().await == 1
        })
        .await;
        for n in 0..4 {
            new.get(n).await.unwrap();
            old.get(n + 4).await.unwrap();
        }
        stratum.dead.store(true, Ordering::Relaxed);
        for n in 0..4 {
            assert_eq!(new.get(n + 4).await, Ok(Obtained::Peer(old.identity.node())));
            assert_eq!(old.get(n).await, Ok(Obtained::Peer(new.identity.node())));
        }
    });
}

/// A request for chunk 0 as a newer program may say it: unknown messages before it, and more behind its body.
fn newer_request() -> Vec<u8> {
    let request = Request { repository: repository(), class: Class::Read, chunks: vec![chunk(0)] };
    let mut frame = Message::Request(request).to_frame().unwrap();
    frame.extend(b"and a field that version 3 knows");
    let len = u32::try_from(frame.len() - HEADER_BYTES).unwrap();
    frame[1..HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
    let unknown = [&[77, 3, 0, 0, 0][..], b"new"].concat();
    [vec![VERSION], unknown.clone(), unknown, frame].concat()
}

#[test]
fn a_newer_peer_is_understood_as_far_as_it_says_what_is_known() {
    run(3, Link::default(), |world| async move {
        let stratum = Stratum::with(1);
        let node = alone(&world, 1, &stratum);
        node.get(0).await.unwrap();
        let newer = Raw::member(&world, 2);
        let connection =
            newer.dial(&node, &[b"starling/3", b"starling/2"]).await.expect("they have version 2 in common");
        let (_send, mut reader) = newer.say(&connection, &newer_request()).await;
        // Until the stratum has delivered, the node says that it waits.
        let header = loop {
            match reader.message().await.unwrap().unwrap() {
                Message::Data(header) => break header,
                Message::Wait(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(header, DataHeader::plain(0, chunk(0).plain_len));
        let (mut bytes, mut read) = (vec![0; header.len as usize], 0);
        while read < bytes.len() {
            read += reader.read(&mut bytes[read..]).await.unwrap();
        }
        assert_eq!(bytes, bytes_of(0));
        // A kind of document that only it knows: not acknowledged, not held against it.
        let (mut send, mut reader) = newer.say(&connection, &[VERSION, 3, 4, 0, 0, 0, 9, 1, 2, 3]).await;
        send.finish().unwrap();
        assert_eq!(reader.message().await, Ok(None));
        // A stream of a version that is unknown is refused.
        let (_send, mut reader) = newer.say(&connection, &[VERSION + 1]).await;
        assert_eq!(reader.message().await, Ok(Some(Message::Refused(RefusedBecause::NotUnderstood))));
        assert!(node.mesh.offences().iter().all(|(_, count)| *count == 0), "{:?}", node.mesh.offences());
    });
}

#[test]
fn documents_of_kinds_that_are_unknown_are_skipped_among_those_that_are_known_but_not_without_end() {
    run(4, Link::default(), |world| async move {
        let (serving, asking) = (world.mesh.member(), world.mesh.member());
        let (server, mut incoming) = world.bind(&serving, 1);
        let (asker, _incoming) = world.bind(&asking, 2);
        let connection = asker.connection(serving.node(), address(1)).await.unwrap();
        let answering = incoming.chunks.recv().await.unwrap();
        let known = Message::News(News::Root(vec![1, 2, 3])).to_frame().unwrap();
        let newer = [3, 2, 0, 0, 0, 9, 9].repeat(1_000);
        let answer = [known.clone(), newer.clone(), known].concat();
        let noise = newer.repeat(3);
        tokio::spawn(async move {
            for answer in [answer, noise] {
                let (mut send, recv) = answering.quinn().accept_bi().await.unwrap();
                let mut reader = FrameReader::new(recv, LIMIT);
                reader.version().await.unwrap();
                reader.message().await.unwrap();
                send.write_all(&answer).await.unwrap();
                send.finish().unwrap();
            }
            answering.quinn().closed().await;
        });
        let mut news = Vec::new();
        crate::mesh::transfer::all_news(&connection, &mut news).await.unwrap();
        assert_eq!(news, vec![News::Root(vec![1, 2, 3]); 2]);
        assert!(crate::mesh::transfer::all_news(&connection, &mut news).await.is_err());
        let noted = asker.conduct().counts().find(|(offence, _)| *offence == Offence::Protocol);
        assert_eq!(noted, Some((Offence::Protocol, 1)));
        drop(server);
    });
}
