//! A virtual UDP network in tokio's paused time: delay, jitter (and with it reordering), loss, duplication, a rate with a
//! queue, a largest datagram, black holes, cuts, and addresses that change. All chance comes from one seed.
//!
//! One task, the courier, carries datagrams from senders to receivers at their time. Deliveries happen on whole
//! milliseconds, because tokio's timers do.

use crate::mesh::socket::Wire;
use crate::model::{Generator, Rng as _};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a receiver's kernel holds for it; more is dropped.
const MAILBOX_BYTES: usize = 2 << 20;
/// IPv4 and UDP headers, which a rate counts too.
const HEADER_BYTES: usize = 28;
/// Datagrams of one batch: what Linux takes of a segmented send, a few less.
const SEGMENTS: usize = 10;

/// How datagrams fare on their way.
#[derive(Clone, Debug)]
pub(in crate::mesh) struct Link {
    /// One way.
    pub(in crate::mesh) latency: Duration,
    /// Added at random up to this much, so that datagrams overtake each other.
    pub(in crate::mesh) jitter: Duration,
    /// Of a thousand datagrams so many are lost.
    pub(in crate::mesh) loss_permille: usize,
    /// Of a thousand datagrams so many arrive twice.
    pub(in crate::mesh) duplicate_permille: usize,
    /// What a sender's uplink carries, if it has a bound,
    pub(in crate::mesh) bytes_per_s: Option<u64>,
    /// and how long a datagram may wait for it before it is dropped.
    pub(in crate::mesh) queue: Duration,
    /// The largest payload that passes, if it has a bound; larger ones are lost, and nobody is told.
    pub(in crate::mesh) largest: Option<usize>,
}

impl Default for Link {
    /// A local network on a good day.
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss_permille: 0,
            duplicate_permille: 0,
            bytes_per_s: None,
            queue: Duration::from_millis(50),
            largest: None,
        }
    }
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::mesh) struct NetCounts {
    pub(in crate::mesh) delivered: u64,
    pub(in crate::mesh) lost: u64,
    /// Of those, larger than their path takes.
    pub(in crate::mesh) too_large: u64,
    pub(in crate::mesh) duplicated: u64,
    /// Delivered after a younger one of the same way.
    pub(in crate::mesh) overtaken: u64,
}

struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    content: Vec<u8>,
}

#[derive(Default)]
struct Mailbox {
    /// The socket that reads it.
    owner: u64,
    waiting: VecDeque<Packet>,
    bytes: usize,
    reader: Option<Waker>,
}

struct State {
    generator: Generator,
    link: Link,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    holes: BTreeSet<IpAddr>,
    sides: BTreeMap<IpAddr, u8>,
    /// Where a socket is seen, once that is not where it is bound.
    seen_at: BTreeMap<SocketAddr, SocketAddr>,
    mailboxes: BTreeMap<SocketAddr, Mailbox>,
    uplink_free: BTreeMap<SocketAddr, Instant>,
    flying: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: BTreeMap<u64, Packet>,
    sent: u64,
    sockets: u64,
    newest: BTreeMap<(SocketAddr, SocketAddr), u64>,
    counts: NetCounts,
    trace: blake3::Hasher,
    started: Instant,
}

/// The network. Cheap to clone.
#[derive(Clone)]
pub(in crate::mesh) struct Net {
    state: Arc<Mutex<State>>,
    earlier: Arc<Notify>,
}

