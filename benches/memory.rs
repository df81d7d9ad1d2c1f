//! What an agent takes in a large mesh: a real agent, two thousand simulated members of its cell, and a million chunks
//! that it knows and holds.
//!
//! `cargo bench --bench memory -- [--chunks 1000000] [--members 2000]`. The members share one socket: each has a key and a
//! certificate of its own, says that it is there, and answers when it is probed. One real member then asks for every
//! chunk, so that the agent has each in its books, and verifies and serves it. Prints the resident memory after
//! each step. Exits with 1 when it is more than the limit.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Node, starling};
use serde::{Deserialize, Serialize};
use starling::cache::{CacheConfig, DiskCache};
use starling::mesh::transfer::{self, Reply};
use starling::mesh::wire::Request;
use starling::mesh::{
    Endpoint, EndpointConfig, Identity, Membership, MembershipCert, MeshKeys, NodeKey, Role, Scope,
};
use starling::model::{ChunkRef, Class, ContentId, NodeId, Place, UnixTime, limits};
use starling::store::{ChunkStore as _, Origin};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Most resident memory of the agent.
const RESIDENT_MAX_MIB: f64 = 128.0;
/// Plain bytes of a chunk here: the agent's books do not depend on it, the disk does.
const PLAIN_BYTES: usize = 16;
/// Length of a chunk in its segment, as it would be: 64 KiB.
const STORED_BYTES: u64 = 64 << 10;
const CELL: &str = "eu/a/r1";
const DOMAIN: &str = "starling membership datagram 1";

fn bytes_of(number: u64) -> bytes::Bytes {
    let mut bytes = [0; PLAIN_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes::Bytes::copy_from_slice(&bytes)
}

fn chunk(number: u64) -> ChunkRef {
    let per_segment = limits::SEGMENT_TARGET_BYTES / STORED_BYTES;
    let plain_len = u32::try_from(PLAIN_BYTES).expect("a few bytes");
    let place = Place {
        segment: ContentId::of(&[&b"segment"[..], &(number / per_segment).to_le_bytes()].concat()),
        ordinal: u32::try_from(number % per_segment).unwrap(),
        offset: number % per_segment * STORED_BYTES,
        stored_len: plain_len,
    };
    ChunkRef { id: ContentId::of(&bytes_of(number)), plain_len, place }
}

fn now() -> UnixTime {
    starling::ambient::unix_now()
}

fn certify(keys: &MeshKeys, node: NodeId) -> MembershipCert {
    let membership = Membership {
        mesh: keys.mesh(),
        node,
        cell: CELL.parse().unwrap(),
        role: Role::Member,
        scope: Scope::All,
        issued: now(),
        expires: UnixTime(now().0 + 3_600),
    };
    keys.certify(membership).unwrap()
}

/// A member as the protocol names it (src/mesh/swim/seat.rs).
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Seat {
    node: NodeId,
    addr: SocketAddr,
    renewal: u64,
}

/// Many members behind one socket.
struct Chorus {
    socket: UdpSocket,
    voices: HashMap<NodeId, (NodeKey, Vec<u8>)>,
    agent: Seat,
    counter: u64,
}

impl Chorus {
    fn new(members: usize, keys: &MeshKeys, agent: NodeId, addr: SocketAddr) -> Self {
        let voice = |_| {
            let key = NodeKey::generate();
            (key.node(), certify(keys, key.node()).bytes().to_vec(), key)
        };
        let voices = (0..members).map(voice).map(|(node, certificate, key)| (node, (key, certificate)));
        let agent = Seat { node: agent, addr, renewal: 0 };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self { socket, voices: voices.collect(), agent, counter: now().0 << 20 }
    }

    /// Sends a message of a voice in its envelope (src/mesh/swim/datagram.rs).
    fn say(&mut self, voice: NodeId, message: foca::Message<Seat>, dst: Seat) {
        let (key, certificate) = &self.voices[&voice];
        let addr = self.socket.local_addr().unwrap();
        let src = Seat { node: voice, addr, renewal: 1 };
        let header = foca::Header { src, src_incarnation: 0, dst, message };
        self.counter += 1;
        let mut datagram = vec![1, 1];
        datagram.extend(voice.0);
        datagram.extend(self.counter.to_be_bytes());
        datagram.extend(u16::try_from(certificate.len()).unwrap().to_be_bytes());
        datagram.extend(certificate);
        datagram.extend(postcard::to_stdvec(&header).unwrap());
        datagram.extend([0, 0]);
        let signature = key.sign(DOMAIN, &[&self.agent.node.0[..], &datagram].concat());
        datagram.extend(signature);
        self.socket.send_to(&datagram, self.agent.addr).unwrap();
    }

    /// Answers probes until it is told to stop.
    fn sing(mut self, stop: &AtomicBool) {
        let nodes: Vec<NodeId> = self.voices.keys().copied().collect();
        // Again and again: what was lost, or came too fast, is said once more.
        let mut next = nodes.iter().cycle();
        let mut buffer = [0; 2_048];
        while !stop.load(Ordering::Relaxed) {
            if let Some(node) = next.next() {
                self.say(*node, foca::Message::Gossip, self.agent);
            }
            let Ok((len, _)) = self.socket.recv_from(&mut buffer) else { continue };
            let Some(packet) = packet_of(&buffer[..len]) else { continue };
            let Ok((header, _)) = postcard::take_from_bytes::<foca::Header<Seat>>(packet) else { continue };
            if let foca::Message::Ping(number) = header.message {
                self.say(header.dst.node, foca::Message::Ack(number), header.src);
            }
        }
    }
}

/// What is in an envelope beside the certificate.
fn packet_of(datagram: &[u8]) -> Option<&[u8]> {
    let (signed, _) = datagram.split_at_checked(datagram.len().checked_sub(64)?)?;
    let rest = signed.get(42..)?;
    if signed[1] & 1 == 0 {
        return Some(rest);
    }
    let len = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?);
    rest.get(2 + usize::from(len)..)
}

