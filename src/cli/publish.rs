//! `starling publish`: publish a directory tree as a new revision of a repository.

use super::CliError;
use super::ask::block_on;
use crate::agent::api::AddRepository;
use crate::agent::{AgentAddress, Client};
use crate::ambient;
use crate::chunk::{Chunking, MAX_LEVEL};
use crate::model::RepositoryName;
use crate::publish::{Options, Outcome, Progress, PublishError, publish};
use crate::store::{DirectoryObjects, ObjectError, ObjectStore};
use crate::trust::{KeyError, Keys};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  starling publish /opt/software --repo sw.example.org --to /srv/stratum
  starling publish build/out --repo nightly.example.org --to /srv/stratum --tag 2026-05-01
  starling publish /srv/debian --repo debian.example.org --to /srv/stratum --trace bash.trace
  starling publish /opt/software --repo sw.example.org --to /srv/stratum --announce /run/starling/agent.sock

The first revision makes keys in --keys (default: $XDG_CONFIG_HOME/starling/keys/NAME) and prints their
fingerprint, by which others trust the repository, as NAME@FINGERPRINT; so does each further time. Take root.key off line then: publishing needs it about once a year.
Any HTTP server that serves DIR is a stratum; `starling stratum serve DIR` is one.";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The directory whose content becomes the new revision
    tree: PathBuf,
    /// Name of the repository, such as sw.example.org
    #[arg(long, value_name = "NAME")]
    repo: RepositoryName,
    /// Directory of the stratum; the repository is written to DIR/NAME
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Directory of the repository's keys [default: $XDG_CONFIG_HOME/starling/keys/NAME]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Give the revision a name
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// A trace that `starling trace record` wrote: nodes fetch all that it names as soon as one of its first files is opened. It
    /// takes the place of one with the same name. May be repeated
    #[arg(long = "trace", value_name = "FILE")]
    traces: Vec<PathBuf>,
    /// Do not publish the traces of the previous revision again
    #[arg(long)]
    drop_traces: bool,
    /// zstd compression level
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=i64::from(MAX_LEVEL)))]
    level: i32,
    /// Make a file of at most so many bytes one chunk, and cut larger ones into chunks of so many on average: a power of two, for
    /// measurements with other chunks than the usual ones
    #[arg(long, value_name = "BYTES", hide = true)]
    chunk_bytes: Option<u32>,
    /// Make a revision even when nothing changed
    #[arg(long)]
    force: bool,
    /// Read every file, even those whose size and modification time did not change
    #[arg(long)]
    checksum: bool,
    /// Hand the new root to an agent: the path of its socket, with a `/` in it (`./agent.sock`), or HOST:PORT of its http_listen; may
    /// be repeated
    #[arg(long, value_name = "ADDR|SOCKET", value_parser = agent_address)]
    announce: Vec<AgentAddress>,
    /// With --announce: URL at which others find what lies in --to. An agent that does not know the repository is told of
    /// it first, as by `starling repo add`; may be repeated
    #[arg(long = "stratum", value_name = "URL", requires = "announce")]
    strata: Vec<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

