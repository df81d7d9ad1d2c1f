//! Real processes on loopback for whole-program tests: strata, nodes, trees, and what to skip where.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "a shared module of several programs")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod mapping;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// The program under test.
pub const STARLING: &str = env!("CARGO_BIN_EXE_starling");

/// Whether a test that mounts can run. Says why not; under `STARLING_REQUIRE_ALL=1` that is a failure.
pub fn can_mount(test: &str) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "it needs root"
    } else if !Path::new("/dev/fuse").exists() {
        "it needs /dev/fuse"
    } else {
        return true;
    };
    skipped(test, reason);
    false
}

/// Reports a skip, or fails where skips are not allowed.
pub fn skipped(test: &str, reason: &str) {
    assert!(
        std::env::var_os("STARLING_REQUIRE_ALL").is_none_or(|v| v != "1"),
        "{test} was skipped although STARLING_REQUIRE_ALL=1: {reason}"
    );
    eprintln!("skipped: {test}: {reason}");
}

/// Waits until `condition` yields something, at most `limit`.
///
/// # Panics
/// When it does not.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let pause = Duration::from_millis(20);
    let rounds = limit.as_millis() / pause.as_millis();
    for _ in 0..rounds.max(1) {
        if let Some(value) = condition() {
            return value;
        }
        std::thread::sleep(pause);
    }
    panic!("waited {limit:?} in vain for: {what}");
}

/// A process that is killed when the test ends.
pub struct Process(pub Child);

