//! `starling content-profile`: take out of a published repository what the simulator needs to know of its content.

use super::CliError;
use super::ask::{block_on, print_json};
use super::check::Trusted;
use crate::ambient;
use crate::catalog::{
    History, PastRevision, RecordedTrace, Survey, TreeError, survey, survey_published, survey_recorded,
};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::{ChunkRef, Class, ContentId, RepositoryName, Revision};
use crate::sim::{ContentProfile, PROFILE_CHUNKS_MAX, ProfileSubject, ProfiledChunk};
use crate::store::{DirectoryObjects, ObjectStore as _, StoredChunks};
use crate::trust::{SignedRoot, Standing, VerifiedRoot};
use crate::upstream::{HttpClient, HttpOptions, HttpStratum, RetryPolicy, Retrying, Upstream as _};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  starling content-profile /srv/stratum --repo sw.example.org@2d11… --out sw.json
  starling content-profile http://stratum:8000 --repo sw.example.org@2d11… --since 41 --out update.json
  starling content-profile /srv/stratum --repo sw.example.org@2d11… --revision 41 --since 40 --out past.json
  starling content-profile /srv/stratum --repo debian.example.org@9f02… --trace bash --out bash.json

A scenario names the file, and then every node of the simulated fleet wants exactly these chunks:

  [content]
  profile = \"update.json\"

With --since it is what a node that has one revision must fetch for another: chunks, catalogs and documents that it has not. With
--trace it is what a node fetches that opens the tree and reads as the trace says; readers of the simulation read in that order.
Everything is verified as a node verifies it. Exit code 1: it could not be had, or there is nothing to fetch.";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The stratum: the folder that `starling publish --to` wrote, or its http URL
    source: String,
    /// The repository and the fingerprint of its root keys, as `starling publish` prints them
    #[arg(long, value_name = "NAME@FINGERPRINT")]
    repo: Trusted,
    /// The revision, by number or tag [default: the newest]
    #[arg(long, value_name = "NUMBER|TAG")]
    revision: Option<String>,
    /// Leave out what is in this revision
    #[arg(long, value_name = "NUMBER|TAG")]
    since: Option<String>,
    /// Only what a trace reads, in its order: the name of one that was published with the revision, or a file that `starling trace
    /// record` wrote
    #[arg(long, value_name = "NAME|FILE")]
    trace: Option<String>,
    /// Take chunks that lie behind each other in a slice as one until there are at most so many: a simulated node wants no more than
    /// 16 384 by default, and memory and time grow with them
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=i64::from(PROFILE_CHUNKS_MAX)))]
    chunks_max: u32,
    /// File for the profile
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is told of a profile.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    repository: String,
    revision: u64,
    since: Option<u64>,
    trace: Option<String>,
    /// Files of the trace that the revision has not, or not as they were recorded.
    left_out: u64,
    files: u64,
    distinct_chunks: u64,
    chunks: u32,
    slices: u32,
    segments: u32,
    plain_bytes: u64,
    stored_bytes: u64,
    /// Stored bytes of a chunk of the profile: at most so many for half of them, for 90 of 100, for all.
    stored_len_p50: u32,
    stored_len_p90: u32,
    stored_len_max: u32,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let most = NonZeroU32::new(args.chunks_max).unwrap_or(NonZeroU32::MIN);
    let (profile, left_out) = block_on(extract(args))?;
    let failed = |error: &dyn std::fmt::Display| CliError::failed(format!("{}: {error}", args.repo.name));
    let profile = profile.together(most).map_err(|error| {
        failed(&error).hint("give a larger --chunks-max, or profile less: --since, --trace")
    })?;
    std::fs::write(&args.out, profile.to_text())
        .map_err(|error| CliError::failed(format!("{}: {error}", args.out.display())))?;
    let report = report(&args.out, &profile, left_out);
    if args.json {
        return print_json(&report);
    }
    println!("{}", table(&report));
    Ok(())
}

