//! Documents that spread: their numbers, and their bytes for those who are told.

use super::super::ports::News;
use super::super::proto::NewsId;
use crate::model::ContentId;
use std::collections::{HashMap, VecDeque};

/// Documents that are remembered for handing on. The core forgets at the same bound.
const NEWS_MAX: usize = 1_024;

/// The newest documents by number. A number is never used again.
pub(super) struct NewsBook {
    by_hash: HashMap<ContentId, NewsId>,
    documents: HashMap<NewsId, (ContentId, News)>,
    order: VecDeque<NewsId>,
    next: u32,
}

impl NewsBook {
    /// No documents yet.
    pub(super) fn new() -> Self {
        Self { by_hash: HashMap::new(), documents: HashMap::new(), order: VecDeque::new(), next: 0 }
    }

    /// The number of a document.
    pub(super) fn intern(&mut self, news: News) -> NewsId {
        let hash = hash_of(&news);
        if let Some(known) = self.by_hash.get(&hash) {
            return *known;
        }
        if self.order.len() >= NEWS_MAX
            && let Some(oldest) = self.order.pop_front()
            && let Some((hash, _)) = self.documents.remove(&oldest)
        {
            self.by_hash.remove(&hash);
        }
        let id = NewsId(self.next);
        self.next = self.next.wrapping_add(1);
        self.by_hash.insert(hash, id);
        self.documents.insert(id, (hash, news));
        self.order.push_back(id);
        id
    }

    /// Whether a document has a number.
    pub(super) fn knows(&self, news: &News) -> bool {
        self.by_hash.contains_key(&hash_of(news))
    }

    /// The document behind a number, if it is not too old.
    pub(super) fn get(&self, id: NewsId) -> Option<&News> {
        self.documents.get(&id).map(|(_, news)| news)
    }
}

fn hash_of(news: &News) -> ContentId {
    let (kind, document) = match news {
        News::Root(document) => (0u8, document),
        News::Card(document) => (1, document),
        News::Charter(document) => (2, document),
        News::Revocations(document) => (3, document),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(document);
    ContentId::blake3(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_one_number_and_old_ones_are_forgotten() {
        let mut book = NewsBook::new();
        let root = |n: u32| News::Root(n.to_le_bytes().to_vec());
        let first = book.intern(root(0));
        assert_eq!(book.intern(root(0)), first);
        assert!(book.knows(&root(0)) && !book.knows(&root(1)));
        assert_ne!(
            book.intern(News::Card(0u32.to_le_bytes().to_vec())),
            first,
            "another kind, another document"
        );
        for n in 1..2_000 {
            book.intern(root(n));
        }
        assert_eq!((book.documents.len(), book.by_hash.len()), (NEWS_MAX, NEWS_MAX));
        assert_eq!(book.get(first), None);
        assert_ne!(book.intern(root(0)), first);
    }
}
