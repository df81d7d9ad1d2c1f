//! The client of the control API, and of an agent's open HTTP address.

use super::api::cache::{
    CacheCleaned, CacheReport, CacheUnits, PinRequest, PinStatus, Verified, VerifyRequest,
};
use super::api::trace::{EndRecording, RecordRequest, Recorded, Recording};
use super::api::{
    ANSWER_MAX_BYTES, AddRepository, Announced, AuthorityStatus, Invitation, InviteRequest, Members,
    MountRequest, MountStatus, Mounts, Peers, Refusal, RefusalKind, Repositories, RepositoryStatus,
    RevokeRequest, Revoked, RotateRequest, Rotated, Status, UnmountRequest, Why, WhyRequest,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Time for a connection: a live agent accepts at once, and a host in the same network soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for an answer to what has to be done first: a little more than the agent itself takes at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(130);
/// Time for an answer that the agent only has to look up: one that is alive takes a small part of it (a guess).
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Where an agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentAddress {
    /// Its Unix socket.
    Socket(PathBuf),
    /// Host and port of its `http_listen`, which serves roots, metrics and health only.
    Http(String),
}

impl AgentAddress {
    /// What a user may write for `--announce`: a path (with a `/`) or `HOST:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains('/') && !text.starts_with("http://") {
            return Some(Self::Socket(text.into()));
        }
        let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = text.rsplit_once(':')?;
        (!host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok())
            .then(|| Self::Http(text.to_owned()))
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Http(address) => address.fmt(f),
        }
    }
}

/// Why an agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no agent answers on {address}: is `starling agent` running? ({source})")]
    NoAgent {
        /// Where.
        address: AgentAddress,
        /// What the system said.
        source: io::Error,
    },
    /// The socket belongs to somebody else.
    #[error("no permission to talk to the agent on {0}")]
    NotPermitted(AgentAddress),
    /// It does not speak as an agent should, or too much.
    #[error("{address} does not answer like an agent: {detail}")]
    Protocol {
        /// Where.
        address: AgentAddress,
        /// What was wrong.
        detail: String,
    },
    /// No answer in time.
    #[error("the agent on {address} does not answer: waited for {waited_s} s")]
    Timeout {
        /// Where.
        address: AgentAddress,
        /// How long the client waited, in seconds.
        waited_s: u64,
    },
    /// The agent says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Asks one agent. Every call opens a connection of its own and ends within a bounded time.
#[derive(Clone, Debug)]
pub struct Client {
    address: AgentAddress,
    /// Time for what the agent only has to look up.
    look_within: Duration,
}

impl Client {
    /// A client of the agent behind a Unix socket. Connects at the first call.
    pub fn new(socket: &Path) -> Self {
        Self::at(AgentAddress::Socket(socket.to_owned()))
    }

    /// A client of an agent anywhere.
    pub fn at(address: AgentAddress) -> Self {
        Self { address, look_within: LOOK_TIMEOUT }
    }

    /// The same, for who goes on waiting for an agent that has much to do, or asks for a long list.
    pub fn patient(self) -> Self {
        Self { look_within: ANSWER_TIMEOUT, ..self }
    }