/// Reads a stratum, wherever it is, verified against the keys that the caller trusts.
struct Source {
    root: VerifiedRoot,
    chunks: Arc<dyn ChunkSource>,
}

impl Source {
    async fn open(place: &str, repo: &Trusted) -> Result<Self, CliError> {
        let (bytes, chunks): (Bytes, Arc<dyn ChunkSource>) = if place.contains("://") {
            let client = HttpClient::new(HttpOptions::default()).map_err(CliError::failed)?;
            let stratum = client.stratum(place).map_err(CliError::usage)?;
            let stratum = Retrying::new(stratum, RetryPolicy::default());
            let root = stratum.fetch_root(&repo.name).await.map_err(CliError::failed)?;
            (root, Arc::new(Remote { stratum, repository: repo.name.clone() }))
        } else {
            let objects = DirectoryObjects::new(Path::new(place), &repo.name);
            let root = objects.root().map_err(CliError::failed)?.ok_or_else(|| {
                CliError::failed(format!("{} is not published in {place}", repo.name))
                    .hint("give the folder that `starling publish --to` wrote, or the URL of a stratum")
            })?;
            (root.into(), Arc::new(StoredChunks::new(Arc::new(objects))))
        };
        let root = SignedRoot::verify(&bytes, &repo.name, &repo.fingerprint, ambient::unix_now())
            .map_err(|error| CliError::failed(format!("{}: the root: {error}", repo.name)))?;
        if let Standing::Expired { since } = root.standing() {
            eprintln!("warning: the root expired on {since}; publish again to sign it anew");
        }
        Ok(Self { root, chunks })
    }

    /// The revisions before the newest, and the names of revisions.
    async fn history(&self) -> Result<History, CliError> {
        let wanted = vec![Piece::whole(self.root.root().history)];
        let read = self.chunks.read(wanted, Class::Read).await.map_err(CliError::failed)?;
        History::from_bytes(read.first().map_or(&[][..], |bytes| bytes)).map_err(CliError::failed)
    }
}

/// A stratum behind a URL.
struct Remote {
    stratum: Retrying<HttpStratum>,
    repository: RepositoryName,
}

impl ChunkSource for Remote {
    fn read(&self, pieces: Vec<Piece>, _: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        Box::pin(async move {
            let chunks: Vec<ChunkRef> = pieces.iter().map(|piece| piece.chunk).collect();
            let fetched = self.stratum.fetch_chunks(&self.repository, &chunks).await;
            let cut = |(piece, bytes): (&Piece, Result<Bytes, _>)| {
                let chunk = piece.chunk.id;
                let bytes = bytes.map_err(|error: crate::upstream::UpstreamError| {
                    SourceError::Unavailable { chunk, detail: error.to_string() }
                })?;
                let range = piece.offset as usize..piece.offset.saturating_add(piece.len) as usize;
                if range.end > bytes.len() {
                    let detail = format!("{} bytes from {} of {}", piece.len, piece.offset, bytes.len());
                    return Err(SourceError::Invalid { chunk, detail });
                }
                Ok(bytes.slice(range))
            };
            pieces.iter().zip(fetched).map(cut).collect()
        })
    }
}

