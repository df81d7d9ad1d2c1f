//! One node of the demonstration: an agent process with a state folder of its own.

use super::super::CliError;
use super::compare::{Difference, Manifest, Watch};
use super::report::{Expected, Pass};
use crate::agent::Client;
use crate::agent::api::{
    AddRepository, InviteRequest, MountOptions, MountRequest, Obtained, Status, UnmountRequest,
};
use crate::lab::{Interrupt, Launcher, Process};
use crate::model::RepositoryName;
use indicatif::ProgressBar;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Threads that read a mount: what a build with a few processes does (a guess).
const READERS: usize = 4;
/// Time for a process to become ready and for members to find each other, on a busy small machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Differences that are shown; a tree that is quite wrong has too many to print.
const SHOWN_DIFFERENCES: usize = 10;
/// Validity of a ticket that is used at once.
const TICKET_S: u64 = 600;

/// What all nodes of the demonstration share.
pub(super) struct Stage<'a> {
    /// Starts processes, in the folder where everything lies.
    pub(super) launcher: Launcher,
    /// Whether the user has asked to stop.
    pub(super) interrupt: &'a Interrupt,
    /// What is distributed.
    pub(super) repository: RepositoryName,
    /// The published tree, read from its source.
    pub(super) original: &'a Manifest,
    /// Whether to show progress.
    pub(super) progress: bool,
}

impl Stage<'_> {
    /// Where everything lies.
    pub(super) fn folder(&self) -> &Path {
        &self.launcher.folder
    }

    /// A line for people, on standard error.
    pub(super) fn say(&self, text: &str) {
        if self.progress {
            eprintln!("{text}");
        }
    }
}

/// A reading that shows its progress and ends when the user asks to stop.
pub(super) struct Reading<'a> {
    pub(super) bar: &'a ProgressBar,
    pub(super) interrupt: &'a Interrupt,
}

impl Watch for Reading<'_> {
    fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
    fn stopped(&self) -> bool {
        self.interrupt.is_set()
    }
}

/// A node.
pub(super) struct Node {
    name: String,
    state: PathBuf,
    mount: PathBuf,
    /// Kept over a restart, as a real node keeps its address.
    listen: SocketAddr,
    process: Option<Process>,
}

impl Node {
    /// A node that has no agent yet.
    pub(super) fn new(stage: &Stage<'_>, name: &str) -> Result<Self, CliError> {
        let (state, mount) = (stage.folder().join(name), stage.folder().join(format!("{name}.mnt")));
        fs::create_dir(&mount)?;
        Ok(Self {
            name: name.to_owned(),
            state,
            mount,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            process: None,
        })
    }

    /// Makes it the first node, and the authority, of a new mesh.
    pub(super) fn init_mesh(&self, stage: &Stage<'_>) -> Result<(), CliError> {
        self.command(stage, "init", &["mesh", "init", "--state", &text(&self.state)?]).map(drop)
    }

    /// Makes it a member of a mesh.
    pub(super) fn join(&self, stage: &Stage<'_>, ticket: &str) -> Result<(), CliError> {
        self.command(stage, "join", &["join", ticket, "--state", &text(&self.state)?]).map(drop)
    }

    fn command(&self, stage: &Stage<'_>, verb: &str, arguments: &[&str]) -> Result<String, CliError> {
        let process = stage.launcher.start(&format!("{}-{verb}", self.name), arguments, None)?;
        Ok(process.output(PATIENCE, stage.interrupt)?)
    }

