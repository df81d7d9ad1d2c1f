//! A node of a run: an agent process in a namespace of its own.

use super::error::LabError;
use super::homes::INPUTS;
use super::netns::{Network, address};
use super::process::{Interrupt, Launcher, Process, detach};
use super::scenario::{LiarKind, Scenario};
use crate::agent::api::{
    AddRepository, InviteRequest, MountOptions, MountRequest, MountStatus, Peers, Status,
};
use crate::agent::{Client, ClientError};
use crate::config::DEFAULT_PORT;
use crate::model::{CellLabel, NodeId, RepositoryName};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Largest UDP payload on a link: the 1 500 bytes of a veth, less IPv6's header and UDP's.
const LINK_PAYLOAD_BYTES: i64 = 1_452;
/// Time for an agent to be ready and for members to find each other, when a small machine starts many at once.
const PATIENCE: Duration = Duration::from_secs(120);
/// Validity of a ticket that is used at once.
const TICKET_S: u64 = 600;
/// The file with the core's constants, if the scenario has others than the defaults.
pub(super) const CORE_SETTINGS: &str = "core.json";
/// Room in the caches beside the content: catalogs, packs that are being written.
const CACHE_ROOM_BYTES: u64 = 512 << 20;

/// What all nodes of a run share.
pub(super) struct Stage {
    pub(super) launcher: Launcher,
    /// Starts the honest agents, which may be of another build.
    pub(super) agents: Launcher,
    pub(super) interrupt: Interrupt,
    pub(super) runtime: Runtime,
    pub(super) scenario: Scenario,
    pub(super) repository: RepositoryName,
    /// Whether the first node keeps what reaches its core.
    pub(super) keeps_inputs: bool,
}

impl Stage {
    /// Where everything lies.
    pub(super) fn folder(&self) -> &Path {
        &self.launcher.folder
    }

    /// Waits for an agent's answer. From any thread.
    pub(super) fn ask<T>(
        &self,
        node: &str,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, LabError> {
        self.runtime.block_on(call).map_err(|source| LabError::Agent { node: node.to_owned(), source })
    }
}

/// A node. Clones share the same one; the process is kept apart.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its place: its namespace and address, which a replacement takes over.
    pub(super) place: u32,
    pub(super) name: String,
    pub(super) cell: CellLabel,
    pub(super) liar: Option<LiarKind>,
    pub(super) mount: PathBuf,
    state: PathBuf,
    namespace: Arc<File>,
    /// Set before it is killed: its readers' errors are no defects then.
    gone: Arc<AtomicBool>,
}

impl Node {
    /// The `generation`-th node (from 1) in a place.
    pub(super) fn new(
        stage: &Stage,
        network: &Network,
        place: u32,
        generation: u32,
        liar: Option<LiarKind>,
    ) -> Result<Self, LabError> {
        let name = if generation == 1 { format!("n{place}") } else { format!("n{place}-{generation}") };
        let mount = stage.folder().join(format!("{name}.mnt"));
        fs::create_dir(&mount).map_err(LabError::file(&mount))?;
        Ok(Self {
            place,
            cell: stage.scenario.cell_of(place),
            liar,
            mount,
            state: stage.folder().join(&name),
            namespace: Arc::new(Network::open(&network.node(place))?),
            gone: Arc::default(),
            name,
        })
    }

    /// Makes it the first node, and the authority, of a new mesh.
    pub(super) fn init_mesh(&self, stage: &Stage) -> Result<(), LabError> {
        let (state, cell) = (self.state.display().to_string(), self.cell.to_string());
        let arguments = ["mesh", "init", "--state", &state, "--cell", &cell];
        let process = stage.launcher.start(&format!("{}-init", self.name), &arguments, None)?;
        process.output(PATIENCE, &stage.interrupt)?;
        Ok(())
    }

    /// Begins to join with a ticket of `authority`; the process ends when it has.
    fn begin_join(&self, stage: &Stage, authority: &Self) -> Result<Process, LabError> {
        let request = InviteRequest { expires_s: TICKET_S, ..InviteRequest::default() };
        let ticket = stage.ask(&authority.name, authority.client().invite(&request))?.ticket;
        let (state, cell) = (self.state.display().to_string(), self.cell.to_string());
        let arguments = ["join", &ticket, "--state", &state, "--cell", &cell];
        Ok(stage.launcher.start(&format!("{}-join", self.name), &arguments, Some(&self.namespace))?)
    }

    /// Starts its agent. It is ready later.
    pub(super) fn begin(&self, stage: &Stage) -> Result<Process, LabError> {
        let settings = self.write_settings(stage)?.display().to_string();
        let core = stage.folder().join(CORE_SETTINGS);
        let shown = core.display().to_string();
        let (mut arguments, mut launcher) = (vec!["agent", "--config", &settings], &stage.agents);
        if core.exists() {
            arguments.extend(["--core-settings", &shown]);
        }
        let inputs = stage.folder().join(INPUTS).display().to_string();
        if stage.keeps_inputs && self.place == 0 {
            arguments.extend(["--record-inputs", &inputs]);
        }
        let kind;
        if let Some(liar) = self.liar {
            kind = liar.to_string();
            arguments.splice(..1, ["lab-liar", "--how", &kind]);
            launcher = &stage.launcher;
        }
        Ok(launcher.start(&format!("{}-agent", self.name), &arguments, Some(&self.namespace))?)
    }

