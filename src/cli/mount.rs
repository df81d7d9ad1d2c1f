//! `starling mount`: mount a repository.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json};
use super::mount_options::choice;
use crate::agent::Client;
use crate::agent::api::{FillStatus, MountOptions, MountRequest, MountStatus};
use crate::ambient;
use crate::catalog::IdMap;
use crate::fs::{Profile, Restrictions};
use crate::model::{RepositoryName, Time, UnixTime};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling mount sw.example.org /mnt/sw
  starling mount --fill --wait sw.example.org /mnt/sw   # and bring all of it into the cache
  starling mount --profile large-files models.example.org /models
  starling mount --tag 2.1 --path /releases/2.1 sw.example.org /opt/sw
  starling mount --date 2026-05-01 sw.example.org /mnt/then
  starling mount --uid-map '*:0' --gid-map '*:0' sw.example.org /mnt/sw
  mount -t starling sw.example.org /mnt/sw -o tag=2.1     # with mount.starling installed

The mount shows the newest revision that this node knows, and switches when a newer one is announced; one that was chosen
with --revision, --tag or --date stays with it. Either comes back when the agent is restarted, until it is unmounted (with
`starling umount` or `umount`).")]
pub(super) struct Args {
    /// Name of the repository.
    repository: RepositoryName,
    /// An empty directory.
    directory: PathBuf,
    /// Bring all content (with --path, that of the directory) into the cache in the background, now and after each switch to a newer revision.
    /// What is read meanwhile goes first.
    #[arg(long)]
    fill: bool,
    /// Return when the fill is complete, or with exit code 1 when it has ended without being so. A source that cannot be reached is
    /// waited for, however long that takes; what holds the fill up is said meanwhile.
    #[arg(long, requires = "fill")]
    wait: bool,
    /// What the mount is tuned for: `small-files`, where opening a file asks nobody; `large-files`, where the kernel itself
    /// reads those that are complete on the local disk; `auto`, one of them by the tree's mean size (64 KiB).
    #[arg(long, default_value_t, value_name = "NAME")]
    profile: Profile,
    /// Show this revision for good.
    #[arg(long, value_name = "N", conflicts_with_all = ["tag", "date"])]
    revision: Option<u64>,
    /// Show the revision that has this tag now for good.
    #[arg(long, value_name = "NAME", conflicts_with = "date")]
    tag: Option<String>,
    /// Show the newest revision that was published until then for good: 2026-05-01T12:00:00Z, or 2026-05-01 for the end of that
    /// day (UTC).
    #[arg(long, value_name = "TIME")]
    date: Option<UnixTime>,
    /// Mount this directory of the tree as if it were all.
    #[arg(long, value_name = "/DIR", default_value = "", hide_default_value = true)]
    path: String,
    /// Show files of user FROM as files of user TO; `*:TO` for all that no other rule names. May be repeated.
    #[arg(long = "uid-map", value_name = "FROM:TO")]
    uid_map: Vec<String>,
    /// The same for groups.
    #[arg(long = "gid-map", value_name = "FROM:TO")]
    gid_map: Vec<String>,
    /// Honour set-id bits: whoever runs such a program runs it as the user whom the publisher, or --uid-map, has named. They mean
    /// nothing otherwise.
    #[arg(long)]
    suid: bool,
    /// The usual; accepted for whoever has written it.
    #[arg(long, hide = true, conflicts_with = "suid")]
    nosuid: bool,
    /// The usual.
    #[arg(long, hide = true)]
    nodev: bool,
    /// Nothing is executed.
    #[arg(long)]
    noexec: bool,
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let directory = mount_point(&args.directory)?;
    // Who waits for a fill does not give up while the agent is busy with it.
    let client = args.agent.client().patient();
    let options = options(&args).map_err(CliError::usage)?;
    let request = MountRequest { repository: args.repository, directory, fill: args.fill, options };
    let mount = block_on(async {
        let mount = client.mount(&request).await?;
        if args.wait { filled(&client, mount).await } else { Ok(mount) }
    })?;
    if args.json {
        return print_json(&mount);
    }
    let revision = mount.revision.map_or_else(|| "-".to_owned(), |r| r.to_string());
    let (name, path, at) = (&mount.repository, &mount.options.path, mount.directory.display());
    println!("{name}{path} revision {revision} is mounted on {at}");
    if mount.expired {
        eprintln!("warning: its root has expired; the mount switches when a newer one is announced");
    }
    for what in &mount.lacks {
        eprintln!("note: it lacks {what}");
    }
    if let Some(note) = &mount.note {
        eprintln!("warning: {note}");
    }
    Ok(())
}

fn options(args: &Args) -> Result<MountOptions, String> {
    let map = |rules: &[String]| {
        let mut map = IdMap::default();
        rules.iter().try_for_each(|rule| map.add(rule)).map(|()| map)
    };
    let options = MountOptions {
        profile: args.profile,
        show: choice(args.revision, args.tag.clone(), args.date)?,
        path: args.path.clone(),
        uids: map(&args.uid_map)?,
        gids: map(&args.gid_map)?,
        restrict: Restrictions { nosuid: !args.suid, noexec: args.noexec, ..Restrictions::default() },
    };
    options.checked()
}

