//! `starling trace`: record what a command reads, and look at what was recorded.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json};
use crate::agent::api::trace::{EndRecording, RecordRequest, Recorded};
use crate::agent::api::{MountStatus, RefusalKind};
use crate::agent::{Client, ClientError};
use crate::catalog::{RECORDED_MAX_BYTES, RecordedTrace};
use crate::fs::Profile;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::task::Poll;
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
of its first files is opened.

A mount with the profile `small-files` cannot be recorded. Of several mounts of a repository that is named, the first with
`--profile large-files` is taken, or else the first that can be recorded; it is named with what was read.

SIGTERM and SIGHUP are passed on to the command. However it ends, what it read until then is recorded.

The exit code is the command's, or 128 and the number of the signal that ended it. When the command succeeded and could not
be recorded, or read nothing of the mount, it is 1, and FILE is as it was before.")]
pub(super) struct RecordArgs {
    /// File for the trace, replaced when all of it is there [default: NAME.trace]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What the trace is called: a later one of the same name takes its place in the tree [default: the command's name]
    #[arg(long, value_name = "NAME", value_parser = RecordedTrace::name_from)]
    name: Option<String>,
    /// A mount point, something below it, or the name of a repository that is mounted
    #[arg(value_name = "REPO|MOUNTPOINT")]
    target: PathBuf,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// Print one JSON object. What the command prints goes to standard error then
    #[arg(long)]
    json: bool,
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

/// What is told of a recording.
#[derive(Debug, Serialize)]
struct Report {
    /// The file with the trace.
    file: PathBuf,
    /// What the trace is called.
    name: String,
    /// The mount.
    mount: PathBuf,
    files: usize,
    chunks: u64,
    /// Whether more was read than a trace holds.
    is_cut: bool,
    /// How the command ended: one of the two.
    exit_code: Option<i32>,
    signal: Option<i32>,
}

fn record(args: RecordArgs) -> Result<(), CliError> {
    let RecordArgs { out, name, target, command, json, agent } = args;
    let program = Path::new(&command[0]).file_name().unwrap_or(&command[0]).to_string_lossy();
    let printable: String = program.chars().filter(char::is_ascii_graphic).take(64).collect();
    let name = name.unwrap_or(if printable.is_empty() { "command".to_owned() } else { printable });
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.trace", name.replace('/', "_"))));
    // Before the command, which may take hours.
    let file = TraceFile::open(&out).map_err(|error| {
        CliError::failed(format!("the trace cannot be written to {}: {error}", out.display()))
    })?;
    // What it starts in the background and leaves behind stays recognisable as its own.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(std::io::Error::from)?;
    let client = agent.client();
    let (mount, status, ended) = block_on(async {
        let mut caught = Caught::begin()?;
        let (directory, number) = tokio::select! {
            begun = begin(&client, &target) => begun?,
            signal = caught.next() => return Err(stopped(signal)),
        };
        let status = run_to_end(&command, json, &mut caught).await;
        let ended = EndRecording { directory: directory.clone(), number, name };
        Ok((directory, status, client.end_recording(&ended).await))
    })?;
    let status =
        status.map_err(|error| CliError::failed(format!("{}: {error}", Path::new(&command[0]).display())))?;
    let kept = keep(file, ended).map(|(trace, is_cut)| Report {
        chunks: chunks(&trace),
        files: trace.files.len(),
        name: trace.name,
        file: out,
        mount,
        is_cut,
        exit_code: status.code(),
        signal: status.signal(),
    });
    match kept {
        Ok(report) => {
            tell(&report, json)?;
            passed_on(status, "what it read is recorded all the same")
        }
        Err(error) if status.success() => Err(error),
        Err(error) => {
            eprintln!("{error}");
            passed_on(status, "and what it read is not recorded")
        }
    }
}

/// Runs the command. What was meant to end this process is meant for the command, and is passed on; only who presses Ctrl-C has
/// interrupted the command already.
async fn run_to_end(command: &[OsString], json: bool, caught: &mut Caught) -> std::io::Result<ExitStatus> {
    let mut process = tokio::process::Command::new(&command[0]);
    process.args(&command[1..]);
    if json {
        // Standard output is for the one object.
        process.stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
    }
    let mut child = process.spawn()?;
    loop {
        let signal = tokio::select! {
            status = child.wait() => return status,
            signal = caught.next() => signal,
        };
        let process = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(process) = process.filter(|_| signal != Signal::INT) {
            // Refused by one that has become another user: it goes on, and so does the recording.
            let _ = kill_process(process, signal);
        }
    }
}

/// Signals that ask this process to end. They are caught, for the recording has still to be ended then. The command is not deaf to
/// them: what is caught here has its ordinary meaning there. So one that was ignored when this process began, as under `nohup`, is
/// not caught, and is ignored by both.
struct Caught(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Caught {
    fn begin() -> std::io::Result<Self> {
        // Where it cannot be read, all are caught.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mut caught = Vec::new();
        for name in [Signal::INT, Signal::TERM, Signal::HUP] {
            if !is_ignored(&status, name) {
                caught.push((name, signal(SignalKind::from_raw(name.as_raw()))?));
            }
        }
        Ok(Self(caught))
    }

    /// The next that comes.
    async fn next(&mut self) -> Signal {
        let next = std::future::poll_fn(|context| {
            for (name, caught) in &mut self.0 {
                if caught.poll_recv(context).is_ready() {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        });
        next.await
    }
}

/// Whether a process ignores a signal, by its `/proc/PID/status`: a bit for each, from number 1 on.
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1_u64 << (signal.as_raw() - 1)) != 0
}

/// Why nothing is recorded when a signal comes before the command runs.
fn stopped(signal: Signal) -> CliError {
    let number = signal.as_raw();
    let failed = CliError::failed(format!("signal {number} came before the command was started"));
    failed.with_code(u8::try_from(128 + number).unwrap_or(u8::MAX))
}

/// The command's own failure, with the exit code that a shell would give it.
fn passed_on(status: ExitStatus, and: &str) -> Result<(), CliError> {
    let code = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    };
    let failed = CliError::failed(format!("the command ended with {status}; {and}"));
    Err(failed.with_code(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Puts what was recorded into its file.
fn keep(file: TraceFile, ended: Result<Recorded, ClientError>) -> Result<(RecordedTrace, bool), CliError> {
    let ended = ended?;
    let document = data_encoding::BASE64.decode(ended.document.as_bytes());
    let document = document.map_err(|error| CliError::failed(format!("the agent's answer: {error}")))?;
    let trace = RecordedTrace::from_bytes(&document).map_err(CliError::failed)?;
    if trace.files.is_empty() {
        return Err(CliError::failed("the command read nothing of the mount")
            .hint("does it use another mount? give that one's mount point"));
    }
    let path = file.path.clone();
    file.keep(&trace.to_bytes()).map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
    Ok((trace, ended.is_cut))
}

fn tell(report: &Report, json: bool) -> Result<(), CliError> {
    if json {
        return print_json(report);
    }
    let Report { file, name, mount, files, chunks, .. } = report;
    let (file, mount) = (file.display(), mount.display());
    eprintln!("{file}: {} of {mount}", summary(name, *files, *chunks));
    if report.is_cut {
        eprintln!("warning: more was read than a trace holds; the first of it is recorded");
    }
    Ok(())
}

fn chunks(trace: &RecordedTrace) -> u64 {
    trace.reads.iter().map(|read| u64::from(read.count)).sum()
}

fn summary(name: &str, files: usize, chunks: u64) -> String {
    format!("trace `{name}`, {files} files, {chunks} chunks")
}

/// Names that are tried for the file beside: those of recorders that were killed may be taken.
const BESIDE_MAX: u32 = 100;

/// Where a trace goes: a file beside it until all of it is there, so that a trace of before stays if this one comes to nothing.
/// What is no regular file, such as a pipe, is written as it is.
struct TraceFile {
    path: PathBuf,
    file: File,
    /// Removed when this is dropped, if it is still there.
    beside: Option<PathBuf>,
}

impl TraceFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        match File::options().write(true).open(path) {
            Ok(file) if !file.metadata()?.is_file() => Ok(Self { path: path.to_owned(), file, beside: None }),
            // A link stays one.
            Ok(_) => Self::beside(path.canonicalize()?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::beside(path.to_owned()),
            Err(error) => Err(error),
        }
    }

    fn beside(path: PathBuf) -> std::io::Result<Self> {
        let mut taken = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        for number in 0..BESIDE_MAX {
            let beside = path.with_file_name(format!(".starling-trace.{}.{number}", std::process::id()));
            match File::options().write(true).create_new(true).open(&beside) {
                Ok(file) => return Ok(Self { path, file, beside: Some(beside) }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => taken = error,
                Err(error) => return Err(error),
            }
        }
        Err(taken)
    }

    fn keep(mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        if let Some(beside) = &self.beside {
            fs::rename(beside, &self.path)?;
            self.beside = None;
        }
        Ok(())
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = fs::remove_file(beside);
        }
    }
}

/// Begins to record on the first of the mounts that may be meant on which that can be done.
async fn begin(client: &Client, target: &Path) -> Result<(PathBuf, u64), CliError> {
    let mounts = client.mounts().await?.mounts;
    let mut refused = None;
    for mount in candidates(&mounts, target) {
        let directory = mount.directory.clone();
        let request = RecordRequest { directory: directory.clone(), process: std::process::id() };
        match client.record(&request).await {
            Ok(recording) => return Ok((directory, recording.number)),
            Err(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::Conflict => {
                refused.get_or_insert(refusal);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(refused.map_or_else(
        || {
            let shown = target.display();
            CliError::failed(format!(
                "{shown} is neither in a mount of this agent nor a repository that it has mounted"
            ))
            .hint("see `starling status`")
        },
        |refusal| ClientError::Refused(refusal).into(),
    ))
}

/// The mounts that may be meant, the best first: the one in which a path lies, or all of a repository, those first that were made
/// so that openings are seen, and those last that were not.
fn candidates<'a>(mounts: &'a [MountStatus], target: &Path) -> Vec<&'a MountStatus> {
    let live = || mounts.iter().filter(|mount| mount.problem.is_none());
    let absolute = target.canonicalize().or_else(|_| std::path::absolute(target)).ok();
    let inside = absolute.and_then(|path| {
        let above = live().filter(|mount| path.starts_with(&mount.directory));
        above.max_by_key(|mount| mount.directory.components().count())
    });
    if let Some(inside) = inside {
        return vec![inside];
    }
    let mut named: Vec<_> = live().filter(|mount| Path::new(mount.repository.as_str()) == target).collect();
    named.sort_by_key(|mount| match mount.options.profile {
        Profile::LargeFiles => 0,
        Profile::Auto => 1,
        Profile::SmallFiles => 2,
    });
    named
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let trace = open(&args.file)?;
    let mut of_file = vec![0_u64; trace.files.len()];
    trace.reads.iter().for_each(|read| of_file[read.file as usize] += u64::from(read.count));
    if args.json {
        let file = |(file, chunks): (&crate::catalog::TracedFile, &u64)| {
            serde_json::json!({
                "path": String::from_utf8_lossy(&file.path), "content": file.content.to_string(), "chunks": chunks,
            })
        };
        let files: Vec<_> = trace.files.iter().zip(&of_file).map(file).collect();
        return print_json(&serde_json::json!({ "name": trace.name, "files": files }));
    }
    println!("{}", summary(&trace.name, trace.files.len(), chunks(&trace)));
    for (file, chunks) in trace.files.iter().zip(&of_file) {
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
            profile: None,
            lacks: Vec::new(),
            note: None,
            fill: None,
        }
    }

    #[test]
    fn a_mount_is_meant_by_its_place_something_below_it_or_its_repository() {
        let mounts = [mount("a.b", "/mnt/a"), mount("c.d", "/mnt/a/inner"), mount("a.b", "/mnt/again")];
        assert_eq!(chosen(&mounts, "/mnt/a/bin"), ["/mnt/a"]);
        assert_eq!(chosen(&mounts, "/mnt/a/inner/x"), ["/mnt/a/inner"]);
        assert_eq!(chosen(&mounts, "a.b"), ["/mnt/a", "/mnt/again"]);
        assert!(chosen(&mounts, "/mnt/ab").is_empty() && chosen(&mounts, "x.y").is_empty());
    }

    fn chosen(mounts: &[MountStatus], target: &str) -> Vec<String> {
        let found = candidates(mounts, Path::new(target));
        found.iter().map(|mount| mount.directory.display().to_string()).collect()
    }

    #[test]
    fn of_a_repositorys_mounts_those_are_tried_first_that_were_made_for_it() {
        let profiles =
            [Profile::SmallFiles, Profile::Auto, Profile::LargeFiles, Profile::Auto, Profile::LargeFiles];
        let mut mounts: Vec<_> = (0..5).map(|number| mount("a.b", &format!("/mnt/{number}"))).collect();
        mounts.iter_mut().zip(profiles).for_each(|(mount, profile)| mount.options.profile = profile);
        mounts[4].problem = Some("it is not mounted".into());
        assert_eq!(chosen(&mounts, "a.b"), ["/mnt/2", "/mnt/1", "/mnt/3", "/mnt/0"]);
        assert_eq!(chosen(&mounts, "/mnt/0/bin"), ["/mnt/0"], "who names one means it");
    }

    #[test]
    fn the_exit_code_is_the_commands() {
        let code =
            |wait_status| passed_on(ExitStatus::from_raw(wait_status), "").map_err(|error| error.code());
        assert_eq!((code(0), code(7 << 8), code(255 << 8), code(9)), (Ok(()), Err(7), Err(255), Err(137)));
    }

    #[test]
    fn what_a_process_ignores_is_read_from_its_status() {
        let nohup =
            "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004002\n";
        let ignored = |status| [Signal::HUP, Signal::INT, Signal::TERM].map(|one| is_ignored(status, one));
        assert_eq!((ignored(nohup), ignored("")), ([true, false, false], [false; 3]));
        assert_eq!(ignored("SigIgn:\t0000000000004002\n"), [false, true, true]);
    }

    #[test]
    fn a_signal_before_the_command_has_the_exit_code_that_a_shell_gives_it() {
        assert_eq!([Signal::HUP, Signal::TERM].map(|one| stopped(one).code()), [129, 143]);
    }

    #[test]
    fn a_trace_takes_its_place_when_it_is_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a.trace"), dir.path().join("link"));
        let names = || fs::read_dir(dir.path()).unwrap().count();
        std::os::unix::fs::symlink("a.trace", &link).unwrap();
        TraceFile::open(&path).unwrap().keep(b"first").unwrap();
        drop(TraceFile::open(&path).unwrap());
        assert_eq!((fs::read(&path).unwrap(), names()), (b"first".to_vec(), 2));
        // One of a killed recorder of the same number is left alone.
        let other = TraceFile::open(&path).unwrap();
        TraceFile::open(&link).unwrap().keep(b"second").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        drop(other);
        assert_eq!((fs::read(&path).unwrap(), names()), (b"second".to_vec(), 2));
        TraceFile::open(Path::new("/dev/null")).unwrap().keep(b"x").unwrap();
        assert!(TraceFile::open(dir.path()).is_err() && TraceFile::open(&dir.path().join("no/a")).is_err());
    }
}
