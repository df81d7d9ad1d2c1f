//! What the mesh is compared with: requests and replies of given lengths over QUIC, TLS and HTTP/1.1, and nothing else.
//!
//! A request begins with the length of the reply that it asks for.

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CipherSuite, RootCertStore};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Longest request.
const REQUEST_MAX_BYTES: usize = 64 << 10;
/// The name in the certificate.
const NAME: &str = "localhost";
/// Every reply is a part of it.
static BODY: LazyLock<Bytes> = LazyLock::new(|| super::content(8 << 20, 0));

fn request(asked: usize, replied: usize) -> Bytes {
    let mut bytes = BytesMut::zeroed(asked);
    bytes[..8].copy_from_slice(&(replied as u64).to_le_bytes());
    bytes.freeze()
}

fn wanted(request: &[u8]) -> usize {
    usize::try_from(u64::from_le_bytes(request[..8].try_into().unwrap())).unwrap()
}

/// A certificate and its key.
pub(crate) type Pair = (CertificateDer<'static>, Vec<u8>);

pub(crate) fn identity() -> Pair {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    (made.cert.der().clone(), made.key_pair.serialize_der())
}

/// The mesh's cipher first.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn server_config((certificate, key): &Pair) -> rustls::ServerConfig {
    let key = PrivateKeyDer::try_from(key.clone()).unwrap();
    rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap()
}

fn client_config(certificate: &[u8]) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec())).unwrap();
    rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The mesh's settings (`src/mesh/endpoint/settings.rs`), where chunks come in.
fn transport(mtu: u16) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(16 << 20))
        .send_window(4 << 20)
        .max_concurrent_bidi_streams(VarInt::from_u32(256))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery));
    Arc::new(transport)
}

fn endpoint(mtu: u16, server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // As the mesh's socket.
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 2 << 20).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 2 << 20).unwrap();
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(mtu.max(1_472)).unwrap();
    quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime)).unwrap()
}

pub(crate) fn serve_quic(mtu: u16, identity: &Pair) -> SocketAddr {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(server_config(identity)).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(mtu));
    let endpoint = endpoint(mtu, Some(config));
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await.unwrap();
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    tokio::spawn(async move {
                        let request = recv.read_to_end(REQUEST_MAX_BYTES).await.unwrap();
                        send.write_chunk(BODY.slice(..wanted(&request))).await.unwrap();
                        send.finish().unwrap();
                    });
                }
            });
        }
    });
    address
}

/// A client of the QUIC echo.
pub(crate) struct QuicEcho {
    connection: quinn::Connection,
    /// One a lane, used again and again: a fresh one would cost more in page faults than the network does.
    buffers: Vec<Mutex<Vec<u8>>>,
    _endpoint: quinn::Endpoint,
}

impl QuicEcho {
    pub(crate) async fn connect(address: SocketAddr, mtu: u16, certificate: &[u8], lanes: usize) -> Self {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client_config(certificate)).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport(mtu));
        let endpoint = endpoint(mtu, None);
        let connection = endpoint.connect_with(config, address, NAME).unwrap().await.unwrap();
        let buffers = (0..lanes).map(|_| Mutex::new(Vec::with_capacity(8 << 20))).collect();
        Self { connection, buffers, _endpoint: endpoint }
    }

    /// Exchanges one request and one reply; whether the reply is put together into one buffer.
    pub(crate) async fn get(&self, lane: usize, asked: usize, replied: usize, gather: bool) {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_chunk(request(asked, replied)).await.unwrap();
        send.finish().unwrap();
        let mut buffer = self.buffers[lane].lock().await;
        buffer.clear();
        let mut len = 0;
        while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.unwrap() {
            len += chunk.bytes.len();
            if gather {
                buffer.extend_from_slice(&chunk.bytes);
            }
        }
        assert_eq!(len, replied);
    }
}

pub(crate) async fn serve_tls(identity: &Pair) -> SocketAddr {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(identity)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            tokio::spawn(answer(stream));
        }
    });
    address
}

async fn answer(mut stream: server::TlsStream<TcpStream>) {
    // Its own length, and the request.
    while let Ok(len) = stream.read_u32_le().await {
        let mut request = vec![0; len as usize];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(&BODY[..wanted(&request)]).await.unwrap();
        stream.flush().await.unwrap();
    }
}

/// Clients of TLS, one connection and one buffer a lane.
pub(crate) struct TlsEcho {
    lanes: Vec<Mutex<(client::TlsStream<TcpStream>, Vec<u8>)>>,
}

impl TlsEcho {
    pub(crate) async fn connect(address: SocketAddr, certificate: &[u8], lanes: usize) -> Self {
        let connector = TlsConnector::from(Arc::new(client_config(certificate)));
        let mut all = Vec::new();
        for _ in 0..lanes {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let name = ServerName::try_from(NAME).unwrap();
            all.push(Mutex::new((
                connector.connect(name, stream).await.unwrap(),
                Vec::with_capacity(8 << 20),
            )));
        }
        Self { lanes: all }
    }

    pub(crate) async fn get(&self, lane: usize, asked: usize, replied: usize) {
        let mut own = self.lanes[lane].lock().await;
        let (stream, buffer) = &mut *own;
        buffer.clear();
        let mut out = BytesMut::with_capacity(4 + asked);
        out.put_u32_le(u32::try_from(asked).unwrap());
        out.extend_from_slice(&request(asked, replied));
        stream.write_all(&out).await.unwrap();
        stream.flush().await.unwrap();
        while buffer.len() < replied {
            assert_ne!(stream.read_buf(buffer).await.unwrap(), 0);
        }
    }
}

pub(crate) async fn serve_http() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let service = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
                let body = request.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>(hyper::Response::new(Full::new(BODY.slice(..wanted(&body)))))
            });
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

type HttpSender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Clients of HTTP/1.1, one connection and one buffer a lane.
pub(crate) struct Http {
    lanes: Vec<Mutex<(HttpSender, Vec<u8>)>>,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr, lanes: usize) -> Self {
        let mut all = Vec::new();
        for _ in 0..lanes {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            all.push(Mutex::new((sender, Vec::with_capacity(8 << 20))));
        }
        Self { lanes: all }
    }

    pub(crate) async fn get(&self, lane: usize, asked: usize, replied: usize) {
        let mut own = self.lanes[lane].lock().await;
        let (sender, buffer) = &mut *own;
        buffer.clear();
        let body = Full::new(request(asked, replied));
        let request = hyper::Request::post("/").header("host", NAME).body(body).unwrap();
        let mut body = sender.send_request(request).await.unwrap().into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.unwrap().into_data() {
                buffer.extend_from_slice(&data);
            }
        }
        assert_eq!(buffer.len(), replied);
    }
}
