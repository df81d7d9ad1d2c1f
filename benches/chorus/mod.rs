//! Many simulated members of one agent's cell. Each is what a real one is to the agent: a key and a certificate, an address
//! and a socket of its own, for the agent paces addresses and takes an address for a place. It asks to be taken in until it is,
//! answers probes, refutes suspicions, begins a new life when it is held for dead, shows its certificate while the agent
//! may not know it, and speaks of the others as often as they would gossip to the agent. What the agent says it believes
//! unverified, and to QUIC it does not answer.

use serde::{Deserialize, Serialize};
use starling::ambient::{generator, unix_now};
use starling::mesh::{Membership, MembershipCert, MeshKeys, NodeKey, Role, Scope};
use starling::model::{NodeId, Rng as _, UnixTime};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::Instant;

const DOMAIN: &str = "starling membership datagram 1";
/// Flags of a datagram: a certificate follows; yours is wished for.
const HAS_CERTIFICATE: u8 = 1;
const WANTS_CERTIFICATE: u8 = 2;
/// How often a member asks to be taken in, at first and at most (src/mesh/swim/protocol.rs).
const JOIN_FIRST: Duration = Duration::from_millis(500);
const JOIN_LATER: Duration = Duration::from_secs(15);
/// Gossip that reaches a member of a cell with news: everybody tells three, five times a second.
const GOSSIP_PER_S: u32 = 15;
/// Members spoken of in one datagram: they fit beside a certificate.
const SPOKEN_OF: usize = 10;
/// The longest datagram that the agent sends is shorter; a QUIC packet may be cut, it is not read.
const READ_BYTES: usize = 2_048;

/// A member as the protocol names it (src/mesh/swim/seat.rs).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seat {
    node: NodeId,
    addr: SocketAddr,
    renewal: u64,
}

/// Whose cell it is.
#[derive(Clone, Copy)]
pub(crate) struct Agent {
    pub(crate) node: NodeId,
    pub(crate) addr: SocketAddr,
}

/// A membership of `node` in `cell` for an hour.
///
/// # Panics
/// When the keys cannot sign it.
pub(crate) fn certify(keys: &MeshKeys, node: NodeId, cell: &str) -> MembershipCert {
    let now = unix_now();
    let membership = Membership {
        mesh: keys.mesh(),
        node,
        cell: cell.parse().unwrap(),
        role: Role::Member,
        scope: Scope::All,
        issued: now,
        expires: UnixTime(now.0 + 3_600),
    };
    keys.certify(membership).unwrap()
}

/// The members, not yet heard.
pub(crate) struct Chorus {
    voices: Vec<Voice>,
    all: Arc<Vec<Seat>>,
}

struct Voice {
    socket: UdpSocket,
    key: NodeKey,
    certificate: Vec<u8>,
    me: Seat,
    incarnation: u16,
    /// The agent as it names itself; any life will do until it has spoken.
    agent: Seat,
    counter: u64,
    /// Whether the agent took this member in, and knows its certificate.
    taken_in: bool,
    shown: bool,
}

impl Chorus {
    /// `members` of `cell`, at 127.0.1.1 and upwards, so that no two share an address. In a tokio runtime.
    ///
    /// # Panics
    /// When there are not as many sockets to be had.
    pub(crate) async fn new(members: usize, keys: &MeshKeys, cell: &str, agent: Agent) -> Self {
        let mut voices = Vec::new();
        for number in 0..members {
            let [high, low] = u16::try_from(256 + number).expect("fewer than addresses").to_be_bytes();
            let socket = UdpSocket::bind(SocketAddr::from(([127, 0, high, low], 0))).await;
            let socket = socket.expect("a socket for each member: raise `ulimit -n`");
            let key = NodeKey::generate();
            let me =
                Seat { node: key.node(), addr: socket.local_addr().unwrap(), renewal: unix_now().0 * 1_000 };
            voices.push(Voice {
                socket,
                certificate: certify(keys, key.node(), cell).bytes().to_vec(),
                key,
                me,
                incarnation: 0,
                agent: Seat { node: agent.node, addr: agent.addr, renewal: 0 },
                counter: 0,
                taken_in: false,
                shown: false,
            });
        }
        let all = voices.iter().map(|voice| voice.me).collect();
        Self { voices, all: Arc::new(all) }
    }

    /// Has all of them join at once, and be members until the runtime ends.
    pub(crate) fn sing(self) {
        for voice in self.voices {
            tokio::spawn(voice.sing(Arc::clone(&self.all)));
        }
    }
}

