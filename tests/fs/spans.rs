//! What a read leaves in the log: a chain of spans from the file system to whoever delivered.

use crate::double::{Body, MemorySource, MemoryTree, Naive, node};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use starling::catalog::{Inode, Tree};
use starling::chunk::{ChunkSource, Piece};
use starling::fetch::{FetchSettings, Fetcher};
use starling::fs::FileSystem;
use starling::mesh::{
    Charter, Contact, Endpoint, EndpointConfig, Identity, Incoming, Local, Membership, Mesh, MeshKeys,
    MeshStart, MeshTrust, Network, News, NewsVerdict, NodeKey, Role, Scope, Tuning, UpstreamFailure, proto,
};
use starling::model::{ChunkRef, Class, ContentId, NodeId, RepositoryName, UnixTime};
use starling::store::MemoryChunks;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// A node under a mesh: what it holds, and what the strata have.
#[derive(Default)]
struct Held {
    stored: Mutex<HashMap<ContentId, Bytes>>,
    strata: HashMap<ContentId, Bytes>,
}

impl Local for Held {
    fn holds(&self, id: &ContentId) -> bool {
        self.stored.lock().unwrap().contains_key(id)
    }
    fn load(&self, id: ContentId) -> BoxFuture<'_, Option<Bytes>> {
        let bytes = self.stored.lock().unwrap().get(&id).cloned();
        async move { bytes }.boxed()
    }
    fn keep(&self, id: ContentId, bytes: Bytes, _: bool) -> BoxFuture<'_, bool> {
        self.stored.lock().unwrap().insert(id, bytes);
        async { true }.boxed()
    }
    fn fetch_upstream<'a>(
        &'a self,
        _: RepositoryName,
        chunks: Vec<ChunkRef>,
        arrived: &'a (dyn Fn(usize, &Bytes) + Send + Sync),
    ) -> BoxFuture<'a, Vec<Result<(), UpstreamFailure>>> {
        let one = move |(position, chunk): (usize, ChunkRef)| {
            let bytes = self.strata.get(&chunk.id).ok_or(UpstreamFailure::Unreachable("404".into()))?;
            arrived(position, bytes);
            Ok(())
        };
        async move { chunks.into_iter().enumerate().map(one).collect() }.boxed()
    }
    fn judge(&self, _: News) -> BoxFuture<'_, NewsVerdict> {
        async { NewsVerdict::Known }.boxed()
    }
    fn all_news(&self) -> Vec<News> {
        Vec::new()
    }
}

struct Member {
    mesh: Arc<Mesh>,
    node: NodeId,
    addr: SocketAddr,
}

fn member(keys: &MeshKeys, local: Held, contact: Option<&Member>) -> Member {
    let key = NodeKey::generate();
    let now = starling::ambient::unix_now();
    let statement = Membership {
        mesh: keys.mesh(),
        node: key.node(),
        cell: "eu/a/r1".parse().unwrap(),
        role: Role::Member,
        scope: Scope::All,
        issued: now,
        expires: UnixTime(now.0 + 3_600),
    };
    let trust = Arc::new(MeshTrust::in_memory(Charter::founded_by(keys.public())));
    let identity = Identity::new(key, keys.certify(statement).unwrap(), trust, None).unwrap();
    let config = EndpointConfig::new("127.0.0.1:0".parse().unwrap());
    let (endpoint, incoming) = Endpoint::bind(config, Arc::new(identity)).unwrap();
    let Incoming { libp2p, chunks, datagrams, .. } = incoming;
    let (node, addr) = (endpoint.node(), endpoint.local_addr().unwrap());
    let contacts = contact.map(|other| Contact { node: other.node, addresses: vec![other.addr] });
    let network = Network {
        endpoint,
        libp2p,
        chunks,
        datagrams,
        addr,
        contacts: contacts.into_iter().collect(),
        bootstrap: Vec::new(),
        mdns: false,
        dht: false,
        tuning: Tuning::default(),
        tamper: None,
        more: Vec::new(),
        office: None,
    };
    let settings = proto::Settings::default();
    let start = MeshStart { local: Arc::new(local), network: Some(network), settings, record: None };
    Member { mesh: Mesh::start(start).unwrap(), node, addr }
}

/// A span: its name, its parent's position, and its fields.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    parent: Option<usize>,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

#[derive(Default)]
struct Book {
    spans: Vec<Seen>,
    /// Positions. A span's number is used again once it is over.
    open: HashMap<u64, usize>,
}