impl Process {
    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// When it does not end within 20 s.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        wait_for("the process to end after SIGTERM", Duration::from_secs(20), || self.0.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `starling` with `args` to its end.
pub fn starling<S: AsRef<OsStr>>(args: &[S]) -> Output {
    Command::new(STARLING).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs `starling`, which must succeed; its standard output.
///
/// # Panics
/// When it fails, with what it said.
pub fn ok<S: AsRef<OsStr>>(args: &[S]) -> String {
    let output = starling(args);
    let shown: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    assert!(
        output.status.success(),
        "starling {}: {}\n{}{}",
        shown.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `starling`, which must fail with exit code 1 or 2 and a message on standard error.
///
/// # Panics
/// When it succeeds, dies of a signal or panics.
pub fn fails<S: AsRef<OsStr>>(args: &[S]) -> String {
    let output = starling(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{}: {said}", output.status);
    assert!(said.contains("error"), "no error message: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A stratum served by `starling stratum serve`.
pub struct Stratum {
    process: Process,
    /// Its base address, `http://127.0.0.1:PORT`.
    pub url: String,
    log: PathBuf,
}

impl Stratum {
    /// Serves `directory` on a free port.
    pub fn serve(directory: &Path, base: &Path) -> Self {
        let log = base.join("access.log");
        let out = base.join("stratum.out");
        let child = Command::new(STARLING)
            .args(["stratum", "serve"])
            .arg(directory)
            .args(["--listen", "127.0.0.1:0", "--access-log"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(base.join("stratum.err")).unwrap())
            .spawn()
            .unwrap();
        let process = Process(child);
        let url = wait_for("the stratum's address", Duration::from_secs(20), || {
            let text = fs::read_to_string(&out).ok()?;
            let at = text.find("http://")?;
            let url = text[at..].split_whitespace().next()?;
            text[at..].contains('\n').then(|| url.trim_end_matches('/').to_owned())
        });
        Self { process, url, log }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The lines of its access log.
    pub fn access_log(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// A node: state directory, socket, log, and the agent while it runs.
pub struct Node {
    /// Its folder.
    pub dir: PathBuf,
    agent: Option<Process>,
    mounts: Vec<PathBuf>,
    extra: Vec<String>,
    /// Where it listens once it was a member: as on a real machine, the same after a restart.
    listen: Option<String>,
    /// Seconds for which its mounts are kept without an agent.
    keep_mounts_s: u32,
    /// Further settings, as variables of the environment.
    settings: Vec<(String, String)>,
    /// Who runs it, if not who runs the test.
    user: Option<u32>,
}

impl Node {
    /// A node that is no member of a mesh yet.
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        Self {
            dir,
            agent: None,
            mounts: Vec::new(),
            extra: Vec::new(),
            listen: None,
            keep_mounts_s: 0,
            settings: Vec::new(),
            user: None,
        }
    }

    /// Further arguments for `starling agent`.
    #[must_use]
    pub fn with_args(mut self, args: &[&str]) -> Self {
        self.extra = args.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// Its mounts outlive its agent, for a while.
    #[must_use]
    pub fn keeping_mounts(mut self) -> Self {
        // Longer than all restarts of a test take together: what it is without service adds up.
        self.keep_mounts_s = 120;
        self
    }

    /// A setting of its agent.
    #[must_use]
    pub fn with_setting(mut self, key: &str, value: impl AsRef<Path>) -> Self {
        let value = value.as_ref().to_str().unwrap().to_owned();
        self.settings.push((format!("STARLING_{}", key.to_uppercase()), value));
        self
    }

    /// Has its agent run as another user from its next start on. Needs root.
    pub fn with_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Has it listen elsewhere from its next start on.
    pub fn move_to(&mut self, address: &str) {
        self.listen = Some(address.to_owned());
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Makes a mesh with this node as its authority.
    pub fn init_mesh(&self, cell: &str) {
        ok(&[
            OsStr::new("mesh"),
            "init".as_ref(),
            "--state".as_ref(),
            self.state().as_ref(),
            "--cell".as_ref(),
            cell.as_ref(),
        ]);
    }

    /// A ticket from this node, which runs and is an authority.
    pub fn invite(&self) -> String {
        let out = ok(&[OsStr::new("mesh"), "invite".as_ref(), "--socket".as_ref(), self.socket().as_ref()]);
        out.lines().find(|line| line.starts_with("starling-")).expect("a ticket is printed").trim().to_owned()
    }

    /// Joins with `ticket`.
    pub fn join(&self, ticket: &str, cell: &str) {
        ok(&[
            OsStr::new("join"),
            ticket.as_ref(),
            "--state".as_ref(),
            self.state().as_ref(),
            "--cell".as_ref(),
            cell.as_ref(),
        ]);
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self) {
        self.begin_start();
        self.end_start();
    }

    /// Starts the agent and does not wait for it.
    pub fn begin_start(&mut self) {
        let mut command = Command::new(STARLING);
        if let Some(user) = self.user {
            give(&self.dir, user);
            command.uid(user).gid(user);
        }
        let child = command
            .arg("agent")
            .arg("--state")
            .arg(self.state())
            .arg("--socket")
            .arg(self.socket())
            .args(["--listen", self.listen.as_deref().unwrap_or("127.0.0.1:0")])
            .args(&self.extra)
            .env("STARLING_KEEP_MOUNTS_S", self.keep_mounts_s.to_string())
            .envs(self.settings.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(self.dir.join("agent.log")).unwrap())
            .spawn()
            .unwrap();
        self.agent = Some(Process(child));
    }

    /// Waits until the agent that was started answers.
    pub fn end_start(&mut self) {
        for _ in 0..1000 {
            let status = [OsStr::new("status"), "--json".as_ref(), "--socket".as_ref()];
            let answer = starling(&[&status[..], &[self.socket().as_ref()]].concat());
            if answer.status.success() {
                let status: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
                self.listen = status["mesh"]["address"].as_str().map(str::to_owned);
                return;
            }
            let Process(agent) = self.agent.as_mut().expect("the agent was started");
            if let Some(status) = agent.try_wait().unwrap() {
                self.agent = None;
                panic!("the agent ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        panic!("the agent does not answer:\n{}", self.log());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// SIGTERM; the agent must end well.
    pub fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let status = agent.terminate();
            assert!(status.success(), "{status}:\n{}", self.log());
        }
    }

    /// Stops the agent's time, as when a machine is suspended; [`Self::resume`] lets it go on.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let agent = self.agent.as_ref().expect("the agent runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(&agent.0), signal).unwrap();
    }

    /// Whether the agent runs.
    pub fn pid(&self) -> Option<u32> {
        self.agent.as_ref().map(|a| a.0.id())
    }

    /// Makes a repository known.
    pub fn add_repository(&self, name_and_fingerprint: &str, stratum: &str) {
        ok(&[
            OsStr::new("repo"),
            "add".as_ref(),
            name_and_fingerprint.as_ref(),
            "--stratum".as_ref(),
            stratum.as_ref(),
            "--socket".as_ref(),
            self.socket().as_ref(),
        ]);
    }

    /// Mounts `repository` on the folder `name` below this node's.
    pub fn mount(&mut self, repository: &str, name: &str) -> PathBuf {
        self.mount_with(repository, name, &[])
    }

    /// As [`Self::mount`], with further arguments.
    pub fn mount_with(&mut self, repository: &str, name: &str, more: &[&str]) -> PathBuf {
        let at = self.dir.join(name);
        fs::create_dir_all(&at).unwrap();
        if let Some(user) = self.user {
            std::os::unix::fs::lchown(&at, Some(user), Some(user)).unwrap();
        }
        let socket = self.socket();
        let mut args: Vec<&OsStr> =
            vec!["mount".as_ref(), repository.as_ref(), at.as_ref(), "--socket".as_ref(), socket.as_ref()];
        args.extend(more.iter().map(OsStr::new));
        ok(&args);
        if !self.mounts.contains(&at) {
            self.mounts.push(at.clone());
        }
        at
    }

    /// Mounts, if the agent can, and reads the file `large` through it.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn try_to_read(&mut self, repository: &str, name: &str) -> Result<(), String> {
        let at = self.dir.join(name);
        fs::create_dir_all(&at).unwrap();
        let out = starling(&[
            OsStr::new("mount"),
            repository.as_ref(),
            at.as_ref(),
            "--socket".as_ref(),
            self.socket().as_ref(),
        ]);
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        self.mounts.push(at.clone());
        fs::read(at.join("large")).map(drop).map_err(|e| e.to_string())
    }

    /// Unmounts what [`Self::mount`] mounted.
    pub fn umount(&mut self, at: &Path) {
        ok(&[OsStr::new("umount"), at.as_ref(), "--socket".as_ref(), self.socket().as_ref()]);
        self.mounts.retain(|m| m != at);
    }

    /// The agent's metrics by name (with labels, as exposed).
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let text =
            ok(&[OsStr::new("status"), "--metrics".as_ref(), "--socket".as_ref(), self.socket().as_ref()]);
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// A metric; 0 when it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics().get(name).copied().unwrap_or(0.0)
    }

    /// Members that this node believes alive, itself not counted.
    pub fn peers_up(&self) -> usize {
        let text = ok(&[OsStr::new("peers"), "--json".as_ref(), "--socket".as_ref(), self.socket().as_ref()]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let peers = value.get("peers").unwrap_or(&value).as_array().unwrap().clone();
        peers.iter().filter(|p| p["up"].as_bool() == Some(true)).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        for at in &self.mounts {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.dir.display(), tail(&self.log(), 60));
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// One mesh: the first node is its authority and adds the repository, the others join one by one. Node `i` lies in the
/// cell `cells[i % cells.len()]`; `first_args` go to the first node's agent. Returns when all know all.
pub fn mesh(
    base: &Path,
    count: usize,
    cells: &[&str],
    repository: &str,
    stratum: &str,
    first_args: &[&str],
) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..count {
        let mut node = Node::new(base.join(format!("node{i}")));
        let cell = cells[i % cells.len()];
        if let Some(first) = nodes.first() {
            node.join(&first.invite(), cell);
            node.start();
        } else {
            node = node.with_args(first_args);
            node.init_mesh(cell);
            node.start();
            node.add_repository(repository, stratum);
        }
        nodes.push(node);
    }
    for node in &nodes {
        wait_for("all to know all", Duration::from_secs(90), || (node.peers_up() == count - 1).then_some(()));
    }
    nodes
}

/// Makes a folder, and all in it that is not mounted, a user's.
fn give(folder: &Path, user: u32) {
    std::os::unix::fs::lchown(folder, Some(user), Some(user)).unwrap();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give(&entry.path(), user);
        } else {
            std::os::unix::fs::lchown(entry.path(), Some(user), Some(user)).unwrap();
        }
    }
}

/// The name of a repository as `repo add` takes it, from what `publish --json` said.
pub fn at_fingerprint(made: &serde_json::Value) -> String {
    format!("{}@{}", made["repository"].as_str().unwrap(), made["fingerprint"].as_str().unwrap())
}

/// Publishes `tree` into `to`; the fingerprint of the repository.
pub fn publish(tree: &Path, name: &str, to: &Path, keys: &Path, more: &[&str]) -> serde_json::Value {
    let mut args: Vec<&OsStr> = vec![
        "publish".as_ref(),
        tree.as_ref(),
        "--repo".as_ref(),
        name.as_ref(),
        "--to".as_ref(),
        to.as_ref(),
        "--keys".as_ref(),
        keys.as_ref(),
        "--json".as_ref(),
    ];
    args.extend(more.iter().map(|m| OsStr::new(*m)));
    serde_json::from_str(&ok(&args)).unwrap()
}

/// A small random generator for test content (xorshift64*), so that a seed is all that a failure needs.
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Incompressible bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Makes a tree of all kinds of entries: about `files` files and `bytes` bytes, half of them in one large file.
pub fn make_tree(at: &Path, seed: u64, files: u64, bytes: u64) {
    let mut dice = Dice(seed | 1);
    fs::create_dir_all(at).unwrap();
    let directories = (files / 20).max(1);
    for i in 0..files {
        let dir = at.join(format!("d{}", i % directories));
        fs::create_dir_all(&dir).unwrap();
        let len = dice.below(bytes / files + 1);
        let path = dir.join(format!("f{i}"));
        fs::write(&path, dice.bytes(usize::try_from(len).unwrap())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o755, 0o600][(i % 3) as usize]))
            .unwrap();
    }
    fs::write(at.join("large"), dice.bytes(usize::try_from(bytes / 2).unwrap())).unwrap();
    fs::write(at.join("empty"), b"").unwrap();
    fs::write(at.join(OsStr::from_bytes(b"not-\xff\xfe-utf8")), b"name").unwrap();
    let _ = symlink("d0/f0", at.join("link"));
    let _ = symlink("nowhere/at all", at.join("dangling"));
    let _ = fs::hard_link(at.join("large"), at.join("d0/same-as-large"));
    fs::create_dir_all(at.join("empty-dir")).unwrap();
}

/// What a tree holds: path -> kind, mode, owner, time, size, links, content or target.
pub fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let content = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                open.push(path.clone());
                String::new()
            } else {
                let mut hasher = blake3::Hasher::new();
                let mut file = File::open(&path).unwrap();
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let n = file.read(&mut buffer).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                    if n == 0 {
                        break;
                    }
                    hasher.write_all(&buffer[..n]).unwrap();
                }
                format!("{} bytes {}", meta.size(), hasher.finalize().to_hex())
            };
            let links = if kind.is_dir() { 0 } else { meta.nlink() };
            found.insert(
                path.strip_prefix(root).unwrap().to_path_buf(),
                format!(
                    "{:o} {}:{} {}.{:09} x{links} {content}",
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    meta.mtime(),
                    meta.mtime_nsec()
                ),
            );
        }
    }
    found
}

/// Fails with the first differences between two trees.
///
/// # Panics
/// When they differ.
pub fn assert_same(expected: &BTreeMap<PathBuf, String>, found: &BTreeMap<PathBuf, String>) {
    let different: Vec<String> = expected
        .keys()
        .chain(found.keys())
        .filter(|path| expected.get(*path) != found.get(*path))
        .take(5)
        .map(|path| format!("{}: {:?} became {:?}", path.display(), expected.get(path), found.get(path)))
        .collect();
    assert!(different.is_empty(), "the trees differ:\n{}", different.join("\n"));
}
