//! What an agent takes in a large mesh: a real agent, two thousand simulated members of its cell, and a million chunks
//! that it knows and holds.
//!
//! `cargo bench --bench memory -- [--chunks 1000000] [--members 2000]`. The members ([`chorus`]) join all at once, and are
//! waited for. One real member then asks for every chunk, so that the agent has each in its books, and verifies and
//! serves it. Prints the resident memory after each step, and how long the members took. Exits with 1 when it is more
//! than the limit.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]
#![allow(clippy::disallowed_methods, reason = "a measurement takes the real time")]

#[path = "../tests/common/mod.rs"]
mod common;

mod chorus;

use chorus::{Agent, Chorus, certify};
use common::{Node, starling};
use starling::cache::{CacheConfig, DiskCache};
use starling::mesh::transfer::{self, Reply};
use starling::mesh::wire::Request;
use starling::mesh::{Endpoint, EndpointConfig, Identity, NodeKey};
use starling::model::{ChunkRef, Class, ContentId, NodeId, Place, limits};
use starling::store::{ChunkStore as _, Origin};
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// Most resident memory of the agent, at any time.
const RESIDENT_MAX_MIB: f64 = 128.0;
/// Plain bytes of a chunk here: the agent's books do not depend on it, the disk does.
const PLAIN_BYTES: usize = 16;
/// Length of a chunk in its segment, as it would be: 64 KiB.
const STORED_BYTES: u64 = 64 << 10;
/// Longest time that the members may take to be seen, and how often they are counted.
const JOIN_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Chunks of a request, and time between requests: two thirds of what a member may ask for before it is called a flood
/// (src/mesh/conduct.rs), for these chunks are so small that the agent serves more.
const CHUNKS_AT_ONCE: usize = 64;
const ASK_EVERY: Duration = Duration::from_micros(1_500);
const CELL: &str = "eu/a/r1";

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

/// Asks the agent for every chunk, a request after the other, at a pace that members are allowed.
async fn ask_for_all(identity: Arc<Identity>, agent: NodeId, addr: SocketAddr, chunks: u64) {
    let config = EndpointConfig::new("127.0.0.1:0".parse().unwrap());
    let (endpoint, _incoming) = Endpoint::bind(config, identity).unwrap();
    let connection = endpoint.connection(agent, addr).await.unwrap();
    let (mut served, mut rounds) = (0, 0);
    let mut pace = tokio::time::interval(ASK_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wanted: Vec<u64> = (0..chunks).collect();
    while !wanted.is_empty() && rounds < 100 {
        rounds += 1;
        let mut again = Vec::new();
        for batch in wanted.chunks(CHUNKS_AT_ONCE) {
            pace.tick().await;
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
    let stage = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let singers = usize::try_from(members).unwrap();
    let chorus = stage.block_on(Chorus::new(singers, &keys, CELL, Agent { node: agent, addr }));
    let joined = Instant::now();
    stage.spawn(async { chorus.sing() });
    let up = "starling_members{state=\"up\"}";
    while metric(&node, up) <= members {
        assert!(
            joined.elapsed() < JOIN_MAX,
            "{} of {members} members after {JOIN_MAX:?}",
            metric(&node, up) - 1
        );
        std::thread::sleep(LOOK_EVERY);
    }
    let met = show(&format!("{} members of the cell are up", metric(&node, up) - 1));
    println!("all members were seen after {:.1} s", joined.elapsed().as_secs_f64());

    let key = NodeKey::generate();
    let certificate = certify(&keys, key.node(), CELL);
    let asker = Arc::new(Identity::new(key, certificate, identity.trust().clone(), None).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(ask_for_all(asker, agent, addr, chunks));
    let known = show(&format!("{chunks} chunks known, verified and served"));
    let most = resident_mib(pid, "VmHWM");
    println!("{:<52} {most:>7.1} MiB", "at most, ever");
    let each = |from: f64, to: f64, count: u64| (to - from) * 1_048_576.0 / count as f64;
    println!(
        "a member {:.0} bytes, a known chunk {:.0} bytes",
        each(begun, met, members),
        each(met, known, chunks)
    );
    println!("members still up: {}", metric(&node, up) - 1);
    stage.shutdown_background();
    let holds = most <= RESIDENT_MAX_MIB;
    println!("limit {RESIDENT_MAX_MIB} MiB: {}", if holds { "holds" } else { "MISSED" });
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