fn agent_address(text: &str) -> Result<AgentAddress, String> {
    AgentAddress::parse(text).ok_or_else(|| {
        format!("`{text}` is neither HOST:PORT nor the path of a socket, which needs a `/` (`./agent.sock`)")
    })
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let Args { tree, repo, to, keys, tag, level, force, checksum, announce: agents, strata, json, .. } = args;
    let traces = args.traces.iter().map(|file| super::trace::open(file)).collect::<Result<_, _>>()?;
    let started = ambient::now();
    let tree = open_tree(&tree)?;
    let keys_directory = keys.map_or_else(|| default_keys(&repo), Ok)?;
    check_places(&tree, &to, &keys_directory)?;
    let objects = Arc::new(DirectoryObjects::new(&to, &repo));
    let _lock = objects.lock().map_err(|error| store_error(&error))?;
    let is_published = objects.root().map_err(|error| store_error(&error))?.is_some();
    let keys = open_keys(&keys_directory, &repo, is_published)?;
    if keys.were_created() && !json {
        eprintln!("New keys in {}. Fingerprint: {}", keys_directory.display(), keys.fingerprint());
        eprintln!("Keep root.key off line: whoever has it can replace all other keys.");
    }

    let usual = Chunking::default();
    let chunking = args.chunk_bytes.map_or(usual, |bytes| Chunking {
        whole_max_bytes: bytes,
        ordinary_average_bytes: bytes,
        large_average_bytes: bytes,
        ..usual
    });
    let keep_traces = !args.drop_traces;
    let options = Options { tree, level, chunking, checksum, force, tag, traces, keep_traces };
    let bar = progress_bar(json);
    let mut show = |progress: Progress| {
        bar.set_position(progress.bytes);
        if progress.files.is_multiple_of(64) {
            bar.set_message(format!("{} files", progress.files));
        }
    };
    let objects: Arc<dyn ObjectStore> = objects;
    let outcome = publish(&objects, &repo, &keys, &options, ambient::unix_now(), &mut show);
    bar.finish_and_clear();
    let outcome = outcome.map_err(|error| publish_error(&error))?;
    let seconds = (ambient::now() - started).as_secs_f64();
    if json {
        println!("{}", as_json(&repo, &keys, &outcome, seconds));
    } else {
        print_outcome(&repo, &keys, &outcome, seconds);
    }
    let card = AddRepository { repository: repo, fingerprint: keys.fingerprint().to_string(), strata };
    announce(&agents, &outcome, &card)
}

/// Hands the root to all agents named. One that refuses does not keep the others from hearing of it.
fn announce(agents: &[AgentAddress], outcome: &Outcome, card: &AddRepository) -> Result<(), CliError> {
    let mut failed = Vec::new();
    for address in agents {
        let root = outcome.root.bytes().clone();
        let told = block_on(async {
            let agent = Client::at(address.clone());
            if !card.strata.is_empty() {
                let known = agent.repositories().await?.repositories;
                if known.iter().all(|known| known.repository != card.repository) {
                    agent.add_repository(card).await?;
                }
            }
            Ok(agent.announce(root).await?)
        });
        match told {
            Ok(told) => eprintln!("announced revision {} to {address}", told.revision),
            Err(error) => failed.push(format!("{address}: {error}")),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(CliError::failed(format!("published, but not announced everywhere:\n{}", failed.join("\n")))
        .hint("`starling repo announce` hands the root over later; it lies in the stratum as `root`"))
}

fn open_tree(tree: &Path) -> Result<PathBuf, CliError> {
    let found =
        tree.canonicalize().map_err(|error| CliError::usage(format!("{}: {error}", tree.display())))?;
    if !found.is_dir() {
        return Err(CliError::usage(format!("{} is not a directory", tree.display())));
    }
    Ok(found)
}

/// A stratum inside the tree would publish itself; keys in either would be there for all to read.
fn check_places(tree: &Path, stratum: &Path, keys: &Path) -> Result<(), CliError> {
    let [stratum_at, keys_at] = [resolved(stratum)?, resolved(keys)?];
    let inside = |what: &str, path: &Path, whole: &str, outer: &Path| {
        let message = format!("{what} {} lies inside {whole} {}", path.display(), outer.display());
        Err(CliError::usage(message).hint("choose a directory outside of what others can read"))
    };
    if stratum_at.starts_with(tree) {
        return inside("the stratum", stratum, "the tree", tree);
    }
    if keys_at.starts_with(tree) {
        return inside("the key directory", keys, "the tree", tree);
    }
    if keys_at.starts_with(&stratum_at) {
        return inside("the key directory", keys, "the stratum", stratum);
    }
    Ok(())
}

fn default_keys(name: &RepositoryName) -> Result<PathBuf, CliError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let config = config.ok_or_else(|| {
        CliError::usage("there is no home directory to keep keys in").hint("give --keys DIR")
    })?;
    Ok(config.join("starling/keys").join(name.as_str()))
}

/// The path without symbolic links, as far as it exists.
fn resolved(path: &Path) -> Result<PathBuf, CliError> {
    let path = std::path::absolute(path)?;
    for ancestor in path.ancestors() {
        if let Ok(found) = ancestor.canonicalize() {
            return Ok(found.join(path.strip_prefix(ancestor).unwrap_or(Path::new(""))));
        }
    }
    Ok(path)
}

/// The keys; made only where there is no repository yet that others could have made keys for.
fn open_keys(directory: &Path, name: &RepositoryName, is_published: bool) -> Result<Keys, CliError> {
    let now = ambient::unix_now();
    let keys = if is_published {
        Keys::open(directory, name, now)
    } else {
        Keys::open_or_create(directory, name, now)
    };
    keys.map_err(|error| match &error {
        KeyError::Missing { .. } => CliError::failed(&error).hint(format!(
            "{name} is published there already; give the directory of its keys with --keys DIR"
        )),
        _ => CliError::failed(&error),
    })
}

fn store_error(error: &ObjectError) -> CliError {
    match error {
        ObjectError::Locked { .. } => CliError::failed(error).hint("wait until it has ended"),
        _ => CliError::failed(error),
    }
}

fn publish_error(error: &PublishError) -> CliError {
    let failed = CliError::failed(format!("nothing was published: {error}"));
    match error {
        PublishError::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            failed.hint("every file must be readable by the user who publishes")
        }
        PublishError::Changing { .. } => {
            failed.hint("publish a tree that nobody writes to, such as a snapshot")
        }
        PublishError::Root(crate::trust::TrustError::OtherKeys { .. }) => {
            failed.hint("give the directory of this repository's keys with --keys DIR")
        }
        _ => failed,
    }
}