/// Keeps every span of this program.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Book>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Spans {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if !attributes.metadata().target().starts_with("starling") {
            return;
        }
        let mut book = self.0.lock().unwrap();
        let parent = context.span(id).and_then(|span| Some(span.parent()?.id().into_u64()));
        let parent = parent.and_then(|number| book.open.get(&number).copied());
        let mut seen = Seen { name: attributes.metadata().name(), parent, ..Seen::default() };
        attributes.record(&mut seen);
        let position = book.spans.len();
        book.spans.push(seen);
        book.open.insert(id.into_u64(), position);
    }
    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
        let mut book = self.0.lock().unwrap();
        if let Some(position) = book.open.get(&id.into_u64()).copied() {
            values.record(&mut book.spans[position]);
        }
    }
}

impl Spans {
    /// From a read to the first of this name below one. (Nodes fetch for each other as well.)
    fn chain(&self, name: &str) -> Vec<Seen> {
        let spans = &self.0.lock().unwrap().spans;
        let to_root = |last: &Seen| {
            let mut chain = vec![last.clone()];
            while let Some(parent) = chain.last().and_then(|seen| seen.parent) {
                chain.push(spans[parent].clone());
            }
            chain.reverse();
            chain
        };
        let named = spans.iter().filter(|seen| seen.name == name);
        named.map(to_root).find(|chain| chain[0].name == "read").unwrap_or_default()
    }
}

fn names(chain: &[Seen]) -> Vec<&'static str> {
    chain.iter().map(|seen| seen.name).collect()
}

#[tokio::test]
async fn a_read_is_one_chain_of_spans_from_the_file_system_to_who_delivered() {
    let spans = Spans::default();
    // With one subscriber alone, a span that another test's thread meets first would count as unwanted: there, nobody subscribes.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
    let content = |byte| vec![byte; 5_000];
    for (name, byte) in [(&b"near"[..], 1), (b"far", 2)] {
        naive.insert(name.to_vec(), node(Body::File(content(byte), 5_000)));
    }
    let source = MemorySource::default();
    let tree = Arc::new(MemoryTree::new(&naive, &source));
    let repository: RepositoryName = "sw.example.org".parse().unwrap();
    let (mut near, mut far) = (None, None);
    for (name, place) in [(&b"near"[..], &mut near), (b"far", &mut far)] {
        let inode = tree.lookup(Inode::ROOT, name).await.unwrap().unwrap().inode;
        let chunk = tree.chunks(inode).await.unwrap()[0];
        let bytes = source.read(vec![Piece::whole(chunk)], Class::Read).await.unwrap().remove(0);
        *place = Some((chunk, bytes));
    }
    let ((near, near_bytes), (far, far_bytes)) = (near.unwrap(), far.unwrap());
    let keys = MeshKeys::generate();
    let holder = Held { stored: Mutex::new([(near.id, near_bytes)].into()), ..Held::default() };
    let neighbour = member(&keys, holder, None);
    neighbour.mesh.offer(&repository, &[near]).await;
    let strata = [(far.id, far_bytes)].into();
    let reader = member(&keys, Held { strata, ..Held::default() }, Some(&neighbour));
    for _ in 0..600 {
        if reader.mesh.peers().await.iter().any(|peer| peer.up) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let store = Arc::new(MemoryChunks::new(0));
    let path =
        Fetcher::new(store, reader.mesh.clone(), FetchSettings::default()).repository(repository.clone());
    let fs = FileSystem::new(repository.as_str(), tree, Arc::new(path));
    for (name, byte) in [(&b"near"[..], 1), (b"far", 2)] {
        let inode = fs.lookup(Inode::ROOT, name).await.unwrap().unwrap().inode;
        fs.open(inode).await.unwrap();
        assert_eq!(fs.read(inode, 0, 10_000).await.unwrap(), content(byte));
    }

    let asked = spans.chain("transfer");
    assert_eq!(names(&asked), ["read", "fetch", "ask", "transfer"]);
    let (holder, near) = (neighbour.node.to_string(), near.id.to_string());
    for seen in &asked[1..3] {
        let field = |name: &str| seen.fields.get(name).map(String::as_str);
        assert_eq!((field("repo"), field("chunk")), (Some("sw.example.org"), Some(&near[..])), "{seen:?}");
        assert_eq!((field("class"), field("len")), (Some("Read"), Some("5000")), "{seen:?}");
        assert_eq!(field("source"), Some(&holder[..]), "{seen:?}");
    }
    assert_eq!(asked[0].fields["repo"], "sw.example.org");
    let fetched = spans.chain("request");
    let path = names(&fetched);
    assert_eq!(path, ["read", "fetch", "upstream", "request"]);
    assert_eq!(fetched[2].fields["chunk"], far.id.to_string());
    assert_eq!((&fetched[1].fields["source"][..], &fetched[2].fields["source"][..]), ("strata", "strata"));
}
