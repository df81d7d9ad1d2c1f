//! The node under the mesh: its store, its strata, its judgement of signed documents.

use super::disk::Disk;
use crate::ambient;
use crate::mesh::{Local, MeshTrust, News, NewsVerdict, UpstreamFailure};
use crate::model::{ChunkRef, ContentId, RepositoryName};
use crate::store::{ChunkStore, Origin};
use crate::trust::{CardError, CardVerdict, Repositories, RootVerdict, SignedCard};
use crate::upstream::{HttpClient, RetryPolicy, Retrying, Several, Upstream, UpstreamError};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::StreamExt as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the store's disk may take for one chunk, and to let it begin (guess). A neighbour waits no longer, and what is not stored in that
/// time has its reader all the same.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
/// How long other strata may still answer with a newer root when one has answered.
const ROOT_PATIENCE: Duration = Duration::from_millis(500);

/// Where obtained bytes are counted, each distinct chunk once a run. The store counts what it
/// stores; this is told of what it refused.
pub trait Books: Send + Sync + 'static {
    /// A chunk was obtained, and the store did not take it.
    fn note_obtained(&self, id: &ContentId, plain_len: u32, origin: Origin);
}

impl Books for crate::cache::DiskCache {
    fn note_obtained(&self, id: &ContentId, plain_len: u32, origin: Origin) {
        crate::cache::DiskCache::note_obtained(self, id, plain_len, origin);
    }
}

/// How strata are asked.
#[derive(Clone, Debug)]
pub struct StrataOptions {
    /// Attempts and pauses.
    pub retry: RetryPolicy,
    /// Longest fetch of one call from the strata, fail-over and retries included. Default 60 s.
    pub fetch_max: Duration,
}

impl Default for StrataOptions {
    fn default() -> Self {
        Self { retry: RetryPolicy::default(), fetch_max: Duration::from_secs(60) }
    }
}

/// The strata of one repository, as its card names them.
#[derive(Clone)]
struct Strata {
    urls: Vec<String>,
    several: Arc<Several>,
    retrying: Arc<Retrying<Arc<Several>>>,
}

/// Implements [`Local`] over a store, the registry of repositories and an HTTP client.
pub struct LocalNode {
    store: Arc<dyn ChunkStore>,
    /// To read and to write: a chunk that waits to be written keeps nobody from reading.
    reading: Disk,
    writing: Disk,
    books: Arc<dyn Books>,
    repositories: Arc<Repositories>,
    /// Whose signature counts on repository cards; `None` for a node outside a mesh.
    trust: Option<Arc<MeshTrust>>,
    http: HttpClient,
    options: StrataOptions,
    /// One entry a repository with a card, which the registry bounds.
    strata: Mutex<BTreeMap<RepositoryName, Strata>>,
}

impl LocalNode {
    /// A node over its parts.
    pub fn new(
        store: Arc<dyn ChunkStore>,
        books: Arc<dyn Books>,
        repositories: Arc<Repositories>,
        trust: Option<Arc<MeshTrust>>,
        http: HttpClient,
        options: StrataOptions,
    ) -> Self {
        let (reading, writing) = (Disk::new(DISK_PATIENCE), Disk::new(DISK_PATIENCE));
        Self { store, reading, writing, books, repositories, trust, http, options, strata: Mutex::default() }
    }

