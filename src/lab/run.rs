//! One run, from an empty machine to an empty machine.

use super::content::Tree;
use super::error::LabError;
use super::faults::Faults;
use super::homes::{INPUTS, slices};
use super::lease::{Lease, clear_leftovers};
use super::measure::{LeftStratum, Sample, Sampler, processor_seconds};
use super::netns::{Network, check_machine, port, stratum_address, switch_of_host};
use super::node::{CORE_SETTINGS, Node, Stage, join_and_start};
use super::process::{Folder, Interrupt, Launcher, Process, may_mount};
use super::report::{CPU_MAX, Crossing, Fate, FullRates, NodeReport, Report, busy, difference, timeline};
use super::scenario::{How, Scenario};
use super::work::{NEW_FILE, Outcome, read, work};
use crate::ambient;
use crate::mesh::proto;
use crate::model::{CellLabel, ContentId, Time};
use crate::sim::{Bound, Keys, Moved, Rollout, Term, bound};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The repository's name: `example` belongs to nobody (RFC 2606).
const REPOSITORY: &str = "lab.starling.example";
/// Time to publish the content on a small, busy machine.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(1_800);
/// Time for the stratum to listen.
const SERVE_PATIENCE: Duration = Duration::from_secs(30);
/// How often the run looks at what is due.
const TICK: Duration = Duration::from_millis(20);
/// From the last preparation to the start, so that all threads are there in time.
const RUN_UP: Duration = Duration::from_millis(300);
/// Time for the reading after a fill, on a busy machine: all of it is local.
const VERIFY_PATIENCE: Duration = Duration::from_secs(600);
/// Most reports of nodes that wait to be taken: one a node and generation.
const DONE_MAX: usize = 1_024;

/// What a run is started with.
pub struct Options<'a> {
    /// What to run.
    pub scenario: Scenario,
    /// This program.
    pub executable: PathBuf,
    /// The program of the honest agents: this one, or another build.
    pub agent: PathBuf,
    /// Where the run makes its folder.
    pub temporary: PathBuf,
    /// Whether the folder with all state and logs stays.
    pub keep: bool,
    /// Whether the report tells what decided who was the home of what.
    pub tell_homes: bool,
    /// Environment variables that the agents shall not see.
    pub hidden: Vec<OsString>,
    /// The search path for programs.
    pub path: Option<OsString>,
    /// Told what is under way, and how many nodes have completed.
    pub progress: &'a dyn Fn(&str),
    /// Whether the user has asked to stop.
    pub interrupt: Interrupt,
}

/// A node of the run with its process.
pub(super) struct Member {
    pub(super) node: Node,
    /// `None` once it was killed.
    pub(super) process: Option<Process>,
    pub(super) outcome: Option<Outcome>,
    /// Its rendezvous key, once all know each other.
    key: Option<u64>,
    /// Seconds on processors that the process had taken before the measured part; afterwards, in it.
    pub(super) cpu_s: Option<f64>,
}

impl Member {
    pub(super) fn new(node: Node, process: Process) -> Self {
        Self { node, process: Some(process), outcome: None, key: None, cpu_s: None }
    }

    fn processor_seconds(&self) -> Option<f64> {
        processor_seconds(self.process.as_ref()?.id())
    }
}

/// The stratum.
pub(super) struct Stratum {
    pub(super) process: Option<Process>,
    pub(super) log: PathBuf,
    root: PathBuf,
    url: String,
}

/// Whether this machine can carry a lab.
///
/// # Errors
/// What is missing: root, `ip` or `tc`, FUSE.
pub fn check(path: Option<&std::ffi::OsStr>) -> Result<(), LabError> {
    check_machine(path)?;
    may_mount(path)?;
    Ok(())
}

