//! One UDP socket for two kinds of datagrams: QUIC packets and the small ones of membership.
//!
//! They are told apart by the first byte. A QUIC packet has its fixed bit (0x40) set as long as nobody
//! greases it (RFC 9287), which this endpoint neither offers nor does; a membership datagram begins
//! below 0x40. The kernel may hand over several datagrams of one sender merged into one buffer, of
//! both kinds mixed: each buffer is cut at its stride, the membership datagrams are taken out, and the
//! packets that remain are moved together.

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Most bytes of a membership datagram: what every path carries (1 280 bytes is IPv6's least MTU, less
/// 48 of headers and some for tunnels).
pub const DATAGRAM_MAX_BYTES: usize = 1_200;
/// First bytes from here on belong to QUIC.
const QUIC_FIRST_BYTE: u8 = 0x40;
/// Received membership datagrams that wait for the membership protocol (guess: a probe round of the
/// largest cell and some announcements); more are dropped, as the network may do at any time.
const WAITING_DATAGRAMS: usize = 1_024;
/// Bytes that the kernel may hold for the socket, as far as its own limit lets it (guess: a burst of 10
/// Gbit/s during 2 ms of scheduling).
const KERNEL_BUFFER_BYTES: usize = 2 << 20;

/// Why a membership datagram was not sent.
#[derive(Debug, thiserror::Error)]
pub enum DatagramError {
    /// Its first byte would make it a QUIC packet, or it is empty.
    #[error("a membership datagram begins with a byte below 0x40, not with {first:?}")]
    FirstByte {
        /// The first byte, if there is one.
        first: Option<u8>,
    },
    /// Too long to pass every path.
    #[error("a membership datagram of {len} bytes, at most {DATAGRAM_MAX_BYTES} pass every path")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The socket cannot reach such an address, or the kernel refuses or is busy.
    #[error("cannot send to {to}: {source}")]
    Io {
        /// The destination.
        to: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Membership datagrams as they come in, with their senders.
pub(super) type Datagrams = mpsc::Receiver<(SocketAddr, Bytes)>;

/// What happened to membership datagrams, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Received and handed on.
    pub received: u64,
    /// Received and dropped because too many waited.
    pub dropped: u64,
    /// Sent.
    pub sent: u64,
    /// Not sent because the kernel was busy or refused.
    pub unsent: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    dropped: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
}

/// Opens the UDP socket. One on an IPv6 wildcard also takes IPv4.
pub(super) fn open(listen: SocketAddr) -> io::Result<UdpSocket> {
    let family = if listen.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if listen.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // The kernel cuts both to its own limits without an error.
    sockopt::set_socket_recv_buffer_size(&socket, KERNEL_BUFFER_BYTES)?;
    sockopt::set_socket_send_buffer_size(&socket, KERNEL_BUFFER_BYTES)?;
    rustix::net::bind(&socket, &listen)?;
    Ok(UdpSocket::from(socket))
}

/// Has the kernel hand over each packet by itself. After [`Wire::system`], which asks for merged ones.
pub(super) fn take_no_merged_packets(socket: &UdpSocket) -> io::Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel reads an integer of the length that it is told.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const off).cast(),
            libc::socklen_t::try_from(size_of_val(&off)).unwrap_or(0),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An IPv4 address that came in over an IPv6 socket, in its own form.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A UDP socket, from the system or from a test's network.
pub(super) struct Wire {
    /// As quinn uses it.
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    /// Sends one datagram on it at once, or says that it cannot. Apart from `socket`, because tokio believes a
    /// socket unwritable until its reactor has looked at it, and the first announcement would be lost.
    pub(super) send: SendOne,
}

/// Sends one datagram to an address.
pub(super) type SendOne = Box<dyn Fn(&[u8], SocketAddr) -> io::Result<()> + Send + Sync>;

impl Wire {
    /// The system's socket, whose readiness `runtime` watches.
    pub(super) fn system(socket: UdpSocket, runtime: &dyn quinn::Runtime) -> io::Result<Self> {
        let sender = socket.try_clone()?;
        // Both descriptors become non-blocking here: they are one open socket.
        let socket = runtime.wrap_udp_socket(socket)?;
        Ok(Self { socket, send: Box::new(move |content, to| sender.send_to(content, to).map(drop)) })
    }
}

/// The socket that quinn sees, with the membership datagrams taken out.
pub(super) struct SharedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    send: SendOne,
    datagrams: mpsc::Sender<(SocketAddr, Bytes)>,
    counters: Counters,
    ipv6: bool,
}