/// How often the agent is asked how far a fill is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Pause after what holds a fill up was told in a line of its own: each chunk that fails has a text of its own (guess).
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What was told last of a fill that is held up, where there is no progress bar that shows it.
#[derive(Default)]
struct Told {
    problem: Option<String>,
    at: Option<Time>,
}

impl Told {
    /// The problem, if it is to be told now: when it is not the one that was told last, and that was long enough ago.
    fn news(&mut self, problem: Option<&str>, now: Time) -> Option<String> {
        let new = problem.filter(|problem| self.problem.as_deref() != Some(*problem))?;
        if self.at.is_some_and(|at| now.since(at) < TELL_EVERY) {
            return None;
        }
        (self.problem, self.at) = (Some(new.to_owned()), Some(now));
        Some(new.to_owned())
    }
}

/// Waits until the fill of `mount` is complete, with a progress bar on a terminal.
async fn filled(client: &Client, mut mount: MountStatus) -> Result<MountStatus, CliError> {
    let bar = indicatif::ProgressBar::new(0).with_style(
        indicatif::ProgressStyle::with_template(
            "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}",
        )
        .map_err(CliError::failed)?,
    );
    let mut told = Told::default();
    loop {
        let Some(fill) = &mount.fill else {
            return Err(CliError::failed(format!(
                "{} is not being filled any more",
                mount.directory.display()
            )));
        };
        bar.set_length(fill.total_bytes);
        bar.set_position(fill.done_bytes);
        bar.set_message(fill.problem.clone().unwrap_or_default());
        if let Some(outcome) = outcome(fill) {
            bar.finish_and_clear();
            let at = mount.directory.display();
            return outcome
                .map_err(|problem| CliError::failed(format!("{at} is mounted, but not filled: {problem}")))
                .map(|()| mount);
        }
        let news = fill.problem.as_deref().filter(|_| bar.is_hidden());
        if let Some(problem) = told.news(news, ambient::now()) {
            eprintln!("warning: {} is not filled yet, which goes on: {problem}", mount.directory.display());
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let directory = mount.directory.clone();
        let mounts = client.mounts().await?.mounts;
        mount = mounts
            .into_iter()
            .find(|mount| mount.directory == directory)
            .ok_or_else(|| CliError::failed(format!("{} was unmounted meanwhile", directory.display())))?;
    }
}

/// How a fill has ended, if it has: what is not complete by then never will be.
fn outcome(fill: &FillStatus) -> Option<Result<(), String>> {
    if fill.complete {
        return Some(Ok(()));
    }
    let reason = || fill.problem.clone().unwrap_or_else(|| "the log of the agent says why".to_owned());
    fill.ended.then(|| Err(reason()))
}

/// The absolute path of an existing directory. Whether it is empty the agent judges, which may see
/// more than this user.
pub(super) fn mount_point(directory: &Path) -> Result<PathBuf, CliError> {
    let shown = directory.display();
    match std::fs::metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(CliError::failed(format!("mount point {shown} is not there"))
                .hint(format!("make it first: mkdir -p {shown}")))
        }
        Ok(found) if !found.is_dir() => {
            Err(CliError::failed(format!("mount point {shown} is not a directory")))
        }
        // Others (no permission, a dead mount) are for the agent to judge and to report.
        _ => match std::fs::canonicalize(directory) {
            Ok(path) => Ok(path),
            Err(_) => Ok(std::path::absolute(directory)?),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_fill_hears_that_it_is_complete_or_why_it_will_not_be() {
        let fill = FillStatus { done_bytes: 0, total_bytes: 4, complete: false, ended: false, problem: None };
        assert_eq!(outcome(&fill), None);
        let held_up = FillStatus { problem: Some("no source".into()), ..fill.clone() };
        assert_eq!(outcome(&held_up), None, "it goes on trying");
        let ended = FillStatus { ended: true, ..held_up };
        assert_eq!(outcome(&ended), Some(Err("no source".to_owned())));
        assert_eq!(outcome(&FillStatus { complete: true, ended: true, ..fill }), Some(Ok(())));
    }

    #[test]
    fn what_holds_a_fill_up_is_told_once_and_another_reason_not_before_its_time() {
        let (mut told, start) = (Told::default(), Time::ZERO);
        let mut news = |problem: Option<&str>, after: Duration| told.news(problem, start + after);
        let second = Duration::from_secs(1);
        assert_eq!(news(None, Duration::ZERO), None);
        assert_eq!(news(Some("no source"), second).as_deref(), Some("no source"));
        assert_eq!(news(Some("no source"), 2 * TELL_EVERY), None, "the same for ever");
        assert_eq!(news(Some("disk full"), 3 * TELL_EVERY).as_deref(), Some("disk full"));
        assert_eq!(news(Some("no source"), 3 * TELL_EVERY + second), None);
        assert_eq!(news(None, 4 * TELL_EVERY), None);
        assert_eq!(
            news(Some("no source"), 4 * TELL_EVERY).as_deref(),
            Some("no source"),
            "it is late, not lost"
        );
    }

    #[test]
    fn a_mount_point_must_be_a_directory_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let missing = mount_point(&dir.path().join("nothing")).unwrap_err().to_string();
        assert!(missing.contains("is not there") && missing.contains("mkdir"), "{missing}");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let file = mount_point(&dir.path().join("file")).unwrap_err().to_string();
        assert!(file.contains("is not a directory"), "{file}");
        assert!(mount_point(dir.path()).unwrap().is_absolute());
    }
}
