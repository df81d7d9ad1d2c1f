//! Why a run could not be made, or not be finished.

use super::process::ProcessError;
use crate::agent::ClientError;
use std::io;
use std::path::PathBuf;

/// Why a run ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Network namespaces need it.
    #[error("network namespaces need root")]
    NeedsRoot,
    /// A program that the lab calls.
    #[error("the program `{0}` is not there")]
    NoProgram(&'static str),
    /// `ip` or `tc` refused.
    #[error("`{command}` failed: {said}")]
    Command {
        /// The command, and what it was fed with.
        command: String,
        /// What it said.
        said: String,
    },
    /// A program printed what cannot be understood.
    #[error("`{command}` printed {found}")]
    Output {
        /// The command.
        command: String,
        /// What was wrong with it.
        found: String,
    },
    /// A process of the run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// An agent refused.
    #[error("{node}: {source}")]
    Agent {
        /// Which node's.
        node: String,
        /// What it said.
        source: ClientError,
    },
    /// A file or folder.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel has no thread, socket or memory for it.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl LabError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NeedsRoot => Some("run it as root, on a machine of your own".to_owned()),
            Self::NoProgram(_) => Some("install the package iproute2".to_owned()),
            Self::Command { said, .. } if said.contains("Unknown device type") || said.contains("qdisc") => {
                Some("the kernel needs veth, bridge, sch_htb and sch_fifo".to_owned())
            }
            Self::Process(error) => error.hint().map(str::to_owned),
            _ => None,
        }
    }

    /// Makes a failure with a file one of ours.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
