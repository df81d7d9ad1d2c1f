//! `starling mount`: mount a repository.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json};
use crate::agent::api::MountRequest;
use crate::model::RepositoryName;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling mount sw.example.org /mnt/sw

The mount shows the newest revision that this node knows, switches when a newer one is announced,
and comes back when the agent is restarted.")]
pub(super) struct Args {
    /// Name of the repository.
    repository: RepositoryName,
    /// An empty directory.
    directory: PathBuf,
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let directory = mount_point(&args.directory)?;
    let client = args.agent.client();
    let request = MountRequest { repository: args.repository, directory };
    let mount = block_on(async { Ok(client.mount(&request).await?) })?;
    if args.json {
        return print_json(&mount);
    }
    let revision = mount.revision.map_or_else(|| "-".to_owned(), |r| r.to_string());
    println!("{} revision {revision} is mounted on {}", mount.repository, mount.directory.display());
    if mount.expired {
        eprintln!("warning: its root has expired; the mount switches when a newer one is announced");
    }
    Ok(())
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