impl Voice {
    async fn sing(mut self, all: Arc<Vec<Seat>>) {
        let mut dice = generator();
        let gossip_every = Duration::from_secs(1) / GOSSIP_PER_S * u32::try_from(all.len()).unwrap();
        let part = |whole: Duration, thousandths: usize| whole * u32::try_from(thousandths).unwrap() / 1_000;
        let mut gossip_due = Instant::now() + part(gossip_every, dice.below(1_000));
        let (mut join_due, mut join_pause) = (Instant::now(), JOIN_FIRST);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if !self.taken_in && join_due <= Instant::now() {
                self.say(foca::Message::Announce, &[]).await;
                join_due = Instant::now() + join_pause;
                join_pause = (join_pause * 2).min(JOIN_LATER);
            }
            if gossip_due <= Instant::now() {
                let others = (0..SPOKEN_OF).map(|_| all[dice.below(all.len())]);
                let others: Vec<_> =
                    others.filter(|seat| *seat != self.me).map(foca::Member::alive).collect();
                if self.taken_in {
                    self.say(foca::Message::Gossip, &others).await;
                }
                gossip_due += gossip_every;
            }
            let due = if self.taken_in { gossip_due } else { gossip_due.min(join_due) };
            let Ok(read) = tokio::time::timeout_at(due, self.socket.recv_from(&mut buffer)).await else {
                continue;
            };
            // On loopback a closed port of a stopped agent is reported here; the end of the measurement is near.
            let Ok((len, from)) = read else { continue };
            if from == self.agent.addr && !self.hear(&buffer[..len]).await {
                (join_due, join_pause) = (Instant::now(), JOIN_FIRST);
            }
        }
    }

    /// Reacts to a datagram. `false` when this member was held for dead, and has to join anew.
    async fn hear(&mut self, datagram: &[u8]) -> bool {
        let Some((flags, packet)) = open(datagram) else { return true };
        self.shown = flags & WANTS_CERTIFICATE == 0;
        if packet.is_empty() {
            if !self.shown {
                self.send(&[]).await;
            }
            return true;
        }
        let Ok((header, updates)) = postcard::take_from_bytes::<foca::Header<Seat>>(packet) else {
            return true;
        };
        self.agent = header.src;
        let own = members(updates).into_iter().find(|member| *member.id() == self.me);
        let dead = own.as_ref().is_some_and(|member| member.state() == foca::State::Down);
        if header.message == foca::Message::TurnUndead || dead {
            // What is said to a life before this one is late.
            let mine = header.dst == self.me;
            if mine {
                self.me.renewal += 1;
                self.incarnation = 0;
                self.taken_in = false;
            }
            return !mine;
        }
        if let Some(member) = own
            && member.state() == foca::State::Suspect
            && member.incarnation() >= self.incarnation
        {
            self.incarnation = member.incarnation() + 1;
            self.say(foca::Message::Gossip, &[]).await;
        }
        match header.message {
            foca::Message::Ping(number) => self.say(foca::Message::Ack(number), &[]).await,
            // All others are alive: the answer comes without asking them.
            foca::Message::PingReq { target, probe_number } => {
                self.say(foca::Message::ForwardedAck { origin: target, probe_number }, &[]).await;
            }
            foca::Message::IndirectPing { origin, probe_number } => {
                self.say(foca::Message::IndirectAck { target: origin, probe_number }, &[]).await;
            }
            foca::Message::Announce => self.say(foca::Message::Feed, &[]).await,
            foca::Message::Feed => self.taken_in = true,
            _ => {}
        }
        true
    }

    async fn say(&mut self, message: foca::Message<Seat>, others: &[foca::Member<Seat>]) {
        let bare = message == foca::Message::Announce;
        let header =
            foca::Header { src: self.me, src_incarnation: self.incarnation, dst: self.agent, message };
        let mut packet = postcard::to_stdvec(&header).unwrap();
        if !bare {
            packet.extend(u16::try_from(others.len()).unwrap().to_be_bytes());
            for member in others {
                packet = postcard::to_extend(member, packet).unwrap();
            }
        }
        self.send(&packet).await;
    }

    /// Sends a packet in its envelope (src/mesh/swim/datagram.rs).
    async fn send(&mut self, packet: &[u8]) {
        self.counter = (self.counter + 1).max(unix_now().0 << 20);
        let attach = packet.is_empty() || !self.shown;
        let mut datagram = vec![1, if attach { HAS_CERTIFICATE } else { 0 }];
        datagram.extend(self.me.node.0);
        datagram.extend(self.counter.to_be_bytes());
        if attach {
            datagram.extend(u16::try_from(self.certificate.len()).unwrap().to_be_bytes());
            datagram.extend(&self.certificate);
        }
        datagram.extend(packet);
        let signature = self.key.sign(DOMAIN, &[&self.agent.node.0[..], &datagram].concat());
        datagram.extend(signature);
        // What is lost is said again.
        let _ = self.socket.send_to(&datagram, self.agent.addr).await;
    }
}

/// The flags of a membership datagram, and what is in it beside the certificate.
fn open(datagram: &[u8]) -> Option<(u8, &[u8])> {
    let (signed, _) = datagram.split_at_checked(datagram.len().checked_sub(64)?)?;
    let (&[version, flags], rest) = signed.split_first_chunk::<2>()?;
    let rest = rest.get(40..).filter(|_| version == 1)?;
    if flags & HAS_CERTIFICATE == 0 {
        return Some((flags, rest));
    }
    let (len, rest) = rest.split_first_chunk::<2>()?;
    Some((flags, rest.get(usize::from(u16::from_be_bytes(*len))..)?))
}

/// The updates after a header.
fn members(updates: &[u8]) -> Vec<foca::Member<Seat>> {
    let mut members = Vec::new();
    let Some((count, mut rest)) = updates.split_first_chunk::<2>() else { return members };
    for _ in 0..u16::from_be_bytes(*count) {
        let Ok((member, after)) = postcard::take_from_bytes(rest) else { break };
        members.push(member);
        rest = after;
    }
    members
}
