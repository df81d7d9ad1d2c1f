//! A stratum with one tree, a peer that holds all of it, and the agent that is measured.

use crate::common::{Node, STARLING, Stratum, at_fingerprint, mesh, publish, wait_for};
use crate::trees::{Kind, Made};
use starling::ambient::now;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Both agents lie in one cell.
const CELL: &str = "here/a/1";
/// An agent is at rest when it used at most one tick of processor time (10 ms) for so long; waited for at most
/// [`REST_WAIT`].
const REST: Duration = Duration::from_millis(100);
const REST_WAIT: Duration = Duration::from_secs(20);

/// The user of an agent that is not root: `nobody`.
const NOBODY: u32 = 65_534;

/// How the agent of a column is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agent {
    /// As root, with the defaults.
    Plain,
    /// With `verify = always`.
    Checked,
    /// As `nobody`: it mounts through `fusermount3`, and the kernel reads nothing by itself.
    User,
}

/// A column of the table: how the repository is mounted, and by which agent.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// As it was asked for: `PROFILE`, `PROFILE+verify` or `PROFILE+user`.
    pub(crate) name: String,
    /// What `starling mount` is told for it.
    pub(crate) mount_args: Vec<String>,
    pub(crate) agent: Agent,
}

impl Column {
    /// The default, for which nothing is said.
    pub(crate) const DEFAULT: &'static str = "auto";

    /// # Errors
    /// With words, when there is no such agent.
    pub(crate) fn of(name: &str) -> Result<Self, String> {
        let (profile, agent) = match name.split_once('+') {
            None => (name, Agent::Plain),
            Some((profile, "verify")) => (profile, Agent::Checked),
            Some((profile, "user")) => (profile, Agent::User),
            Some((_, other)) => {
                return Err(format!("`+{other}` is not known; there are `+verify` and `+user`"));
            }
        };
        let args = if profile == Self::DEFAULT { Vec::new() } else { vec!["--profile", profile] };
        Ok(Self { name: name.to_owned(), mount_args: args.into_iter().map(str::to_owned).collect(), agent })
    }
}

/// How a column's mount stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Away,
    Mounted,
    Filled,
}

/// All of it. Agents and mounts end before the folder goes.
pub(crate) struct World {
    peer: Node,
    /// The agents that are measured, each of another kind.
    nodes: Vec<(Agent, Node)>,
    _stratum: Stratum,
    pub(crate) columns: Vec<Column>,
    standing: Vec<Standing>,
    repository: String,
    /// The tree that was published.
    pub(crate) tree: PathBuf,
    pub(crate) made: Made,
    warm_peer: bool,
    _base: TempDir,
}