impl Net {
    /// A network whose chance comes from `seed`, and its courier. Inside a runtime with paused time.
    pub(in crate::mesh) fn new(seed: u64, link: Link) -> Self {
        let state = State {
            generator: Generator::stream(seed, 0x6e65_7477_6f72_6b00),
            link,
            links: BTreeMap::new(),
            holes: BTreeSet::new(),
            sides: BTreeMap::new(),
            seen_at: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            uplink_free: BTreeMap::new(),
            flying: BinaryHeap::new(),
            packets: BTreeMap::new(),
            sent: 0,
            sockets: 0,
            newest: BTreeMap::new(),
            counts: NetCounts::default(),
            trace: blake3::Hasher::new(),
            started: Instant::now(),
        };
        let net = Self { state: Arc::new(Mutex::new(state)), earlier: Arc::new(Notify::new()) };
        tokio::spawn(net.clone().carry());
        net
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Takes the socket at `address` off the network; its owner hears nothing more. Another may take the address.
    pub(in crate::mesh) fn unplug(&self, address: SocketAddr) {
        self.lock().mailboxes.remove(&address);
    }

    /// A socket at `address`.
    pub(in crate::mesh) fn socket(&self, address: SocketAddr) -> Arc<Socket> {
        let mut state = self.lock();
        state.sockets += 1;
        let number = state.sockets;
        let before = state.mailboxes.insert(address, Mailbox { owner: number, ..Mailbox::default() });
        assert!(before.is_none(), "{address} is taken");
        Arc::new(Socket { net: self.clone(), address, number })
    }

    /// The same, as an endpoint takes it.
    pub(in crate::mesh) fn wire(&self, address: SocketAddr) -> Wire {
        let socket = self.socket(address);
        let sender = socket.clone();
        let send = Box::new(move |contents: &[u8], destination| {
            sender.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None })
        });
        Wire { socket, send }
    }

    /// Sends a datagram as if from `from`, which need not exist: addresses can be forged.
    pub(in crate::mesh) fn send(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        content: &[u8],
    ) {
        if self.lock().send(from, to, ecn, content) {
            self.earlier.notify_one();
        }
    }

    /// How datagrams fare from one machine to another from now on, in this direction.
    pub(in crate::mesh) fn set_link(&self, from: SocketAddr, to: SocketAddr, link: Link) {
        self.lock().links.insert((from.ip(), to.ip()), link);
    }

    /// From now on nothing reaches the machine and nothing of it gets out, and nobody is told.
    pub(in crate::mesh) fn black_hole(&self, machine: SocketAddr) {
        self.lock().holes.insert(machine.ip());
    }

    /// The machine is back.
    pub(in crate::mesh) fn heal(&self, machine: SocketAddr) {
        self.lock().holes.remove(&machine.ip());
    }

    /// Puts a machine on one side of a cut; all begin on side 0.
    pub(in crate::mesh) fn set_side(&self, machine: SocketAddr, side: u8) {
        self.lock().sides.insert(machine.ip(), side);
    }

    /// The socket bound at `bound` is seen at `seen` from now on, as after an address translator forgot it.
    pub(in crate::mesh) fn see_at(&self, bound: SocketAddr, seen: SocketAddr) {
        self.lock().seen_at.insert(bound, seen);
    }

    /// What became of datagrams so far.
    pub(in crate::mesh) fn counts(&self) -> NetCounts {
        self.lock().counts
    }

    /// A hash over the time, way, length and fate of every datagram so far.
    pub(in crate::mesh) fn trace(&self) -> String {
        self.lock().trace.finalize().to_hex().to_string()
    }

    async fn carry(self) {
        loop {
            let next = self.lock().flying.peek().map(|next| next.0.0);
            match next {
                None => self.earlier.notified().await,
                Some(due) if due > Instant::now() => {
                    tokio::select! {
                        biased;
                        () = self.earlier.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                Some(_) => {
                    let reader = self.lock().deliver_one();
                    if let Some(reader) = reader {
                        reader.wake();
                    }
                }
            }
        }
    }
}

impl State {
    /// Decides a datagram's fate. Says whether it is the next to arrive.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, ecn: Option<EcnCodepoint>, content: &[u8]) -> bool {
        let now = Instant::now();
        let source = self.seen_at.get(&from).copied().unwrap_or(from);
        let link = self.links.get(&(from.ip(), to.ip())).unwrap_or(&self.link).clone();
        let side = |address: SocketAddr| self.sides.get(&address.ip()).copied().unwrap_or(0);
        let cut = side(from) != side(to) || self.holes.contains(&from.ip()) || self.holes.contains(&to.ip());
        let mut departure = now;
        if let Some(rate) = link.bytes_per_s {
            let free = self.uplink_free.get(&from).copied().unwrap_or(now).max(now);
            if free - now > link.queue {
                self.note(b'q', source, to, content.len());
                self.counts.lost += 1;
                return false;
            }
            let bytes = (content.len() + HEADER_BYTES) as u64;
            departure = free + Duration::from_nanos(bytes * 1_000_000_000 / rate);
            self.uplink_free.insert(from, departure);
        }
        if link.largest.is_some_and(|largest| content.len() > largest) {
            self.note(b'm', source, to, content.len());
            self.counts.lost += 1;
            self.counts.too_large += 1;
            return false;
        }
        if cut || self.generator.below(1_000) < link.loss_permille {
            self.note(b'l', source, to, content.len());
            self.counts.lost += 1;
            return false;
        }
        let copies = if self.generator.below(1_000) < link.duplicate_permille { 2 } else { 1 };
        self.counts.duplicated += copies - 1;
        let mut first = false;
        for _ in 0..copies {
            let jitter = self.generator.below(usize::try_from(link.jitter.as_micros()).unwrap() + 1) as u64;
            let due = departure + link.latency + Duration::from_micros(jitter);
            self.sent += 1;
            first |= self.flying.peek().is_none_or(|next| due < next.0.0);
            self.flying.push(Reverse((due, self.sent)));
            let packet = Packet { from: source, to, ecn, content: content.to_vec() };
            self.packets.insert(self.sent, packet);
        }
        first
    }

    /// Delivers the datagram that is due, and says whom to wake.
    fn deliver_one(&mut self) -> Option<Waker> {
        let Reverse((_, number)) = self.flying.pop()?;
        let packet = self.packets.remove(&number)?;
        let (from, to, len) = (packet.from, packet.to, packet.content.len());
        // Whoever moved is found where it is seen, and no longer where it is bound.
        let moved = self.seen_at.iter().find(|(_, seen)| **seen == to).map(|(bound, _)| *bound);
        let bound = moved.unwrap_or(to);
        let gone = moved.is_none() && self.seen_at.contains_key(&to) || self.holes.contains(&bound.ip());
        let mailbox = self.mailboxes.get_mut(&bound).filter(|_| !gone);
        let Some(mailbox) = mailbox.filter(|mailbox| mailbox.bytes + len <= MAILBOX_BYTES) else {
            self.counts.lost += 1;
            self.note(b'n', from, to, len);
            return None;
        };
        mailbox.bytes += len;
        mailbox.waiting.push_back(packet);
        let reader = mailbox.reader.take();
        self.counts.delivered += 1;
        let newest = self.newest.entry((from, to)).or_default();
        self.counts.overtaken += u64::from(number < *newest);
        *newest = number.max(*newest);
        self.note(b'd', from, to, len);
        reader
    }

    fn note(&mut self, fate: u8, from: SocketAddr, to: SocketAddr, len: usize) {
        let at = self.started.elapsed().as_nanos();
        self.trace.update(format!("{at} {from} {to} {len} {}\n", char::from(fate)).as_bytes());
    }
}