/// Runs a scenario. Whatever it made is gone when this returns, whatever it returns.
///
/// # Errors
/// [`LabError`] when it could not be run to its end. That nodes did not complete is no such error.
pub fn run(options: &Options<'_>) -> Result<Report, LabError> {
    check(options.path.as_deref())?;
    let cleared = clear_leftovers();
    if cleared > 0 {
        (options.progress)(&format!("cleared what {cleared} killed runs had left"));
    }
    let folder = Folder::make(&options.temporary, "starling-lab", options.keep)?;
    let lease = Lease::take(folder.path())?;
    let result = in_folder(options, folder.path(), &lease);
    // In this order: processes are gone, then the namespaces, then mounts and folder, then the name itself.
    drop(folder);
    drop(lease);
    result
}

fn in_folder(options: &Options<'_>, folder: &Path, lease: &Lease) -> Result<Report, LabError> {
    let scenario = options.scenario.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|source| LabError::System { what: "a runtime", source })?;
    let launcher = |executable: &PathBuf| Launcher {
        executable: executable.clone(),
        folder: folder.to_owned(),
        hidden: options.hidden.clone(),
    };
    let stage = Stage {
        launcher: launcher(&options.executable),
        agents: launcher(&options.agent),
        interrupt: options.interrupt.clone(),
        runtime,
        repository: REPOSITORY.parse().map_err(|error| LabError::Output {
            command: "the repository's name".to_owned(),
            found: format!("{error}"),
        })?,
        scenario,
        keeps_inputs: options.tell_homes,
    };
    let say = options.progress;
    say("making and publishing the content");
    let tree = Tree::make(&folder.join("tree"), &stage.scenario.content, stage.scenario.seed)?;
    let published = publish(&stage, &tree.root, None)?;
    say("building the network");
    let network = Network::build(lease.tag(), &stage.scenario)?;
    let stratum = serve(&stage, &network)?;
    let mut run = Run {
        stage: &stage,
        tree: &tree,
        network: &network,
        stratum,
        members: Vec::new(),
        stored: published.stored,
    };
    run.assemble(&published, say)?;
    run.measure(say)
}

/// What `starling publish` says.
struct Published {
    fingerprint: String,
    stored: u64,
}

fn publish(stage: &Stage, tree: &Path, announce: Option<&Path>) -> Result<Published, LabError> {
    let [tree, to, keys] = [tree.to_owned(), stage.folder().join("stratum"), stage.folder().join("keys")]
        .map(|p| p.display().to_string());
    let announce = announce.map(|socket| socket.display().to_string());
    let mut arguments = vec!["publish", &tree, "--repo", REPOSITORY, "--to", &to, "--keys", &keys, "--json"];
    if let Some(socket) = &announce {
        arguments.extend(["--announce", socket]);
    }
    let chunk_bytes = stage.scenario.content.chunk_bytes.map(|bytes| bytes.to_string());
    if let Some(bytes) = &chunk_bytes {
        arguments.extend(["--chunk-bytes", bytes]);
    }
    let process = stage.launcher.start("publish", &arguments, None)?;
    let printed = process.output(PUBLISH_PATIENCE, &stage.interrupt)?;
    let parse = || {
        let json: serde_json::Value = serde_json::from_str(&printed).ok()?;
        let fingerprint = json["fingerprint"].as_str()?.to_owned();
        Some(Published { fingerprint, stored: json["new_stored_bytes"].as_u64()? })
    };
    parse().ok_or_else(|| LabError::Output {
        command: "starling publish --json".to_owned(),
        found: printed.clone(),
    })
}

fn serve(stage: &Stage, network: &Network) -> Result<Stratum, LabError> {
    let namespace = Network::open(&network.stratum())?;
    let (root, log) = (stage.folder().join("stratum"), stage.folder().join("access.log"));
    let listen = format!("{}:80", stratum_address());
    let [shown_root, shown_log] = [&root, &log].map(|path| path.display().to_string());
    let arguments = ["stratum", "serve", &shown_root, "--listen", &listen, "--access-log", &shown_log];
    let mut process = stage.launcher.start("stratum-server", &arguments, Some(&namespace))?;
    let output = stage.folder().join("stratum-server.out");
    process.wait_for("an address", SERVE_PATIENCE, &stage.interrupt, || -> Result<_, LabError> {
        let printed = fs::read_to_string(&output).map_err(LabError::file(&output))?;
        Ok((printed.contains("http://") && printed.ends_with('\n')).then_some(()))
    })?;
    Ok(Stratum { process: Some(process), log, root, url: format!("http://{listen}") })
}

