//! Delays in user space: a TCP proxy before the stratum, a UDP relay before a neighbour.

use starling::ambient::now;
use starling::model::Time;
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

/// Pieces on their way in one direction of a connection; who sends more waits.
const ON_THE_WAY: usize = 4_096;
/// Largest piece of a TCP stream, in bytes.
const PIECE_BYTES: usize = 16 << 10;

fn wait_until(due: Time) {
    let left = due.since(now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

/// Passes on to `to` whatever comes in, each piece when it is due.
fn deliver(mut to: TcpStream, due: &Receiver<(Time, Vec<u8>)>) {
    while let Ok((at, piece)) = due.recv() {
        wait_until(at);
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// One direction: `first` is how long the first piece takes beyond `delay`.
fn pump(mut from: TcpStream, to: TcpStream, delay: Duration, first: Duration) {
    let (sender, receiver) = sync_channel(ON_THE_WAY);
    thread::spawn(move || deliver(to, &receiver));
    let opened = now();
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let due = (now() + delay).max(opened + delay + first);
        if sender.send((due, buffer[..len].to_vec())).is_err() {
            return;
        }
    }
}

/// A proxy before `stratum` (`http://HOST:PORT`); its own URL. What passes takes half of `rtt` each way, and a connection
/// another `rtt` to be made, as its handshake would. Bandwidth is not bounded.
pub(crate) fn before_stratum(stratum: &str, rtt: Duration) -> String {
    let stratum: SocketAddr = stratum.trim_start_matches("http://").parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(stratum)) else { continue };
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pump(up, server, rtt / 2, rtt));
            thread::spawn(move || pump(down, client, rtt / 2, Duration::ZERO));
        }
    });
    url
}

/// Sends packets on when they are due.
fn relay(from: &UdpSocket, delay: Duration, to: impl Fn(SocketAddr) -> Option<(Arc<UdpSocket>, SocketAddr)>) {
    let (sender, receiver) = sync_channel::<(Time, Vec<u8>, Arc<UdpSocket>, SocketAddr)>(ON_THE_WAY);
    thread::spawn(move || {
        while let Ok((at, packet, socket, address)) = receiver.recv() {
            wait_until(at);
            let _ = socket.send_to(&packet, address);
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok((len, source)) = from.recv_from(&mut buffer) {
        let Some((socket, address)) = to(source) else { continue };
        // A full queue drops, as queues of a network do.
        let _ = sender.try_send((now() + delay, buffer[..len].to_vec(), socket, address));
    }
}

/// A relay before the node that listens at `node`; the address to be told to others.
pub(crate) fn before_node(node: SocketAddr, rtt: Duration) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = front.local_addr().unwrap();
    let clients = std::sync::Mutex::new(HashMap::<SocketAddr, Arc<UdpSocket>>::new());
    thread::spawn(move || {
        let back = Arc::clone(&front);
        relay(&front, rtt / 2, |source| {
            let mut clients = clients.lock().unwrap();
            let socket = clients.entry(source).or_insert_with(|| {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                let (own, back) = (Arc::clone(&socket), Arc::clone(&back));
                thread::spawn(move || relay(&own, rtt / 2, |_| Some((Arc::clone(&back), source))));
                socket
            });
            Some((Arc::clone(socket), node))
        });
    });
    address
}
