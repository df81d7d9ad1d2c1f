//! The keeper: a small process that holds on to mounts while no agent serves them.
//!
//! The kernel ends a mount when the last descriptor of it is closed. The keeper has one of each mount, so an agent may be
//! killed, restarted or upgraded: who reads meanwhile waits, and the next agent takes the mounts over and answers. The keeper
//! knows nothing about them; it holds for each a few descriptors and the path, and gives them to who comes next. When nobody
//! has served a mount for as long as the agent has told it, it closes the descriptors and detaches what is dead by that, so that
//! readers get an error instead of waiting for ever. When nothing is left to be held, it ends.
//!
//! A mount is served from when an agent has it held (a new one, or one that it has taken over) until that agent is gone. Time in which
//! nobody does is added up: agents that come and crash do not keep readers waiting for longer than none. Nothing is ended while an
//! agent is there, which has all descriptors, too: it may take long to start, and ends by itself what it cannot serve.
//!
//! One agent talks to it at a time, over a socket in the agent's state folder, in packets: a letter and a path, with descriptors
//! beside them. Who has these descriptors can answer in the agent's name, so they are given to nobody but its user and root. Should the
//! keeper be killed, its agent starts another one as soon as it sees that, and gives it what it held.

use crate::ambient;
use crate::fs::clear_dead;
use crate::model::Time;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, chmod};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, recvmsg, sendmsg, socket_with,
};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a keeper that holds nothing waits for its agent.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// A mount that was served for so long without a break, or for the patience if that is shorter, is in no crash loop: who reads
/// has had an answer meanwhile, or an error (`read_deadline_ms`: 60 s). What it was without service before is forgotten (guess).
const SERVED_LONG: Duration = Duration::from_secs(120);
/// How long an agent waits for an answer of the keeper, which only touches memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Between two attempts to reach a keeper that has just been started, and how many there are.
const REACH_PAUSE: Duration = Duration::from_millis(20);
const REACH_ATTEMPTS: usize = 250;
/// Most bytes that are read of what a keeper says that ends at once.
const LAST_WORDS_MAX_BYTES: u64 = 1 << 10;
/// How long after one could not be reached or started that is not tried again: each attempt may take seconds (guess).
const REACH_AGAIN: Duration = Duration::from_secs(20);
/// Most mounts that are held: as many as an agent may have.
const HELD_MAX: usize = 256;
/// Descriptors of a mount: the kernel's end of it, its open files, and what the agent has written down.
const PARTS: usize = 3;
/// Longest packet: a letter and a path.
const PACKET_MAX_BYTES: usize = 1 + 4096;

/// What is held of one mount, in an order that only agents know the meaning of.
pub(super) type Parts = [OwnedFd; PARTS];

/// First letter of a packet.
mod word {
    /// From the agent: hold this, which I serve.
    pub(super) const HOLD: u8 = b'H';
    /// From the agent: let this go.
    pub(super) const RELEASE: u8 = b'R';
    /// From the agent: what is there?
    pub(super) const LIST: u8 = b'L';
    /// From the keeper: done; after a list, that was all.
    pub(super) const DONE: u8 = b'D';
    /// From the keeper: there is no room.
    pub(super) const FULL: u8 = b'F';
    /// From the keeper: this is held.
    pub(super) const HELD: u8 = b'M';
}