    /// Starts its agent and waits until it is ready.
    pub(super) fn start(&mut self, stage: &Stage<'_>) -> Result<(), CliError> {
        let (state, socket) = (text(&self.state)?, text(&self.socket())?);
        let listen = self.listen.to_string();
        let arguments = ["agent", "--state", &state, "--socket", &socket, "--listen", &listen];
        let mut process = stage.launcher.start(&format!("{}-agent", self.name), &arguments, None)?;
        let status =
            process.wait_for("a ready agent", PATIENCE, stage.interrupt, || -> Result<_, CliError> {
                // Until it listens there is no answer; a real failure ends the process, which is seen.
                Ok(self.status().ok())
            })?;
        if let Some(mesh) = status.mesh {
            self.listen = mesh.address;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Waits until it sees `others` live members beside itself.
    pub(super) fn wait_for_members(&mut self, stage: &Stage<'_>, others: usize) -> Result<(), CliError> {
        let client = self.client();
        self.wait(stage, &format!("view of {others} live neighbours"), || {
            let peers = blocking(client.peers())?;
            Ok((peers.peers.iter().filter(|peer| peer.up).count() >= others).then_some(()))
        })
    }

    /// Waits until it knows the repository, which the mesh tells it.
    pub(super) fn wait_for_repository(&mut self, stage: &Stage<'_>) -> Result<(), CliError> {
        let client = self.client();
        self.wait(stage, "knowledge of the repository", || {
            let known = blocking(client.repositories())?;
            Ok(known
                .repositories
                .iter()
                .any(|r| r.repository == stage.repository && r.revision.is_some())
                .then_some(()))
        })
    }

    fn wait<T>(
        &mut self,
        stage: &Stage<'_>,
        what: &str,
        ready: impl FnMut() -> Result<Option<T>, CliError>,
    ) -> Result<T, CliError> {
        let process = self.process.as_mut().ok_or_else(|| CliError::failed("the agent does not run"))?;
        process.wait_for(what, PATIENCE, stage.interrupt, ready)
    }

    /// Makes the repository known; on the authority, to the whole mesh.
    pub(super) fn add_repository(
        &self,
        stage: &Stage<'_>,
        fingerprint: &str,
        stratum: &str,
    ) -> Result<(), CliError> {
        let request = AddRepository {
            repository: stage.repository.clone(),
            fingerprint: fingerprint.to_owned(),
            strata: vec![stratum.to_owned()],
        };
        blocking(self.client().add_repository(&request)).map(drop)
    }

    /// A ticket for the next node.
    pub(super) fn invite(&self) -> Result<String, CliError> {
        let request = InviteRequest { expires_s: TICKET_S, ..InviteRequest::default() };
        Ok(blocking(self.client().invite(&request))?.ticket)
    }

    /// Mounts the repository, reads all of it, compares it with the original, and unmounts it. What the
    /// node obtained for it its own metrics tell.
    pub(super) fn pass(&self, stage: &Stage<'_>, name: &str, expected: Expected) -> Result<Pass, CliError> {
        let client = self.client();
        let before = self.obtained()?;
        let begun = crate::ambient::now();
        let request = MountRequest {
            repository: stage.repository.clone(),
            directory: self.mount.clone(),
            fill: false,
            options: MountOptions::default(),
        };
        blocking(client.mount(&request))?;
        let bar = progress_bar(stage, name);
        let reading = Reading { bar: &bar, interrupt: stage.interrupt };
        let copy = Manifest::read(&self.mount, READERS, &reading);
        let seconds = (crate::ambient::now() - begun).as_secs_f64();
        bar.finish_and_clear();
        stage.interrupt.check()?;
        let differences = match &copy {
            Ok(copy) => stage.original.differences(copy),
            Err(error) => {
                eprintln!("{name}: {error}");
                Vec::new()
            }
        };
        show(name, &differences);
        let identical = copy.is_ok() && differences.is_empty();
        let pass = Pass::new(name, expected, before, self.obtained()?, seconds, identical);
        blocking(client.unmount(&UnmountRequest { directory: self.mount.clone() }))?;
        Ok(pass)
    }

    /// Ends its agent as an operator would.
    pub(super) fn stop(&mut self) -> Result<(), CliError> {
        Ok(self.process.take().map_or(Ok(()), Process::stop)?)
    }

    fn socket(&self) -> PathBuf {
        self.state.with_extension("sock")
    }

    fn client(&self) -> Client {
        // Of many agents on one machine one may be late.
        Client::new(&self.socket()).patient()
    }

    fn status(&self) -> Result<Status, CliError> {
        blocking(self.client().status())
    }

    fn obtained(&self) -> Result<Obtained, CliError> {
        Ok(self.status()?.obtained)
    }
}

fn blocking<T>(call: impl Future<Output = Result<T, crate::agent::ClientError>>) -> Result<T, CliError> {
    super::super::ask::block_on(async { Ok(call.await?) })
}

fn text(path: &Path) -> Result<String, CliError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| CliError::failed(format!("{}: not UTF-8", path.display())).hint("set TMPDIR"))
}

/// A bar over the bytes of all names, which the reader reads.
pub(super) fn progress_bar(stage: &Stage<'_>, name: &str) -> ProgressBar {
    if !stage.progress {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(stage.original.bytes_of_all_names());
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "{prefix:24} {bar:40} {bytes:>10} of {total_bytes:10} {binary_bytes_per_sec:>12}",
    ) {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar
}

fn show(name: &str, differences: &[Difference]) {
    for difference in differences.iter().take(SHOWN_DIFFERENCES) {
        eprintln!("{name}: {} {}", difference.path.display(), difference.what);
    }
    if differences.len() > SHOWN_DIFFERENCES {
        eprintln!("{name}: and {} differences more", differences.len() - SHOWN_DIFFERENCES);
    }
}