/// A run under way. Its processes end when it is dropped.
pub(super) struct Run<'a> {
    pub(super) stage: &'a Stage,
    pub(super) tree: &'a Tree,
    pub(super) network: &'a Network,
    pub(super) stratum: Stratum,
    pub(super) members: Vec<Member>,
    stored: u64,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // All at once first: to wait for each in turn takes long on a machine that the others keep busy.
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            process.begin_kill();
        }
        for member in &mut self.members {
            if let Some(process) = member.process.take() {
                member.node.kill(process);
            }
        }
        if let Some(process) = self.stratum.process.take() {
            process.kill();
        }
    }
}

impl Run<'_> {
    /// All nodes become members of one mesh and know each other and the repository.
    fn assemble(&mut self, published: &Published, say: &dyn Fn(&str)) -> Result<(), LabError> {
        let stage = self.stage;
        if stage.scenario.settings != proto::Settings::default() {
            let core = stage.folder().join(CORE_SETTINGS);
            let settings = serde_json::to_vec(&stage.scenario.settings).map_err(|error| {
                LabError::Output { command: "settings".to_owned(), found: error.to_string() }
            })?;
            fs::write(&core, settings).map_err(LabError::file(&core))?;
        }
        let liars = Faults::liars(&stage.scenario);
        let mut nodes = Vec::new();
        for place in 0..stage.scenario.fleet.nodes {
            nodes.push(Node::new(stage, self.network, place, 1, liars.get(&place).copied())?);
        }
        say("starting the agents");
        let authority = nodes[0].clone();
        authority.init_mesh(stage)?;
        let mut process = authority.begin(stage)?;
        let ready = authority.wait_until_ready(stage, &mut process);
        self.members.push(Member::new(authority.clone(), process));
        ready?;
        authority.add_repository(stage, &published.fingerprint, &self.stratum.url)?;
        let others = nodes.split_off(1);
        let started = join_and_start(stage, &authority, &others)?;
        for (node, process) in others.into_iter().zip(started) {
            self.members.push(Member::new(node, process));
        }
        say("waiting until all know each other");
        let cells: Vec<_> = self.members.iter().map(|member| member.node.cell.clone()).collect();
        for member in &mut self.members {
            let Some(process) = &mut member.process else { continue };
            let others = cells.iter().filter(|cell| **cell == member.node.cell).count() - 1;
            member.key = Some(member.node.wait_until_member(stage, process, others)?.key());
        }
        Ok(())
    }

    /// The measured part.
    fn measure(&mut self, say: &dyn Fn(&str)) -> Result<Report, LabError> {
        let (stage, nodes) = (self.stage, self.stage.scenario.fleet.nodes);
        if stage.scenario.work.how.mounts_before() {
            say("mounting");
            for member in &self.members {
                member.node.mount(stage, false)?;
            }
        }
        let switches = if stage.scenario.switches() == 1 { 0 } else { stage.scenario.switches() };
        let mut ports: Vec<String> = (0..nodes).map(port).collect();
        ports.push("s".to_owned());
        // The other end, so that `up` is what the switch's nodes send.
        ports.extend((1..=switches).map(|switch| format!("c{switch}")));
        let drops = self.network.drops(nodes)?;
        let before = LeftStratum::read(&self.stratum.log)?;
        for member in &mut self.members {
            member.cpu_s = member.processor_seconds();
        }
        let chunks_before = self.chunks_from_elsewhere();
        let sampler = Sampler::start(Network::open(&self.network.hub())?, &ports)?;
        let begun = self.perform(say);
        let samples = sampler.stop()?;
        let chunks: Vec<Option<u64>> = (self.chunks_from_elsewhere().into_iter())
            .zip(chunks_before)
            .map(|(after, before)| Some(after?.saturating_sub(before?)))
            .collect();
        let begun = begun?;
        for member in &mut self.members {
            // A replacement began at nothing.
            let before = member.cpu_s.unwrap_or(0.0);
            member.cpu_s = member.processor_seconds().map(|after| after - before);
        }
        let after = LeftStratum::read(&self.stratum.log)?;
        let dropped = self.network.drops(nodes)?;
        if stage.scenario.work.how == How::Fill {
            say("reading everything once more, to compare it");
            self.verify();
        }
        let left = after.since(&before);
        let dropped = (dropped.0 - drops.0, dropped.1 - drops.1);
        let report = self.report(begun, &samples, &left, &chunks, dropped);
        Ok(Report { keys: stage.keeps_inputs.then(|| self.keys()).transpose()?, ..report })
    }

    /// What decided who was the home of what when the run began.
    fn keys(&self) -> Result<Keys, LabError> {
        let Scenario { content, fleet, .. } = &self.stage.scenario;
        let mut cells: Vec<CellLabel> =
            (0..fleet.nodes).map(|place| self.stage.scenario.cell_of(place)).collect();
        // Cells are runs of places.
        cells.dedup();
        Ok(Keys {
            nodes: self.members.iter().take(fleet.nodes as usize).filter_map(|member| member.key).collect(),
            cells: cells.iter().map(|cell| ContentId::of(cell.as_str().as_bytes()).key()).collect(),
            slices: slices(
                &self.stage.folder().join(INPUTS),
                content.bytes / u64::from(content.files.max(1)),
            )?,
        })
    }

    /// Starts all nodes' work, lets happen what is due, and returns the moment of the start when all is over.
    fn perform(&mut self, say: &dyn Fn(&str)) -> Result<Time, LabError> {
        let (stage, tree) = (self.stage, self.tree);
        let launch = ambient::now() + RUN_UP;
        let mut start = launch;
        let end = launch + Duration::from_secs(u64::from(stage.scenario.work.deadline_s));
        let mut faults = Faults::plan(&stage.scenario, launch);
        std::thread::scope(|scope| {
            let (done, reports) = mpsc::sync_channel(DONE_MAX);
            let begin = |index: usize, node: Node| {
                let done = done.clone();
                scope.spawn(move || {
                    let outcome = work(stage, tree, &node, launch, end);
                    let _ = done.send((index, outcome));
                });
            };
            let mut running = 0;
            for (index, member) in self.members.iter().enumerate() {
                if member.node.liar.is_none() {
                    begin(index, member.node.clone());
                    running += 1;
                }
            }
            if stage.scenario.work.how == How::Revision {
                start = self.publish_new()?;
            }
            let mut shown = usize::MAX;
            while running > 0 {
                stage.interrupt.check()?;
                if let Ok((index, outcome)) = reports.recv_timeout(TICK) {
                    self.members[index].outcome = Some(outcome);
                    running -= 1;
                }
                let from = self.members.len();
                faults.act(self)?;
                for index in from..self.members.len() {
                    if self.members[index].node.liar.is_some() {
                        continue;
                    }
                    begin(index, self.members[index].node.clone());
                    running += 1;
                }
                if running != shown {
                    shown = running;
                    let now = ambient::now().since(start).as_secs();
                    say(&format!("{now} s: {running} nodes are at work"));
                }
            }
            Ok(start)
        })
    }

    /// Publishes a new revision, and tells when its root stood in the stratum.
    fn publish_new(&self) -> Result<Time, LabError> {
        std::thread::sleep(RUN_UP);
        let file = self.tree.root.join(NEW_FILE);
        fs::write(&file, b"new").map_err(LabError::file(&file))?;
        let root = self.stratum.root.join(REPOSITORY).join("root");
        let inode = |path: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata(path).map(|found| found.ino()).map_err(LabError::file(path))
        };
        let old = inode(&root)?;
        let socket = self.members[0].node.socket();
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| publish(self.stage, &self.tree.root, Some(&socket)));
            while inode(&root)? == old && !publishing.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let published = ambient::now();
            publishing.join().unwrap_or_else(|_| {
                Err(LabError::Output { command: "starling publish".to_owned(), found: "a panic".to_owned() })
            })?;
            Ok(published)
        })
    }

    /// Reads all that was filled, and compares it.
    fn verify(&mut self) {
        let (stage, tree) = (self.stage, self.tree);
        let end = ambient::now() + VERIFY_PATIENCE;
        let parts = tree.recorded(stage.scenario.seed);
        for member in &mut self.members {
            if let Some(outcome) = member.outcome.as_mut().filter(|outcome| outcome.finished.is_some()) {
                let mut again = Outcome::default();
                read(stage, tree, &member.node, &parts, end, &mut again);
                outcome.errors.append(&mut again.errors);
            }
        }
    }

    fn report(
        &self,
        start: Time,
        samples: &[Sample],
        left: &LeftStratum,
        chunks: &[Option<u64>],
        dropped: (u64, u64),
    ) -> Report {
        let scenario = &self.stage.scenario;
        let nodes = scenario.fleet.nodes as usize;
        let stored = self.stored as f64;
        let (first, last) = (&samples[0], &samples[samples.len() - 1]);
        let through: Vec<_> =
            first.ports.iter().zip(&last.ports).map(|(before, after)| difference(*before, *after)).collect();
        let per_node: Vec<NodeReport> = self
            .members
            .iter()
            .map(|member| self.node_report(member, start, through[member.node.place as usize]))
            .collect();
        let mut times: Vec<f64> = per_node
            .iter()
            .filter(|node| node.fate == Fate::Completed)
            .filter_map(|node| node.completed_s)
            .collect();
        let wanted = per_node.iter().filter(|node| !matches!(node.fate, Fate::Killed | Fate::Liar)).count();
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let crossings: Vec<Crossing> = (0..)
            .zip(&through[nodes + 1..])
            .map(|(switch, port)| {
                let bodies =
                    left.by_host.iter().filter(|(host, _)| switch_of_host(scenario, **host) == Some(switch));
                let bodies: u64 = bodies.map(|(_, bytes)| bytes).sum();
                // What agents do not tell may be all that the link carried.
                let chunks = chunks.get(switch as usize).copied().flatten();
                let in_chunk_bytes = chunks.map_or(port.down, |chunks| chunks + bodies);
                let in_copies = in_chunk_bytes as f64 / stored;
                Crossing { switch, in_chunk_bytes, in_copies, in_bytes: port.down, out_bytes: port.up }
            })
            .collect();
        let moved = Moved {
            copy: stored,
            strata: left.bytes,
            // With one switch, everything that leaves the stratum comes into the one cell.
            most_into_a_cell: crossings.iter().map(|link| link.in_chunk_bytes).max().unwrap_or(left.bytes),
            most_given: per_node.iter().map(|node| node.up_bytes).max().unwrap_or(0),
        };
        let rollout = Rollout::new(scenario.seed, wanted, &mut times, self.bound(wanted), moved);
        let errors: Vec<String> = self
            .members
            .iter()
            .flat_map(|member| {
                let errors = member.outcome.iter().flat_map(|outcome| &outcome.errors);
                errors.map(|error| format!("{}: {error}", member.node.name))
            })
            .collect();
        let rate = |mbit_s: f64| mbit_s * 1e6 / 8.0;
        let own = scenario.rates();
        let mean = |way: usize| own.iter().map(|rates| rates[way]).sum::<f64>() / nodes as f64;
        let rates =
            FullRates { strata_up: rate(scenario.stratum.up_mbit_s), up: rate(mean(0)), down: rate(mean(1)) };
        let cpu = busy(first, last);
        let seconds = last.at.since(first.at).as_secs_f64();
        let agents_cpu_s: f64 = per_node.iter().filter_map(|node| node.cpu_s).sum();
        let carried: u64 = through[..nodes].iter().map(|port| port.up + port.down).sum();
        let mut report = Report {
            rollout,
            model: model(),
            content_bytes: scenario.content.bytes,
            stored_bytes: self.stored,
            cpu,
            void: cpu > CPU_MAX,
            agents_cpu_s,
            agent_cpu: agents_cpu_s / nodes as f64 / seconds,
            link_bytes_per_s: carried as f64 / nodes as f64 / seconds,
            strata_wire_bytes: through[nodes].up,
            strata_requests: left.requests,
            dropped_up: dropped.0,
            dropped_down: dropped.1,
            crossings,
            identical: errors.is_empty(),
            errors,
            goals: scenario.goals.clone(),
            missed: Vec::new(),
            per_node,
            timeline: timeline(samples, nodes, rates),
            keys: None,
        };
        report.judge();
        report
    }

    /// For each switch the plain bytes of chunks that the nodes behind it took from neighbours behind others, since they started; `None`
    /// where an agent was killed or does not answer.
    fn chunks_from_elsewhere(&self) -> Vec<Option<u64>> {
        let scenario = &self.stage.scenario;
        let of_node = |member: &Member, switch: u32| -> Option<u64> {
            if member.node.is_gone() {
                return None;
            }
            let peers = member.node.peers(self.stage).ok()?.peers;
            let elsewhere =
                peers.iter().filter(|peer| switch_of_host(scenario, peer.address.ip()) != Some(switch));
            Some(elsewhere.map(|peer| peer.received_bytes).sum())
        };
        let behind = |switch: u32| {
            self.members.iter().filter(move |member| scenario.switch_of(member.node.place) == switch)
        };
        (0..scenario.switches())
            .map(|switch| behind(switch).map(|member| of_node(member, switch)).sum())
            .collect()
    }

    fn node_report(&self, member: &Member, start: Time, link: super::measure::Traffic) -> NodeReport {
        let outcome = member.outcome.as_ref();
        let finished = outcome.and_then(|outcome| outcome.finished);
        let began = outcome.and_then(|outcome| outcome.began);
        let fate = match (member.node.liar, finished) {
            (Some(_), _) => Fate::Liar,
            _ if member.node.is_gone() => Fate::Killed,
            (None, Some(_)) => Fate::Completed,
            (None, None) => Fate::Incomplete,
        };
        let status = (!member.node.is_gone()).then(|| member.node.status(self.stage).ok()).flatten();
        NodeReport {
            name: member.node.name.clone(),
            cell: member.node.cell.to_string(),
            fate,
            lies: member.node.liar,
            place: member.node.place,
            began_s: began.map(|at| at.since(start).as_secs_f64()),
            completed_s: finished.map(|at| at.since(start).as_secs_f64()),
            up_bytes: link.up,
            down_bytes: link.down,
            up_copies: link.up as f64 / self.stored as f64,
            cpu_s: member.cpu_s,
            from_peers_bytes: status.as_ref().map(|status| status.obtained.peers_bytes),
            from_strata_bytes: status.as_ref().map(|status| status.obtained.strata_bytes),
        }
    }

    /// The least time for the links as the scenario has them, for those who shall complete.
    fn bound(&self, wanted: u32) -> Bound {
        let Scenario { stratum, work, .. } = &self.stage.scenario;
        if work.how.mounts_before() {
            // No content travels.
            return Bound { seconds: f64::NAN, term: Term::SlowestDownlink };
        }
        let rate = |mbit_s: f64| mbit_s * 1e6 / 8.0;
        let slow = Faults::slowest(&self.stage.scenario);
        let own = self.stage.scenario.rates();
        let up = own.iter().map(|rates| rates[0]).sum::<f64>() / own.len() as f64;
        let down = own.iter().map(|rates| rates[1]).fold(slow.unwrap_or(f64::INFINITY), f64::min);
        bound(self.stored as f64, f64::from(wanted), rate(stratum.up_mbit_s), rate(up), rate(down))
    }
}

/// What was measured on, in words.
fn model() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!(
        "real agents in network namespaces, htb over bfifo, Linux {}, {processors} processors",
        kernel.trim()
    )
}
