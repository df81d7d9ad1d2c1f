//! `starling agent`: run this machine's agent: mounts, cache, mesh member.

use super::CliError;
use super::first_start::FirstStart;
use super::mount_options::{Wanted, automount_options, is_ours, parse_list};
use crate::agent::api::MountRequest;
use crate::agent::{AgentError, Options, Tamper, allow_many_files, run as run_agent};
use crate::config::{DEFAULT_AUTOMOUNT, DEFAULT_FILE, LogFormat, Settings, SettingsError};
use crate::fs::real_path;
use crate::mesh::proto;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Arguments. Each setting of the file can be given by its environment variable `STARLING_…`; the most
/// used have an argument, which is stronger.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling agent
  starling agent --state /srv/starling --listen 0.0.0.0:7400 --http 127.0.0.1:9400
  starling agent --join /run/secrets/ticket --cell eu/a/rack12 --mount sw.example.org:/mnt/sw
  starling agent --automount        # and `ls /starling/sw.example.org` mounts it
  STARLING_LOG_FILTER=debug starling agent --config ./agent.toml

It logs to standard error, says `ready` when it serves, and ends on SIGTERM or SIGINT. Its mounts wait
for the next agent for five minutes (keep_mounts_s). docs/operations.md lists all settings.")]
pub(super) struct Args {
    /// Settings file [default: /etc/starling/agent.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Socket of the control API.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// UDP address of the mesh.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address that other members are told.
    #[arg(long, value_name = "ADDR")]
    advertise: Option<SocketAddr>,
    /// TCP address for metrics, health and announcements.
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Most bytes of the cache, such as "10 GiB".
    #[arg(long, value_name = "SIZE")]
    cache_quota: Option<crate::config::ByteSize>,
    /// Time after which a read fails if no source delivered, such as 30s.
    #[arg(long, value_name = "SPAN", value_parser = super::mesh::parse_span)]
    read_timeout: Option<Duration>,
    /// Do without the DHT.
    #[arg(long)]
    no_dht: bool,
    /// Mount a repository as soon as it is known, REPO:DIR, with options as in fstab at the end, such as `:fill` or
    /// `:tag=2.1,path=/a`; may be repeated. DIR is made if it is not there.
    #[arg(long = "mount", value_name = "REPO:DIR[:OPTIONS]", value_parser = parse_mount)]
    mounts: Vec<MountRequest>,
    /// Mount each known repository below this folder when somebody enters it [without DIR: /starling].
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = DEFAULT_AUTOMOUNT)]
    automount: Option<PathBuf>,
    /// How a repository is mounted there, or with `*` all that are not named: options as in fstab. May be repeated.
    #[arg(long, value_name = "REPO:OPTIONS")]
    automount_options: Vec<String>,
    #[command(flatten)]
    first_start: FirstStart,
    /// Record everything that reaches the core, for `starling core-replay`.
    #[arg(long, value_name = "FILE")]
    record_inputs: Option<PathBuf>,
    /// The core's constants (JSON), for experiments: all nodes of a mesh should have the same.
    #[arg(long, value_name = "FILE", hide = true)]
    core_settings: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    run_tampered(args, None)
}

/// Runs an agent; with `tamper`, what peers ask of it goes through that first. Only the lab does that.
pub(super) fn run_tampered(args: Args, tamper: Option<Tamper>) -> Result<(), CliError> {
    let settings = settings(&args)?;
    let automount_options = automount_options(&settings.automount_options).map_err(CliError::usage)?;
    check_places(&args.mounts)?;
    start_logging(&settings)?;
    allow_many_files();
    for mount in &args.mounts {
        make_mount_point(&mount.directory)
            .map_err(|error| CliError::failed(format!("{}: {error}", mount.directory.display())))?;
    }
    let core = core_settings(args.core_settings.as_deref())?;
    let Args { mounts, record_inputs, first_start, .. } = args;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if settings.worker_threads > 0 {
        builder.worker_threads(usize::from(settings.worker_threads));
    }
    let options = Options { settings, mounts, automount_options, record_inputs, core, tamper };
    let runtime = builder.enable_all().build()?;
    let result = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        tokio::pin!(stop);
        tokio::select! {
            member = first_start.carry_out(&options.settings.state_dir) => member?,
            () = &mut stop => return Ok(()),
        }
        run_agent(options, stop).await.map_err(explain)
    });
    // Whatever still blocks (a disk that hangs) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Refuses two mounts on one directory, whatever links they name it by: only one of them could be there.
