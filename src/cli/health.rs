//! `starling health`: tell by the exit code whether an agent or a stratum is fit for work.

use super::CliError;
use super::ask::{AgentArgs, block_on};
use crate::upstream::{HttpClient, HttpOptions};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling health                                   # this machine's agent
  starling health --stratum http://localhost:8000

Exit code 0: the agent answers, its membership counts, an authority holds the newest key, all its mounts are there, they have a keeper if they are to outlive it, and it sees others of its mesh (or knows of none, or
started or lost sight of them less than a minute ago), or the stratum answers. Otherwise 1, with the reason; an agent that does not
answer is waited for 10 s. Made for health checks of
containers and units. `/healthz` of `http_listen` judges alike, with the status 503 instead of 1.")]
pub(super) struct Args {
    #[command(flatten)]
    agent: AgentArgs,
    /// Ask this stratum instead of the agent.
    #[arg(long, value_name = "URL", conflicts_with = "socket")]
    stratum: Option<String>,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    if let Some(url) = &args.stratum {
        let client = HttpClient::new(HttpOptions::default()).map_err(CliError::failed)?;
        let stratum = client.stratum(url).map_err(CliError::usage)?;
        return block_on(async { stratum.answers().await.map_err(CliError::failed) });
    }
    let client = args.agent.client();
    let status = block_on(async { Ok(client.status().await?) })?;
    status.unfit().map_or(Ok(()), |problem| Err(CliError::failed(problem)))
}

#[cfg(test)]
mod tests {
    use crate::agent::api::{CacheStatus, MountStatus, Obtained, Status};

    #[test]
    fn a_failed_mount_is_named_once() {
        for problem in ["/mnt/sw: mount: Invalid argument", "no root of sw.example.org could be had"] {
            let mount = MountStatus {
                repository: "sw.example.org".parse().unwrap(),
                directory: "/mnt/sw".into(),
                revision: None,
                root: None,
                options: Default::default(),
                automatic: false,
                expired: false,
                problem: Some(problem.to_owned()),
                profile: None,
                lacks: Vec::new(),
                note: None,
                fill: None,
            };
            let status = Status {
                api: 1,
                version: String::new(),
                pid: 1,
                uptime_s: 0,
                state_dir: "/s".into(),
                mesh: None,
                cache: CacheStatus::default(),
                obtained: Obtained::default(),
                repositories: Vec::new(),
                mounts: vec![mount],
                troubles: Vec::new(),
            };
            let said = status.unfit().unwrap();
            assert!(said.matches("/mnt/sw").count() == 1 && said.contains(problem), "{said}");
        }
    }
}