fn resident_mib(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1_024.0
}

fn metric(node: &Node, name: &str) -> u64 {
    let socket = node.socket();
    let out = starling(&[OsStr::new("status"), "--metrics".as_ref(), "--socket".as_ref(), socket.as_ref()]);
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn fill_cache(folder: &Path, chunks: u64) {
    let cache = DiskCache::open(folder, CacheConfig::default()).unwrap();
    for number in 0..chunks {
        cache.insert(&chunk(number).id, &bytes_of(number), Origin::Cache).unwrap();
    }
}

/// Asks the agent for every chunk, a request after the other.
async fn ask_for_all(identity: Arc<Identity>, agent: NodeId, addr: SocketAddr, chunks: u64) {
    let config = EndpointConfig::new("127.0.0.1:0".parse().unwrap());
    let (endpoint, _incoming) = Endpoint::bind(config, identity).unwrap();
    let connection = endpoint.connection(agent, addr).await.unwrap();
    let (mut served, mut rounds) = (0, 0);
    let mut wanted: Vec<u64> = (0..chunks).collect();
    while !wanted.is_empty() && rounds < 100 {
        rounds += 1;
        let mut again = Vec::new();
        for batch in wanted.chunks(64) {
            let references: Vec<ChunkRef> = batch.iter().map(|number| chunk(*number)).collect();
            let repository = "sw.example.org".parse().unwrap();
            let request = Request { repository, class: Class::Read, chunks: references };
            let mut asking = transfer::ask(connection.clone(), request).unwrap();
            while let Some((index, reply)) = asking.next().await {
                match reply {
                    Reply::Arrived(bytes) => {
                        assert_eq!(bytes, bytes_of(batch[index]));
                        served += 1;
                    }
                    Reply::Busy { .. } => again.push(batch[index]),
                    Reply::Wait { .. } => {}
                    other => panic!("chunk {}: {other:?}", batch[index]),
                }
            }
        }
        wanted = again;
    }
    assert_eq!(served, chunks, "every chunk is served");
}

fn argument(name: &str, default: u64) -> u64 {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).map_or(default, |value| value.parse().expect("a number"))
}

fn main() -> ExitCode {
    let (chunks, members) = (argument("--chunks", 1_000_000), argument("--members", 2_000));
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path().join("agent"));
    node.init_mesh(CELL);
    fill_cache(&node.state().join("cache"), chunks);
    node.start();
    let pid = node.pid().unwrap();
    let show = |step: &str| {
        let mib = resident_mib(pid, "VmRSS");
        println!("{step:<52} {mib:>7.1} MiB");
        mib
    };
    let begun = show(&format!("started, {chunks} chunks in the cache"));

    let identity = Identity::load(&node.state()).unwrap();
    let keys = identity.mesh_keys().unwrap().clone();
    let agent = identity.node();
    let socket = node.socket();
    let status = starling(&[OsStr::new("status"), "--json".as_ref(), "--socket".as_ref(), socket.as_ref()]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let addr: SocketAddr = status["mesh"]["address"].as_str().unwrap().parse().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let chorus = Chorus::new(usize::try_from(members).unwrap(), &keys, agent, addr);
    let singing = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || chorus.sing(&stop)
    });
    let up = "starling_members{state=\"up\"}";
    common::wait_for("all members", Duration::from_secs(300), || {
        (metric(&node, up) > members * 99 / 100).then_some(())
    });
    let met = show(&format!("{} members of the cell are up", metric(&node, up)));

    let key = NodeKey::generate();
    let certificate = certify(&keys, key.node());
    let asker = Arc::new(Identity::new(key, certificate, identity.trust().clone(), None).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(ask_for_all(asker, agent, addr, chunks));
    let known = show(&format!("{chunks} chunks known, verified and served"));
    println!("{:<52} {:>7.1} MiB", "at most, ever", resident_mib(pid, "VmHWM"));
    let each = |from: f64, to: f64, count: u64| (to - from) * 1_048_576.0 / count as f64;
    println!(
        "a member {:.0} bytes, a known chunk {:.0} bytes",
        each(begun, met, members),
        each(met, known, chunks)
    );
    println!("members still up: {}", metric(&node, up));
    stop.store(true, Ordering::Relaxed);
    singing.join().unwrap();
    let holds = known <= RESIDENT_MAX_MIB;
    println!("limit {RESIDENT_MAX_MIB} MiB: {}", if holds { "holds" } else { "PASSED" });
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
