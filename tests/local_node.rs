//! Proves what the mesh relies on in the node under it: documents are judged, strata change with the card, what the store refuses is still counted.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use bytes::Bytes;
use common::{Stratum, make_tree, publish};
use starling::fetch::{Books, LocalNode, StrataOptions};
use starling::mesh::{AuthorityKey, Charter, Local, MeshTrust, News, NewsVerdict};
use starling::model::{ContentId, RepositoryName, UnixTime};
use starling::store::{MemoryChunks, Origin};
use starling::trust::{Fingerprint, Repositories, RepositoryCard, SignedCard};
use starling::upstream::{HttpClient, HttpOptions};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

const AUTHORITY: [u8; 32] = [9; 32];

#[derive(Default)]
struct Noted(Mutex<Vec<(ContentId, u32, Origin)>>);

impl Books for Noted {
    fn note_obtained(&self, id: &ContentId, plain_len: u32, origin: Origin) {
        self.0.lock().unwrap().push((*id, plain_len, origin));
    }
}

fn name() -> RepositoryName {
    "local.test".parse().unwrap()
}

fn node(registry: &Path, room_bytes: u64) -> (LocalNode, Arc<Repositories>, Arc<Noted>) {
    let repositories = Arc::new(Repositories::open(registry).unwrap());
    let noted = Arc::new(Noted::default());
    let public = ed25519_dalek::SigningKey::from_bytes(&AUTHORITY).verifying_key().to_bytes();
    let node = LocalNode::new(
        Arc::new(MemoryChunks::new(room_bytes)),
        noted.clone(),
        repositories.clone(),
        Some(Arc::new(MeshTrust::in_memory(Charter::founded_by(AuthorityKey::from_bytes(&public).unwrap())))),
        HttpClient::new(HttpOptions::default()).unwrap(),
        StrataOptions::default(),
    );
    (node, repositories, noted)
}

fn card(fingerprint: Fingerprint, url: &str, issued: u64) -> RepositoryCard {
    RepositoryCard { name: name(), fingerprint, strata: vec![url.to_owned()], issued: UnixTime(issued) }
}

#[tokio::test]
async fn documents_are_judged_and_strata_follow_the_card() {
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 2, 10, 100_000);
    let made = publish(&tree, "local.test", &to, &keys, &[]);
    let fingerprint: Fingerprint = made["fingerprint"].as_str().unwrap().parse().unwrap();
    let old_root = fs::read(to.join("local.test/root")).unwrap();
    fs::write(tree.join("more"), b"more").unwrap();
    publish(&tree, "local.test", &to, &keys, &[]);
    let new_root = fs::read(to.join("local.test/root")).unwrap();
    let (node, repositories, _) = node(&base.path().join("registry"), 1 << 30);

    // Without a card nothing can be judged; a card must be the authority's.
    assert_eq!(node.judge(News::Root(new_root.clone())).await, NewsVerdict::Unjudged);
    let mut first = Stratum::serve(&to, base.path());
    let signed =
        |url: &str, issued, secret| SignedCard::sign(&card(fingerprint, url, issued), secret).unwrap();
    let foreign = signed(&first.url, 1, &[8; 32]).to_vec();
    // A key that is not known might be the authority's next one: nobody is blamed, and nothing is adopted.
    assert_eq!(node.judge(News::Card(foreign)).await, NewsVerdict::Unjudged);
    assert!(repositories.card(&name()).is_none());
    let genuine = signed(&first.url, 1, &AUTHORITY).to_vec();
    assert_eq!(node.judge(News::Card(genuine.clone())).await, NewsVerdict::Fresh);
    assert_eq!(node.judge(News::Card(genuine.clone())).await, NewsVerdict::Known);

    // The root from the stratum is adopted once; an older or a forged one changes nothing.
    assert_eq!(node.refresh_root(&name()).await.unwrap(), NewsVerdict::Fresh);
    assert_eq!(node.refresh_root(&name()).await.unwrap(), NewsVerdict::Known);
    assert_eq!(node.judge(News::Root(old_root)).await, NewsVerdict::Known);
    let mut forged = new_root.clone();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    assert_eq!(node.judge(News::Root(forged)).await, NewsVerdict::Invalid);
    let newest = repositories.newest_root(&name()).unwrap();
    assert_eq!(newest.root().revision.0, 2);
    assert_eq!(node.all_news(), [News::Card(genuine), News::Root(new_root)]);

    // The stratum moves: the next card says where to.
    let catalog = newest.root().root_catalog;
    first.kill();
    assert!(node.fetch_upstream(name(), vec![catalog], &|_, _| panic!("nothing came")).await[0].is_err());
    let second_base = tempfile::tempdir().unwrap();
    let second = Stratum::serve(&to, second_base.path());
    assert_eq!(node.judge(News::Card(signed(&second.url, 2, &AUTHORITY).to_vec())).await, NewsVerdict::Fresh);
    let came = Mutex::new(Vec::new());
    let hear = |position: usize, bytes: &Bytes| came.lock().unwrap().push((position, ContentId::of(bytes)));
    node.fetch_upstream(name(), vec![catalog], &hear).await.remove(0).unwrap();
    assert_eq!(*came.lock().unwrap(), [(0, catalog.id)]);
}

#[tokio::test]
async fn what_the_store_refuses_is_counted_and_not_held() {
    let base = tempfile::tempdir().unwrap();
    let (node, _, noted) = node(base.path(), 100);
    let (small, large) = (Bytes::from_static(b"small"), Bytes::from(vec![7; 1000]));
    assert!(node.keep(ContentId::of(&small), small.clone(), true).await);
    assert!(!node.keep(ContentId::of(&large), large.clone(), false).await);
    assert!(node.holds(&ContentId::of(&small)) && !node.holds(&ContentId::of(&large)));
    assert_eq!(node.load(ContentId::of(&small)).await, Some(small));
    assert_eq!(*noted.0.lock().unwrap(), [(ContentId::of(&large), 1000, Origin::Peers)]);
}
