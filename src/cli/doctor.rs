//! `starling doctor`: look at the machine as the agent will find it, and say what to change.

use super::CliError;
use super::ask::print_json;
use super::mount_options::automount_options;
use crate::config::{ByteSize, DEFAULT_FILE, Settings, Verify};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling doctor
  starling doctor --config ./agent.toml --json

Run it as the user who runs the agent, with the same settings. Exit code 0: the agent will work, perhaps not as fast as it could; 1: something
must be mended first.")]
pub(super) struct Args {
    /// Settings file [default: /etc/starling/agent.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder, in which the cache lies unless the settings say otherwise.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Oldest kernel on which files are read without the agent, and requests survive it: major and minor number.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
/// Oldest kernel on which directories need not be opened, which the mount relies on.
const KERNEL_SINCE: (u32, u32) = (5, 1);
/// Descriptors that an agent may need: half of them for the 8 192 bodies that may be handed out, the other half for 1 024 packs, 64
/// bodies in use and 256 that wait for the disk at two each, mounts, and connections.
const FILES_NEEDED: u64 = 16_384;
/// What the data plane asks of the system for each socket, in bytes (`mesh/socket.rs`).
const SOCKET_BUFFER_BYTES: u64 = 2 << 20;
/// Number of `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;
/// Status bit of `adjtimex` when nobody keeps the clock right.
const STA_UNSYNC: i32 = 0x40;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Weak,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, found: found.into(), advice: None }
    }

    fn not_good(
        what: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { what, verdict, found: found.into(), advice: Some(advice.into()) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Finding>,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let report = Report { findings: examine(&args) };
    let worst = report.findings.iter().map(|finding| finding.verdict).max();
    if args.json {
        print_json(&report)?;
    } else {
        for finding in &report.findings {
            let mark = match finding.verdict {
                Verdict::Good => "good",
                Verdict::Weak => "weak",
                Verdict::Bad => "BAD ",
            };
            println!("{mark}  {:<12} {}", finding.what, finding.found);
            if let Some(advice) = &finding.advice {
                println!("{:19}-> {advice}", "");
            }
        }
    }
    let bad = report.findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    match worst {
        Some(Verdict::Bad) => Err(CliError::failed(format!("{bad} of these keep an agent from working"))),
        _ => Ok(()),
    }
}

fn examine(args: &Args) -> Vec<Finding> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    let buffer = |name: &str| {
        let path = format!("/proc/sys/net/core/{name}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
    };
    let mut findings = vec![
        kernel(&release),
        device(),
        may_mount(&status, is_root, has_helper(), &fs::read_to_string("/etc/fuse.conf").unwrap_or_default()),
        passthrough(&status),
        // The agent raises its own limit so far.
        open_files(getrlimit(Resource::Nofile).maximum),
        udp_buffers(buffer("rmem_max"), buffer("wmem_max")),
        clock(),
    ];
    match settings(args) {
        Ok(settings) => {
            findings.extend(cache(&settings));
            findings.push(checking(settings.verify));
            findings.push(wake_ups(settings.quick_wake, Path::new("/dev/cpu_dma_latency")));
            findings.extend(automounter(settings.automount_dir.as_deref(), Path::new("/dev/autofs")));
        }
        Err(error) => {
            findings.push(Finding::not_good("settings", Verdict::Bad, error, "mend the settings file"));
        }
    }
    findings
}

/// What `verify` means for speed.
fn checking(verify: Verify) -> Finding {
    match verify {
        Verify::Once => Finding::good(
            "verify",
            "once: what is in the cache is checked after each start, and by the scrub",
        ),
        Verify::Always => {
            Finding::good("verify", "always: the kernel reads no file by itself, and each read is hashed")
        }
    }
}

/// Whether requests can be kept from waiting for processors that sleep.
fn wake_ups(wanted: bool, device: &Path) -> Finding {
    const WHAT: &str = "wake-ups";
    if !wanted {
        return Finding::good(WHAT, "processors sleep as they like (`quick_wake = false`)");
    }
    match fs::OpenOptions::new().write(true).open(device) {
        Ok(_) => {
            Finding::good(WHAT, "processors stay awake while programs ask for one thing after the other")
        }
        Err(error) => Finding::not_good(
            WHAT,
            Verdict::Weak,
            format!("{}: {error}", device.display()),
            "requests wait for processors that sleep, up to four times as long on a virtual machine: run the agent as root, or give the \
             container the device",
        ),
    }
}

/// What the folder of all repositories needs, if one is wanted.
fn automounter(folder: Option<&Path>, device: &Path) -> Option<Finding> {
    const WHAT: &str = "automounter";
    let folder = folder?.display();
    if device.exists() {
        return Some(Finding::good(
            WHAT,
            format!("repositories are mounted below {folder} when somebody enters them"),
        ));
    }
    let (found, device) = (format!("repositories cannot be mounted below {folder}"), device.display());
    let advice = format!(
        "there is no {device}: `modprobe autofs4`, give the container the device, or mount each by name"
    );
    Some(Finding::not_good(WHAT, Verdict::Weak, found, advice))
}

fn settings(args: &Args) -> Result<Settings, String> {
    let default = Path::new(DEFAULT_FILE);
    let file = args.config.as_deref().or_else(|| default.exists().then_some(default));
    let environment: HashMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut settings = Settings::load(file, &environment).map_err(|error| error.to_string())?;
    if let Some(state) = &args.state {
        settings.state_dir.clone_from(state);
    }
    automount_options(&settings.automount_options)?;
    Ok(settings)
}

/// Major and minor number at the beginning of a release such as `6.18.3-arch1`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    let found = format!("Linux {release}");
    let wanted = |since: (u32, u32)| format!("Linux {}.{} or newer", since.0, since.1);
    match version(release) {
        Some(version) if version >= PASSTHROUGH_SINCE => Finding::good("kernel", found),
        Some(version) if version >= KERNEL_SINCE => Finding::not_good(
            "kernel",
            Verdict::Weak,
            found,
            format!(
                "{}: then large files are read without the agent, and readers survive one that is killed",
                wanted(PASSTHROUGH_SINCE)
            ),
        ),
        Some(_) => Finding::not_good("kernel", Verdict::Bad, found, wanted(KERNEL_SINCE)),
        None => Finding::not_good("kernel", Verdict::Weak, found, "its version could not be told"),
    }
}