impl World {
    /// Makes the tree, publishes it, and waits until the peer holds it.
    pub(crate) fn new(kind: Kind, scale: f64, columns: Vec<Column>, warm_peer: bool) -> Self {
        let base = tempfile::Builder::new().prefix("starling-fs-").tempdir().unwrap();
        let began = now();
        let tree = base.path().join("tree");
        let made = kind.make(&tree, scale);
        let repository = format!("{}.bench", kind.name());
        let (to, keys) = (base.path().join("to"), base.path().join("keys"));
        let revision = publish(&tree, &repository, &to, &keys, &[]);
        let stratum = Stratum::serve(&to, base.path());
        let mut agents = Vec::new();
        for column in &columns {
            if !agents.contains(&column.agent) {
                agents.push(column.agent);
            }
        }
        let count = 1 + agents.len();
        let mut nodes = mesh(base.path(), count, &[CELL], &at_fingerprint(&revision), &stratum.url, &[]);
        let mut peer = nodes.remove(0);
        if agents.contains(&Agent::User) {
            // Somebody else's agent must get at its state and its mount points.
            fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let nodes = agents.into_iter().zip(nodes).map(|(agent, mut node)| {
            node.stop();
            node = match agent {
                Agent::Plain => node,
                Agent::Checked => node.with_setting("verify", "always"),
                Agent::User => node.with_user(NOBODY),
            };
            node.start();
            (agent, node)
        });
        let nodes = nodes.collect();
        peer.mount_with(&repository, "mnt", &["--fill", "--wait"]);
        eprintln!(
            "tree {}: {} entries, {:.1} MB, ready after {:.0} s",
            kind.name(),
            made.entries(),
            made.bytes as f64 / 1e6,
            now().since(began).as_secs_f64()
        );
        let standing = vec![Standing::Away; columns.len()];
        Self {
            peer,
            nodes,
            _stratum: stratum,
            columns,
            standing,
            repository,
            tree,
            made,
            warm_peer,
            _base: base,
        }
    }

    fn node(&self, column: usize) -> &Node {
        let agent = self.columns[column].agent;
        self.nodes.iter().find(|(of, _)| *of == agent).map(|(_, node)| node).expect("each column has one")
    }

    fn node_mut(&mut self, column: usize) -> &mut Node {
        let agent = self.columns[column].agent;
        self.nodes.iter_mut().find(|(of, _)| *of == agent).map(|(_, node)| node).expect("each column has one")
    }

    /// Where a column's mount is, or will be.
    pub(crate) fn mount_point(&self, column: usize) -> PathBuf {
        self.node(column).dir.join(format!("mnt-{}", self.columns[column].name))
    }

    /// The agent of a column.
    pub(crate) fn pid(&self, column: usize) -> u32 {
        self.node(column).pid().expect("the agent runs")
    }

    fn mount(&mut self, column: usize, fill: bool) {
        let Column { name, mount_args, .. } = self.columns[column].clone();
        let mut args: Vec<&str> = mount_args.iter().map(String::as_str).collect();
        if fill {
            args.extend(["--fill", "--wait"]);
        }
        let repository = self.repository.clone();
        self.node_mut(column).mount_with(&repository, &format!("mnt-{name}"), &args);
        self.standing[column] = if fill { Standing::Filled } else { Standing::Mounted };
    }

    fn unmount(&mut self, column: usize) {
        if self.standing[column] != Standing::Away {
            let at = self.mount_point(column);
            self.node_mut(column).umount(&at);
            self.standing[column] = Standing::Away;
        }
    }

    /// Mounts all columns, everything in the cache.
    pub(crate) fn fill(&mut self) {
        for column in 0..self.columns.len() {
            if self.standing[column] != Standing::Filled {
                self.unmount(column);
                self.mount(column, true);
            }
        }
        self.rest();
    }

    /// Mounts a column anew; what the agent has in its cache, it keeps.
    pub(crate) fn mount_again(&mut self, column: usize) {
        self.unmount(column);
        drop_caches();
        self.mount(column, false);
        self.rest();
    }

    /// Starts a column's agent anew with an empty cache. Nothing is mounted then, and the kernel's caches are dropped.
    pub(crate) fn empty(&mut self, column: usize) {
        for column in 0..self.columns.len() {
            self.unmount(column);
        }
        let node = self.node_mut(column);
        node.stop();
        fs::remove_dir_all(node.state().join("cache")).unwrap();
        drop_caches();
        if self.warm_peer {
            read_all(&self.peer.state().join("cache"));
        }
        let others = self.nodes.len();
        let node = self.node_mut(column);
        node.start();
        wait_for("the others", Duration::from_secs(60), || (node.peers_up() == others).then_some(()));
        self.rest();
    }

    /// Mounts a column with whatever the agent has.
    pub(crate) fn mount_bare(&mut self, column: usize) {
        self.mount(column, false);
        self.rest();
    }

    /// Mounts a column and lists its root: the seconds that took, from the start of `starling mount`.
    pub(crate) fn mount_to_first_list(&mut self, column: usize) -> f64 {
        // The program is in the page cache: the agent runs it.
        let version = Command::new(STARLING).arg("--version").stdout(Stdio::null()).status();
        assert!(version.unwrap().success());
        let at = self.mount_point(column);
        fs::create_dir_all(&at).unwrap();
        let began = now();
        self.mount(column, false);
        assert!(fs::read_dir(&at).unwrap().count() > 0, "the root is not empty");
        now().since(began).as_secs_f64()
    }

    /// Waits until all agents have nothing to do: what was asked of them before is not to be paid by what comes.
    pub(crate) fn rest(&self) {
        let agents =
            std::iter::once(&self.peer).chain(self.nodes.iter().map(|(_, node)| node)).map(Node::pid);
        let agents: Vec<Option<u32>> = agents.collect();
        let ticks = || -> Vec<u64> { agents.iter().flatten().map(|pid| ticks(*pid)).collect() };
        let mut before = ticks();
        for _ in 0..REST_WAIT.as_millis() / REST.as_millis() {
            std::thread::sleep(REST);
            let after = ticks();
            if before.iter().zip(&after).all(|(before, after)| after - before <= 1) {
                return;
            }
            before = after;
        }
        eprintln!("the agents do not come to rest; measured all the same");
    }

    /// MB that a column's agent obtained since its start, from peers and from strata.
    pub(crate) fn obtained(&self, column: usize) -> (f64, f64) {
        let metrics = self.node(column).metrics();
        let of = |source: &str| {
            let name = format!("starling_obtained_bytes_total{{source=\"{source}\"}}");
            metrics.get(&name).copied().unwrap_or(0.0) / 1e6
        };
        (of("peers"), of("strata"))
    }
}

/// Processor time of a process, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Writes back what is dirty and drops the kernel's page cache, dentries and inodes: of the native tree, of the mounts, and
/// of the agents' cache files.
pub(crate) fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Brings the files of a folder into the page cache.
fn read_all(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path);
        } else {
            std::io::copy(&mut fs::File::open(&path).unwrap(), &mut std::io::sink()).unwrap();
        }
    }
}
