//! One stratum over HTTP.
//!
//! Frames are taken by Range, a run of near neighbours in one request. The body is decoded as it arrives,
//! so that a node holds one frame at a time, and what arrived before a connection broke is kept. A
//! server that ignores Range and sends the whole object is tolerated up to a bound; any other answer
//! than the range that was asked for is refused.

use super::runs::{Run, plan};
use super::{Arrived, Upstream, UpstreamError, frame, layout, range};
use crate::model::{ChunkRef, RepositoryName, limits};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Idle connections kept for each stratum.
const IDLE_CONNECTIONS: usize = 8;
/// How long an idle connection is kept: less than servers do (nginx 75 s, this one 30 s), so that a
/// request seldom meets a connection that is being closed.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);
/// Most redirects of one request.
const REDIRECTS: usize = 4;
/// Most bytes that are read past when a server ignores Range: a few whole segments.
const SKIP_MAX_BYTES: u64 = 4 * limits::SEGMENT_TARGET_BYTES;
/// Memory that is set aside for a frame before its bytes arrive.
const FRAME_RESERVE_BYTES: usize = 1 << 20;

/// Bounds of the HTTP client.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Longest wait for a connection. Default 5 s: a lost SYN is repeated after 1 and 3 s.
    pub connect_timeout: Duration,
    /// Longest wait without a byte. Default 10 s.
    pub no_progress_timeout: Duration,
    /// Time that any request may take, beyond its bytes at `min_bytes_per_s`. Default 20 s.
    pub request_allowance: Duration,
    /// Rate below which a transfer is given up. Default 128 KiB/s (guess: a bad mobile link).
    pub min_bytes_per_s: u64,
    /// A forward proxy for all strata, such as a site's Squid. The environment is not read.
    pub proxy: Option<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            no_progress_timeout: Duration::from_secs(10),
            request_allowance: Duration::from_secs(20),
            min_bytes_per_s: 128 << 10,
            proxy: None,
        }
    }
}

/// Why strata cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL of a stratum or of the proxy is of no use.
    #[error("`{url}` is not the URL of a stratum: {detail}")]
    Url {
        /// The offending text.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The HTTP client could not be set up.
    #[error("no HTTP client: {0}")]
    Setup(String),
}

/// The process's HTTP client. Cloning shares its connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: reqwest::Client,
    options: Arc<HttpOptions>,
}

impl HttpClient {
    /// A client with the given bounds.
    ///
    /// # Errors
    /// [`ClientError`] when the proxy's URL is wrong or TLS cannot be set up.
    pub fn new(options: HttpOptions) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("starling/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.no_progress_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_CONNECTION)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
            .referer(false)
            // Frames are compressed already, and a range of a recoded body would be another range.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .no_proxy();
        if let Some(url) = &options.proxy {
            let proxy = reqwest::Proxy::all(url)
                .map_err(|error| ClientError::Url { url: url.clone(), detail: causes(&error) })?;
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|error| ClientError::Setup(causes(&error)))?;
        Ok(Self { client, options: Arc::new(options) })
    }

    /// The stratum at `url`.
    ///
    /// # Errors
    /// [`ClientError::Url`] when `url` is no plain http or https URL.
    pub fn stratum(&self, url: &str) -> Result<HttpStratum, ClientError> {
        let wrong = |detail: String| ClientError::Url { url: url.to_owned(), detail };
        let parsed = reqwest::Url::parse(url).map_err(|error| wrong(error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(wrong("write http://HOST[:PORT][/PATH] or https://…".to_owned()));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("a query or a fragment has no place in it".to_owned()));
        }
        Ok(HttpStratum {
            base: parsed.as_str().trim_end_matches('/').to_owned(),
            http: self.clone(),
            turns: Semaphore::new(limits::STRATUM_REQUESTS),
        })
    }
}

/// A stratum behind HTTP or HTTPS.
#[derive(Debug)]
pub struct HttpStratum {
    base: String,
    http: HttpClient,
    turns: Semaphore,
}

