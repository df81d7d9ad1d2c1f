//! How a machine that is no member of a mesh becomes one when its agent starts: for images and units that are the same
//! on all machines and cannot run `mesh init` or `join` by hand.

use super::CliError;
use super::join::explain;
use crate::mesh::{Identity, IdentityError, JoinError, Ticket, TicketError, join};
use crate::model::CellLabel;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the ticket and its authority are awaited: the machines of a new cluster boot in any order (a guess).
const PATIENCE: Duration = Duration::from_secs(300);
/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most bytes of a file with a ticket: the longest ticket and a few blanks.
pub(super) const TICKET_FILE_MAX_BYTES: u64 = 4_096;

/// What to do when there is no membership yet.
#[derive(Debug, clap::Args)]
pub(super) struct FirstStart {
    /// If this machine is no member of a mesh yet: make one, with this machine as its authority.
    #[arg(long, conflicts_with = "join")]
    init_mesh: bool,
    /// If this machine is no member of a mesh yet: join with the ticket in FILE, once it is there.
    #[arg(long, value_name = "FILE")]
    join: Option<PathBuf>,
    /// Where this machine is, if it becomes a member now: REGION/ZONE/RACK. [default: the ticket's, else default/default/default]
    #[arg(long, value_name = "R/Z/R")]
    cell: Option<CellLabel>,
}

impl FirstStart {
    /// Makes the machine whose state lies in `state_dir` a member, if that was asked for and it is none.
    pub(super) async fn carry_out(&self, state_dir: &Path) -> Result<(), CliError> {
        if !self.init_mesh && self.join.is_none() {
            return Ok(());
        }
        match Identity::load(state_dir) {
            Err(IdentityError::NotAMember { .. }) => {}
            // The agent itself judges what is there.
            Ok(_) | Err(_) => return Ok(()),
        }
        match &self.join {
            None => {
                let made = Identity::found_mesh(state_dir, self.cell.clone().unwrap_or_default())
                    .map_err(CliError::failed)?;
                tracing::info!(mesh = %made.membership().mesh, "made a mesh; this node is its authority");
            }
            Some(file) => self.join(file, state_dir).await?,
        }
        Ok(())
    }

    async fn join(&self, file: &Path, state_dir: &Path) -> Result<(), CliError> {
        let attempt = async {
            let ticket = awaited(file).await?;
            loop {
                match join(&ticket, self.cell.clone(), state_dir, false).await {
                    Ok(joined) => {
                        let (mesh, cell) = (joined.membership.mesh, &joined.membership.cell);
                        tracing::info!(%mesh, %cell, "joined");
                        return Ok(());
                    }
                    Err(error @ JoinError::Unreachable { .. }) => {
                        tracing::warn!(%error, "not joined yet");
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    Err(error) => return Err(explain(error)),
                }
            }
        };
        tokio::time::timeout(PATIENCE, attempt).await.unwrap_or_else(|_| {
            let waited = PATIENCE.as_secs();
            Err(CliError::failed(format!(
                "not joined with the ticket in {} after {waited} s",
                file.display()
            ))
            .hint("is the ticket written there, and does its authority's agent run?"))
        })
    }
}

/// The ticket in `file`, as soon as there is one.
async fn awaited(file: &Path) -> Result<Ticket, CliError> {
    let shown = file.display();
    let mut told = false;
    loop {
        match std::fs::metadata(file) {
            Ok(found) if found.len() > TICKET_FILE_MAX_BYTES => {
                let bytes = found.len();
                return Err(CliError::failed(format!("{shown} has {bytes} bytes: that is no ticket")));
            }
            Ok(_) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| CliError::failed(format!("{shown}: {error}")))?;
                return text
                    .trim()
                    .parse()
                    .map_err(|error: TicketError| CliError::failed(format!("{shown}: {error}")));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(file = %shown, "waiting for a ticket");
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(CliError::failed(format!("{shown}: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_start(init_mesh: bool, join: Option<PathBuf>) -> FirstStart {
        FirstStart { init_mesh, join, cell: Some("eu/a/1".parse().unwrap()) }
    }

    #[tokio::test]
    async fn a_mesh_is_made_once_and_only_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        first_start(false, None).carry_out(&state).await.unwrap();
        assert!(matches!(Identity::load(&state), Err(IdentityError::NotAMember { .. })));
        first_start(true, None).carry_out(&state).await.unwrap();
        let made = Identity::load(&state).unwrap();
        assert_eq!(made.membership().cell, "eu/a/1".parse().unwrap());
        first_start(true, None).carry_out(&state).await.unwrap();
        assert_eq!(Identity::load(&state).unwrap().membership().mesh, made.membership().mesh);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_awaited_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (state, file) = (dir.path().join("state"), dir.path().join("ticket"));
        let error = first_start(false, Some(file.clone())).carry_out(&state).await.unwrap_err();
        assert!(error.to_string().contains("300 s") && error.to_string().contains("hint"), "{error}");
        std::fs::write(&file, "no ticket\n").unwrap();
        let error = first_start(false, Some(file.clone())).carry_out(&state).await.unwrap_err();
        assert!(error.to_string().contains("is not a ticket"), "{error}");
        std::fs::write(&file, vec![b'x'; 5_000]).unwrap();
        let error = first_start(false, Some(file)).carry_out(&state).await.unwrap_err();
        assert!(error.to_string().contains("5000 bytes"), "{error}");
    }
}