    /// Asks all strata of a repository for its root and judges what they have. Returns at the
    /// latest half a second after the first good answer.
    ///
    /// # Errors
    /// [`UpstreamFailure`] when there is no card, or no stratum delivered a root of this repository
    /// that is genuine.
    pub async fn refresh_root(&self, repository: &RepositoryName) -> Result<NewsVerdict, UpstreamFailure> {
        let strata = self.strata(repository)?;
        let mut answers = strata.several.every_root(repository);
        let mut best = None;
        let mut failures = Vec::new();
        // One moment for all, so that many strata that answer one by one do not stretch it.
        let mut until = tokio::time::Instant::now() + self.options.fetch_max;
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
            let verdict = match answer {
                Ok(root) => self.judge_root(repository, root).await,
                Err(error) => {
                    failures.push(error.to_string());
                    continue;
                }
            };
            match verdict {
                NewsVerdict::Fresh | NewsVerdict::Known if best.is_none() => {
                    until = until.min(tokio::time::Instant::now() + ROOT_PATIENCE);
                    best = Some(verdict);
                }
                NewsVerdict::Fresh => best = Some(NewsVerdict::Fresh),
                NewsVerdict::Known => {}
                NewsVerdict::Unjudged | NewsVerdict::Invalid => {
                    failures.push("a stratum has a root that is not genuine".to_owned());
                }
            }
        }
        best.ok_or_else(|| UpstreamFailure::Unreachable(failures.join("; ")))
    }

    async fn judge_root(&self, repository: &RepositoryName, root: Bytes) -> NewsVerdict {
        let (repositories, repository) = (self.repositories.clone(), repository.clone());
        blocking(move || {
            let verdict = accept_root(&repositories, &root);
            // A genuine root of another repository, in this one's place, is no answer.
            let newest = repositories.root_bytes(&repository);
            let answered = match verdict {
                NewsVerdict::Fresh => newest.as_ref() == Some(&root),
                _ => newest.is_some(),
            };
            if answered { verdict } else { NewsVerdict::Unjudged }
        })
        .await
    }

    /// The strata that the card names now.
    fn strata(&self, repository: &RepositoryName) -> Result<Strata, UpstreamFailure> {
        let unknown = || UpstreamFailure::UnknownRepository(repository.clone());
        let urls = self.repositories.card(repository).ok_or_else(unknown)?.strata;
        let mut all = self.strata.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(strata) = all.get(repository).filter(|strata| strata.urls == urls) {
            return Ok(strata.clone());
        }
        let mut strata: Vec<Box<dyn Upstream>> = Vec::new();
        for url in &urls {
            match self.http.stratum(url) {
                Ok(stratum) => strata.push(Box::new(stratum)),
                Err(error) => tracing::warn!(%repository, %error, "a stratum of the card is left out"),
            }
        }
        let several = Arc::new(Several::new(strata));
        let retrying = Arc::new(Retrying::new(several.clone(), self.options.retry));
        let strata = Strata { urls, several, retrying };
        all.insert(repository.clone(), strata.clone());
        Ok(strata)
    }
}

impl Local for LocalNode {
    fn holds(&self, id: &ContentId) -> bool {
        self.store.contains(id)
    }

