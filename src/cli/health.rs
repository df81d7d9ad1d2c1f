//! `starling health`: tell by the exit code whether an agent or a stratum is fit for work.

use super::CliError;
use super::ask::{AgentArgs, block_on};
use crate::agent::api::Status;
use crate::mesh::NEWEST_KEY_REMEDY;
use crate::upstream::{HttpClient, HttpOptions};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling health                                   # this machine's agent
  starling health --stratum http://localhost:8000

Exit code 0: the agent answers, its membership counts, an authority holds the newest key, and all its mounts are there, or the stratum answers. Otherwise 1, with the reason.
Made for health checks of containers and units.")]
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
    judge(&block_on(async { Ok(client.status().await?) })?)
}

fn judge(status: &Status) -> Result<(), CliError> {
    if let Some(reason) = status.mesh.as_ref().and_then(|mesh| mesh.ended.as_ref()) {
        let problem = format!("this agent is no member of its mesh any more: {reason}");
        return Err(CliError::failed(problem));
    }
    if let Some(problem) = status.mesh.as_ref().and_then(|mesh| mesh.key_problem.as_ref()) {
        return Err(CliError::failed(format!(
            "this authority does not hold the mesh's newest key: {problem}"
        ))
        .hint(NEWEST_KEY_REMEDY));
    }
    let failed = status.mounts.iter().find_map(|mount| {
        let problem = mount.problem.as_ref()?;
        let directory = mount.directory.display().to_string();
        // Most name it themselves.
        Some(if problem.starts_with(&directory) {
            problem.clone()
        } else {
            format!("{directory}: {problem}")
        })
    });
    failed.map_or(Ok(()), |problem| Err(CliError::failed(problem)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::{CacheStatus, MountStatus, Obtained};

    #[test]
    fn a_failed_mount_is_named_once() {
        for problem in ["/mnt/sw: mount: Invalid argument", "no root of sw.example.org could be had"] {
            let mount = MountStatus {
                repository: "sw.example.org".parse().unwrap(),
                directory: "/mnt/sw".into(),
                revision: None,
                expired: false,
                problem: Some(problem.to_owned()),
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
            };
            let said = judge(&status).unwrap_err().to_string();
            assert!(said.matches("/mnt/sw").count() == 1 && said.contains(problem), "{said}");
        }
    }
}
