//! Processes and folders that go when the demonstration goes, however it ends.

use super::super::CliError;
use super::compare::Watch;
use rustix::process::{Pid, Signal};
use std::fs::{self, File};
use std::io;
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

/// Whether the user has asked to stop.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on.
    pub(super) fn catch() -> Result<Self, CliError> {
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

    /// An error once the user has asked to stop.
    pub(super) fn check(&self) -> Result<(), CliError> {
        if self.0.load(Ordering::SeqCst) { Err(CliError::failed("interrupted")) } else { Ok(()) }
    }
}

/// A reading that shows its progress and ends when the user asks to stop.
pub(super) struct Reading<'a> {
    pub(super) bar: &'a indicatif::ProgressBar,
    pub(super) interrupt: &'a Interrupt,
}

impl Watch for Reading<'_> {
    fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
    fn stopped(&self) -> bool {
        self.interrupt.0.load(Ordering::SeqCst)
    }
}

/// A running command of this very program. Dropping it ends it: first kindly, then for sure.
#[derive(Debug)]
pub(super) struct Process {
    child: std::process::Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts this executable with `arguments`; what it prints goes to `NAME.out` and `NAME.log` in `folder`.
    pub(super) fn start(name: &str, folder: &Path, arguments: &[&str]) -> Result<Self, CliError> {
        use std::os::unix::process::CommandExt as _;
        let executable = std::env::current_exe()?;
        let log = folder.join(format!("{name}.log"));
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        let mut command = Command::new(executable);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(folder.join(format!("{name}.out")))?)
            .stderr(append(&log)?)
            // A Ctrl-C in the terminal shall reach the demonstration only, which then ends its processes in order.
            .process_group(0);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with(crate::config::ENVIRONMENT_PREFIX) {
                command.env_remove(variable);
            }
        }
        // SAFETY: between fork and exec only `prctl` is called, which is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // Should the demonstration be killed outright, its processes end too, and unmount.
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                Ok(())
            });
        }
        let child = command.spawn().map_err(|e| CliError::failed(format!("cannot start {name}: {e}")))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// Waits until `ready` gives something, the process ends, `patience` is over, or the user interrupts.
    pub(super) fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        interrupt: &Interrupt,
        mut ready: impl FnMut() -> Result<Option<T>, CliError>,
    ) -> Result<T, CliError> {
        let until = crate::ambient::now() + patience;
        loop {
            interrupt.check()?;
            if let Some(found) = ready()? {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(CliError::failed(format!("{} ended ({status}) before {what}", self.name))
                    .hint(self.log_tail()));
            }
            if crate::ambient::now() > until {
                let waited = patience.as_secs();
                return Err(CliError::failed(format!("{}: no {what} within {waited} s", self.name))
                    .hint(self.log_tail()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a command that ends by itself and tells what it printed.
    pub(super) fn output(mut self, patience: Duration, interrupt: &Interrupt) -> Result<String, CliError> {
        let until = crate::ambient::now() + patience;
        let status = loop {
            interrupt.check()?;
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if crate::ambient::now() > until {
                let waited = patience.as_secs();
                return Err(CliError::failed(format!("{} did not end within {waited} s", self.name)));
            }
            std::thread::sleep(POLL);
        };
        if !status.success() {
            return Err(CliError::failed(format!("{} failed ({status})", self.name)).hint(self.log_tail()));
        }
        Ok(fs::read_to_string(self.log.with_extension("out"))?)
    }

    /// Ends the process with SIGTERM and tells whether it ended well within its time.
    pub(super) fn stop(mut self) -> Result<(), CliError> {
        match self.end(STOP_PATIENCE) {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                Err(CliError::failed(format!("{} ended with {status} when it was stopped", self.name))
                    .hint(self.log_tail()))
            }
            None => Err(CliError::failed(format!("{} had to be killed", self.name)).hint(self.log_tail())),
        }
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

/// The folder of everything that the demonstration makes. Dropping it clears mounts that are left and
/// removes it, unless it shall be kept.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// A new private folder among the temporary ones.
    pub(super) fn make(keep: bool) -> Result<Self, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let tag = u32::from_le_bytes(crate::ambient::secret());
        let path = std::env::temp_dir().join(format!("starling-demo-{tag:08x}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| CliError::failed(format!("{}: {e}", path.display())))?;
        Ok(Self { path: fs::canonicalize(path)?, keep })
    }

    pub(super) fn path(&self) -> &Path {
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
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
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
fn detach(mount: &Path) {
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

/// Whether this user can mount FUSE file systems: as root, or by `fusermount3`.
pub(super) fn may_mount() -> Result<(), CliError> {
    let root = rustix::process::geteuid().is_root();
    let helper = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("fusermount3").is_file()));
    if !root && !helper {
        return Err(CliError::failed("mounting needs root or fusermount3, and neither is there")
            .hint("run it as root, or install the package fuse3"));
    }
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::failed(format!("/dev/fuse: {error}")).hint(match error.kind() {
            io::ErrorKind::NotFound => {
                "load the kernel's fuse module (modprobe fuse), or pass the device into the container"
            }
            _ => "this user may not use FUSE",
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_when_it_is_dropped() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::make(false).unwrap();
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