impl fmt::Debug for SharedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSocket").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl SharedSocket {
    /// Shares `wire` with quinn; the receiver gets the membership datagrams and their senders.
    pub(super) fn new(wire: Wire) -> io::Result<(Arc<Self>, Datagrams)> {
        let (datagrams, receiver) = mpsc::channel(WAITING_DATAGRAMS);
        let Wire { socket: inner, send } = wire;
        let ipv6 = inner.local_addr()?.is_ipv6();
        Ok((Arc::new(Self { inner, send, datagrams, counters: Counters::default(), ipv6 }), receiver))
    }

    /// Sends a membership datagram, or drops it when the kernel is busy.
    pub(super) fn send_datagram(&self, to: SocketAddr, content: &[u8]) -> Result<(), DatagramError> {
        match content.first() {
            Some(first) if *first < QUIC_FIRST_BYTE => {}
            first => return Err(DatagramError::FirstByte { first: first.copied() }),
        }
        if content.len() > DATAGRAM_MAX_BYTES {
            return Err(DatagramError::TooLong { len: content.len() });
        }
        let destination = match to.ip() {
            IpAddr::V4(v4) if self.ipv6 => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        match (self.send)(content, destination) {
            Ok(()) => {
                self.counters.sent.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(source) => {
                self.counters.unsent.fetch_add(1, Ordering::Relaxed);
                Err(DatagramError::Io { to, source })
            }
        }
    }

    pub(super) fn counts(&self) -> DatagramCounts {
        DatagramCounts {
            received: self.counters.received.load(Ordering::Relaxed),
            dropped: self.counters.dropped.load(Ordering::Relaxed),
            sent: self.counters.sent.load(Ordering::Relaxed),
            unsent: self.counters.unsent.load(Ordering::Relaxed),
        }
    }

    fn hand_on(&self, from: SocketAddr, content: &[u8]) {
        let counter = match self.datagrams.try_send((canonical(from), Bytes::copy_from_slice(content))) {
            Ok(()) => &self.counters.received,
            Err(_) => &self.counters.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Takes the membership datagrams out of a received buffer and moves the QUIC packets together.
///
/// All datagrams of a buffer have the length `stride` but the last, which may be shorter; order is
/// kept, so the same holds for what remains. Returns the bytes that remain.
fn take_out(buffer: &mut [u8], len: usize, stride: usize, mut taken: impl FnMut(&[u8])) -> usize {
    if stride == 0 {
        return len;
    }
    let mut kept = 0;
    let mut start = 0;
    while start < len {
        let end = len.min(start + stride);
        if buffer[start] < QUIC_FIRST_BYTE {
            taken(&buffer[start..end]);
        } else {
            if kept != start {
                buffer.copy_within(start..end, kept);
            }
            kept += end - start;
        }
        start = end;
    }
    kept
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.inner.poll_recv(cx, buffers, metas))?;
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(received) {
            // A buffer of which nothing remains has length 0: quinn finds no packet in it and polls again.
            meta.len = take_out(buffer, meta.len, meta.stride, |content| self.hand_on(meta.addr, content));
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_merged_buffer_is_split_into_its_two_kinds_in_order(
            kinds in proptest::collection::vec(any::<bool>(), 1..64),
            stride in 1usize..40,
            last in 1usize..40,
        ) {
            let last = last.min(stride);
            let datagrams: Vec<Vec<u8>> = kinds.iter().enumerate().map(|(i, quic)| {
                let len = if i + 1 == kinds.len() { last } else { stride };
                let mut datagram = vec![u8::try_from(i).unwrap(); len];
                datagram[0] = if *quic { 0x40 } else { 0 } | u8::try_from(i % 64).unwrap();
                datagram
            }).collect();
            let mut buffer = datagrams.concat();
            let len = buffer.len();
            buffer.extend([0xee; 7]);
            let mut taken = Vec::new();
            let kept = take_out(&mut buffer, len, stride, |content| taken.push(content.to_vec()));
            let (quic, membership): (Vec<_>, Vec<_>) = datagrams.into_iter().partition(|d| d[0] >= QUIC_FIRST_BYTE);
            prop_assert_eq!(taken, membership);
            prop_assert_eq!(&buffer[..kept], quic.concat());
        }
    }

    fn shared(socket: UdpSocket) -> (Arc<SharedSocket>, Datagrams) {
        SharedSocket::new(Wire::system(socket, &quinn::TokioRuntime).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn datagrams_that_are_merged_by_the_kernel_reach_their_readers() {
        let socket = open("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = socket.local_addr().unwrap();
        let (shared, mut datagrams) = shared(socket);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let state = quinn::udp::UdpSocketState::new((&sender).into()).unwrap();
        let kinds = [0x01u8, 0x41, 0x02, 0x42, 0x43, 0x03];
        let contents: Vec<u8> = kinds.iter().flat_map(|first| [*first; 100]).collect();
        let merged = Transmit {
            destination: to,
            ecn: None,
            contents: &contents,
            segment_size: Some(100),
            src_ip: None,
        };
        assert!(state.max_gso_segments() >= kinds.len(), "this kernel sends segments");
        state.send((&sender).into(), &merged).unwrap();
        let mut quic = Vec::new();
        let mut largest = 0;
        while quic.len() < 3 || datagrams.len() < 3 {
            let mut storage = vec![0u8; 65_536];
            let mut metas = [RecvMeta::default()];
            let received = std::future::poll_fn(|cx| {
                shared.poll_recv(cx, &mut [IoSliceMut::new(&mut storage)], &mut metas)
            });
            assert_eq!(received.await.unwrap(), 1);
            largest = largest.max(metas[0].len);
            quic.extend(storage[..metas[0].len].chunks(metas[0].stride.max(1)).map(|d| d[0]));
        }
        assert_eq!(quic, [0x41, 0x42, 0x43]);
        assert!(largest > 100, "the kernel merged nothing: this test did not test what it should");
        for first in [1u8, 2, 3] {
            let (from, content) = datagrams.recv().await.unwrap();
            assert_eq!((from, &content[..]), (sender.local_addr().unwrap(), &[first; 100][..]));
        }
        assert_eq!(shared.counts().received, 3);
    }

    #[tokio::test]
    async fn without_offload_each_packet_comes_by_itself() {
        let socket = open("127.0.0.1:0".parse().unwrap()).unwrap();
        let (to, own) = (socket.local_addr().unwrap(), socket.try_clone().unwrap());
        let (shared, _datagrams) = shared(socket);
        take_no_merged_packets(&own).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let state = quinn::udp::UdpSocketState::new((&sender).into()).unwrap();
        let contents = [0x41; 600];
        let merged = Transmit {
            destination: to,
            ecn: None,
            contents: &contents,
            segment_size: Some(100),
            src_ip: None,
        };
        state.send((&sender).into(), &merged).unwrap();
        for _ in 0..6 {
            let mut storage = vec![0u8; 65_536];
            let mut metas = [RecvMeta::default()];
            let received = std::future::poll_fn(|cx| {
                shared.poll_recv(cx, &mut [IoSliceMut::new(&mut storage)], &mut metas)
            });
            received.await.unwrap();
            assert_eq!((metas[0].len, metas[0].stride), (100, 100));
        }
    }

    #[tokio::test]
    async fn what_is_no_membership_datagram_is_not_sent_as_one_and_a_flood_is_dropped_with_a_count() {
        let socket = open("[::]:0".parse().unwrap()).unwrap();
        let (shared, mut datagrams) = shared(socket);
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), shared.local_addr().unwrap().port());
        assert!(matches!(
            shared.send_datagram(to, &[0x40]),
            Err(DatagramError::FirstByte { first: Some(0x40) })
        ));
        assert!(matches!(shared.send_datagram(to, &[]), Err(DatagramError::FirstByte { first: None })));
        assert!(matches!(shared.send_datagram(to, &[0; 1_201]), Err(DatagramError::TooLong { len: 1_201 })));
        for _ in 0..WAITING_DATAGRAMS + 5 {
            shared.hand_on(to, b"x");
        }
        assert_eq!(shared.counts().dropped, 5);
        while datagrams.try_recv().is_ok() {}
        // Over an IPv6 socket to an IPv4 address and back: the address keeps its own form.
        shared.send_datagram(to, &[0x3f; DATAGRAM_MAX_BYTES]).unwrap();
        let mut storage = vec![0u8; 65_536];
        let mut metas = [RecvMeta::default()];
        let received =
            std::future::poll_fn(|cx| shared.poll_recv(cx, &mut [IoSliceMut::new(&mut storage)], &mut metas));
        received.await.unwrap();
        assert_eq!(metas[0].len, 0, "nothing is left for QUIC");
        let (from, content) = datagrams.recv().await.unwrap();
        assert_eq!((from, content.len()), (to, DATAGRAM_MAX_BYTES));
    }
}
