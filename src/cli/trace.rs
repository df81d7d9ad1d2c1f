//! `starling trace`: record what a command reads, and look at what was recorded.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json};
use crate::agent::Client;
use crate::agent::api::MountStatus;
use crate::agent::api::trace::{EndRecording, RecordRequest};
use crate::catalog::{RECORDED_MAX_BYTES, RecordedTrace};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use tokio::signal::unix::{SignalKind, signal};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run a command and record what it reads through a mount.
    Record(RecordArgs),
    /// Show a recorded trace.
    Show(ShowArgs),
}

/// Arguments of `record`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling trace record --out bash.trace /mnt/debian -- chroot /mnt/debian /bin/bash -c 'echo hi'
  starling trace record sw.example.org -- /mnt/sw/bin/simulate --help
  starling publish /srv/debian --repo debian.example.org --to /srv/stratum --trace bash.trace

Recorded is what the command and all processes that it starts read of the mount, whether it is in a cache or not; of other
processes nothing. Who publishes the tree with the trace makes every node fetch all of it in a few requests as soon as one
of its first files is opened.")]
pub(super) struct RecordArgs {
    /// File for the trace [default: NAME.trace]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What the trace is called: a later one of the same name takes its place in the tree [default: the command's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A mount point, something below it, or the name of a repository that is mounted
    #[arg(value_name = "REPO|MOUNTPOINT")]
    target: PathBuf,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling trace show bash.trace
  starling trace show --json bash.trace")]
pub(super) struct ShowArgs {
    /// What `starling trace record` wrote
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Record(args) => record(args),
        Command::Show(args) => show(&args),
    }
}

/// Reads a trace that `record` wrote.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn open(file: &Path) -> Result<RecordedTrace, CliError> {
    let wrong = |error: &dyn std::fmt::Display| CliError::failed(format!("{}: {error}", file.display()));
    let found = fs::metadata(file).map_err(|error| wrong(&error))?;
    if found.len() > RECORDED_MAX_BYTES as u64 {
        return Err(wrong(&"it is too long for a trace"));
    }
    let bytes = fs::read(file).map_err(|error| wrong(&error))?;
    RecordedTrace::from_bytes(&bytes).map_err(|error| wrong(&error))
}

fn record(args: RecordArgs) -> Result<(), CliError> {
    let RecordArgs { out, name, target, command, agent } = args;
    let program = Path::new(&command[0]).file_name().unwrap_or(&command[0]).to_string_lossy();
    let printable: String = program.chars().filter(char::is_ascii_graphic).take(64).collect();
    let name = name.unwrap_or(if printable.is_empty() { "command".to_owned() } else { printable });
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.trace", name.replace('/', "_"))));
    // What it starts in the background and leaves behind stays recognisable as its own.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(std::io::Error::from)?;
    let client = agent.client();
    let (trace, is_cut, status) = block_on(async {
        let directory = mount_of(&client, &target).await?;
        let request = RecordRequest { directory: directory.clone(), process: std::process::id() };
        let number = client.record(&request).await?.number;
        // Who interrupts the command in a terminal interrupts this process, too, which still has to end the recording. The command
        // itself is not deaf to it: what is caught here has its ordinary meaning there.
        let _caught = signal(SignalKind::interrupt())?;
        let status = std::process::Command::new(&command[0]).args(&command[1..]).status();
        let ended = client.end_recording(&EndRecording { directory, number, name }).await;
        let status: ExitStatus = status
            .map_err(|error| CliError::failed(format!("{}: {error}", Path::new(&command[0]).display())))?;
        let ended = ended?;
        let document = data_encoding::BASE64.decode(ended.document.as_bytes());
        let document = document.map_err(|error| CliError::failed(format!("the agent's answer: {error}")))?;
        let trace = RecordedTrace::from_bytes(&document).map_err(CliError::failed)?;
        Ok((trace, ended.is_cut, status))
    })?;
    if trace.files.is_empty() {
        return Err(CliError::failed("the command read nothing of the mount")
            .hint("does it use another mount? give that one's mount point"));
    }
    fs::write(&out, trace.to_bytes())
        .map_err(|error| CliError::failed(format!("{}: {error}", out.display())))?;
    eprintln!("{}: {}", out.display(), summary(&trace));
    if is_cut {
        eprintln!("warning: more was read than a trace holds; the first of it is recorded");
    }
    if !status.success() {
        return Err(CliError::failed(format!(
            "the command ended with {status}; what it read is recorded all the same"
        )));
    }
    Ok(())
}

fn summary(trace: &RecordedTrace) -> String {
    let chunks: u64 = trace.reads.iter().map(|read| u64::from(read.count)).sum();
    format!("trace `{}`, {} files, {chunks} chunks", trace.name, trace.files.len())
}

/// The mount that is meant.
async fn mount_of(client: &Client, target: &Path) -> Result<PathBuf, CliError> {
    let mounts = client.mounts().await?.mounts;
    let shown = target.display();
    choose(&mounts, target).ok_or_else(|| {
        CliError::failed(format!(
            "{shown} is neither in a mount of this agent nor a repository that it has mounted"
        ))
        .hint("see `starling status`")
    })
}

fn choose(mounts: &[MountStatus], target: &Path) -> Option<PathBuf> {
    let live = || mounts.iter().filter(|mount| mount.problem.is_none());
    let named = live().find(|mount| Path::new(mount.repository.as_str()) == target);
    let absolute = target.canonicalize().or_else(|_| std::path::absolute(target)).ok();
    let inside = absolute.and_then(|path| {
        let above = live().filter(|mount| path.starts_with(&mount.directory));
        above.max_by_key(|mount| mount.directory.components().count())
    });
    inside.or(named).map(|mount| mount.directory.clone())
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let trace = open(&args.file)?;
    let mut chunks = vec![0_u64; trace.files.len()];
    trace.reads.iter().for_each(|read| chunks[read.file as usize] += u64::from(read.count));
    if args.json {
        let file = |(file, chunks): (&crate::catalog::TracedFile, &u64)| {
            serde_json::json!({
                "path": String::from_utf8_lossy(&file.path), "content": file.content.to_string(), "chunks": chunks,
            })
        };
        let files: Vec<_> = trace.files.iter().zip(&chunks).map(file).collect();
        return print_json(&serde_json::json!({ "name": trace.name, "files": files }));
    }
    println!("{}", summary(&trace));
    for (file, chunks) in trace.files.iter().zip(&chunks) {
        println!("{chunks:>7}  {}", file.path.escape_ascii());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(repository: &str, directory: &str) -> MountStatus {
        MountStatus {
            repository: repository.parse().unwrap(),
            directory: directory.into(),
            revision: None,
            root: None,
            options: Default::default(),
            automatic: false,
            expired: false,
            problem: None,
            note: None,
            fill: None,
        }
    }

    #[test]
    fn a_mount_is_meant_by_its_place_something_below_it_or_its_repository() {
        let mounts = [mount("a.b", "/mnt/a"), mount("c.d", "/mnt/a/inner"), mount("a.b", "/mnt/again")];
        let chosen = |target: &str| choose(&mounts, Path::new(target)).map(|path| path.display().to_string());
        assert_eq!(chosen("/mnt/a/bin").as_deref(), Some("/mnt/a"));
        assert_eq!(chosen("/mnt/a/inner/x").as_deref(), Some("/mnt/a/inner"));
        assert_eq!(chosen("a.b").as_deref(), Some("/mnt/a"));
        assert_eq!((chosen("/mnt/ab"), chosen("x.y")), (None, None));
    }
}