async fn extract(args: &Args) -> Result<(ContentProfile, u64), CliError> {
    let source = Source::open(&args.source, &args.repo).await?;
    let failed = |error: TreeError| CliError::failed(format!("{}: {error}", args.repo.name));
    let history = source.history().await?;
    let of = find(&history, &source.root, "--revision", args.revision.as_deref())?;
    let mut known: HashSet<ContentId> = HashSet::new();
    let mut since = None;
    if let Some(name) = &args.since {
        let before = find(&history, &source.root, "--since", Some(name))?;
        since = Some(before.revision.0);
        let all = survey(&*source.chunks, &before, &HashSet::new()).await.map_err(failed)?;
        known.extend(all.chunks.iter().map(|chunk| chunk.id));
    }
    let (survey, trace) = match &args.trace {
        None => (survey(&*source.chunks, &of, &known).await.map_err(failed)?, None),
        Some(name) => {
            let (survey, name) = traced(&source, &of, &known, name).await?;
            (survey, Some(name))
        }
    };
    if survey.chunks.is_empty() {
        let since = args.since.as_deref().unwrap_or("-");
        let message =
            format!("{}: revision {} has nothing that {since} has not", args.repo.name, of.revision);
        return Err(CliError::failed(message).hint("give another --since, or none"));
    }
    let subject = ProfileSubject {
        repository: args.repo.name.to_string(),
        revision: of.revision.0,
        since,
        trace,
        files: survey.files,
        distinct_chunks: survey.chunks.len() as u64,
        plain_bytes: survey.chunks.iter().map(|chunk| u64::from(chunk.plain_len)).sum(),
    };
    let (chunks, order) = laid(&survey.chunks);
    let order = subject.trace.is_some().then_some(order);
    let most = PROFILE_CHUNKS_MAX as usize;
    if chunks.len() > most {
        let message = format!("{}: {} chunks; a profile has at most {most}", args.repo.name, chunks.len());
        return Err(CliError::failed(message).hint("profile less: --since, --trace"));
    }
    let profile = ContentProfile::new(subject, chunks, order)
        .map_err(|error| CliError::failed(format!("{}: {error}", args.repo.name)))?;
    Ok((profile, survey.left_out))
}

/// The revision that is meant.
fn find(
    history: &History,
    root: &VerifiedRoot,
    option: &str,
    wanted: Option<&str>,
) -> Result<PastRevision, CliError> {
    let newest = PastRevision::of(root);
    let Some(wanted) = wanted else { return Ok(newest) };
    let number = wanted.parse().ok().map(Revision).or_else(|| history.tags().get(wanted).copied());
    let found = number.and_then(|number| {
        let mut all = history.revisions().iter().chain([&newest]);
        all.find(|past| past.revision == number).cloned()
    });
    found.ok_or_else(|| {
        let kept = history.revisions().first().map_or(newest.revision, |first| first.revision);
        let tags: Vec<&str> = history.tags().keys().map(String::as_str).take(20).collect();
        let tags = if tags.is_empty() { "no tags".to_owned() } else { format!("tags {}", tags.join(", ")) };
        CliError::failed(format!("{option} {wanted}: there is no such revision"))
            .hint(format!("the repository keeps revisions from {kept} to {}, and {tags}", newest.revision))
    })
}

/// What a trace reads, and what the trace is called.
async fn traced(
    source: &Source,
    of: &PastRevision,
    known: &HashSet<ContentId>,
    wanted: &str,
) -> Result<(Survey, String), CliError> {
    let published = survey_published(&*source.chunks, of, known, wanted).await.map_err(CliError::failed)?;
    if let Some(survey) = published {
        return Ok((survey, wanted.to_owned()));
    }
    let file = Path::new(wanted);
    if !file.exists() {
        let message = format!("--trace {wanted}: neither a trace of revision {} nor a file", of.revision);
        return Err(CliError::failed(message).hint("`starling publish` prints the traces of a revision"));
    }
    let recorded: RecordedTrace = super::trace::open(file)?;
    let survey = survey_recorded(&*source.chunks, of, known, &recorded).await.map_err(CliError::failed)?;
    Ok((survey, recorded.name))
}

