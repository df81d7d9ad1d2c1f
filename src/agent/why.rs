//! Where the chunks of a file came from, for `starling why`.

use super::api::{Refusal, RefusalKind, Why, WhyChunk, WhyRequest, WhyStep, WhyStory};
use super::node::Node;
use crate::ambient;
use crate::catalog::{Attributes, FileKind, Inode, Tree, TreeError};
use crate::mesh::{Failure, Happened, Story};
use crate::model::{ChunkRef, NodeId, Time};
use crate::store::ChunkStore as _;

/// Chunks of one answer; of a longer file the first are told.
const CHUNKS_MAX: usize = 10_000;

/// Looks the file up in the newest revision and tells of each of its chunks.
pub(super) async fn why(node: &Node, request: WhyRequest) -> Result<Why, Refusal> {
    let WhyRequest { repository, path } = request;
    let (tree, revision) = node.mounts.newest_tree(&repository).await?;
    let file = find(&*tree, &path).await?;
    if file.kind != FileKind::File {
        return Err(Refusal::new(RefusalKind::Invalid, format!("{path} is not a regular file")));
    }
    let chunks = tree.chunks(file.inode).await.map_err(unavailable)?;
    let now = ambient::now();
    let told = chunks.iter().take(CHUNKS_MAX).map(|chunk| tell(node, chunk, now)).collect();
    Ok(Why { repository, revision, path, bytes: file.size, chunks_total: chunks.len(), chunks: told })
}

fn unavailable(error: TreeError) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, error)
}

/// The file or directory at `path`, from the root of the tree.
pub(super) async fn find(tree: &dyn Tree, path: &str) -> Result<Attributes, Refusal> {
    let mut at = tree.attributes(Inode::ROOT).await.map_err(unavailable)?;
    let mut walked = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let found = match at.kind {
            FileKind::Directory => tree.lookup(at.inode, name.as_bytes()).await.map_err(unavailable)?,
            FileKind::File | FileKind::Symlink => None,
        };
        walked = format!("{walked}/{name}");
        let message = || format!("there is no {walked} in the newest revision");
        at = found.ok_or_else(|| Refusal::new(RefusalKind::NotFound, message()))?;
        if at.kind == FileKind::Symlink {
            let target = tree.link_target(at.inode).await.map_err(unavailable)?;
            let message = format!("{walked} is a symbolic link");
            return Err(Refusal::new(RefusalKind::Invalid, message)
                .hint(format!("ask for what it points to: {}", String::from_utf8_lossy(&target))));
        }
    }
    Ok(at)
}

fn tell(node: &Node, chunk: &ChunkRef, now: Time) -> WhyChunk {
    let origin = node.cache.origin(&chunk.id).map(|origin| origin.word().to_owned());
    let story = node.mesh.story(&chunk.id).map(|story| relate(&story, now));
    WhyChunk { chunk: chunk.id, bytes: chunk.plain_len, cached_from: origin, story }
}

fn relate(story: &Story, now: Time) -> WhyStory {
    let micros = |span: std::time::Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    let steps: Vec<_> = story
        .steps
        .iter()
        .map(|step| {
            let (what, node) = word(step.what);
            WhyStep { after_us: micros(step.after), what, node }
        })
        .collect();
    WhyStory {
        began_ms_ago: u64::try_from(now.since(story.began).as_millis()).unwrap_or(u64::MAX),
        class: story.class,
        took_us: steps.last().map_or(0, |last| last.after_us),
        omitted: story.omitted,
        steps,
    }
}

/// A step in the words of the command line, and the node that it concerns.
fn word(what: Happened) -> (String, Option<NodeId>) {
    let why = |failure| match failure {
        Failure::Unreachable => "unreachable",
        Failure::TimedOut => "too slow",
        Failure::WrongBytes => "sent wrong bytes",
        Failure::Refused => "refused",
    };
    let (text, node) = match what {
        Happened::Asked(node) => ("asked", Some(node)),
        Happened::ToldToWait(node) => ("says wait", Some(node)),
        Happened::Busy(node) => ("is busy", Some(node)),
        Happened::Missing(node) => ("does not have it", Some(node)),
        Happened::Failed(node, failure) => (why(failure), Some(node)),
        Happened::Withdrawn(node) => ("withdrawn", Some(node)),
        Happened::LookedUp => ("looked up in the DHT", None),
        Happened::Found(count) => return (format!("the DHT named {count}"), None),
        Happened::AskedStrata => ("asked the strata", None),
        Happened::StrataFailed(failure) => return (format!("strata: {}", why(failure)), None),
        Happened::StrataWithdrawn => ("withdrawn from the strata", None),
        Happened::FromNode(node) => ("delivered", Some(node)),
        Happened::FromStrata => ("the strata delivered", None),
        Happened::GaveUp(_) => ("given up", None),
    };
    (text.to_owned(), node)
}