/// One socket on the network.
pub(in crate::mesh) struct Socket {
    net: Net,
    address: SocketAddr,
    number: u64,
}

impl Socket {
    fn is_plugged_in(&self, state: &State) -> bool {
        state.mailboxes.get(&self.address).is_some_and(|mailbox| mailbox.owner == self.number)
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.net.lock();
        if self.is_plugged_in(&state) {
            state.mailboxes.remove(&self.address);
        }
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !self.is_plugged_in(&self.net.lock()) {
            return Ok(());
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for content in transmit.contents.chunks(size) {
            self.net.send(self.address, transmit.destination, transmit.ecn, content);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.net.lock();
        let owner = self.number;
        let Some(mailbox) = state.mailboxes.get_mut(&self.address).filter(|mailbox| mailbox.owner == owner)
        else {
            return Poll::Pending;
        };
        let mut received = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()) {
            let Some(packet) = mailbox.waiting.pop_front() else { break };
            let len = packet.content.len();
            mailbox.bytes -= len;
            buffer[..len].copy_from_slice(&packet.content);
            *meta = RecvMeta::default();
            (meta.addr, meta.len, meta.stride) = (packet.from, len, len);
            (meta.ecn, meta.dst_ip) = (packet.ecn, Some(packet.to.ip()));
            received += 1;
        }
        if received == 0 {
            mailbox.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