    fn write_settings(&self, stage: &Stage) -> Result<PathBuf, LabError> {
        let mut table = toml::Table::new();
        let mut put = |key: &str, value: String| table.insert(key.to_owned(), value.into());
        put("state_dir", self.state.display().to_string());
        put("socket", self.socket().display().to_string());
        put("listen", format!("{}:{DEFAULT_PORT}", address(self.place)));
        put("cache_quota_bytes", (2 * stage.scenario.content.bytes + CACHE_ROOM_BYTES).to_string());
        put("cache_free_floor_bytes", "0".to_owned());
        // Each node is a machine of its own with its share of this one's processors.
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        put("worker_threads", (processors / stage.scenario.fleet.nodes as usize).max(1).to_string());
        // What the links carry. An agent would look for it among the interfaces of the machine: the namespace shares its `/sys`.
        table.insert("mtu_bytes".into(), LINK_PAYLOAD_BYTES.into());
        table.extend(stage.scenario.agent.clone());
        let path = stage.folder().join(format!("{}.toml", self.name));
        fs::write(&path, table.to_string()).map_err(LabError::file(&path))?;
        Ok(path)
    }

    /// Waits until its agent answers.
    pub(super) fn wait_until_ready(&self, stage: &Stage, process: &mut Process) -> Result<(), LabError> {
        process.wait_for("a ready agent", PATIENCE, &stage.interrupt, || {
            // Until it listens there is no answer; a real failure ends the process, which is seen.
            Ok(stage.ask(&self.name, self.client().status()).ok().map(drop))
        })
    }

    /// Waits until it sees `others` live members beside itself and knows the repository. Returns who it is.
    pub(super) fn wait_until_member(
        &self,
        stage: &Stage,
        process: &mut Process,
        others: usize,
    ) -> Result<NodeId, LabError> {
        let what = format!("view of {others} live members, and of the repository");
        process.wait_for(&what, PATIENCE, &stage.interrupt, || {
            let status = self.status(stage)?;
            let Some(mesh) = status.mesh else { return Ok(None) };
            let known = |r: &crate::agent::api::RepositoryStatus| {
                r.repository == stage.repository && r.revision.is_some()
            };
            let is_ready = mesh.members_up > others && status.repositories.iter().any(known);
            Ok(is_ready.then_some(mesh.node))
        })
    }

    /// Makes the repository known, and thereby to the whole mesh.
    pub(super) fn add_repository(
        &self,
        stage: &Stage,
        fingerprint: &str,
        stratum: &str,
    ) -> Result<(), LabError> {
        let request = AddRepository {
            repository: stage.repository.clone(),
            fingerprint: fingerprint.to_owned(),
            strata: vec![stratum.to_owned()],
        };
        stage.ask(&self.name, self.client().add_repository(&request)).map(drop)
    }

    /// Mounts the repository, with a background fill or without.
    pub(super) fn mount(&self, stage: &Stage, fill: bool) -> Result<MountStatus, LabError> {
        let request = MountRequest {
            repository: stage.repository.clone(),
            directory: self.mount.clone(),
            fill,
            options: MountOptions::default(),
        };
        stage.ask(&self.name, self.client().mount(&request))
    }

    /// How its mount is.
    pub(super) fn mounted(&self, stage: &Stage) -> Result<Option<MountStatus>, LabError> {
        let mounts = stage.ask(&self.name, self.client().mounts())?.mounts;
        Ok(mounts.into_iter().find(|mount| mount.directory == self.mount))
    }

    /// What its agent says of itself.
    pub(super) fn status(&self, stage: &Stage) -> Result<Status, LabError> {
        stage.ask(&self.name, self.client().status())
    }

    /// What it knows of the others.
    pub(super) fn peers(&self, stage: &Stage) -> Result<Peers, LabError> {
        stage.ask(&self.name, self.client().peers())
    }

    /// Its socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.state.with_extension("sock")
    }

    pub(super) fn client(&self) -> Client {
        // Of many agents on one machine one may be late.
        Client::new(&self.socket()).patient()
    }

    /// Ends its agent as a failing machine would, and clears what is left of the mount.
    pub(super) fn kill(&self, process: Process) {
        self.gone.store(true, Ordering::SeqCst);
        process.kill();
        detach(&self.mount);
    }

    /// Whether it was killed.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

/// Makes nodes members with tickets of `authority` and starts their agents, all at once as far as that goes.
pub(super) fn join_and_start(
    stage: &Stage,
    authority: &Node,
    nodes: &[Node],
) -> Result<Vec<Process>, LabError> {
    let mut started = Vec::new();
    for some in nodes.chunks(JOINS_AT_ONCE) {
        let joining =
            some.iter().map(|node| node.begin_join(stage, authority)).collect::<Result<Vec<_>, _>>()?;
        for process in joining {
            process.output(PATIENCE, &stage.interrupt)?;
        }
        for node in some {
            started.push(node.begin(stage)?);
        }
    }
    for (node, process) in nodes.iter().zip(&mut started) {
        node.wait_until_ready(stage, process)?;
    }
    Ok(started)
}

/// Nodes that join at once: a few a processor (a guess).
const JOINS_AT_ONCE: usize = 8;