fn device() -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::good("fuse", "/dev/fuse can be opened"),
        Err(error) => Finding::not_good(
            "fuse",
            Verdict::Bad,
            format!("/dev/fuse: {error}"),
            "load the module (`modprobe fuse`), or give the container the device (`--device /dev/fuse`)",
        ),
    }
}

fn has_helper() -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("fusermount3").is_file()))
}

/// Who mounts: the capability counts, and not the user's name, which a container lends without it.
fn may_mount(status: &str, is_root: bool, has_helper: bool, fuse_conf: &str) -> Finding {
    const WHAT: &str = "mounting";
    if has_capability(status, "CapEff:", CAP_SYS_ADMIN) {
        return Finding::good(WHAT, "the agent mounts by itself (CAP_SYS_ADMIN)");
    }
    // The helper has the capability by its set-id bit, where nobody has ruled that out.
    let is_ruled_out = !has_capability(status, "CapBnd:", CAP_SYS_ADMIN)
        || status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]));
    if is_ruled_out {
        return Finding::not_good(
            WHAT,
            Verdict::Bad,
            "no CAP_SYS_ADMIN, and nothing that is started from here can have it, fusermount3 neither",
            "give the container the capability (`--cap-add SYS_ADMIN`), or the service (systemd: neither NoNewPrivileges nor a \
             CapabilityBoundingSet without it)",
        );
    }
    let allows_others = is_root || fuse_conf.lines().any(|line| line.trim() == "user_allow_other");
    match (has_helper, allows_others) {
        (true, true) => Finding::not_good(
            WHAT,
            Verdict::Weak,
            "by fusermount3, for lack of CAP_SYS_ADMIN",
            "with the capability, as root most often, large files can be read without the agent, and mounts be asked for with `suid`",
        ),
        (true, false) => Finding::not_good(
            WHAT,
            Verdict::Bad,
            "fusermount3 does not let others in",
            "put the line `user_allow_other` into /etc/fuse.conf, or run the agent as root",
        ),
        (false, _) => Finding::not_good(
            WHAT,
            Verdict::Bad,
            "no CAP_SYS_ADMIN, and there is no fusermount3",
            "install fuse3, or run the agent as root with the capability",
        ),
    }
}

/// Whether a set of capabilities, a line of `/proc/self/status`, has one.
fn has_capability(status: &str, set: &str, number: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix(set));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> number & 1 == 1)
}

