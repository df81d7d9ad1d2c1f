//! Processes and folders that go when the run goes that made them, however it ends.

use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Time that a process has to end by itself: an agent's own bound for it is 8 s.
const STOP_PATIENCE: Duration = Duration::from_secs(12);
/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a process's log that are shown when it fails.
const LOG_TAIL_LINES: usize = 12;

/// What went wrong with a process or a folder.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// It could not be started.
    #[error("cannot start {name}: {source}")]
    Start {
        /// Which process.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended although it should not have, or ended badly.
    #[error("{name} ended ({status}) before {what}")]
    Ended {
        /// Which process.
        name: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What was waited for.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// It did not do in time what was waited for.
    #[error("{name}: no {what} within {waited_s} s")]
    Late {
        /// Which process.
        name: String,
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        waited_s: u64,
        /// The last lines of its log.
        log: String,
    },
    /// Mounting is not possible here.
    #[error("{message}")]
    CannotMount {
        /// Why.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file or folder.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ProcessError {
    /// What helps to understand it: the last lines of the log, or what to do.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Ended { log, .. } | Self::Late { log, .. } => Some(log),
            Self::CannotMount { hint, .. } => Some(hint),
            _ => None,
        }
    }
}

/// Whether the user has asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn catch() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let caught = Self::default();
        let flag = caught.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut int, mut term, mut hup) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            )
        };
        // The thread waits until the program ends; nothing depends on its end.
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                    _ = hup.recv() => {}
                }
                flag.0.store(true, Ordering::SeqCst);
                // From here on the signals stay caught, so that a second Ctrl-C does not cut the cleaning short.
                std::future::pending::<()>().await;
            });
        })?;
        Ok(caught)
    }

    /// Whether the user has asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error once the user has asked to stop.
    ///
    /// # Errors
    /// [`ProcessError::Interrupted`].
    pub fn check(&self) -> Result<(), ProcessError> {
        if self.is_set() { Err(ProcessError::Interrupted) } else { Ok(()) }
    }
}

/// Starts this program with other arguments.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program.
    pub executable: PathBuf,
    /// Where outputs and logs go.
    pub folder: PathBuf,
    /// Environment variables that the processes shall not see.
    pub hidden: Vec<OsString>,
}