fn check_places(mounts: &[MountRequest]) -> Result<(), CliError> {
    let mut taken = BTreeMap::new();
    for mount in mounts {
        if let Some(other) = taken.insert(real_path(&mount.directory), &mount.repository) {
            let at = mount.directory.display();
            let message = format!("--mount: {at} is to show {other} and {}", mount.repository);
            return Err(CliError::usage(message).hint("give each a directory of its own"));
        }
    }
    Ok(())
}

/// Makes a folder to mount on. Where a predecessor that was killed has left a dead mount, the folder is there below it,
/// though the system says otherwise; it is cleared when it is mounted on.
fn make_mount_point(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory).or_else(|error| match std::fs::metadata(directory) {
        Err(seen) if seen.kind() == std::io::ErrorKind::NotConnected => Ok(()),
        _ => Err(error),
    })
}

/// `REPO:DIR` or `REPO:DIR:OPTIONS`. What stands behind the last colon is options when it begins with one that is known.
fn parse_mount(text: &str) -> Result<MountRequest, String> {
    let (repository, rest) = text.split_once(':').ok_or_else(|| format!("`{text}` is not REPO:DIR"))?;
    let repository = repository.parse().map_err(|error| format!("`{repository}`: {error}"))?;
    let with_options = rest.rsplit_once(':').filter(|(_, list)| {
        let first = list.split(',').next().unwrap_or_default();
        !first.contains('/') && is_ours(first)
    });
    let (directory, list) = with_options.unwrap_or((rest, ""));
    let Wanted { options, fill, .. } = parse_list(list, false)?;
    let directory = PathBuf::from(directory);
    if !directory.is_absolute() {
        return Err(format!("`{}` is not an absolute path", directory.display()));
    }
    Ok(MountRequest { repository, directory, fill, options })
}