    /// What the agent is doing.
    ///
    /// # Errors
    /// [`ClientError`], as with all calls.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.json(Method::GET, "/v1/status", Bytes::new()).await
    }

    /// The other members that it knows.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn peers(&self) -> Result<Peers, ClientError> {
        self.json(Method::GET, "/v1/peers", Bytes::new()).await
    }

    /// What it has mounted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn mounts(&self) -> Result<Mounts, ClientError> {
        self.json(Method::GET, "/v1/mounts", Bytes::new()).await
    }

    /// Mounts a repository.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn mount(&self, request: &MountRequest) -> Result<MountStatus, ClientError> {
        self.json(Method::POST, "/v1/mounts", self.body(request)?).await
    }

    /// Unmounts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn unmount(&self, request: &UnmountRequest) -> Result<MountStatus, ClientError> {
        self.json(Method::DELETE, "/v1/mounts", self.body(request)?).await
    }

    /// The repositories that it knows.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn repositories(&self) -> Result<Repositories, ClientError> {
        self.json(Method::GET, "/v1/repositories", Bytes::new()).await
    }

    /// Makes a repository known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_repository(&self, request: &AddRepository) -> Result<RepositoryStatus, ClientError> {
        self.json(Method::POST, "/v1/repositories", self.body(request)?).await
    }

    /// Asks an authority for a ticket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn invite(&self, request: &InviteRequest) -> Result<Invitation, ClientError> {
        self.json(Method::POST, "/v1/invite", self.body(request)?).await
    }

    /// Asks where the chunks of a file came from.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn why(&self, request: &WhyRequest) -> Result<Why, ClientError> {
        self.json(Method::POST, "/v1/why", self.body(request)?).await
    }

    /// Begins to record what a command reads of a mount.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn record(&self, request: &RecordRequest) -> Result<Recording, ClientError> {
        self.json(Method::POST, "/v1/traces", self.body(request)?).await
    }

    /// Ends a recording.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn end_recording(&self, request: &EndRecording) -> Result<Recorded, ClientError> {
        self.json(Method::POST, "/v1/traces/end", self.body(request)?).await
    }

    /// The members that the agent knows, and who was revoked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn members(&self) -> Result<Members, ClientError> {
        self.json(Method::GET, "/v1/members", Bytes::new()).await
    }

    /// The mesh's authority as the agent sees it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn authority(&self) -> Result<AuthorityStatus, ClientError> {
        self.json(Method::GET, "/v1/authority", Bytes::new()).await
    }

    /// Ends a membership.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke(&self, request: &RevokeRequest) -> Result<Revoked, ClientError> {
        self.json(Method::POST, "/v1/revoke", self.body(request)?).await
    }

    /// Gives the authority a new key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate(&self, request: &RotateRequest) -> Result<Rotated, ClientError> {
        self.json(Method::POST, "/v1/rotate", self.body(request)?).await
    }

    /// What the agent's cache holds and has done.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cache(&self) -> Result<CacheReport, ClientError> {
        self.json(Method::GET, "/v1/cache", Bytes::new()).await
    }

    /// The packs and bodies of the agent's cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cache_units(&self) -> Result<CacheUnits, ClientError> {
        self.json(Method::GET, "/v1/cache/units", Bytes::new()).await
    }

    /// Has some chunks of a pack or body hashed.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` when it is not there (any more).
    pub async fn cache_verify(&self, request: &VerifyRequest) -> Result<Verified, ClientError> {
        self.json(Method::POST, "/v1/cache/verify", self.body(request)?).await
    }

    /// Removes from the cache what is neither pinned nor in use.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cache_clean(&self) -> Result<CacheCleaned, ClientError> {
        self.json(Method::POST, "/v1/cache/clean", Bytes::new()).await
    }

    /// Keeps a part of a repository in the cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pin(&self, request: &PinRequest) -> Result<PinStatus, ClientError> {
        self.json(Method::POST, "/v1/cache/pins", self.body(request)?).await
    }

    /// Keeps it no longer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn unpin(&self, request: &PinRequest) -> Result<PinStatus, ClientError> {
        self.json(Method::DELETE, "/v1/cache/pins", self.body(request)?).await
    }

    /// Hands a signed root to the agent, which judges it and hands it on.
    ///
    /// # Errors
    /// [`ClientError`]; a root that is forged or older than what is known there is `Refused`.
    pub async fn announce(&self, root: Bytes) -> Result<Announced, ClientError> {
        self.json(Method::POST, "/v1/announce", root).await
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let bytes = self.send(Method::GET, "/metrics", Bytes::new()).await?;
        String::from_utf8(bytes.into()).map_err(|e| self.protocol(e))
    }

    fn body<T: Serialize>(&self, request: &T) -> Result<Bytes, ClientError> {
        // Paths that are not UTF-8 have no JSON form.
        serde_json::to_vec(request).map(Bytes::from).map_err(|e| self.protocol(e))
    }

    fn protocol(&self, detail: impl fmt::Display) -> ClientError {
        ClientError::Protocol { address: self.address.clone(), detail: detail.to_string() }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = self.send(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|e| self.protocol(e))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let patience = if method == Method::GET { self.look_within } else { ANSWER_TIMEOUT };
        match &self.address {
            AgentAddress::Socket(socket) => {
                let stream = self.connected(UnixStream::connect(socket)).await?;
                self.within(patience, self.exchange(stream, "starling", method, path, body)).await
            }
            AgentAddress::Http(address) => {
                let stream = self.connected(TcpStream::connect(address)).await?;
                self.within(patience, self.exchange(stream, address, method, path, body)).await
            }
        }
    }

    async fn connected<S>(&self, connect: impl Future<Output = io::Result<S>>) -> Result<S, ClientError> {
        let address = self.address.clone();
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::NotPermitted(address))
            }
            Ok(Err(source)) => Err(ClientError::NoAgent { address, source }),
            Err(_) => Err(ClientError::Timeout { address, waited_s: CONNECT_TIMEOUT.as_secs() }),
        }
    }

    async fn within<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout { address: self.address.clone(), waited_s: patience.as_secs() })
        })
    }

    async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        host: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.protocol(e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, host)
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.protocol(e))?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(|e| self.protocol(e))?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
                .collect()
                .await
                .map_err(|e| self.protocol(e))?
                .to_bytes();
            self.judge(status, bytes)
        };
        // The connection makes progress only while it is polled, and it may end first with an error
        // that the request then reports too.
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            answer = &mut talk => answer,
            _ = connection => talk.await,
        }
    }

    fn judge(&self, status: StatusCode, bytes: Bytes) -> Result<Bytes, ClientError> {
        if status.is_success() {
            return Ok(bytes);
        }
        Err(ClientError::Refused(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(300).collect();
            Refusal::new(RefusalKind::Unknown, format!("{}: {status} {}", self.address, text.trim()))
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::MountOptions;
    use super::super::server::{Control, ControlSocket, control_router, open_router};
    use super::*;
    use crate::fs::Profile;
    use crate::model::{NodeId, Revision, UnixTime};
    use futures::future::BoxFuture;
    use std::sync::{Arc, Mutex};

    /// Answers with what it was asked, so that a round trip shows that nothing was lost.
    #[derive(Default)]
    struct Double {
        announced: Mutex<Vec<Bytes>>,
        troubles: Mutex<Vec<String>>,
    }

    impl Control for Double {
        fn status(&self) -> BoxFuture<'_, Status> {
            let status = Status {
                api: 1,
                version: "9".into(),
                pid: 7,
                uptime_s: 3,
                state_dir: "/state".into(),
                mesh: None,
                cache: Default::default(),
                obtained: Default::default(),
                repositories: Vec::new(),
                mounts: Vec::new(),
                troubles: self.troubles.lock().unwrap().clone(),
            };
            Box::pin(async { status })
        }
        fn peers(&self) -> BoxFuture<'_, Peers> {
            Box::pin(async { Peers { node: None, ended: None, peers: Vec::new() } })
        }
        fn mounts(&self) -> Mounts {
            Mounts { mounts: Vec::new() }
        }
        fn repositories(&self) -> Repositories {
            Repositories { repositories: Vec::new() }
        }
        fn record(&self, _: RecordRequest) -> Result<Recording, Refusal> {
            Ok(Recording { number: 0 })
        }
        fn end_recording(&self, _: EndRecording) -> BoxFuture<'_, Result<Recorded, Refusal>> {
            Box::pin(async { Ok(Recorded { is_cut: false, document: String::new() }) })
        }
        fn mount(&self, request: MountRequest) -> BoxFuture<'_, Result<MountStatus, Refusal>> {
            Box::pin(async move {
                Ok(MountStatus {
                    repository: request.repository,
                    directory: request.directory,
                    revision: Some(Revision(5)),
                    root: None,
                    options: Default::default(),
                    automatic: false,
                    expired: false,
                    problem: None,
                    profile: None,
                    lacks: Vec::new(),
                    note: None,
                    fill: None,
                })
            })
        }
        fn unmount(&self, request: UnmountRequest) -> BoxFuture<'_, Result<MountStatus, Refusal>> {
            Box::pin(async move {
                let message = format!("{} is not mounted", request.directory.display());
                Err(Refusal::new(RefusalKind::NotFound, message).hint("see `starling status`"))
            })
        }
        fn why(&self, request: WhyRequest) -> BoxFuture<'_, Result<Why, Refusal>> {
            Box::pin(async move {
                Err(Refusal::new(RefusalKind::NotFound, format!("there is no {}", request.path)))
            })
        }
        fn announce(&self, root: Bytes) -> BoxFuture<'_, Result<Announced, Refusal>> {
            self.announced.lock().unwrap().push(root);
            Box::pin(async {
                Ok(Announced { repository: "a.b".parse().unwrap(), revision: Revision(2), fresh: true })
            })
        }
        fn add_repository(&self, r: AddRepository) -> BoxFuture<'_, Result<RepositoryStatus, Refusal>> {
            Box::pin(async move {
                Ok(RepositoryStatus {
                    repository: r.repository,
                    fingerprint: r.fingerprint,
                    strata: r.strata,
                    spread: true,
                    revision: None,
                    expires: None,
                })
            })
        }
        fn invite(&self, _: InviteRequest) -> BoxFuture<'_, Result<Invitation, Refusal>> {
            Box::pin(async { Err(Refusal::new(RefusalKind::NotAllowed, "not an authority")) })
        }
        fn members(&self) -> BoxFuture<'_, Result<Members, Refusal>> {
            Box::pin(async { Ok(Members { members: Vec::new(), revoked: Vec::new() }) })
        }
        fn authority(&self) -> BoxFuture<'_, Result<AuthorityStatus, Refusal>> {
            Box::pin(async { Err(Refusal::new(RefusalKind::NotAllowed, "not a member")) })
        }
        fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revoked, Refusal>> {
            let RevokeRequest { node, reason } = request;
            let (at, until) = (UnixTime(1), UnixTime(2));
            Box::pin(async move { Ok(Revoked { node, at, until, reason, number: 3, authority: false }) })
        }
        fn rotate(&self, request: RotateRequest) -> BoxFuture<'_, Result<Rotated, Refusal>> {
            let old_keys_until = UnixTime(request.overlap_s.unwrap_or_default());
            let (key_number, key) = (2, "ff".into());
            Box::pin(async move { Ok(Rotated { key_number, key, old_keys_until, cards: 0, dropped: None }) })
        }
        fn cache(&self) -> CacheReport {
            CacheReport {
                folder: "/cache".into(),
                used_bytes: 1,
                quota_bytes: 2,
                free_floor_bytes: 3,
                chunks: 4,
                packs: 5,
                bodies: 6,
                bodies_complete: 7,
                delivered: Default::default(),
                misses: 8,
                evicted_chunks: 9,
                damaged_chunks: 10,
                scrubbed_bytes: 11,
                scrub_rounds: 12,
                writing_paused: true,
                pins: Vec::new(),
                pins_problem: None,
            }
        }
        fn cache_units(&self) -> CacheUnits {
            CacheUnits { units: Vec::new() }
        }
        fn cache_verify(&self, request: VerifyRequest) -> BoxFuture<'_, Result<Verified, Refusal>> {
            let bytes = request.unit.len() as u64;
            Box::pin(
                async move { Ok(Verified { chunks: 1, bytes, damaged_chunks: 0, next: Some(request.from) }) },
            )
        }
        fn cache_clean(&self) -> BoxFuture<'_, Result<CacheCleaned, Refusal>> {
            Box::pin(async { Ok(CacheCleaned { freed_bytes: 5, kept_bytes: 6 }) })
        }
        fn pin(&self, request: PinRequest) -> BoxFuture<'_, Result<PinStatus, Refusal>> {
            Box::pin(async move {
                Ok(PinStatus {
                    repository: request.repository,
                    path: Some(request.path),
                    revision: Revision(4),
                    bytes: 2,
                    here_bytes: 1,
                    complete: false,
                    problem: None,
                })
            })
        }
        fn unpin(&self, request: PinRequest) -> BoxFuture<'_, Result<PinStatus, Refusal>> {
            let message = format!("{} is not pinned", request.path);
            Box::pin(async move { Err(Refusal::new(RefusalKind::NotFound, message)) })
        }
        fn metrics(&self) -> BoxFuture<'_, String> {
            Box::pin(async { "starling_x 1\n# EOF\n".into() })
        }
    }

    async fn served(test: impl AsyncFnOnce(Client, Arc<Double>)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let double = Arc::new(Double::default());
        let socket = ControlSocket::open(&path).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(socket.serve(control_router(double.clone()), async {
            let _ = stopped.await;
        }));
        test(Client::new(&path), double).await;
        let _ = stop.send(());
        serving.await.unwrap().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn requests_and_answers_survive_the_journey() {
        served(async |client, double| {
            assert_eq!(client.status().await.unwrap(), double.status().await);
            assert_eq!(client.peers().await.unwrap(), double.peers().await);
            let request = MountRequest {
                repository: "sw.example.org".parse().unwrap(),
                directory: "/a b/ü".into(),
                fill: true,
                options: MountOptions { profile: Profile::SmallFiles, ..MountOptions::default() },
            };
            let mounted = client.mount(&request).await.unwrap();
            assert_eq!((mounted.directory, mounted.revision), ("/a b/ü".into(), Some(Revision(5))));
            let add = AddRepository {
                repository: "a.b".parse().unwrap(),
                fingerprint: "ff".into(),
                strata: vec!["http://x".into()],
            };
            assert_eq!(client.add_repository(&add).await.unwrap().strata, add.strata);
            let revoke = RevokeRequest { node: NodeId([7; 32]), reason: "lost".into() };
            let revoked = client.revoke(&revoke).await.unwrap();
            assert_eq!((revoked.node, revoked.reason, revoked.number), (revoke.node, revoke.reason, 3));
            let rotated =
                client.rotate(&RotateRequest { overlap_s: Some(9), drop_oldest: false }).await.unwrap();
            assert_eq!((rotated.key_number, rotated.old_keys_until), (2, UnixTime(9)));
            assert!(client.members().await.unwrap().members.is_empty());
            assert!(client.authority().await.is_err());
            assert_eq!(client.cache().await.unwrap(), double.cache());
            assert_eq!(client.cache_units().await.unwrap(), double.cache_units());
            let verify = VerifyRequest { unit: "00000001.pack".into(), from: 7, most_bytes: 9 };
            let verified = client.cache_verify(&verify).await.unwrap();
            assert_eq!((verified.bytes, verified.next), (13, Some(7)));
            assert_eq!(client.cache_clean().await.unwrap().freed_bytes, 5);
            let pin = PinRequest { repository: "a.b".parse().unwrap(), path: "/x".into() };
            let pinned = client.pin(&pin).await.unwrap();
            assert_eq!((pinned.repository, pinned.path), (pin.repository.clone(), Some(pin.path.clone())));
            assert!(client.unpin(&pin).await.unwrap_err().to_string().contains("/x is not pinned"));
            assert_eq!(client.metrics().await.unwrap(), double.metrics().await);
            let root = Bytes::from_static(&[0, 255, 7]);
            assert!(client.announce(root.clone()).await.unwrap().fresh);
            assert_eq!(*double.announced.lock().unwrap(), [root]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_refusal_arrives_with_kind_message_and_hint() {
        served(async |client, _| {
            let request = UnmountRequest { directory: "/mnt".into() };
            let Err(ClientError::Refused(refusal)) = client.unmount(&request).await else { panic!() };
            assert_eq!(refusal.kind, RefusalKind::NotFound);
            assert_eq!(refusal.message, "/mnt is not mounted");
            assert_eq!(refusal.hint.as_deref(), Some("see `starling status`"));
            let Err(ClientError::Refused(refusal)) = client.invite(&InviteRequest::default()).await else {
                panic!()
            };
            assert_eq!(refusal.kind, RefusalKind::NotAllowed);
        })
        .await;
    }

    #[tokio::test]
    async fn nonsense_and_excess_are_refused() {
        served(async |client, double| {
            let Err(ClientError::Refused(refusal)) =
                client.send(Method::POST, "/v1/mounts", Bytes::from_static(b"{\"no\":1}")).await
            else {
                panic!()
            };
            assert_eq!(refusal.kind, RefusalKind::Invalid);
            let Err(ClientError::Refused(refusal)) = client.send(Method::GET, "/v9/x", Bytes::new()).await
            else {
                panic!()
            };
            assert!(refusal.message.contains("GET /v9/x"), "{refusal}");
            let large = Bytes::from(vec![0; super::super::api::BODY_MAX_BYTES + 1]);
            assert!(client.announce(large).await.is_err());
            assert!(double.announced.lock().unwrap().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn the_open_address_serves_roots_and_metrics_and_nothing_else() {
        let double = Arc::new(Double::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(axum::serve(listener, open_router(double.clone())).into_future());
        let client = Client::at(AgentAddress::parse(&address).unwrap());
        assert!(client.announce(Bytes::from_static(b"root")).await.unwrap().fresh);
        assert!(client.metrics().await.unwrap().contains("starling_x"));
        let Err(ClientError::Refused(refusal)) = client.status().await else { panic!() };
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        let healthz = || async { client.send(Method::GET, "/healthz", Bytes::new()).await };
        assert!(healthz().await.is_ok());
        double.troubles.lock().unwrap().push("nobody is seen".into());
        let error = healthz().await.unwrap_err().to_string();
        assert!(error.contains("503") || error.contains("unfit"), "{error}");
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_stopped_is_given_up_soon_where_it_only_has_to_look_something_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        // The kernel takes connections and requests, and nobody answers.
        let _stopped = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = Client::new(&path);
        let waited = |error: ClientError| {
            let said = error.to_string();
            assert!(said.contains("does not answer") && said.contains("agent.sock"), "{said}");
            let ClientError::Timeout { waited_s, .. } = error else { panic!("{said}") };
            waited_s
        };
        assert_eq!(waited(client.status().await.unwrap_err()), 10);
        assert_eq!(waited(client.metrics().await.unwrap_err()), 10);
        let request = UnmountRequest { directory: "/mnt".into() };
        assert_eq!(waited(client.unmount(&request).await.unwrap_err()), 130);
        assert_eq!(waited(client.patient().cache_units().await.unwrap_err()), 130);
    }

    #[tokio::test]
    async fn without_an_agent_the_error_says_so_and_where() {
        let error = Client::new(Path::new("/nowhere/agent.sock")).status().await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/agent.sock") && error.contains("starling agent"), "{error}");
    }

    #[test]
    fn an_address_is_a_path_or_a_host_and_port() {
        assert_eq!(AgentAddress::parse("/run/a.sock"), Some(AgentAddress::Socket("/run/a.sock".into())));
        assert_eq!(AgentAddress::parse("./a.sock"), Some(AgentAddress::Socket("./a.sock".into())));
        for http in ["node-7:7401", "http://node-7:7401", "http://node-7:7401/"] {
            assert_eq!(AgentAddress::parse(http), Some(AgentAddress::Http("node-7:7401".into())), "{http}");
        }
        for bad in ["", "node-7", ":7401", "node-7:port", "node-7:99999"] {
            assert_eq!(AgentAddress::parse(bad), None, "{bad}");
        }
    }
}
