//! The control API over HTTP: a Unix socket for everything, and optionally a TCP address for what
//! needs no permission. Transport only; [`Control`] decides.

use super::api::cache::{
    CacheCleaned, CacheReport, CacheUnits, PinRequest, PinStatus, Verified, VerifyRequest,
};
use super::api::trace::{EndRecording, RecordRequest, Recorded, Recording};
use super::api::{
    AddRepository, Announced, AuthorityStatus, BODY_MAX_BYTES, Invitation, InviteRequest, Members,
    MountRequest, MountStatus, Mounts, Peers, Refusal, RefusalKind, Repositories, RepositoryStatus,
    RevokeRequest, Revoked, RotateRequest, Rotated, Status, UnmountRequest, Why, WhyRequest,
};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;

/// Connections that wait to be accepted: more than one machine's operators open at once (a guess).
const BACKLOG: i32 = 64;
/// Time that a request may take: unmounting and asking a stratum for a root end earlier.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What can be asked of an agent. Every call ends within a bounded time.
pub trait Control: Send + Sync + 'static {
    /// What it is doing.
    fn status(&self) -> BoxFuture<'_, Status>;
    /// The other members that it knows.
    fn peers(&self) -> BoxFuture<'_, Peers>;
    /// What it has mounted.
    fn mounts(&self) -> Mounts;
    /// The repositories that it knows.
    fn repositories(&self) -> Repositories;
    /// Mounts the newest verified revision of a repository.
    fn mount(&self, request: MountRequest) -> BoxFuture<'_, Result<MountStatus, Refusal>>;
    /// Unmounts.
    fn unmount(&self, request: UnmountRequest) -> BoxFuture<'_, Result<MountStatus, Refusal>>;
    /// Judges a signed root, adopts it and hands it on.
    fn announce(&self, root: Bytes) -> BoxFuture<'_, Result<Announced, Refusal>>;
    /// Makes a repository known.
    fn add_repository(&self, request: AddRepository) -> BoxFuture<'_, Result<RepositoryStatus, Refusal>>;
    /// Makes a ticket.
    fn invite(&self, request: InviteRequest) -> BoxFuture<'_, Result<Invitation, Refusal>>;
    /// Where the chunks of a file came from.
    fn why(&self, request: WhyRequest) -> BoxFuture<'_, Result<Why, Refusal>>;
    /// The members that it knows, and who was revoked.
    fn members(&self) -> BoxFuture<'_, Result<Members, Refusal>>;
    /// The mesh's authority, as it sees it.
    fn authority(&self) -> BoxFuture<'_, Result<AuthorityStatus, Refusal>>;
    /// Ends a membership.
    fn revoke(&self, request: RevokeRequest) -> BoxFuture<'_, Result<Revoked, Refusal>>;
    /// Gives the authority a new key.
    fn rotate(&self, request: RotateRequest) -> BoxFuture<'_, Result<Rotated, Refusal>>;
    /// Begins to record what a command reads of a mount.
    fn record(&self, request: RecordRequest) -> Result<Recording, Refusal>;
    /// Ends that.
    fn end_recording(&self, request: EndRecording) -> BoxFuture<'_, Result<Recorded, Refusal>>;
    /// What the cache holds and has done.
    fn cache(&self) -> CacheReport;
    /// The packs and bodies of the cache.
    fn cache_units(&self) -> CacheUnits;
    /// Hashes some chunks of a pack or body.
    fn cache_verify(&self, request: VerifyRequest) -> BoxFuture<'_, Result<Verified, Refusal>>;
    /// Removes from the cache what is neither pinned nor in use.
    fn cache_clean(&self) -> BoxFuture<'_, Result<CacheCleaned, Refusal>>;
    /// Keeps a part of a repository in the cache.
    fn pin(&self, request: PinRequest) -> BoxFuture<'_, Result<PinStatus, Refusal>>;
    /// Keeps it no longer.
    fn unpin(&self, request: PinRequest) -> BoxFuture<'_, Result<PinStatus, Refusal>>;
    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> BoxFuture<'_, String>;
}

/// The content type of Prometheus' OpenMetrics text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl RefusalKind {
    fn status(self) -> StatusCode {
        match self {
            Self::Invalid | Self::Untrusted => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::BAD_GATEWAY,
            Self::Internal | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(self)).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// Everything, for the Unix socket.
pub fn control_router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(c): State<Arc<dyn Control>>| async move { Json(c.status().await) }))
        .route("/v1/peers", get(|State(c): State<Arc<dyn Control>>| async move { Json(c.peers().await) }))
        .route(
            "/v1/mounts",
            get(|State(c): State<Arc<dyn Control>>| async move { Json(c.mounts()) })
                .post(mount)
                .delete(unmount),
        )
        .route(
            "/v1/repositories",
            get(|State(c): State<Arc<dyn Control>>| async move { Json(c.repositories()) })
                .post(add_repository),
        )
        .route("/v1/invite", post(invite))
        .route("/v1/why", post(why))
        .route("/v1/traces", post(record))
        .route("/v1/traces/end", post(end_recording))
        .route(
            "/v1/members",
            get(|State(c): State<Arc<dyn Control>>| async move { bounded(c.members()).await }),
        )
        .route(
            "/v1/authority",
            get(|State(c): State<Arc<dyn Control>>| async move { bounded(c.authority()).await }),
        )
        .route("/v1/revoke", post(revoke))
        .route("/v1/rotate", post(rotate))
        .merge(cache_routes())
        .merge(open_routes())
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(control)
}

