//! What all commands that ask the running agent have in common.

use super::CliError;
use crate::agent::{AgentAddress, AgentError, Client, ClientError, StateFolder};
use crate::config::{DEFAULT_SOCKET, DEFAULT_STATE_DIR};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Which agent to ask.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct AgentArgs {
    /// Socket of the agent [default: $STARLING_SOCKET, else /run/starling/agent.sock].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl AgentArgs {
    /// As if `--socket` had been given, or not.
    pub(super) fn at(socket: Option<PathBuf>) -> Self {
        Self { socket }
    }

    /// The client of that agent.
    pub(super) fn client(&self) -> Client {
        Client::at(AgentAddress::Socket(self.socket()))
    }

    /// Its socket.
    pub(super) fn socket(&self) -> PathBuf {
        setting(self.socket.as_ref(), "STARLING_SOCKET", DEFAULT_SOCKET)
    }
}

/// Which state folder to work on, for commands that need no running agent.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StateArgs {
    /// State folder of the agent [default: $STARLING_STATE_DIR, else /var/lib/starling].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StateArgs {
    /// As if `--state` had been given.
    #[cfg(test)]
    pub(super) fn at(dir: &std::path::Path) -> Self {
        Self { state: Some(dir.to_owned()) }
    }

    /// The folder.
    pub(super) fn dir(&self) -> PathBuf {
        setting(self.state.as_ref(), "STARLING_STATE_DIR", DEFAULT_STATE_DIR)
    }
}

/// What to do once the state folder `dir` has a membership: an agent reads it at its start.
pub(super) fn after_membership(dir: &Path) -> &'static str {
    match StateFolder::open(dir) {
        Err(AgentError::StateInUse(_)) => {
            "an agent runs on this state folder already and does not know of this: restart it"
        }
        _ => "run `starling agent` now",
    }
}

fn setting(argument: Option<&PathBuf>, variable: &str, default: &str) -> PathBuf {
    argument
        .cloned()
        .or_else(|| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| default.into())
}

/// Runs `work` to its end on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Prints one JSON document, indented.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    println!("{}", serde_json::to_string_pretty(value).map_err(CliError::failed)?);
    Ok(())
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => {
                let failed = Self::failed(&refusal.message);
                match refusal.hint {
                    Some(hint) => failed.hint(hint),
                    None => failed,
                }
            }
            ClientError::NotPermitted(_) => {
                Self::failed(error).hint("the agent obeys only the user that it runs as: try with sudo")
            }
            ClientError::NoAgent { .. } => {
                Self::failed(error).hint("start it with `starling agent`, or name its socket with --socket")
            }
            ClientError::Timeout { .. } => Self::failed(error).hint(
                "it may be stopped, or busy beyond measure: its log may say why; if it goes on, restart it",
            ),
            other => Self::failed(other),
        }
    }
}

/// Lays `rows` out in columns under `head`, wide enough for each cell.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&head.map(str::to_owned));
    text.extend(rows.iter().map(|row| line(row)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::{Refusal, RefusalKind};

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "bb".to_owned()], ["lång".to_owned(), String::new()]];
        assert_eq!(table(["x", "y"], &rows), "x     y\na     bb\nlång\n");
    }

    #[test]
    fn who_became_a_member_is_told_to_start_the_agent_or_to_restart_the_one_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(after_membership(dir.path()).contains("run `starling agent`"));
        let running = StateFolder::open(dir.path()).unwrap();
        assert!(after_membership(dir.path()).contains("restart"));
        drop(running);
        assert!(after_membership(dir.path()).contains("run `starling agent`"));
    }

    #[test]
    fn errors_tell_what_to_do() {
        let nobody = AgentArgs { socket: Some("/nowhere/agent.sock".into()) };
        let error = block_on(async { Ok(nobody.client().status().await?) }).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no agent answers on /nowhere/agent.sock") && text.contains("hint:"), "{text}");
        assert_eq!(error.code(), 1);
        let refusal = Refusal::new(RefusalKind::NotFound, "x.y is not known").hint("add it");
        assert_eq!(
            CliError::from(ClientError::Refused(refusal)).to_string(),
            "error: x.y is not known\nhint: add it"
        );
    }
}
