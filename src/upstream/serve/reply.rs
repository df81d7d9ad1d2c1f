//! From a request to its answer: status, headers, and a body that is read as it is sent.

use super::access::{AccessLog, Entry};
use crate::model::limits;
use crate::upstream::layout::Item;
use crate::upstream::range::{Asked, parse_range};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderValue};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a file that are read at a time (guess: a few times what TCP has in flight on a local network).
const PIECE_BYTES: u64 = 256 << 10;
/// Objects never change under their name.
const CACHE_OBJECT: &str = "public, max-age=31536000, immutable";
/// A root is replaced by the next revision's: caches ask again after a few seconds.
const CACHE_ROOT: &str = "public, max-age=5, must-revalidate";
/// What is missing now may be published a moment later.
const CACHE_ERROR: &str = "no-store";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The folder that is served.
#[derive(Debug)]
pub(super) struct Site {
    dir: OwnedFd,
    log: Option<Arc<AccessLog>>,
}

/// An item that was found.
struct Found {
    etag: String,
    cache: &'static str,
    len: u64,
    content: Content,
}

enum Content {
    /// The root: its tag is made of its bytes, so it is read at once.
    Held(Bytes),
    /// An object.
    File(File),
}

impl Site {
    /// Opens the folder, and makes sure that the kernel can open files beneath it.
    pub(super) fn open(dir: &Path, log: Option<AccessLog>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        rustix::fs::openat2(&dir, ".", flags, Mode::empty(), RESOLVE)?;
        Ok(Self { dir, log: log.map(Arc::new) })
    }

    /// Answers one request.
    pub(super) async fn answer<B>(
        self: Arc<Self>,
        request: &Request<B>,
        remote: SocketAddr,
    ) -> Response<Body> {
        let path = request.uri().path();
        let mut entry = Entry::begin(self.log.clone(), remote, request.method().as_str(), path);
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let builder = Response::builder().header(header::ALLOW, "GET, HEAD");
            return fail(builder, StatusCode::METHOD_NOT_ALLOWED, &mut entry);
        }
        let Some(item) = Item::from_url_path(path) else {
            return fail(Response::builder(), StatusCode::NOT_FOUND, &mut entry);
        };
        let site = self.clone();
        let found = tokio::task::spawn_blocking(move || site.find(&item)).await;
        match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(found) => respond(request, found, entry),
            Err(error) if is_absence(&error) => fail(Response::builder(), StatusCode::NOT_FOUND, &mut entry),
            Err(error) => {
                tracing::warn!(path, %error, "an item cannot be read");
                fail(Response::builder(), StatusCode::INTERNAL_SERVER_ERROR, &mut entry)
            }
        }
    }

    fn find(&self, item: &Item) -> io::Result<Found> {
        // A pipe or a device must not block the opening; it is refused below.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(rustix::fs::openat2(&self.dir, item.path(), flags, Mode::empty(), RESOLVE)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        match item {
            Item::Object(_, id) => Ok(Found {
                etag: format!("\"{id}\""),
                cache: CACHE_OBJECT,
                len: metadata.len(),
                content: Content::File(file),
            }),
            Item::Root(_) => {
                let mut root = Vec::new();
                io::Read::read_to_end(
                    &mut io::Read::take(file, limits::ROOT_MAX_BYTES as u64 + 1),
                    &mut root,
                )?;
                if root.len() > limits::ROOT_MAX_BYTES {
                    return Err(io::Error::other(format!(
                        "a root of more than {} bytes",
                        limits::ROOT_MAX_BYTES
                    )));
                }
                Ok(Found {
                    etag: format!("\"{}\"", blake3::hash(&root).to_hex()),
                    cache: CACHE_ROOT,
                    len: root.len() as u64,
                    content: Content::Held(root.into()),
                })
            }
        }
    }
}

/// Links may lead to other places in the folder, not out of it.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Whether the item is simply not there: missing, or a link that leads outside or in circles.
fn is_absence(error: &io::Error) -> bool {
    let kind = rustix::io::Errno::from_io_error(error);
    use rustix::io::Errno;
    error.kind() == io::ErrorKind::NotFound
        || matches!(kind, Some(Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO))
}

