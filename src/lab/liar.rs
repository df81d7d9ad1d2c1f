//! Members with valid certificates that lie: what peers ask of them is answered here, and never reaches the node.
//!
//! All else of a liar is an honest agent: it is a live member, and so a home of its share of the slices.

use super::scenario::LiarKind;
use crate::ambient;
use crate::mesh::Tamper;
use crate::mesh::transfer::{Ask, PeerRequest};
use crate::mesh::wire::Holder;
use crate::model::{Generator, Rng as _};
use bytes::Bytes;
use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Requests that wait to be handed on; as many as an honest node lets wait.
const PASSED_MAX: usize = 1_024;
/// Askers that are kept waiting at once; more hear nothing and are dropped.
const STALLED_MAX: usize = 4_096;
/// How often one who waits is told to go on waiting: what an honest node does.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Longest that a liar keeps one waiting: longer than any asker has patience.
const STALL: Duration = Duration::from_secs(120);
/// Peers that are remembered, to be named as holders.
const NAMED_MAX: usize = 64;

impl FromStr for LiarKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "corrupt" => Ok(Self::Corrupt),
            "stall" => Ok(Self::Stall),
            "lie" => Ok(Self::Lie),
            _ => Err(format!("`{text}` is no way to lie: corrupt, stall or lie")),
        }
    }
}

impl std::fmt::Display for LiarKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Corrupt => "corrupt",
            Self::Stall => "stall",
            Self::Lie => "lie",
        })
    }
}

/// What makes an agent a liar.
pub fn tamper(kind: LiarKind) -> Tamper {
    Box::new(move |requests| {
        let (pass, passed) = mpsc::channel(PASSED_MAX);
        tokio::spawn(lie(kind, requests, pass));
        passed
    })
}

async fn lie(kind: LiarKind, mut requests: mpsc::Receiver<PeerRequest>, pass: mpsc::Sender<PeerRequest>) {
    let mut generator = ambient::generator();
    let mut known: VecDeque<Holder> = VecDeque::new();
    let mut answering = JoinSet::new();
    while let Some(request) = requests.recv().await {
        while answering.try_join_next().is_some() {}
        let ask = match request {
            PeerRequest::Ask(ask) => ask,
            // The node never heard of what was asked.
            PeerRequest::Withdrawn { .. } => continue,
            other => {
                if pass.send(other).await.is_err() {
                    return;
                }
                continue;
            }
        };
        remember(&mut known, &ask);
        if answering.len() >= STALLED_MAX {
            continue;
        }
        match kind {
            LiarKind::Corrupt => {
                answering.spawn(corrupt(ask, generator.next_u64()));
            }
            LiarKind::Stall => {
                answering.spawn(stall(ask));
            }
            LiarKind::Lie => evade(ask, &known, &mut generator),
        }
    }
}

fn remember(known: &mut VecDeque<Holder>, ask: &Ask) {
    if known.iter().all(|holder| holder.node != ask.peer) {
        known.truncate(NAMED_MAX - 1);
        // Where the peer listens is not told with what it asks; a wrong address is one more lie.
        let address = ([10, 77, 255, 254], crate::config::DEFAULT_PORT).into();
        known.push_front(Holder { node: ask.peer, address });
    }
}

/// As many bytes as were asked for, all of them wrong.
async fn corrupt(ask: Ask, seed: u64) {
    let mut generator = Generator::new(seed);
    let length = ask.chunk.plain_len as usize;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&generator.next_u64().to_le_bytes());
    }
    bytes.truncate(length);
    ask.reply.data(Bytes::from(bytes)).await;
}

/// "It comes", again and again.
async fn stall(mut ask: Ask) {
    for _ in 0..STALL.as_millis() / KEEP_ALIVE.as_millis() {
        ask.reply.wait(0);
        tokio::time::sleep(KEEP_ALIVE).await;
    }
}

/// "I am busy" or "I have nothing, but those have it", who have it or not.
fn evade(ask: Ask, known: &VecDeque<Holder>, generator: &mut Generator) {
    let mut holders = Vec::new();
    for _ in 0..4 {
        holders.push(known[generator.below(known.len())]);
    }
    if generator.below(2) == 0 {
        ask.reply.busy(holders, 0);
    } else {
        ask.reply.missing(holders, 0);
    }
}
