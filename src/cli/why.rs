//! `starling why`: where each chunk of a file came from, and how long each step took.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json, table};
use crate::agent::api::{Why, WhyChunk, WhyRequest, WhyStep};
use crate::config::ByteSize;
use crate::model::RepositoryName;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) repository: RepositoryName,
    pub(super) path: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repository, path) = text.split_once(':').ok_or_else(|| format!("`{text}` is not REPO:PATH"))?;
        let repository = repository.parse().map_err(|error| format!("`{repository}`: {error}"))?;
        Ok(Self { repository, path: path.to_owned() })
    }
}

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling why sw.example.org:/usr/bin/python3
  starling why sw.example.org:/usr/bin/python3 --json | jq '.chunks[] | select(.story.took_us > 100000)'

The agent remembers how it came by the last 16 384 chunks that it fetched. Of others it knows whether they are in
the cache, and whether a neighbour or a stratum had sent them.")]
pub(super) struct Args {
    /// The file, REPO:PATH.
    file: Target,
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let client = args.agent.client();
    let Target { repository, path } = args.file;
    let why = block_on(async { Ok(client.why(&WhyRequest { repository, path }).await?) })?;
    if args.json {
        return print_json(&why);
    }
    print!("{}", human(&why));
    Ok(())
}

fn millis(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1e3)
}

/// From where a chunk came, in a word.
fn source(chunk: &WhyChunk) -> String {
    let last = chunk.story.as_ref().and_then(|story| story.steps.last());
    match (last, chunk.cached_from.as_deref()) {
        (Some(WhyStep { node: Some(node), what, .. }), _) if what == "delivered" => {
            format!("node {}", node.short())
        }
        (Some(WhyStep { what, .. }), _) if what == "the strata delivered" => "strata".to_owned(),
        (_, Some("cache")) => "cache".to_owned(),
        (_, Some("peers")) => "a neighbour".to_owned(),
        (_, Some(from)) => from.to_owned(),
        (Some(_), None) => "nobody".to_owned(),
        (None, None) => "not fetched".to_owned(),
    }
}

fn human(why: &Why) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}:{} revision {}: {} in {} chunks",
        why.repository,
        why.path,
        why.revision,
        ByteSize(why.bytes),
        why.chunks_total
    );
    let mut sources: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for chunk in &why.chunks {
        let (chunks, bytes) = sources.entry(source(chunk)).or_default();
        *chunks += 1;
        *bytes += u64::from(chunk.bytes);
    }
    for (source, (chunks, bytes)) in sources {
        let _ = writeln!(text, "  {chunks} chunks, {} from: {source}", ByteSize(bytes));
    }
    text.push('\n');
    let rows: Vec<_> = why
        .chunks
        .iter()
        .enumerate()
        .map(|(number, chunk)| {
            let (took, steps) = chunk.story.as_ref().map_or_else(
                || ("-".to_owned(), String::new()),
                |story| (millis(story.took_us), steps(&story.steps, story.omitted)),
            );
            [number.to_string(), ByteSize(u64::from(chunk.bytes)).to_string(), source(chunk), took, steps]
        })
        .collect();
    text.push_str(&table(["CHUNK", "SIZE", "FROM", "TOOK", "STEPS"], &rows));
    if why.chunks_total > why.chunks.len() {
        let _ = writeln!(text, "… and {} more chunks", why.chunks_total - why.chunks.len());
    }
    text
}

fn steps(steps: &[WhyStep], omitted: u32) -> String {
    let mut told: Vec<String> = steps
        .iter()
        .map(|step| {
            let who = step.node.map_or_else(String::new, |node| format!(" {}", node.short()));
            format!("+{}{who} {}", millis(step.after_us), step.what)
        })
        .collect();
    if omitted > 0 {
        told.insert(told.len().saturating_sub(1), format!("({omitted} steps)"));
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::WhyStory;
    use crate::model::{Class, ContentId, NodeId, Revision};

    #[test]
    fn a_file_is_named_by_repository_and_path() {
        let target: Target = "sw.example.org:/a:b".parse().unwrap();
        assert_eq!((target.repository.as_str(), target.path.as_str()), ("sw.example.org", "/a:b"));
        assert!("sw.example.org".parse::<Target>().unwrap_err().contains("REPO:PATH"));
        assert!("/x:/y".parse::<Target>().is_err());
    }

    #[test]
    fn the_table_tells_from_where_and_how() {
        let step = |after_us, what: &str, node| WhyStep { after_us, what: what.into(), node };
        let id = NodeId([0xab; 32]);
        let node = Some(id);
        let story = WhyStory {
            began_ms_ago: 5,
            class: Some(Class::Read),
            took_us: 31_000,
            omitted: 0,
            steps: vec![step(0, "asked", node), step(31_000, "delivered", node)],
        };
        let chunk = |story, cached_from: Option<&str>| WhyChunk {
            chunk: ContentId::of(b"x"),
            bytes: 1 << 10,
            cached_from: cached_from.map(str::to_owned),
            story,
        };
        let why = Why {
            repository: "sw.example.org".parse().unwrap(),
            revision: Revision(3),
            path: "/a".into(),
            bytes: 4 << 10,
            chunks_total: 9,
            chunks: vec![chunk(Some(story), Some("peers")), chunk(None, Some("cache")), chunk(None, None)],
        };
        let text = human(&why);
        let who = id.short();
        for part in [
            "sw.example.org:/a revision 3: 4 KiB in 9 chunks".to_owned(),
            format!("1 chunks, 1 KiB from: node {who}"),
            "not fetched".to_owned(),
            format!("31.0 ms  +0.0 ms {who} asked; +31.0 ms {who} delivered"),
            "and 6 more".to_owned(),
        ] {
            assert!(text.contains(&part), "no `{part}` in\n{text}");
        }
    }
}