impl Launcher {
    /// Starts it; what it prints goes to `NAME.out` and `NAME.log` in the folder. In `network`, when given: an open
    /// network namespace.
    ///
    /// The process gets SIGTERM when the *thread* ends that started it: start from one that lives as long as the run.
    ///
    /// # Errors
    /// [`ProcessError::Start`], [`ProcessError::File`].
    pub fn start(
        &self,
        name: &str,
        arguments: &[&str],
        network: Option<&dyn AsFd>,
    ) -> Result<Process, ProcessError> {
        use std::os::unix::process::CommandExt as _;
        let log = self.folder.join(format!("{name}.log"));
        let output = self.folder.join(format!("{name}.out"));
        let failed = |path: &Path, source| ProcessError::File { path: path.to_owned(), source };
        let printed = File::create(&output).map_err(|error| failed(&output, error))?;
        let logged =
            File::options().create(true).append(true).open(&log).map_err(|error| failed(&log, error))?;
        let mut command = Command::new(&self.executable);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(printed)
            .stderr(logged)
            // A Ctrl-C in the terminal shall reach the run only, which then ends its processes in order.
            .process_group(0);
        for variable in &self.hidden {
            command.env_remove(variable);
        }
        // Agents of a run are gone after it, and so are their mounts.
        command.env("STARLING_KEEP_MOUNTS_S", "0");
        let network = network.map(|namespace| namespace.as_fd().as_raw_fd());
        // SAFETY: between fork and exec only `prctl` and `setns` are called, which are async-signal-safe and
        // allocate nothing; the descriptor is borrowed from the caller until `spawn` returns.
        unsafe {
            command.pre_exec(move || {
                // Should the run be killed outright, its processes end too, and unmount.
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                match network {
                    Some(fd) if libc::setns(fd, libc::CLONE_NEWNET) != 0 => Err(io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        let child =
            command.spawn().map_err(|source| ProcessError::Start { name: name.to_owned(), source })?;
        Ok(Process { child, name: name.to_owned(), log, output })
    }
}

/// A running command of this very program. Dropping it ends it: first kindly, then for sure.
#[derive(Debug)]
pub struct Process {
    child: std::process::Child,
    name: String,
    log: PathBuf,
    output: PathBuf,
}

impl Process {
    /// Waits until `ready` gives something, the process ends, `patience` is over, or the user interrupts.
    ///
    /// # Errors
    /// That of `ready`, or [`ProcessError`].
    pub fn wait_for<T, E: From<ProcessError>>(
        &mut self,
        what: &str,
        patience: Duration,
        interrupt: &Interrupt,
        mut ready: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        let until = crate::ambient::now() + patience;
        loop {
            interrupt.check()?;
            if let Some(found) = ready()? {
                return Ok(found);
            }
            if let Some(status) = self.ended()? {
                return Err(self.failed(status, what).into());
            }
            if crate::ambient::now() > until {
                return Err(self.late(what, patience).into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a command that ends by itself and tells what it printed.
    ///
    /// # Errors
    /// [`ProcessError`], also when it ends with another code than 0.
    pub fn output(mut self, patience: Duration, interrupt: &Interrupt) -> Result<String, ProcessError> {
        let until = crate::ambient::now() + patience;
        let status = loop {
            interrupt.check()?;
            if let Some(status) = self.ended()? {
                break status;
            }
            if crate::ambient::now() > until {
                return Err(self.late("end", patience));
            }
            std::thread::sleep(POLL);
        };
        if !status.success() {
            return Err(self.failed(status, "it had done its work"));
        }
        self.printed()
    }

    /// What it printed so far.
    ///
    /// # Errors
    /// [`ProcessError::File`].
    pub fn printed(&self) -> Result<String, ProcessError> {
        fs::read_to_string(&self.output)
            .map_err(|source| ProcessError::File { path: self.output.clone(), source })
    }

    /// Its number in the system, as long as it was not waited for.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process with SIGTERM and tells whether it ended well within its time.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn stop(mut self) -> Result<(), ProcessError> {
        match self.end(STOP_PATIENCE) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed(status, "it was stopped well")),
            None => Err(self.late("end after SIGTERM", STOP_PATIENCE)),
        }
    }

    /// Ends the process at once with SIGKILL, as a failing machine would.
    pub fn kill(mut self) {
        self.begin_kill();
        let _ = self.child.wait();
    }

    /// Sends SIGKILL and does not wait.
    pub(super) fn begin_kill(&mut self) {
        let _ = self.child.kill();
    }

    fn ended(&mut self) -> Result<Option<std::process::ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|source| ProcessError::Start { name: self.name.clone(), source })
    }

    fn failed(&self, status: std::process::ExitStatus, what: &str) -> ProcessError {
        ProcessError::Ended { name: self.name.clone(), status, what: what.to_owned(), log: self.log_tail() }
    }

    fn late(&self, what: &str, waited: Duration) -> ProcessError {
        let (name, waited_s) = (self.name.clone(), waited.as_secs());
        ProcessError::Late { name, what: what.to_owned(), waited_s, log: self.log_tail() }
    }

    fn end(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let until = crate::ambient::now() + patience;
        while crate::ambient::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(POLL);
        }
        None
    }

    /// The last lines of the log, as a hint.
    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_TAIL_LINES);
        format!("the last lines of its log:\n  {}", lines[from..].join("\n  "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end(STOP_PATIENCE).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The folder of everything that a run makes. Dropping it clears mounts that are left and removes it, unless it
/// shall be kept.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// A new private folder `NAME-…` in `parent`.
    ///
    /// # Errors
    /// [`ProcessError::File`].
    pub fn make(parent: &Path, name: &str, keep: bool) -> Result<Self, ProcessError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let tag = u32::from_le_bytes(crate::ambient::secret());
        let path = parent.join(format!("{name}-{tag:08x}"));
        let made = fs::DirBuilder::new().mode(0o700).create(&path).and_then(|()| fs::canonicalize(&path));
        match made {
            Ok(path) => Ok(Self { path, keep }),
            Err(source) => Err(ProcessError::File { path, source }),
        }
    }

    /// One that a run left behind which was killed; dropping it clears and removes it.
    pub(super) fn adopt(path: PathBuf) -> Self {
        Self { path, keep: false }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for mount in mounts_below(&self.path) {
            detach(&mount);
        }
        if self.keep {
            eprintln!("kept: {}", self.path.display());
            return;
        }
        // What is still mounted after all is not entered: deleting must not reach into a mount.
        if mounts_below(&self.path).is_empty() {
            if let Err(error) = fs::remove_dir_all(&self.path) {
                eprintln!("warning: {} could not be removed: {error}", self.path.display());
            }
        } else {
            eprintln!("warning: {} still has mounts and was left in place", self.path.display());
        }
    }
}

/// Mount points below `folder`, deepest first.
pub(super) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        // Our own folder's name has no character that the table would escape.
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|mount| mount.starts_with(folder))
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Unmounts lazily: as root by the system call, else by FUSE's own helper.
pub(super) fn detach(mount: &Path) {
    if rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).is_err() {
        let _ = Command::new("fusermount3")
            .args(["-u", "-z"])
            .arg(mount)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Whether this user can mount FUSE file systems: as root, or by `fusermount3` in one of the folders of `path`.
///
/// # Errors
/// [`ProcessError::CannotMount`].
pub fn may_mount(path: Option<&std::ffi::OsStr>) -> Result<(), ProcessError> {
    let root = rustix::process::geteuid().is_root();
    if !root && !in_path("fusermount3", path) {
        return Err(ProcessError::CannotMount {
            message: "mounting needs root or fusermount3, and neither is there".to_owned(),
            hint: "run it as root, or install the package fuse3",
        });
    }
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) => Err(ProcessError::CannotMount {
            message: format!("/dev/fuse: {error}"),
            hint: match error.kind() {
                io::ErrorKind::NotFound => {
                    "load the kernel's fuse module (modprobe fuse), or pass the device into the container"
                }
                _ => "this user may not use FUSE",
            },
        }),
    }
}

/// Whether a program lies in one of the folders of a search path.
pub(super) fn in_path(program: &str, path: Option<&std::ffi::OsStr>) -> bool {
    path.is_some_and(|path| std::env::split_paths(path).any(|folder| folder.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_when_it_is_dropped() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::make(&std::env::temp_dir(), "starling-test", false).unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn mounts_are_found_by_their_folder() {
        assert!(mounts_below(Path::new("/proc")).contains(&PathBuf::from("/proc")));
        assert!(mounts_below(Path::new("/nowhere/at/all")).is_empty());
    }

    #[test]
    fn an_interrupt_is_an_error_from_then_on() {
        let interrupt = Interrupt::default();
        assert!(interrupt.check().is_ok());
        interrupt.0.store(true, Ordering::SeqCst);
        assert!(interrupt.check().unwrap_err().to_string().contains("interrupted"));
    }
}
