//! libp2p's control plane over the shared QUIC endpoint: its `Transport` and its `StreamMuxer`.
//!
//! libp2p owns no socket here. Dialling is asked of the endpoint, incoming connections with libp2p's
//! ALPN come through a channel. Both have passed the TLS handshake, in which the membership was checked.

use super::name::{from_multiaddr, peer_id, to_multiaddr};
use super::{ControlPlane, Neighbour};
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

type Upgrade = BoxFuture<'static, io::Result<(PeerId, StreamMuxerBox)>>;

/// One stream of a connection.
pub(super) struct Stream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.receive.poll_read(cx, buf).map_err(io::Error::from)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
    connection: quinn::Connection,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
}

impl Muxer {
    fn new(connection: quinn::Connection) -> Self {
        Self { connection, inbound: None, outbound: None }
    }
}

fn poll_opening(
    slot: &mut Option<Opening>,
    start: impl FnOnce() -> Opening,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Stream>> {
    let result = ready!(slot.get_or_insert_with(start).poll_unpin(cx));
    *slot = None;
    Poll::Ready(result.map(|(send, receive)| Stream { send, receive }).map_err(io::Error::from))
}

impl StreamMuxer for Muxer {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let Self { connection, inbound, .. } = self.get_mut();
        let start = || {
            let connection = connection.clone();
            async move { connection.accept_bi().await }.boxed()
        };
        poll_opening(inbound, start, cx)
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let Self { connection, outbound, .. } = self.get_mut();
        let start = || {
            let connection = connection.clone();
            async move { connection.open_bi().await }.boxed()
        };
        poll_opening(outbound, start, cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.close(0u32.into(), b"");
        Poll::Ready(Ok(()))
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        // Addresses do not change under a connection (migration is the endpoint's business), and a
        // broken connection shows in `poll_inbound`.
        Poll::Pending
    }
}

/// The shared endpoint, as libp2p sees it.
pub(super) struct SharedEndpoint<P> {
    plane: Arc<P>,
    addr: SocketAddr,
    incoming: mpsc::Receiver<quinn::Connection>,
    /// Who was met: reported, and dropped when nobody keeps up (a label is learned again at the next connection).
    met: mpsc::Sender<Neighbour>,
    listener: Option<ListenerId>,
    announced: bool,
}

impl<P: ControlPlane> SharedEndpoint<P> {
    pub(super) fn new(
        plane: Arc<P>,
        addr: SocketAddr,
        incoming: mpsc::Receiver<quinn::Connection>,
        met: mpsc::Sender<Neighbour>,
    ) -> Self {
        Self { plane, addr, incoming, met, listener: None, announced: false }
    }
}

/// A connection that is up becomes libp2p's: named by the key that it proved in the handshake.
fn upgrade<P: ControlPlane>(
    plane: &P,
    met: &mpsc::Sender<Neighbour>,
    connection: quinn::Connection,
) -> io::Result<(PeerId, StreamMuxerBox)> {
    let (node, cell) = plane.peer_of(&connection)?;
    let _ = met.try_send(Neighbour { node, addr: connection.remote_address(), cell });
    let peer = peer_id(node).ok_or_else(|| io::Error::other(format!("{node} is no ed25519 key")))?;
    Ok((peer, StreamMuxerBox::new(Muxer::new(connection))))
}

impl<P: ControlPlane> Transport for SharedEndpoint<P> {
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
        let Some((to, node)) = from_multiaddr(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let (plane, met) = (Arc::clone(&self.plane), self.met.clone());
        Ok(async move {
            let connection = plane.dial(to, node).await?;
            upgrade(&*plane, &met, connection)
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
        let send_back_addr = to_multiaddr(connection.remote_address());
        let upgraded = upgrade(&*self.plane, &self.met, connection);
        Poll::Ready(TransportEvent::Incoming {
            listener_id,
            upgrade: futures::future::ready(upgraded).boxed(),
            local_addr: own,
            send_back_addr,
        })
    }
}
