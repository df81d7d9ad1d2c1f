//! Offers to the mesh what the cache held before this run: until it knows by which references, it serves nothing of it
//! to others and announces nothing.
//!
//! When a tree is opened, its catalogs are gone through, as far as they are in the cache themselves, and the chunks that
//! are in the cache are named to the mesh. Nothing is fetched for it, it waits until readers have had their start, and it
//! goes slowly.

use super::fill::chunks_of;
use super::shown::Shown;
use crate::catalog::{CatalogIndex, PastRevision};
use crate::mesh::Mesh;
use crate::model::{ChunkRef, RepositoryName, Revision};
use crate::store::ChunkStore;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long after a tree was opened it begins: the first reads come first (a guess).
const DELAY: Duration = Duration::from_secs(5);
/// Chunks that are named at once, and the pause after them: a million in under four minutes, at about a fiftieth of a
/// core.
const BATCH: usize = 512;
const PAUSE: Duration = Duration::from_millis(100);

/// A repository whose newest revision is offered, or one of its revisions for good.
type Offered = (RepositoryName, Option<Revision>);

/// The offers under way, which the table of mounts bounds: one for each repository, and one for each revision that is shown
/// for good.
pub(super) struct Offers {
    mesh: Arc<Mesh>,
    store: Arc<dyn ChunkStore>,
    running: Mutex<BTreeMap<Offered, JoinHandle<()>>>,
}

impl Offers {
    pub(super) fn new(mesh: Arc<Mesh>, store: Arc<dyn ChunkStore>) -> Self {
        Self { mesh, store, running: Mutex::default() }
    }

    /// Offers what is held of a revision: of the newest in place of the one before it. Must be called inside a tokio runtime.
    pub(super) fn begin(&self, shown: &Shown) {
        let (mesh, store, shown) = (Arc::clone(&self.mesh), Arc::clone(&self.store), shown.clone());
        let name = (shown.repository.clone(), shown.expires.is_none().then(|| shown.revision()));
        let task = tokio::spawn(async move {
            let repository = shown.repository.clone();
            let sink = move |chunks: Vec<ChunkRef>| {
                let (mesh, repository) = (Arc::clone(&mesh), repository.clone());
                async move { mesh.offer(&repository, &chunks).await }.boxed()
            };
            let count = offer(store, &shown.of, sink).await;
            tracing::debug!(repository = %shown.repository, revision = %shown.revision(), count, "offered");
        });
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, task| !task.is_finished());
        if let Some(before) = running.insert(name, task) {
            before.abort();
        }
    }
}

impl Drop for Offers {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        running.values().for_each(JoinHandle::abort);
    }
}

/// Names what `store` holds of a revision to `sink`; how many chunks.
async fn offer(
    store: Arc<dyn ChunkStore>,
    of: &PastRevision,
    sink: impl Fn(Vec<ChunkRef>) -> BoxFuture<'static, ()>,
) -> usize {
    tokio::time::sleep(DELAY).await;
    let Some(catalogs) = look(&store, of.catalog_index, |bytes| {
        CatalogIndex::from_bytes(bytes).map(|index| index.catalogs().to_vec()).map_err(|e| e.to_string())
    })
    .await
    else {
        return 0;
    };
    let mut count = 0;
    let mut held = vec![of.catalog_index];
    for catalog in catalogs {
        // A catalog that is not here was never read, and neither was anything that it names.
        let Some(chunks) = look(&store, catalog, |bytes| chunks_of(bytes).map_err(|e| e.to_string())).await
        else {
            continue;
        };
        held.push(catalog);
        held.extend(chunks.into_iter().filter(|chunk| store.contains(&chunk.id)));
        while held.len() >= BATCH {
            count += BATCH;
            sink(held.drain(..BATCH).collect()).await;
            tokio::time::sleep(PAUSE).await;
        }
        tokio::task::yield_now().await;
    }
    count += held.len();
    sink(held).await;
    count
}

/// Reads a document from the store, if it is there and is none of those that contradict the format.
async fn look<T: Send + 'static>(
    store: &Arc<dyn ChunkStore>,
    document: ChunkRef,
    read: fn(&[u8]) -> Result<T, String>,
) -> Option<T> {
    if !store.contains(&document.id) {
        return None;
    }
    let store = Arc::clone(store);
    let look = move || {
        let bytes = store.read_all(&document.id)?;
        read(&bytes).inspect_err(|error| tracing::debug!(document = %document.id, error, "not offered")).ok()
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::super::fill::tests::world;
    use super::*;
    use crate::chunk::Piece;
    use crate::model::Class;

    async fn offered(store: &Arc<dyn ChunkStore>, root: &PastRevision) -> Vec<ChunkRef> {
        let all = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&all);
        let sink = move |chunks| {
            taken.lock().unwrap().extend(chunks);
            async {}.boxed()
        };
        let count = offer(Arc::clone(store), root, sink).await;
        let all = all.lock().unwrap().clone();
        assert_eq!(count, all.len());
        all
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_the_cache_is_offered_and_nothing_is_fetched_for_it() {
        let (root, far, parts) = world(0, 1 << 20);
        let root = &PastRevision::of(&root);
        assert!(offered(&parts.store, root).await.is_empty(), "an empty cache has nothing to offer");
        let fetch = async |chunk: ChunkRef| {
            parts.source.read(vec![Piece::whole(chunk)], Class::Fill).await.unwrap().remove(0)
        };
        fetch(root.catalog_index).await;
        assert_eq!(offered(&parts.store, root).await, [root.catalog_index]);
        let catalog = fetch(root.root_catalog).await;
        assert_eq!(offered(&parts.store, root).await, [root.catalog_index, root.root_catalog]);
        let chunks = chunks_of(&catalog).unwrap();
        for chunk in &chunks[..3] {
            fetch(*chunk).await;
        }
        let reads = far.reads();
        let expected = [&[root.catalog_index, root.root_catalog][..], &chunks[..3]].concat();
        assert_eq!(offered(&parts.store, root).await, expected);
        assert_eq!(far.reads(), reads);
    }
}