fn progress_bar(json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}  {bytes}  {bytes_per_sec}  {elapsed}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn as_json(name: &RepositoryName, keys: &Keys, outcome: &Outcome, seconds: f64) -> serde_json::Value {
    serde_json::json!({
        "repository": name.as_str(),
        "revision": outcome.root.root().revision.0,
        "new_revision": outcome.is_new_revision,
        "root": outcome.root.id().to_string(),
        "fingerprint": keys.fingerprint().to_string(),
        "files": outcome.files,
        "bytes": outcome.bytes,
        "skipped": outcome.skipped,
        "new_chunks": outcome.new_chunks,
        "new_stored_bytes": outcome.new_stored_bytes,
        "segments": outcome.segments,
        "traces": outcome.traces.iter().map(|trace| serde_json::json!({
            "name": trace.name, "files": trace.files, "left_out": trace.left_out, "chunks": trace.chunks,
            "bytes": trace.plain_bytes,
        })).collect::<Vec<_>>(),
        "seconds": seconds,
    })
}

fn print_outcome(name: &RepositoryName, keys: &Keys, outcome: &Outcome, seconds: f64) {
    let root = outcome.root.root();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if outcome.skipped > 0 {
        eprintln!("{} sockets, devices and pipes were left out.", outcome.skipped);
    }
    if outcome.is_new_revision {
        println!(
            "{name}: revision {} published: {} files, {:.1} MiB; {} new chunks, {:.1} MiB stored in {} segments; {seconds:.1} s",
            root.revision,
            outcome.files,
            mib(outcome.bytes),
            outcome.new_chunks,
            mib(outcome.new_stored_bytes),
            outcome.segments,
        );
        for trace in &outcome.traces {
            let (name, files, left_out) = (&trace.name, trace.files, trace.left_out);
            let bytes = mib(trace.plain_bytes);
            println!("trace {name}: {files} files, {bytes:.1} MiB; {left_out} files are gone or changed");
        }
    } else {
        println!(
            "{name}: nothing changed since revision {}; no new revision ({seconds:.1} s)",
            root.revision
        );
        if outcome.is_signed_anew {
            println!("its root was signed anew and is now good until {}", root.expires);
        }
    }
    println!("others trust it as {name}@{}", keys.fingerprint());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_socket_without_a_slash_is_told_that_it_needs_one() {
        let said = agent_address("agent.sock").unwrap_err();
        assert!(said.contains("`agent.sock` is neither") && said.contains("`./agent.sock`"), "{said}");
        assert_eq!(agent_address("./agent.sock"), Ok(AgentAddress::Socket("./agent.sock".into())));
    }

    #[test]
    fn only_what_may_not_be_read_is_said_to_need_permission() {
        let said = |kind| {
            let error = PublishError::Read { path: "/tree/file".into(), source: Error::from(kind) };
            publish_error(&error).to_string()
        };
        assert!(said(ErrorKind::PermissionDenied).contains("must be readable"));
        let other = said(ErrorKind::InvalidFilename);
        assert!(other.contains("/tree/file") && !other.contains("hint"), "{other}");
    }
}