impl HttpStratum {
    /// Its URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Whether a server answers there at all, whatever it has. A server that fails (5xx) does not count.
    ///
    /// # Errors
    /// [`UpstreamError`], why not.
    pub async fn answers(&self) -> Result<(), UpstreamError> {
        let status = self.get(&self.base, HeaderMap::new(), 0).await?.status();
        if status.is_server_error() {
            return Err(UpstreamError::Status { url: self.base.clone(), status: status.as_u16() });
        }
        Ok(())
    }

    async fn get(&self, url: &str, headers: HeaderMap, len: u64) -> Result<Response, UpstreamError> {
        let options = &self.http.options;
        let bound = options.request_allowance + Duration::from_secs(len / options.min_bytes_per_s.max(1));
        let request = self.http.client.get(url).headers(headers).timeout(bound);
        request.send().await.map_err(|error| network(url, error))
    }

    async fn root(&self, repository: &RepositoryName) -> Result<Bytes, UpstreamError> {
        let url = format!("{}/{}", self.base, layout::root_path(repository));
        // The semaphore is never closed; without a turn the request would only be one of a few more.
        let _turn = self.turns.acquire().await;
        let mut response = self.get(&url, HeaderMap::new(), limits::ROOT_MAX_BYTES as u64).await?;
        if response.status() != StatusCode::OK {
            return Err(UpstreamError::Status { url, status: response.status().as_u16() });
        }
        let mut root = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|error| network(&url, error))? {
            if root.len() + piece.len() > limits::ROOT_MAX_BYTES {
                let detail = format!("the root has more than {} bytes", limits::ROOT_MAX_BYTES);
                return Err(UpstreamError::Malformed { url, detail });
            }
            root.extend_from_slice(&piece);
        }
        Ok(root.freeze())
    }

    /// The run again, with one result a frame in their order.
    async fn fetch_run(
        &self,
        repository: &RepositoryName,
        run: Run,
        arrived: &Arrived<'_>,
    ) -> (Run, Vec<Result<Bytes, UpstreamError>>) {
        let mut results = Vec::with_capacity(run.frames.len());
        let _turn = self.turns.acquire().await;
        if let Err(error) = self.stream_run(repository, &run, &mut results, arrived).await {
            results.resize(run.frames.len(), Err(error));
        }
        (run, results)
    }

    async fn stream_run(
        &self,
        repository: &RepositoryName,
        run: &Run,
        results: &mut Vec<Result<Bytes, UpstreamError>>,
        arrived: &Arrived<'_>,
    ) -> Result<(), UpstreamError> {
        let url = format!("{}/{}", self.base, layout::object_path(repository, &run.segment));
        let mut headers = HeaderMap::new();
        let wanted = format!("bytes={}-{}", run.bytes.start, run.bytes.end - 1);
        if let Ok(value) = wanted.parse() {
            headers.insert(header::RANGE, value);
        }
        headers.insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"));
        let response = self.get(&url, headers, run.len()).await?;
        let skip = bytes_to_skip(&url, &response, run)?;
        let mut body = Body { url: &url, response, held: Bytes::new() };
        body.skip(skip).await?;
        let mut at = run.bytes.start;
        for wanted in &run.frames {
            let place = &wanted.chunk.place;
            // What lies between two frames came along.
            body.skip(place.offset.saturating_sub(at)).await?;
            at = place.offset + u64::from(place.stored_len);
            let stored = body.take(wanted.chunk.place.stored_len).await?;
            let result = frame::decode(stored, wanted.chunk, &url).await;
            if let Ok(bytes) = &result {
                wanted.answers.iter().for_each(|position| arrived(*position, bytes));
            }
            results.push(result);
        }
        Ok(())
    }
}