fn core_settings(file: Option<&Path>) -> Result<proto::Settings, CliError> {
    let Some(file) = file else { return Ok(proto::Settings::default()) };
    let wrong = |error: &dyn std::fmt::Display| CliError::usage(format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

fn explain(error: AgentError) -> CliError {
    let failed = CliError::failed(&error);
    match error.hint() {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

/// Defaults, file, environment, arguments: the last that says something holds.
fn settings(args: &Args) -> Result<Settings, CliError> {
    let default = Path::new(DEFAULT_FILE);
    let file = args.config.as_deref().or_else(|| default.exists().then_some(default));
    // Variables that are not UTF-8 are no settings of ours.
    let environment: HashMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut settings = Settings::load(file, &environment).map_err(refused)?;
    if let Some(state) = &args.state {
        settings.state_dir.clone_from(state);
    }
    if let Some(socket) = &args.socket {
        settings.socket.clone_from(socket);
    }
    if let Some(folder) = &args.automount {
        settings.automount_dir = Some(folder.clone());
    }
    for entry in &args.automount_options {
        let (name, list) = entry.split_once(':').ok_or_else(|| {
            CliError::usage(format!("--automount-options: `{entry}` is not REPO:OPTIONS, or *:OPTIONS"))
        })?;
        settings.automount_options.insert(name.to_owned(), list.to_owned());
    }
    if let Some(listen) = args.listen {
        settings.listen = listen;
    }
    if let Some(quota) = args.cache_quota {
        settings.cache_quota_bytes = quota;
    }
    if let Some(span) = args.read_timeout {
        settings.read_deadline_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    }
    settings.advertise = args.advertise.or(settings.advertise);
    settings.http_listen = args.http.or(settings.http_listen);
    settings.dht &= !args.no_dht;
    settings.check().map_err(refused)?;
    // Those of the file may stand there for agents that have the folder. Who writes an argument means this one.
    if !args.automount_options.is_empty() && settings.automount_dir.is_none() {
        return Err(CliError::usage("--automount-options: nothing is mounted automatically").hint(
            "add --automount, or `automount_dir` to the settings; options of one mount go to --mount",
        ));
    }
    Ok(settings)
}

fn refused(error: SettingsError) -> CliError {
    let wrong = CliError::usage(&error);
    match error.hint() {
        Some(hint) => wrong.hint(hint),
        None => wrong,
    }
}

fn start_logging(settings: &Settings) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&settings.log_filter)
        .map_err(|error| CliError::usage(format!("`log_filter` is `{}`: {error}", settings.log_filter)))?;
    // It would tell a line that cannot be written to standard error, with a macro that panics of that.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let started = match settings.log_format {
        LogFormat::Human => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(CliError::failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mtu;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Settings, CliError> {
        let arguments = [&["agent"], arguments].concat();
        settings(&Cli::try_parse_from(arguments).unwrap().args)
    }

    #[test]
    fn arguments_are_stronger_than_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\nmtu_bytes = 6550\n").unwrap();
        let file = file.to_str().unwrap();
        let all = [
            "--config",
            file,
            "--listen",
            "127.0.0.1:2",
            "--no-dht",
            "--read-timeout",
            "6s",
            "--state",
            "/s",
        ];
        let settings = parse(&all).unwrap();
        assert_eq!(settings.listen, "127.0.0.1:2".parse().unwrap());
        assert_eq!(
            (settings.mtu_bytes, settings.dht, settings.read_deadline_ms),
            (Mtu::Bytes(6_550), false, 6_000)
        );
        assert_eq!(settings.state_dir, Path::new("/s"));
    }

    #[test]
    fn mounts_are_declared_with_name_and_place() {
        let mount = parse_mount("sw.example.org:/mnt/a:b:fill").unwrap();
        assert_eq!((mount.repository.as_str(), mount.fill), ("sw.example.org", true));
        assert_eq!(mount.directory, Path::new("/mnt/a:b"));
        assert!(!parse_mount("sw.example.org:/mnt/sw").unwrap().fill);
        // One that asks for what is usual is one as well.
        for list in ["nosuid", "nodev,noexec", "profile=auto"] {
            let mount = parse_mount(&format!("sw.example.org:/mnt/sw:{list}")).unwrap();
            assert_eq!(mount.directory, Path::new("/mnt/sw"), "{list}");
        }
        assert!(!parse_mount("sw.example.org:/mnt/sw:suid").unwrap().options.restrict.nosuid);
        let mount = parse_mount("sw.example.org:/mnt/sw:tag=2.1,path=/a,fill").unwrap();
        assert_eq!((mount.options.path.as_str(), mount.fill), ("/a", true));
        assert!(parse_mount("sw.example.org:/mnt:tag=2.1,taag=3").unwrap_err().contains("taag=3"));
        for bad in ["sw.example.org", "sw.example.org:mnt", ":/mnt", "a b:/mnt"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_mounts_on_one_directory_are_refused_and_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let mount =
            |name: &str, at: &str| parse_mount(&format!("{name}:{}/{at}", dir.path().display())).unwrap();
        check_places(&[mount("a.test", "real/x"), mount("b.test", "real/y")]).unwrap();
        for (one, other) in [("real", "real"), ("real", "link"), ("link/x", "real//x")] {
            let error = check_places(&[mount("a.test", one), mount("b.test", other)]).unwrap_err();
            let said = error.to_string();
            let at = dir.path().join(other).display().to_string();
            let parts = ["a.test", "b.test", at.as_str()];
            assert!(error.code() == 2 && parts.iter().all(|part| said.contains(part)), "{said}");
        }
    }

    #[test]
    fn wrong_settings_are_wrong_use() {
        let error = parse(&["--config", "/nowhere/agent.toml"]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/agent.toml") && error.code() == 2, "{error}");
        let error = parse(&["--advertise", "0.0.0.0:7400"]).unwrap_err();
        assert!(error.to_string().contains("advertise"), "{error}");
        let long = format!("/{}", "x".repeat(200));
        let error = parse(&["--state", &long]).unwrap_err();
        assert!(error.to_string().contains("hint: ") && error.code() == 2, "{error}");
        let error = parse(&["--automount-options", "noexec"]).unwrap_err();
        assert!(error.to_string().contains("`noexec` is not REPO:OPTIONS"), "{error}");
    }

    #[test]
    fn options_of_the_folder_of_all_are_added_to_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "[automount_options]\n\"*\" = \"noexec\"\n\"a.b\" = \"tag=1\"\n").unwrap();
        let config = file.to_str().unwrap();
        let more = ["--config", config, "--automount-options", "a.b:tag=2,fill"];
        let refused = parse(&more).unwrap_err();
        assert!(refused.code() == 2 && refused.to_string().contains("add --automount"), "{refused}");
        let settings = parse(&[&more[..], &["--automount"]].concat()).unwrap();
        let entry = |name: &str| settings.automount_options.get(name).map(String::as_str);
        assert_eq!((entry("*"), entry("a.b")), (Some("noexec"), Some("tag=2,fill")));
    }
}
