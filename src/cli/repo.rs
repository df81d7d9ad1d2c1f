//! `starling repo`: make repositories known to this machine, or to the whole mesh.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json, table};
use crate::agent::api::{AddRepository, RepositoryStatus};
use crate::model::{RepositoryName, limits};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a repository known. On an authority, its card spreads to all members.
    #[command(after_help = "Examples:
  starling repo add sw.example.org@3f6c… --stratum http://stratum.example.org:8000

`starling publish` prints NAME@FINGERPRINT.")]
    Add {
        /// Name of the repository and fingerprint of its root keys.
        repository: NameAndFingerprint,
        /// URL of a stratum; repeat for more, nearest first.
        #[arg(long = "stratum", value_name = "URL", required = true)]
        strata: Vec<String>,
        #[command(flatten)]
        agent: AgentArgs,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List the repositories that this node knows.
    List {
        #[command(flatten)]
        agent: AgentArgs,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hand a signed root to the agent, which verifies it, switches its mounts and hands it on.
    #[command(after_help = "Examples:
  starling repo announce /srv/stratum/sw.example.org/root

`starling publish --announce` does the same at once.")]
    Announce {
        /// File with the signed root.
        root: PathBuf,
        #[command(flatten)]
        agent: AgentArgs,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// `NAME@FINGERPRINT`. The fingerprint is parsed where its form is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameAndFingerprint {
    name: RepositoryName,
    fingerprint: String,
}

impl FromStr for NameAndFingerprint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, fingerprint) = text
            .split_once('@')
            .filter(|(_, fingerprint)| !fingerprint.is_empty())
            .ok_or("write NAME@FINGERPRINT, as `starling publish` prints it")?;
        let name = name.parse().map_err(|e: crate::model::ParseNameError| e.to_string())?;
        Ok(Self { name, fingerprint: fingerprint.to_owned() })
    }
}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Add { repository, strata, agent, json } => {
            let client = agent.client();
            let request =
                AddRepository { repository: repository.name, fingerprint: repository.fingerprint, strata };
            let added = block_on(async { Ok(client.add_repository(&request).await?) })?;
            if json {
                return print_json(&added);
            }
            let revision =
                added.revision.map_or_else(|| "no revision yet".to_owned(), |r| format!("revision {r}"));
            println!(
                "{} ({revision}) is known {}",
                added.repository,
                if added.spread { "to the mesh" } else { "to this node" }
            );
        }
        Command::List { agent, json } => {
            let client = agent.client();
            let all = block_on(async { Ok(client.repositories().await?) })?;
            if json {
                return print_json(&all);
            }
            print!("{}", repositories_table(&all.repositories));
        }
        Command::Announce { root, agent, json } => {
            let bytes = read_root(&root)?;
            let client = agent.client();
            let announced = block_on(async { Ok(client.announce(bytes.into()).await?) })?;
            if json {
                return print_json(&announced);
            }
            println!(
                "{} revision {} {}",
                announced.repository,
                announced.revision,
                if announced.fresh { "is announced" } else { "was known already" }
            );
        }
    }
    Ok(())
}

/// What is known about repositories, for people.
pub(super) fn repositories_table(repositories: &[RepositoryStatus]) -> String {
    let rows: Vec<_> = repositories
        .iter()
        .map(|r| {
            [
                r.repository.to_string(),
                r.revision.map_or_else(|| "-".to_owned(), |revision| revision.to_string()),
                r.expires.map_or_else(|| "-".to_owned(), |expires| expires.to_string()),
                if r.spread { "mesh" } else { "this node" }.to_owned(),
                r.strata.join(" "),
            ]
        })
        .collect();
    table(["REPOSITORY", "REVISION", "EXPIRES", "KNOWN TO", "STRATA"], &rows)
}

fn read_root(path: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |e| CliError::failed(format!("{}: {e}", path.display()));
    let found = std::fs::metadata(path).map_err(failed)?.len();
    if found > limits::ROOT_MAX_BYTES as u64 {
        let most = limits::ROOT_MAX_BYTES;
        return Err(CliError::failed(format!(
            "{}: {found} bytes; a root has at most {most}",
            path.display()
        )));
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_named_with_its_fingerprint() {
        let good: NameAndFingerprint = "sw.example.org@00ff".parse().unwrap();
        assert_eq!((good.name.as_str(), good.fingerprint.as_str()), ("sw.example.org", "00ff"));
        for bad in ["sw.example.org", "sw.example.org@", "@00"] {
            assert!(bad.parse::<NameAndFingerprint>().is_err(), "{bad}");
        }
        let error = "Bad Name@00".parse::<NameAndFingerprint>().unwrap_err();
        assert!(error.contains("Bad Name") && error.contains("a-z"), "{error}");
    }

    #[test]
    fn a_root_that_is_missing_or_too_large_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        assert!(read_root(&path).unwrap_err().to_string().contains("root"));
        std::fs::write(&path, vec![0; limits::ROOT_MAX_BYTES + 1]).unwrap();
        assert!(read_root(&path).unwrap_err().to_string().contains("65537 bytes"));
    }
}