/// One packet: its letter, its path, and what came beside it. `None` when the other end is closed.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(u8, PathBuf, Vec<OwnedFd>)>> {
    let mut bytes = [0; PACKET_MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARTS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        match got {
            Ok(got) => break got.bytes,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    let (Some(letter), path) = (bytes[..len].first(), bytes.get(1..len).unwrap_or_default()) else {
        return Ok(None);
    };
    Ok(Some((*letter, PathBuf::from(OsStr::from_bytes(path)), descriptors)))
}

fn send(socket: BorrowedFd<'_>, letter: u8, path: &Path, parts: &[BorrowedFd<'_>]) -> io::Result<()> {
    let path = path.as_os_str().as_bytes();
    if path.len() >= PACKET_MAX_BYTES {
        let detail = format!("a path of {} bytes; {} are the most", path.len(), PACKET_MAX_BYTES - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, detail));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARTS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !parts.is_empty() && !control.push(SendAncillaryMessage::ScmRights(parts)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let pieces = [IoSlice::new(std::slice::from_ref(&letter)), IoSlice::new(path)];
    sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A mount that is held, and for how long its readers have waited.
struct HeldMount {
    parts: Parts,
    /// How long nobody served it, up to `since`.
    unserved: Duration,
    /// Since when it is served, or is not.
    since: Time,
    is_served: bool,
}

impl HeldMount {
    /// One that an agent gives to be held, and serves.
    fn new(parts: Parts, now: Time) -> Self {
        Self { parts, unserved: Duration::ZERO, since: now, is_served: true }
    }

    /// An agent that serves it gives it to be held, in the place of what was held of it.
    fn serve(&mut self, parts: Parts, now: Time) {
        if !self.is_served {
            self.unserved += now.since(self.since);
            (self.since, self.is_served) = (now, true);
        }
        self.parts = parts;
    }

    /// The agent is gone.
    fn end_service(&mut self, now: Time, patience: Duration) {
        if !self.is_served {
            return;
        }
        if now.since(self.since) >= SERVED_LONG.min(patience) {
            self.unserved = Duration::ZERO;
        }
        (self.since, self.is_served) = (now, false);
    }

    /// How much longer its readers may wait.
    fn left(&self, now: Time, patience: Duration) -> Duration {
        let waiting = if self.is_served { Duration::ZERO } else { now.since(self.since) };
        patience.saturating_sub(self.unserved + waiting)
    }
}

/// Runs a keeper that listens on `path` until nothing is left to be kept. It ends mounts that were without service for
/// `patience`, all in all.
///
/// # Errors
/// When the socket cannot be made. Mounts that are held then are let go, which ends them.
pub fn keep(path: &Path, patience: Duration) -> io::Result<()> {
    // A session of its own: what ends the agent's terminal or process group does not end it.
    let _ = rustix::process::setsid();
    let listener = listen_on(path)?;
    keep_for(&listener, patience);
    Ok(())
}

pub(super) fn listen_on(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    // Before it listens, nobody gets through.
    chmod(path, Mode::RUSR | Mode::WUSR)?;
    listen(&listener, 1)?;
    Ok(listener)
}

/// Serves one agent after the other until nothing is held.
pub(super) fn keep_for(listener: &OwnedFd, patience: Duration) {
    let mut held: BTreeMap<PathBuf, HeldMount> = BTreeMap::new();
    loop {
        let now = ambient::now();
        let left = held.values().map(|mount| mount.left(now, patience)).min().unwrap_or(FIRST_PATIENCE);
        // The system takes no time at all for no bound.
        let timed = set_socket_timeout(listener, Timeout::Recv, Some(left.max(Duration::from_millis(1))));
        match timed.and_then(|()| accept_with(listener, SocketFlags::CLOEXEC)) {
            Ok(agent) if is_trusted(&agent) => {
                // An agent that talks nonsense or is gone is like one that has ended: its mounts stay for the next.
                let _ = serve(&agent, listener, &mut held);
                let now = ambient::now();
                held.values_mut().for_each(|mount| mount.end_service(now, patience));
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) if !held.is_empty() => {}
            Err(_) => break,
        }
        let now = ambient::now();
        end_mounts(&mut held, |mount| mount.left(now, patience).is_zero());
        if held.is_empty() {
            break;
        }
    }
    end_mounts(&mut held, |_| true);
}

/// Ends some of the mounts: who reads there gets an error.
fn end_mounts(held: &mut BTreeMap<PathBuf, HeldMount>, which: impl Fn(&HeldMount) -> bool) {
    let over: Vec<_> = held.iter().filter(|(_, mount)| which(mount)).map(|(path, _)| path.clone()).collect();
    // Closed first: then what is ours is dead, and nothing else is touched that may be mounted there by now.
    held.retain(|_, mount| !which(mount));
    for directory in over {
        let _ = clear_dead(&directory);
    }
}

/// Whether who has connected is this process's user, or root.
fn is_trusted(agent: &OwnedFd) -> bool {
    let own = rustix::process::geteuid();
    socket_peercred(agent).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

/// Waits until the agent says something; false when another one has come. Then the first is taken for dead: only one works in a state
/// folder at a time.
fn is_next(agent: BorrowedFd<'_>, listener: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut both = [agent, listener.as_fd()].map(|one| PollFd::from_borrowed_fd(one, PollFlags::IN));
        match poll(&mut both, None) {
            Ok(_) if !both[0].revents().is_empty() => return Ok(true),
            Ok(_) if !both[1].revents().is_empty() => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn serve(agent: &OwnedFd, listener: &OwnedFd, held: &mut BTreeMap<PathBuf, HeldMount>) -> io::Result<()> {
    // Who does not take its answers keeps no other from being served.
    set_socket_timeout(agent, Timeout::Send, Some(ANSWER_WITHIN))?;
    let agent = agent.as_fd();
    while is_next(agent, listener)? {
        let Some((letter, path, descriptors)) = receive(agent)? else { break };
        let answer = match letter {
            word::HOLD => match <Parts>::try_from(descriptors) {
                Ok(_) if held.len() >= HELD_MAX && !held.contains_key(&path) => word::FULL,
                Ok(parts) => {
                    let now = ambient::now();
                    match held.entry(path) {
                        Entry::Occupied(mut mount) => mount.get_mut().serve(parts, now),
                        Entry::Vacant(place) => {
                            place.insert(HeldMount::new(parts, now));
                        }
                    }
                    word::DONE
                }
                Err(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            },
            word::RELEASE => {
                held.remove(&path);
                word::DONE
            }
            word::LIST => {
                for (path, mount) in &*held {
                    send(agent, word::HELD, path, &mount.parts.each_ref().map(|part| part.as_fd()))?;
                }
                word::DONE
            }
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        };
        send(agent, answer, Path::new(""), &[])?;
    }
    Ok(())
}

/// An agent's end of the talk with its keeper.
pub(super) struct Keeper {
    path: PathBuf,
    /// How long one that is started holds mounts that nobody serves.
    patience: Duration,
    connection: Mutex<Connection>,
    /// Why none could be had the last time. Beside the connection, which is locked for seconds while one is started.
    problem: Mutex<Option<String>>,
}

/// How it stands with the keeper.
struct Connection {
    /// `None` after it failed; it is made anew when there is something to say.
    socket: Option<OwnedFd>,
    /// Counts connections. What another one was told, this keeper may not know.
    number: u64,
    /// When none could be had.
    failed: Option<Time>,
    /// What the keeper answered when it was made, until somebody takes it.
    found: Vec<(PathBuf, Parts)>,
}

impl Connection {
    /// Whether the keeper is there still, as far as its end of the socket tells.
    fn is_live(&self) -> bool {
        let heard = self
            .socket
            .as_ref()
            .map(|socket| recv(socket, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT));
        matches!(heard, Some(Err(Errno::AGAIN)))
    }
}

impl Keeper {
    /// The keeper that listens on `path`, or is to. It is reached when there is something to say.
    pub(super) fn new(path: &Path, patience: Duration) -> Self {
        let connection = Connection { socket: None, number: 0, failed: None, found: Vec::new() };
        Self {
            path: path.to_owned(),
            patience,
            connection: Mutex::new(connection),
            problem: Mutex::default(),
        }
    }

    /// Sees to it that there is a connection to the keeper, and starts one if need be.
    ///
    /// # Errors
    /// When none can be reached or started, or that was so a moment ago.
    pub(super) fn reach(&self) -> io::Result<()> {
        self.reached().map(drop)
    }

    /// What the keeper held when it was reached, by an agent before or by this one. Given out once.
    pub(super) fn found(&self) -> Vec<(PathBuf, Parts)> {
        std::mem::take(&mut self.connection().found)
    }

    /// Why there was none when it was last reached for, as long as none is reached. Never blocks.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it a mount to hold, in the place of what it holds of the same directory. Returns a number; as long as
    /// [`Keeper::current`] is the same, it is held.
    ///
    /// # Errors
    /// When it cannot be reached, or holds too many.
    pub(super) fn hold(&self, directory: &Path, parts: &[BorrowedFd<'_>; PARTS]) -> io::Result<u64> {
        match self.ask(word::HOLD, directory, parts)? {
            (word::DONE, number) => Ok(number),
            (word::FULL, _) => Err(io::Error::other(format!("the keeper holds {HELD_MAX} mounts, the most"))),
            _ => Err(nonsense()),
        }
    }

    /// The number of the connection to it; `None` when there is none, or it has ended.
    pub(super) fn current(&self) -> Option<u64> {
        let connection = self.connection();
        connection.is_live().then_some(connection.number)
    }

    /// Has it let a mount go.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(super) fn release(&self, directory: &Path) -> io::Result<()> {
        self.ask(word::RELEASE, directory, &[]).map(drop)
    }

    /// A live connection. A new one begins with the question what is there: whoever is connected has all descriptors, and answers for
    /// those who wait.
    fn reached(&self) -> io::Result<MutexGuard<'_, Connection>> {
        let mut connection = self.connection();
        if connection.is_live() {
            return Ok(connection);
        }
        if connection.failed.is_some_and(|at| ambient::now().since(at) < REACH_AGAIN) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "there was no keeper a moment ago"));
        }
        connection.socket = None;
        let reached = connect_or_start(&self.path, self.patience)
            .and_then(|socket| list(socket.as_fd()).map(|found| (socket, found)));
        match reached {
            Ok((socket, found)) => {
                (connection.socket, connection.found, connection.failed) = (Some(socket), found, None);
                connection.number += 1;
                self.set_problem(None);
                Ok(connection)
            }
            Err(error) => {
                connection.failed = Some(ambient::now());
                self.set_problem(Some(error.to_string()));
                Err(error)
            }
        }
    }

    /// The answer, and the number of the connection over which it came.
    fn ask(&self, letter: u8, directory: &Path, parts: &[BorrowedFd<'_>]) -> io::Result<(u8, u64)> {
        let mut connection = self.reached()?;
        let socket = connection.socket.take().ok_or_else(nonsense)?;
        send(socket.as_fd(), letter, directory, parts)?;
        let Some((answer, ..)) = receive(socket.as_fd())? else {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the keeper has ended"));
        };
        connection.socket = Some(socket);
        Ok((answer, connection.number))
    }
}

/// Asks a keeper what it holds.
fn list(socket: BorrowedFd<'_>) -> io::Result<Vec<(PathBuf, Parts)>> {
    let mut found = Vec::new();
    send(socket, word::LIST, Path::new(""), &[])?;
    loop {
        match receive(socket)? {
            Some((word::HELD, directory, parts)) if found.len() < HELD_MAX => {
                // There are fewer where this process has no room for them.
                let parts = <Parts>::try_from(parts).map_err(|_| nonsense())?;
                found.push((directory, parts));
            }
            Some((word::DONE, ..)) => return Ok(found),
            _ => return Err(nonsense()),
        }
    }
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the keeper talks nonsense")
}

fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WITHIN))?;
    set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_WITHIN))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn connect_or_start(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    if let Ok(connection) = connect_to(path) {
        return Ok(connection);
    }
    // This very program, even when its file was replaced since by another version of it. Nothing of the agent's but its
    // environment: a pipe that stays open would keep who reads it waiting. Its errors come here, for as long as it is not reached.
    let mut child = Command::new("/proc/self/exe")
        .arg0("starling")
        .arg("keeper")
        .arg(path)
        .arg(patience.as_secs().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take();
    for _ in 0..REACH_ATTEMPTS {
        if let Ok(connection) = connect_to(path) {
            // It is waited for when it ends before this process does.
            std::thread::spawn(move || child.wait());
            return Ok(connection);
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(ended_at_once(status, stderr)));
        }
        std::thread::sleep(REACH_PAUSE);
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(io::Error::new(io::ErrorKind::TimedOut, "a keeper was started and does not answer"))
}

/// Why a keeper ended, by its own words if it said any. They are all there: nobody else has the other end of the pipe.
fn ended_at_once(status: ExitStatus, stderr: Option<impl Read>) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = stderr {
        // What was read before an error is told.
        let _ = stderr.take(LAST_WORDS_MAX_BYTES).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    let cause = said.strip_prefix("error: ").unwrap_or(said);
    // In one line, as a log has it.
    let lines: Vec<&str> = cause.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let cause = if lines.is_empty() { status.to_string() } else { lines.join("; ") };
    format!("the keeper ended at once: {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn reach(path: &Path) -> (Keeper, Vec<(PathBuf, Parts)>) {
        let keeper = Keeper::new(path, PATIENCE);
        keeper.reach().unwrap();
        let found = keeper.found();
        (keeper, found)
    }

    fn some_file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn text_of(descriptor: &OwnedFd) -> String {
        let mut file = File::from(descriptor.try_clone().unwrap());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_one_agent_gives_the_next_finds_and_an_empty_keeper_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        // It listens before it is reached: whoever finds nobody starts a process.
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, PATIENCE));
        let files = [some_file("device"), some_file("open"), some_file("notes")];
        let parts = files.each_ref().map(|file| file.as_fd());
        {
            let (first, found) = reach(&path);
            assert!(found.is_empty());
            first.hold(Path::new("/mnt/a"), &parts).unwrap();
            first.hold(Path::new("/mnt/b"), &parts).unwrap();
            first.hold(Path::new("/mnt/b"), &[parts[0], parts[1], parts[0]]).unwrap();
            let long = PathBuf::from(format!("/{}", "x".repeat(5000)));
            assert!(first.hold(&long, &parts).is_err());
        }
        drop(files);
        let (second, found) = reach(&path);
        let shown: Vec<_> = found
            .iter()
            .map(|(path, parts)| (path.to_str().unwrap(), parts.each_ref().map(text_of)))
            .collect();
        let texts = |three: [&str; 3]| three.map(str::to_owned);
        assert_eq!(
            shown,
            [("/mnt/a", texts(["device", "open", "notes"])), ("/mnt/b", texts(["device", "open", "device"]))]
        );
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600,
            "for its user only"
        );
        second.release(Path::new("/mnt/a")).unwrap();
        second.release(Path::new("/mnt/b")).unwrap();
        second.release(Path::new("/mnt/nothing")).unwrap();
        drop(second);
        keeper.join().unwrap();
        assert!(connect_to(&path).is_err(), "nobody listens any more");
    }

    #[test]
    fn a_keeper_that_has_ended_is_noticed_and_another_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = listen_on(&path).unwrap();
        // One that answers the first question, and dies.
        let dying = std::thread::spawn(move || {
            let agent = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
            receive(agent.as_fd()).unwrap().unwrap();
            send(agent.as_fd(), word::DONE, Path::new(""), &[]).unwrap();
        });
        let (agent, _) = reach(&path);
        let before = agent.connection().number;
        dying.join().unwrap();
        assert_eq!(agent.current(), None);
        let listener = listen_on(&path).unwrap();
        let second = std::thread::spawn(move || keep_for(&listener, PATIENCE));
        let file = some_file("x");
        let number = agent.hold(Path::new("/mnt/a"), &[file.as_fd(), file.as_fd(), file.as_fd()]).unwrap();
        assert!(number != before && agent.current() == Some(number));
        agent.release(Path::new("/mnt/a")).unwrap();
        drop(agent);
        second.join().unwrap();
    }

    #[test]
    fn what_the_keeper_holds_is_asked_for_again_by_whoever_had_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = listen_on(&path).unwrap();
        let agent = Keeper::new(&path, PATIENCE);
        // One that is asked, and does not answer.
        let silent = std::thread::spawn(move || {
            drop(accept_with(&listener, SocketFlags::CLOEXEC).unwrap());
            listener
        });
        assert_eq!(agent.problem(), None, "none was looked for yet");
        let error = agent.reach().unwrap_err();
        assert!(agent.found().is_empty());
        assert_eq!(agent.problem(), Some(error.to_string()));
        let listener = silent.join().unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, PATIENCE));
        let file = some_file("x");
        let parts = [file.as_fd(), file.as_fd(), file.as_fd()];
        reach(&path).0.hold(Path::new("/mnt/a"), &parts).unwrap();
        let again = agent.reach().unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::NotConnected, "not at once: {again}");
        assert_eq!(agent.problem(), Some(error.to_string()), "the cause is kept");
        assert_eq!(agent.current(), None);
        // As if time had passed. Whatever is said first, the question goes before it.
        agent.connection().failed = None;
        agent.hold(Path::new("/mnt/b"), &parts).unwrap();
        assert_eq!(agent.problem(), None);
        let found = agent.found();
        assert_eq!(found.iter().map(|(path, _)| path.as_path()).collect::<Vec<_>>(), [Path::new("/mnt/a")]);
        assert!(agent.found().is_empty());
        agent.release(Path::new("/mnt/a")).unwrap();
        agent.release(Path::new("/mnt/b")).unwrap();
        drop(agent);
        keeper.join().unwrap();
    }

    #[test]
    fn a_keeper_that_ends_at_once_is_heard_and_no_more_than_there_is_room_for() {
        let status = ExitStatus::from_raw(1 << 8);
        let heard = |said: &[u8]| ended_at_once(status, Some(said));
        assert_eq!(
            heard(b"error: /s/keeper.sock: File name too long\nhint: none\n"),
            "the keeper ended at once: /s/keeper.sock: File name too long; hint: none"
        );
        for silence in [ended_at_once(status, None::<&[u8]>), heard(b" \n")] {
            assert_eq!(silence, format!("the keeper ended at once: {status}"));
        }
        assert!(heard(&b"x".repeat(1 << 20)).len() < 2_000);
    }

    #[test]
    fn an_agent_that_says_nothing_keeps_no_other_from_being_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, PATIENCE));
        let file = some_file("x");
        let (first, _) = reach(&path);
        first.hold(Path::new("/mnt/a"), &[file.as_fd(), file.as_fd(), file.as_fd()]).unwrap();
        // It lives, and holds on to its connection.
        let (second, found) = reach(&path);
        assert_eq!(found.len(), 1);
        second.release(Path::new("/mnt/a")).unwrap();
        drop(second);
        keeper.join().unwrap();
        assert_eq!(first.current(), None);
    }

    fn some_parts() -> Parts {
        [some_file("a"), some_file("b"), some_file("c")].map(OwnedFd::from)
    }

    #[test]
    fn time_without_service_adds_up_until_a_mount_was_served_for_long() {
        let second = |s| Time::ZERO + Duration::from_secs(s);
        let patience = Duration::from_secs(300);
        let left = |mount: &HeldMount, now| mount.left(second(now), patience).as_secs();
        let mut mount = HeldMount::new(some_parts(), second(0));
        assert_eq!(left(&mount, 10), 300, "it is served");
        mount.end_service(second(10), patience);
        assert_eq!(left(&mount, 110), 200);
        // An agent that ends before it serves the mount changes nothing.
        mount.end_service(second(120), patience);
        assert_eq!(left(&mount, 130), 180);
        mount.serve(some_parts(), second(130));
        mount.serve(some_parts(), second(200));
        assert_eq!(left(&mount, 249), 180);
        mount.end_service(second(249), patience);
        assert_eq!(left(&mount, 249), 180, "119 s of service are not long");
        assert_eq!(left(&mount, 250), 179);
        mount.serve(some_parts(), second(250));
        mount.end_service(second(370), patience);
        assert_eq!(left(&mount, 370), 300, "120 s are");
        assert_eq!((left(&mount, 670), left(&mount, 999)), (0, 0));
        // Nobody must serve for longer than the patience is.
        let patience = Duration::from_secs(5);
        mount.serve(some_parts(), second(1000));
        mount.end_service(second(1005), patience);
        assert_eq!(mount.left(second(1005), patience), patience);
    }

    #[test]
    fn agents_that_come_and_crash_keep_readers_waiting_no_longer_than_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, Duration::from_secs(2)));
        let file = some_file("x");
        let parts = [file.as_fd(), file.as_fd(), file.as_fd()];
        {
            let (first, _) = reach(&path);
            first.hold(Path::new("/mnt/a"), &parts).unwrap();
            first.hold(Path::new("/mnt/b"), &parts).unwrap();
        }
        let begun = ambient::now();
        let mut rounds = 0;
        while let Ok(connection) = connect_to(&path) {
            assert!(
                ambient::now().since(begun) < Duration::from_secs(20),
                "it is held after {rounds} rounds"
            );
            rounds += 1;
            // Some say that they serve one of them.
            if rounds % 3 == 0 {
                let _ = send(connection.as_fd(), word::HOLD, Path::new("/mnt/a"), &parts);
                let _ = receive(connection.as_fd());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(rounds > 3, "{rounds}");
        keeper.join().unwrap();
    }

    #[test]
    fn a_mount_that_waits_is_not_ended_while_an_agent_is_there_and_is_once_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = listen_on(&path).unwrap();
        let keeper = std::thread::spawn(move || keep_for(&listener, Duration::from_secs(1)));
        let file = some_file("x");
        let parts = [file.as_fd(), file.as_fd(), file.as_fd()];
        let (first, _) = reach(&path);
        first.hold(Path::new("/mnt/a"), &parts).unwrap();
        first.hold(Path::new("/mnt/b"), &parts).unwrap();
        drop(first);
        let (slow, _) = reach(&path);
        std::thread::sleep(Duration::from_millis(1500));
        slow.hold(Path::new("/mnt/a"), &parts).unwrap();
        std::thread::sleep(Duration::from_millis(1200));
        drop(slow);
        // The other one was without service for too long by then.
        let (next, found) = reach(&path);
        assert_eq!(found.iter().map(|(path, _)| path.as_path()).collect::<Vec<_>>(), [Path::new("/mnt/a")]);
        next.release(Path::new("/mnt/a")).unwrap();
        drop(next);
        keeper.join().unwrap();
    }
}