fn passthrough(status: &str) -> Finding {
    if has_capability(status, "CapEff:", CAP_SYS_ADMIN) {
        Finding::good("passthrough", "the kernel may be given files to read by itself")
    } else {
        Finding::not_good(
            "passthrough",
            Verdict::Weak,
            "no CAP_SYS_ADMIN: large files are read through the agent",
            "run the agent as root, or give it the capability (systemd: AmbientCapabilities=CAP_SYS_ADMIN)",
        )
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    match limit {
        Some(limit) if limit < FILES_NEEDED => Finding::not_good(
            "open files",
            Verdict::Weak,
            format!("at most {limit}"),
            format!(
                "of many large files that are open at once, those beyond half of it are read through the agent: allow {FILES_NEEDED} \
                 (`ulimit -Hn`; systemd: LimitNOFILE={FILES_NEEDED})"
            ),
        ),
        Some(limit) => Finding::good("open files", format!("at most {limit}")),
        None => Finding::good("open files", "as many as are wanted"),
    }
}

fn udp_buffers(receive: Option<u64>, send: Option<u64>) -> Finding {
    let shown =
        |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| ByteSize(bytes).to_string());
    let found = format!("at most {} received, {} sent", shown(receive), shown(send));
    let short = [receive, send].iter().flatten().any(|bytes| *bytes < SOCKET_BUFFER_BYTES);
    if short {
        return Finding::not_good(
            "UDP buffers",
            Verdict::Weak,
            found,
            format!(
                "fast links drop packets: sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES} net.core.wmem_max={SOCKET_BUFFER_BYTES}"
            ),
        );
    }
    Finding::good("UDP buffers", found)
}

fn clock() -> Finding {
    // SAFETY: all bits zero are a `timex`, and with `modes` zero the call only writes to it.
    let (answer, status) = unsafe {
        let mut found: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut found), found.status)
    };
    if answer < 0 || status & STA_UNSYNC != 0 {
        return Finding::not_good(
            "clock",
            Verdict::Weak,
            "the kernel does not know of anybody who keeps it right",
            "run chrony or systemd-timesyncd: certificates, tickets and roots expire by the clock (in a container or a virtual machine \
             the host may do it)",
        );
    }
    Finding::good("clock", "it is kept right")
}

/// The nearest folder at or above `path` that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

/// Names of file systems on which bodies cannot be handed to the kernel, or that are gone after a start.
fn known_kind(magic: u64) -> Option<(&'static str, &'static str)> {
    match magic {
        0x794c_7630 => {
            Some(("overlay", "large files are read through the agent; put the cache on the disk itself"))
        }
        0x0102_1994 => Some(("tmpfs", "the cache takes memory and is empty after a start; put it on a disk")),
        0x6969 => Some(("nfs", "the cache is as slow as the network; put it on a local disk")),
        0x6573_5546 => Some(("fuse", "the cache lies on a FUSE file system; put it on a local disk")),
        _ => None,
    }
}

fn cache(settings: &Settings) -> Vec<Finding> {
    let folder = settings.cache_dir();
    let there = existing(&folder);
    let shown = folder.display().to_string();
    let mut findings = Vec::new();
    match tempfile_in(there) {
        Ok(()) => findings.push(Finding::good("cache", format!("{shown} can be written"))),
        Err(error) => findings.push(Finding::not_good(
            "cache",
            Verdict::Bad,
            format!("{}: {error}", there.display()),
            "give the agent a state folder that it can write (`--state`, `cache_dir`)",
        )),
    }
    if let Ok(found) = rustix::fs::statfs(there) {
        #[expect(clippy::cast_sign_loss, reason = "a magic number")]
        if let Some((name, advice)) = known_kind(found.f_type as u64) {
            findings.push(Finding::not_good("cache disk", Verdict::Weak, name, advice));
        }
    }
    if let Ok(found) = rustix::fs::statvfs(there) {
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let wanted = settings.cache_quota_bytes.0.saturating_add(settings.cache_free_floor_bytes.0);
        let text = format!("{} free", ByteSize(free));
        findings.push(if free < settings.cache_free_floor_bytes.0 {
            let floor = settings.cache_free_floor_bytes;
            Finding::not_good(
                "cache room",
                Verdict::Weak,
                text,
                format!("nothing new is kept below `cache_free_floor_bytes` ({floor}): make room, or lower it"),
            )
        } else if free < wanted {
            let quota = settings.cache_quota_bytes;
            Finding::not_good(
                "cache room",
                Verdict::Weak,
                text,
                format!("the quota of {quota} does not fit beside the floor, unless the cache has part of it already"),
            )
        } else {
            Finding::good("cache room", text)
        });
    }
    findings
}