fn respond<B>(request: &Request<B>, found: Found, mut entry: Entry) -> Response<Body> {
    let field = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let builder = Response::builder()
        .header(header::ETAG, &found.etag)
        .header(header::CACHE_CONTROL, found.cache)
        .header(header::ACCEPT_RANGES, "bytes");
    if field(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &found.etag)) {
        entry.answered(304, None);
        entry.end();
        return finish(builder.status(StatusCode::NOT_MODIFIED), empty());
    }
    // A date in If-Range matches nothing, for no Last-Modified is sent; ranges belong to GET alone.
    let ranges_count =
        request.method() == Method::GET && field(header::IF_RANGE).is_none_or(|tag| tag.trim() == found.etag);
    let asked = match field(header::RANGE).filter(|_| ranges_count) {
        Some(range) => parse_range(range, found.len),
        None => Asked::Whole,
    };
    let (status, part) = match asked {
        Asked::Whole => (StatusCode::OK, 0..found.len),
        Asked::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Asked::Unsatisfiable => {
            let builder = Response::builder()
                .header(header::ACCEPT_RANGES, "bytes")
                .header(header::CONTENT_RANGE, format!("bytes */{}", found.len));
            return fail(builder, StatusCode::RANGE_NOT_SATISFIABLE, &mut entry);
        }
    };
    let mut builder = builder
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, part.end - part.start);
    let partial = status == StatusCode::PARTIAL_CONTENT;
    if partial {
        let range = format!("bytes {}-{}/{}", part.start, part.end - 1, found.len);
        builder = builder.header(header::CONTENT_RANGE, range);
    }
    entry.answered(status.as_u16(), partial.then(|| (part.start, part.end - 1)));
    if request.method() == Method::HEAD || part.is_empty() {
        entry.end();
        return finish(builder, empty());
    }
    let body = match found.content {
        Content::Held(bytes) => {
            let part = usize::try_from(part.start).unwrap_or(0)..usize::try_from(part.end).unwrap_or(0);
            entry.sent(part.len());
            entry.end();
            Full::new(bytes.slice(part)).map_err(|never| match never {}).boxed_unsync()
        }
        Content::File(file) => stream(file, part, entry),
    };
    finish(builder, body)
}

/// Reads `part` of a file piece by piece, each when the connection takes it.
fn stream(file: File, part: Range<u64>, entry: Entry) -> Body {
    let pieces =
        futures::stream::try_unfold((Arc::new(file), part, entry), |(file, part, mut entry)| async move {
            if part.is_empty() {
                return Ok(None);
            }
            let end = part.end.min(part.start + PIECE_BYTES);
            let (reader, wanted) = (file.clone(), part.start..end);
            let piece = tokio::task::spawn_blocking(move || read_piece(&reader, wanted)).await??;
            entry.sent(piece.len());
            let rest = end..part.end;
            if rest.is_empty() {
                entry.end();
            }
            Ok::<_, io::Error>(Some((Frame::data(piece), (file, rest, entry))))
        });
    StreamBody::new(pieces.boxed()).boxed_unsync()
}

fn read_piece(file: &File, wanted: Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(wanted.end - wanted.start).map_err(io::Error::other)?;
    let mut piece = vec![0; len];
    file.read_exact_at(&mut piece, wanted.start)?;
    Ok(piece.into())
}

/// Whether a list of entity tags names `etag` (weak comparison), or anything.
fn names(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn fail(builder: Builder, status: StatusCode, entry: &mut Entry) -> Response<Body> {
    entry.answered(status.as_u16(), None);
    entry.end();
    finish(builder.status(status).header(header::CACHE_CONTROL, CACHE_ERROR), empty())
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Every header above is a valid one, so the fallback is never sent.
fn finish(builder: Builder, body: Body) -> Response<Body> {
    builder.body(body).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be built");
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
