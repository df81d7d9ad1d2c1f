//! `starling stratum serve`: a static file server that knows the layout of a stratum.
//!
//! It is written on hyper rather than with tower-http's `ServeDir`, for that has no entity tags, cannot
//! tell immutable objects from the root when it sets cache headers, follows symbolic links out of the
//! folder, and would bring a dependency for little more than opening a file.
//!
//! Only what [`super::layout`] names is served; a path is opened beneath the folder by the kernel
//! (`openat2`, `RESOLVE_BENEATH`), so that no link leads outside. Memory is bounded: a fixed number of
//! connections, each with one piece of a file in hand. A client that sends no header, or takes no
//! bytes, is cut off.

mod access;
mod reply;

pub use access::{AccessLine, LogTarget, ParseAccessError};

use access::AccessLog;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use reply::Site;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections at once; more wait in the kernel's queue. Each holds at most two pieces of a file.
const CONNECTIONS: usize = 1024;
/// Longest wait for a request's header, which is also how long an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most headers of a request.
const HEADERS: usize = 64;
/// Most bytes of a request's header, and of the write buffer.
const BUFFER_BYTES: usize = 64 << 10;
/// How long a client may leave sent bytes unacknowledged, or its window shut, in milliseconds.
const STALLED_CLIENT_MS: u32 = 30_000;
/// How long requests under way may go on after the order to stop.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors): the failure would repeat at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most entries that are looked at when the folder is searched for a repository.
const LOOK_MAX: usize = 10_000;

/// What to serve and where.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The folder that `starling publish --to` wrote: `<dir>/<repository>/root` and so on.
    pub dir: PathBuf,
    /// `HOST:PORT`; port 0 takes any.
    pub listen: String,
    /// Where the access log goes, if anywhere.
    pub log: Option<LogTarget>,
    /// Whether its lines are JSON objects.
    pub log_json: bool,
}

/// Why a stratum cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The folder is not there or cannot be opened.
    #[error("{dir}: {source}")]
    Dir {
        /// The folder.
        dir: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address is not free, not this machine's, or no address.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The access log cannot be opened.
    #[error("access log {path}: {source}")]
    Log {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A stratum that is bound to its address and ready to serve.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    site: Arc<Site>,
    dir: PathBuf,
}

impl Server {
    /// Opens the folder and the log, and binds the address.
    ///
    /// # Errors
    /// [`ServeError`]: the folder, the address or the log.
    pub async fn bind(options: ServeOptions) -> Result<Self, ServeError> {
        let ServeOptions { dir, listen, log, log_json } = options;
        let log = match log {
            Some(target) => Some(
                AccessLog::open(&target, log_json)
                    .map_err(|source| ServeError::Log { path: target.to_string(), source })?,
            ),
            None => None,
        };
        let site = Site::open(&dir, log)
            .map_err(|source| ServeError::Dir { dir: dir.display().to_string(), source })?;
        let failed = |source| ServeError::Listen { listen: listen.clone(), source };
        let listener = TcpListener::bind(&listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, site: Arc::new(site), dir })
    }

    /// The address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the folder holds a repository now. One may also come later.
    pub fn has_repository(&self) -> bool {
        has_repository(&self.dir)
    }

    /// Serves until `stop` is ready; then lets what is under way end, for 10 s at most.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let turns = Arc::new(Semaphore::new(CONNECTIONS));
        let (stopping, _) = watch::channel(false);
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = async {
                    let turn = turns.clone().acquire_owned().await;
                    (turn, self.listener.accept().await)
                } => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                (turn, Ok((stream, remote))) => {
                    let (site, stopping) = (self.site.clone(), stopping.subscribe());
                    connections.spawn(async move {
                        serve_connection(site, stream, remote, stopping).await;
                        drop(turn);
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        stopping.send_replace(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "cut off after {} s", STOP_MAX.as_secs());
        }
    }
}

async fn serve_connection(
    site: Arc<Site>,
    stream: TcpStream,
    remote: SocketAddr,
    mut stopping: watch::Receiver<bool>,
) {
    // Both only make things better: a connection without them still works.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, STALLED_CLIENT_MS);
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, std::convert::Infallible>(site.answer(&request, remote).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = async { stopping.wait_for(|stop| *stop).await.is_ok() };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}

/// Whether some `<dir>/<name>/root` is there.
fn has_repository(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.take(LOOK_MAX).flatten().any(|entry| {
        let named =
            entry.file_name().to_str().is_some_and(|n| n.parse::<crate::model::RepositoryName>().is_ok());
        named && entry.path().join("root").is_file()
    })
}

#[cfg(test)]
mod tests;