impl Upstream for HttpStratum {
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        self.root(repository).boxed()
    }

    fn fetch_each<'a>(
        &'a self,
        repository: &'a RepositoryName,
        chunks: &'a [ChunkRef],
        arrived: &'a Arrived<'a>,
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>> {
        async move {
            let (runs, refused) = plan(chunks);
            let mut results: Vec<Option<Result<Bytes, UpstreamError>>> = vec![None; chunks.len()];
            for (position, error) in refused {
                results[position] = Some(Err(error));
            }
            let mut under_way = futures::stream::iter(runs)
                .map(|run| self.fetch_run(repository, run, arrived))
                .buffer_unordered(limits::STRATUM_CALL_REQUESTS as usize);
            while let Some((run, frames)) = under_way.next().await {
                for (frame, result) in run.frames.iter().zip(frames) {
                    for position in &frame.answers {
                        results[*position] = Some(result.clone());
                    }
                }
            }
            results.into_iter().map(|result| result.unwrap_or(Err(UpstreamError::NoStratum))).collect()
        }
        .boxed()
    }
}

/// Checks status and headers; tells how many bytes of the body come before the run.
fn bytes_to_skip(url: &str, response: &Response, run: &Run) -> Result<u64, UpstreamError> {
    let malformed = |detail| Err(UpstreamError::Malformed { url: url.to_owned(), detail });
    let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let status = response.status();
    let encoding = field(header::CONTENT_ENCODING);
    if status.is_success() && !matches!(encoding, "" | "identity") {
        return malformed(format!("content encoding `{encoding}`"));
    }
    // The length that headers announce; a body without one is bounded where it is read.
    let announced = response.content_length();
    if status == StatusCode::PARTIAL_CONTENT {
        let told = field(header::CONTENT_RANGE);
        let fits = range::parse_content_range(told).is_some_and(|(bytes, _)| bytes == run.bytes);
        if !fits {
            return malformed(format!(
                "content range `{told}` instead of bytes {}-{}",
                run.bytes.start,
                run.bytes.end - 1
            ));
        }
        return match announced {
            Some(len) if len != run.len() => malformed(format!("{len} bytes for a range of {}", run.len())),
            _ => Ok(0),
        };
    }
    if status == StatusCode::OK {
        if let Some(len) = announced.filter(|len| *len < run.bytes.end) {
            return malformed(format!(
                "the object has {len} bytes; bytes up to {} are wanted",
                run.bytes.end
            ));
        }
        if run.bytes.start > SKIP_MAX_BYTES {
            return malformed(format!("no ranges served, and {} bytes to skip", run.bytes.start));
        }
        return Ok(run.bytes.start);
    }
    Err(UpstreamError::Status { url: url.to_owned(), status: status.as_u16() })
}

/// A body that is taken in frames.
struct Body<'a> {
    url: &'a str,
    response: Response,
    held: Bytes,
}

impl Body<'_> {
    async fn refill(&mut self) -> Result<(), UpstreamError> {
        while self.held.is_empty() {
            self.held =
                self.response.chunk().await.map_err(|error| network(self.url, error))?.ok_or_else(|| {
                    UpstreamError::Connection {
                        url: self.url.to_owned(),
                        detail: "the body ended early".to_owned(),
                    }
                })?;
        }
        Ok(())
    }

    async fn skip(&mut self, mut bytes: u64) -> Result<(), UpstreamError> {
        while bytes > 0 {
            self.refill().await?;
            let step = self.held.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.held.advance(step);
            bytes -= step as u64;
        }
        Ok(())
    }

    async fn take(&mut self, len: u32) -> Result<Bytes, UpstreamError> {
        let len = len as usize;
        self.refill().await?;
        if self.held.len() >= len {
            return Ok(self.held.split_to(len));
        }
        let mut frame = BytesMut::with_capacity(len.min(FRAME_RESERVE_BYTES));
        while frame.len() < len {
            self.refill().await?;
            let step = self.held.len().min(len - frame.len());
            frame.extend_from_slice(&self.held.split_to(step));
        }
        Ok(frame.freeze())
    }
}

/// What a failed request means.
fn network(url: &str, error: reqwest::Error) -> UpstreamError {
    let error = error.without_url();
    let (url, detail) = (url.to_owned(), causes(&error));
    if error.is_timeout() {
        UpstreamError::TimedOut { url, detail }
    } else if error.is_redirect() || error.is_builder() {
        UpstreamError::Malformed { url, detail }
    } else {
        UpstreamError::Connection { url, detail }
    }
}

/// An error and what caused it: reqwest's own text names the stage only.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
