//! libp2p's control plane over the shared QUIC endpoint: its `Transport` and its `StreamMuxer`.
//!
//! libp2p owns no socket here. Dialling is asked of the endpoint, incoming connections with libp2p's
//! ALPN come through a channel. Both have passed the TLS handshake, in which the membership was checked.
//! What a member opens is read at its rate only, see [`super::flood`].

use super::super::endpoint::{Alpn, CloseCode, Endpoint};
use super::super::identity::peer_id_of;
use super::super::registry::MemberConnection;
use super::Neighbour;
use super::flood::Gate;
use super::members::Members;
use super::name::{from_multiaddr, to_multiaddr};
use crate::ambient;
use crate::model::NodeId;
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt, ready};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent};
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::{Multiaddr, PeerId};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::time::Sleep;

type Upgrade = BoxFuture<'static, io::Result<(PeerId, StreamMuxerBox)>>;

/// Counts the messages that a member sends on a stream that it opened.
struct Toll {
    gate: Arc<Gate>,
    node: NodeId,
    /// Whether the next bytes begin a message: at first, and after something was written to it.
    is_due: bool,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Toll {
    /// Ready when a message may be read.
    fn poll_pass(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            if !self.is_due {
                return Poll::Ready(());
            }
            match self.gate.pass(self.node, ambient::now()) {
                Ok(()) => self.is_due = false,
                Err(wait) => self.waiting = Some(Box::pin(tokio::time::sleep(wait))),
            }
        }
    }
}

/// One stream of a connection.
pub(super) struct Stream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    /// On streams that the peer opened.
    toll: Option<Toll>,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(toll) = &mut self.toll {
            ready!(toll.poll_pass(cx));
        }
        self.receive.poll_read(cx, buf).map_err(io::Error::from)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(toll) = &mut self.toll {
            toll.is_due = true;
        }
        Pin::new(&mut self.send).poll_write(cx, buf).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // quinn sends by itself what was written.
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Closing twice, or after the peer stopped the stream, is no error to the caller.
        let _ = self.send.finish();
        Poll::Ready(Ok(()))
    }
}

type Opening = BoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>;

/// One connection. quinn multiplexes; this only hands its streams on.
struct Muxer {
    /// Held, because the connection ends with its last handle.
    connection: MemberConnection,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
    gate: Arc<Gate>,
}

impl Muxer {
    fn new(connection: MemberConnection, gate: Arc<Gate>) -> Self {
        Self { connection, inbound: None, outbound: None, gate }
    }
}

fn poll_opening(
    slot: &mut Option<Opening>,
    start: impl FnOnce() -> Opening,
    toll: impl FnOnce() -> Option<Toll>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Stream>> {
    let result = ready!(slot.get_or_insert_with(start).poll_unpin(cx));
    *slot = None;
    let stream = result.map(|(send, receive)| Stream { send, receive, toll: toll() });
    Poll::Ready(stream.map_err(io::Error::from))
}

impl StreamMuxer for Muxer {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let Self { connection, inbound, gate, .. } = self.get_mut();
        let start = || {
            let connection = connection.quinn().clone();
            async move { connection.accept_bi().await }.boxed()
        };
        let node = connection.node();
        let toll = || Some(Toll { gate: Arc::clone(gate), node, is_due: true, waiting: None });
        poll_opening(inbound, start, toll, cx)
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let Self { connection, outbound, .. } = self.get_mut();
        let start = || {
            let connection = connection.quinn().clone();
            async move { connection.open_bi().await }.boxed()
        };
        poll_opening(outbound, start, || None, cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.close(CloseCode::Done);
        Poll::Ready(Ok(()))
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        // Addresses do not change under a connection (migration is the endpoint's business), and a
        // broken connection shows in `poll_inbound`.
        Poll::Pending
    }
}

/// Where connections come from, and who hears of them.
pub(super) struct Doors {
    pub(super) incoming: mpsc::Receiver<MemberConnection>,
    /// Who was met: reported, and dropped when nobody keeps up (a label is learned again at the next connection).
    pub(super) met: mpsc::Sender<Neighbour>,
    pub(super) gate: Arc<Gate>,
    pub(super) members: Arc<Members>,
}

/// The shared endpoint, as libp2p sees it.
pub(super) struct SharedEndpoint {
    endpoint: Endpoint,
    addr: SocketAddr,
    incoming: mpsc::Receiver<MemberConnection>,
    upgrades: Upgrades,
    listener: Option<ListenerId>,
    announced: bool,
}

impl SharedEndpoint {
    pub(super) fn new(endpoint: Endpoint, addr: SocketAddr, doors: Doors) -> Self {
        let Doors { incoming, met, gate, members } = doors;
        let upgrades = Upgrades { met, gate, members };
        Self { endpoint, addr, incoming, upgrades, listener: None, announced: false }
    }
}

#[derive(Clone)]
struct Upgrades {
    met: mpsc::Sender<Neighbour>,
    gate: Arc<Gate>,
    members: Arc<Members>,
}

impl Upgrades {
    /// A connection that is up becomes libp2p's: named by the key that it proved in the handshake.
    fn upgrade(&self, connection: MemberConnection) -> (PeerId, StreamMuxerBox) {
        self.members.connected(&connection);
        let _ = self.met.try_send(Neighbour::of(&connection));
        let peer = peer_id_of(&connection.node());
        (peer, StreamMuxerBox::new(Muxer::new(connection, Arc::clone(&self.gate))))
    }
}

impl Transport for SharedEndpoint {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, _: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.listener = Some(id);
        self.announced = false;
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listener.take_if(|listener| *listener == id).is_some()
    }

    fn dial(&mut self, addr: Multiaddr, _: DialOpts) -> Result<Upgrade, TransportError<io::Error>> {
        let Some((to, Some(node))) = from_multiaddr(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let (endpoint, upgrades) = (self.endpoint.clone(), self.upgrades.clone());
        Ok(async move {
            let connection = endpoint.connect(node, to, Alpn::Libp2p).await.map_err(io::Error::other)?;
            Ok(upgrades.upgrade(connection))
        }
        .boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Upgrade, io::Error>> {
        let Some(listener_id) = self.listener else { return Poll::Pending };
        let own = to_multiaddr(self.addr);
        if !self.announced {
            self.announced = true;
            return Poll::Ready(TransportEvent::NewAddress { listener_id, listen_addr: own });
        }
        let Some(connection) = ready!(self.incoming.poll_recv(cx)) else {
            // The endpoint is closed; the task that drives the swarm ends by its own channel.
            return Poll::Pending;
        };
        let send_back_addr = to_multiaddr(connection.address());
        let upgraded = Ok(self.upgrades.upgrade(connection));
        Poll::Ready(TransportEvent::Incoming {
            listener_id,
            upgrade: futures::future::ready(upgraded).boxed(),
            local_addr: own,
            send_back_addr,
        })
    }
}
