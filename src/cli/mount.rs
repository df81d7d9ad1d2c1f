//! `starling mount`: mount a repository.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json};
use crate::agent::Client;
use crate::agent::api::{MountOptions, MountRequest, MountStatus};
use crate::fs::Profile;
use crate::model::RepositoryName;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling mount sw.example.org /mnt/sw
  starling mount --fill --wait sw.example.org /mnt/sw   # and bring all of it into the cache
  starling mount --profile large-files models.example.org /models

The mount shows the newest revision that this node knows, switches when a newer one is announced,
and comes back when the agent is restarted.")]
pub(super) struct Args {
    /// Name of the repository.
    repository: RepositoryName,
    /// An empty directory.
    directory: PathBuf,
    /// Bring all content into the cache in the background, now and after each switch to a newer revision.
    /// What is read meanwhile goes first.
    #[arg(long)]
    fill: bool,
    /// Return when the fill is complete.
    #[arg(long, requires = "fill")]
    wait: bool,
    /// What the mount is tuned for: `small-files`, where opening a file asks nobody; `large-files`, where the kernel itself
    /// reads those that are complete on the local disk; `auto`, one of them by the tree's mean size (64 KiB).
    #[arg(long, default_value_t, value_name = "NAME")]
    profile: Profile,
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let directory = mount_point(&args.directory)?;
    let client = args.agent.client();
    let options = MountOptions { profile: args.profile };
    let request = MountRequest { repository: args.repository, directory, fill: args.fill, options };
    let mount = block_on(async {
        let mount = client.mount(&request).await?;
        if args.wait { filled(&client, mount).await } else { Ok(mount) }
    })?;
    if args.json {
        return print_json(&mount);
    }
    let revision = mount.revision.map_or_else(|| "-".to_owned(), |r| r.to_string());
    println!("{} revision {revision} is mounted on {}", mount.repository, mount.directory.display());
    if mount.expired {
        eprintln!("warning: its root has expired; the mount switches when a newer one is announced");
    }
    if let Some(note) = &mount.note {
        eprintln!("warning: {note}");
    }
    Ok(())
}

/// How often the agent is asked how far a fill is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits until the fill of `mount` is complete, with a progress bar on a terminal.
async fn filled(client: &Client, mut mount: MountStatus) -> Result<MountStatus, CliError> {
    let bar = indicatif::ProgressBar::new(0).with_style(
        indicatif::ProgressStyle::with_template(
            "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}",
        )
        .map_err(CliError::failed)?,
    );
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
        if fill.complete {
            bar.finish_and_clear();
            return Ok(mount);
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

/// The absolute path of an existing directory. Whether it is empty the agent judges, which may see
/// more than this user.
fn mount_point(directory: &Path) -> Result<PathBuf, CliError> {
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