/// Writes a file there and takes it away.
fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".starling-doctor-{}", std::process::id()));
    let written = fs::write(&path, b"a test");
    let _ = fs::remove_file(&path);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_automounter_is_looked_at_where_it_is_wanted() {
        let device = |name: &str| {
            automounter(Some(Path::new("/starling")), Path::new(name)).map(|found| found.verdict)
        };
        assert_eq!((device("/dev/null"), device("/dev/nothing")), (Some(Verdict::Good), Some(Verdict::Weak)));
        assert!(automounter(None, Path::new("/dev/nothing")).is_none());
    }

    #[test]
    fn wake_ups_are_looked_at_where_they_are_wanted() {
        let verdict = |wanted, device: &str| wake_ups(wanted, Path::new(device)).verdict;
        assert_eq!(
            [verdict(true, "/dev/null"), verdict(true, "/dev/nothing"), verdict(false, "/dev/nothing")],
            [Verdict::Good, Verdict::Weak, Verdict::Good]
        );
    }

    #[test]
    fn each_finding_that_is_not_good_says_what_to_do() {
        for (release, verdict) in [
            ("6.18.3-arch1-1", Verdict::Good),
            ("6.9.0", Verdict::Good),
            ("6.8.12", Verdict::Weak),
            ("5.15.0-91-generic", Verdict::Weak),
            ("4.19.0", Verdict::Bad),
            ("strange", Verdict::Weak),
        ] {
            let found = kernel(release);
            assert_eq!(found.verdict, verdict, "{release}");
            assert_eq!(found.advice.is_none(), verdict == Verdict::Good);
        }
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        let none = "CapEff:\t0000000000000000\n";
        assert_eq!((passthrough(all).verdict, passthrough(none).verdict), (Verdict::Good, Verdict::Weak));
        assert_eq!(open_files(Some(4_096)).verdict, Verdict::Weak);
        assert_eq!(open_files(Some(65_536)).verdict, Verdict::Good);
        assert_eq!(open_files(None).verdict, Verdict::Good);
        let small = Some(212_992);
        assert_eq!(udp_buffers(small, small).verdict, Verdict::Weak);
        assert_eq!(udp_buffers(None, Some(8 << 20)).verdict, Verdict::Good);
    }

    #[test]
    fn who_mounts_is_judged_by_the_capability_and_not_by_the_name_of_the_user() {
        let status = |effective: u64, bounding: u64, sealed: u8| {
            format!("CapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\nNoNewPrivs:\t{sealed}\n")
        };
        let (all, none) = (status(u64::MAX, u64::MAX, 0), status(0, u64::MAX, 0));
        // As Docker starts root: without the capability, and no program can get it back.
        let docker = status(0xa804_25fb, 0xa804_25fb, 0);
        for (status, is_root, has_helper, conf, verdict) in [
            (&all, true, false, "", Verdict::Good),
            (&all, false, false, "", Verdict::Good),
            (&docker, true, true, "user_allow_other", Verdict::Bad),
            (&status(0, u64::MAX, 1), false, true, "user_allow_other", Verdict::Bad),
            (&none, true, true, "", Verdict::Weak),
            (&none, true, false, "", Verdict::Bad),
            (&none, false, true, "#user_allow_other\n", Verdict::Bad),
            (&none, false, true, " user_allow_other \n", Verdict::Weak),
            (&none, false, false, "user_allow_other", Verdict::Bad),
        ] {
            let found = may_mount(status, is_root, has_helper, conf);
            assert_eq!(found.verdict, verdict, "{status}{is_root} {has_helper} {conf}");
            assert_eq!(found.advice.is_none(), verdict == Verdict::Good);
        }
        assert!(may_mount(&docker, true, true, "").advice.unwrap().contains("--cap-add SYS_ADMIN"));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_bad_and_a_full_disk_weak() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings { state_dir: dir.path().join("not/yet"), ..Settings::default() };
        let verdict = |settings: &Settings, what: &str| {
            cache(settings).into_iter().find(|finding| finding.what == what).map(|finding| finding.verdict)
        };
        assert_eq!(verdict(&settings, "cache"), Some(Verdict::Good));
        assert!(!settings.state_dir.exists(), "it only looks");
        settings.cache_free_floor_bytes = ByteSize(u64::MAX / 2);
        assert_eq!(verdict(&settings, "cache room"), Some(Verdict::Weak));
        settings.state_dir = "/proc/starling".into();
        assert_eq!(verdict(&settings, "cache"), Some(Verdict::Bad));
    }
}