    fn load(&self, id: ContentId) -> BoxFuture<'_, Option<Bytes>> {
        // It may have to wait for the disk, so it is never read on the caller's thread.
        let store = self.store.clone();
        async move { self.reading.ask(move || store.read_all(&id)).await.flatten() }.boxed()
    }

    fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        self.store.read_now(id, plain_len, offset, buffer)
    }

    fn keep(&self, id: ContentId, bytes: Bytes, from_strata: bool) -> BoxFuture<'_, bool> {
        let origin = if from_strata { Origin::Strata } else { Origin::Peers };
        let (store, plain_len) = (self.store.clone(), u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let insert = move || store.insert(&id, &bytes, origin);
        async move {
            let refused = match self.writing.ask(insert).await {
                Some(Ok(())) => return true,
                Some(Err(error)) => error.to_string(),
                None => "the disk does not answer".to_owned(),
            };
            tracing::debug!(chunk = %id, "not stored: {refused}");
            self.books.note_obtained(&id, plain_len, origin);
            false
        }
        .boxed()
    }

    fn fetch_upstream<'a>(
        &'a self,
        repository: RepositoryName,
        chunks: Vec<ChunkRef>,
        arrived: &'a (dyn Fn(usize, &Bytes) + Send + Sync),
    ) -> BoxFuture<'a, Vec<Result<(), UpstreamFailure>>> {
        async move {
            let strata = match self.strata(&repository) {
                Ok(strata) => strata,
                Err(failure) => return vec![Err(failure); chunks.len()],
            };
            let fetch = strata.retrying.fetch_each(&repository, &chunks, arrived);
            match tokio::time::timeout(self.options.fetch_max, fetch).await {
                Ok(results) => results
                    .into_iter()
                    .map(|result| result.map(drop).map_err(|error| failure(&error)))
                    .collect(),
                Err(_) => {
                    let detail = format!("nothing after {} s", self.options.fetch_max.as_secs());
                    vec![Err(UpstreamFailure::Unreachable(detail)); chunks.len()]
                }
            }
        }
        .boxed()
    }

    fn judge(&self, news: News) -> BoxFuture<'_, NewsVerdict> {
        let (repositories, trust) = (self.repositories.clone(), self.trust.clone());
        blocking(move || match (news, trust) {
            (News::Root(root), _) => accept_root(&repositories, &root),
            (News::Card(card), Some(trust)) => accept_card(&repositories, &card, &trust),
            (News::Card(_), None) | (News::Charter(_) | News::Revocations(_), _) => NewsVerdict::Unjudged,
        })
        .boxed()
    }

    fn all_news(&self) -> Vec<News> {
        // A root cannot be judged without its card; and who takes only the first of the list takes both of each.
        let documents = self.repositories.documents().into_iter();
        documents
            .flat_map(|(card, root)| {
                [card.map(|card| News::Card(card.to_vec())), root.map(|root| News::Root(root.to_vec()))]
            })
            .flatten()
            .collect()
    }
}

/// Runs what may wait for the disk. A panic in it leaves the document unjudged.
async fn blocking(judge: impl FnOnce() -> NewsVerdict + Send + 'static) -> NewsVerdict {
    tokio::task::spawn_blocking(judge).await.unwrap_or(NewsVerdict::Unjudged)
}

/// By the authority's keys that count. A card that none of them signed may be signed by a newer one, of which this
/// node has not heard: that is no reason to turn its bearer away.
fn accept_card(repositories: &Repositories, card: &[u8], trust: &MeshTrust) -> NewsVerdict {
    let mut verdict = NewsVerdict::Unjudged;
    for key in trust.counting_keys(ambient::unix_now()) {
        match SignedCard::verify(card, &key.to_bytes()) {
            Ok(_) => {
                return match repositories.accept_card(card, &key.to_bytes()) {
                    Ok(CardVerdict::Fresh(_)) => NewsVerdict::Fresh,
                    Ok(CardVerdict::Known) => NewsVerdict::Known,
                    Ok(CardVerdict::Invalid(_)) => NewsVerdict::Invalid,
                    Err(error) => undecided(&error),
                };
            }
            Err(CardError::Signature) => {}
            Err(_) => verdict = NewsVerdict::Invalid,
        }
    }
    verdict
}

fn accept_root(repositories: &Repositories, root: &[u8]) -> NewsVerdict {
    match repositories.accept_root(root) {
        Ok(RootVerdict::Fresh(_)) => NewsVerdict::Fresh,
        Ok(RootVerdict::Known | RootVerdict::Older) => NewsVerdict::Known,
        Ok(RootVerdict::UnknownRepository(_)) => NewsVerdict::Unjudged,
        Ok(RootVerdict::Invalid(_)) => NewsVerdict::Invalid,
        Err(error) => undecided(&error),
    }
}

/// The disk failed: that is nobody's misbehaviour.
fn undecided(error: &crate::trust::RegistryError) -> NewsVerdict {
    tracing::warn!(%error, "a document could not be judged");
    NewsVerdict::Unjudged
}

fn failure(error: &UpstreamError) -> UpstreamFailure {
    match error {
        UpstreamError::WrongBytes { .. } => UpstreamFailure::WrongBytes(error.to_string()),
        _ => UpstreamFailure::Unreachable(error.to_string()),
    }
}