fn cache_routes() -> Router<Arc<dyn Control>> {
    Router::new()
        .route("/v1/cache", get(|State(c): State<Arc<dyn Control>>| async move { Json(c.cache()) }))
        .route(
            "/v1/cache/units",
            get(|State(c): State<Arc<dyn Control>>| async move { Json(c.cache_units()) }),
        )
        .route("/v1/cache/verify", post(cache_verify))
        .route(
            "/v1/cache/clean",
            post(|State(c): State<Arc<dyn Control>>| async move { bounded(c.cache_clean()).await }),
        )
        .route("/v1/cache/pins", post(pin).delete(unpin))
}

/// What needs no permission, for a TCP address: roots are judged by their signatures, metrics and
/// health tell nothing secret.
pub fn open_router(control: Arc<dyn Control>) -> Router {
    open_routes().fallback(nothing_here).layer(DefaultBodyLimit::max(BODY_MAX_BYTES)).with_state(control)
}

fn open_routes() -> Router<Arc<dyn Control>> {
    Router::new()
        .route("/v1/announce", post(announce))
        .route(
            "/metrics",
            get(|State(c): State<Arc<dyn Control>>| async move {
                ([(header::CONTENT_TYPE, METRICS_TYPE)], c.metrics().await)
            }),
        )
        .route("/healthz", get(healthz))
}

/// The judgement of `starling health`. Why, only the socket tells: here anybody may ask.
async fn healthz(State(control): State<Arc<dyn Control>>) -> (StatusCode, &'static str) {
    match control.status().await.unfit() {
        None => (StatusCode::OK, "ok\n"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unfit: `starling health` on the machine says why\n"),
    }
}

async fn nothing_here(request: axum::extract::Request) -> Refusal {
    let path: String = request.uri().path().chars().take(200).collect();
    Refusal::new(RefusalKind::NotFound, format!("this agent serves no {} {path}", request.method()))
        .hint("agent and command may be of different versions")
}

/// Runs `work` within [`REQUEST_TIMEOUT`]. The work itself is not cut off where that would leave
/// something half done: [`Control`]'s calls spawn such work.
async fn bounded<T>(work: BoxFuture<'_, Result<T, Refusal>>) -> Answer<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
        Ok(answer) => answer.map(Json),
        Err(_) => Err(Refusal::new(
            RefusalKind::Unavailable,
            format!("the agent did not finish within {} s", REQUEST_TIMEOUT.as_secs()),
        )),
    }
}

/// A JSON body, whatever its content type says: a wrong one shows in the parser's message.
fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| Refusal::new(RefusalKind::Invalid, format!("the request: {e}")))
}

async fn mount(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<MountStatus> {
    bounded(control.mount(parse(&body)?)).await
}

async fn unmount(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<MountStatus> {
    bounded(control.unmount(parse(&body)?)).await
}

async fn add_repository(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<RepositoryStatus> {
    bounded(control.add_repository(parse(&body)?)).await
}

async fn invite(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Invitation> {
    bounded(control.invite(parse(&body)?)).await
}

async fn why(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Why> {
    bounded(control.why(parse(&body)?)).await
}

async fn record(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Recording> {
    control.record(parse(&body)?).map(Json)
}

async fn end_recording(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Recorded> {
    bounded(control.end_recording(parse(&body)?)).await
}

async fn revoke(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Revoked> {
    bounded(control.revoke(parse(&body)?)).await
}

async fn rotate(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Rotated> {
    bounded(control.rotate(parse(&body)?)).await
}

async fn cache_verify(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Verified> {
    bounded(control.cache_verify(parse(&body)?)).await
}

async fn pin(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<PinStatus> {
    bounded(control.pin(parse(&body)?)).await
}

async fn unpin(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<PinStatus> {
    bounded(control.unpin(parse(&body)?)).await
}

async fn announce(State(control): State<Arc<dyn Control>>, body: Bytes) -> Answer<Announced> {
    bounded(control.announce(body)).await
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers on it.
    #[error("an agent is already running: {} answers", .0.display())]
    InUse(PathBuf),
    /// A file that is no socket lies there.
    #[error("{}: is there already and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// A call failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The socket, or its folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening Unix socket of mode 0600, removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl ControlSocket {
    /// Opens the socket at `path` and makes its folder. A socket on which nobody answers, left by an
    /// agent that was killed, is replaced. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        let io = |source: io::Error| SocketError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|source| SocketError::Io { path: folder.to_owned(), source })?;
        }
        remove_stale(path)?;
        let listener = listen(path).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        let listener = UnixListener::from_std(listener).map_err(io)?;
        Ok(Self { listener: Some(listener), path: path.to_owned() })
    }

    /// Serves until `stop` is ready; requests under way are finished first.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(
        mut self,
        router: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        match self.listener.take() {
            Some(listener) => axum::serve(listener, router).with_graceful_shutdown(stop).await,
            None => Ok(()),
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let io = |source| SocketError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(error)),
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

/// Bound, then made private, and only then opened for connections: at no moment may others use it.
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_goes_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/agent.sock");
        let socket = ControlSocket::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_agents_socket_is_left_alone_and_a_dead_ones_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let live = ControlSocket::open(&path).unwrap();
        assert!(matches!(ControlSocket::open(&path), Err(SocketError::InUse(p)) if p == path));
        drop(live);
        // As after kill -9: the file stays, nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        ControlSocket::open(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_sockets_place_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::open(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