/// Chunks as they lie, by segments in the order in which these are met; and the number of each, in the order in which it was met.
fn laid(met: &[ChunkRef]) -> (Vec<ProfiledChunk>, Vec<u32>) {
    let mut segments: HashMap<ContentId, u32> = HashMap::new();
    let mut placed: Vec<(ProfiledChunk, usize)> = Vec::with_capacity(met.len());
    for (position, chunk) in met.iter().enumerate() {
        let next = u32::try_from(segments.len()).unwrap_or(u32::MAX);
        let segment = *segments.entry(chunk.place.segment).or_insert(next);
        let (offset, stored_len) = (chunk.place.offset, chunk.place.stored_len);
        placed.push((ProfiledChunk { segment, offset, stored_len }, position));
    }
    placed.sort_unstable_by_key(|(chunk, position)| (chunk.segment, chunk.offset, *position));
    let mut order = vec![0; met.len()];
    for (number, (_, position)) in placed.iter().enumerate() {
        order[*position] = u32::try_from(number).unwrap_or(u32::MAX);
    }
    (placed.into_iter().map(|(chunk, _)| chunk).collect(), order)
}

fn report(file: &Path, profile: &ContentProfile, left_out: u64) -> Report {
    let mut lens: Vec<u32> = profile.chunks().iter().map(|chunk| chunk.stored_len).collect();
    lens.sort_unstable();
    let at_most = |per_cent: usize| {
        let rank = (lens.len() * per_cent).div_ceil(100).max(1);
        lens.get(rank - 1).copied().unwrap_or_default()
    };
    let subject = profile.subject().clone();
    Report {
        file: file.to_owned(),
        repository: subject.repository,
        revision: subject.revision,
        since: subject.since,
        trace: subject.trace,
        left_out,
        files: subject.files,
        distinct_chunks: subject.distinct_chunks,
        chunks: profile.len(),
        slices: profile.slices(),
        segments: profile.segments(),
        plain_bytes: subject.plain_bytes,
        stored_bytes: profile.stored_bytes(),
        stored_len_p50: at_most(50),
        stored_len_p90: at_most(90),
        stored_len_max: at_most(100),
    }
}

fn table(report: &Report) -> String {
    let mut subject = format!("{} revision {}", report.repository, report.revision);
    if let Some(since) = report.since {
        subject += &format!(", what {since} has not");
    }
    if let Some(trace) = &report.trace {
        subject += &format!(", as trace `{trace}` reads it");
    }
    let chunks = if u64::from(report.chunks) == report.distinct_chunks {
        report.chunks.to_string()
    } else {
        format!("{}, of {} in the repository", report.chunks, report.distinct_chunks)
    };
    let Report { stored_len_p50, stored_len_p90, stored_len_max, .. } = report;
    let rows = [
        (report.file.display().to_string(), subject),
        ("  files".to_owned(), files(report)),
        ("  chunks".to_owned(), chunks),
        ("  lie in".to_owned(), format!("{} slices of {} segments", report.slices, report.segments)),
        ("  bytes".to_owned(), format!("{} stored, {} plain", report.stored_bytes, report.plain_bytes)),
        (
            "  stored length".to_owned(),
            format!("p50 {stored_len_p50}, p90 {stored_len_p90}, max {stored_len_max}"),
        ),
    ];
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<17} {value}")).collect();
    lines.join("\n")
}

fn files(report: &Report) -> String {
    match report.left_out {
        0 => report.files.to_string(),
        left_out => format!("{}; {left_out} of the trace are not there, or changed too much", report.files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    #[test]
    fn chunks_lie_by_segment_and_place_and_keep_the_order_in_which_they_were_met() {
        let chunk = |segment: &[u8], offset: u64| ChunkRef {
            id: ContentId::of(&offset.to_le_bytes()),
            plain_len: 9,
            place: Place { segment: ContentId::of(segment), ordinal: 0, offset, stored_len: 4 },
        };
        let (chunks, order) = laid(&[chunk(b"z", 70), chunk(b"a", 10), chunk(b"z", 20), chunk(b"a", 0)]);
        let found: Vec<(u32, u64)> = chunks.iter().map(|chunk| (chunk.segment, chunk.offset)).collect();
        assert_eq!(found, [(0, 20), (0, 70), (1, 0), (1, 10)]);
        assert_eq!(order, [1, 3, 0, 2]);
    }
}
