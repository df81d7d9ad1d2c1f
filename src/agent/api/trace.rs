//! Recording traces in the control API.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `POST /v1/traces`: begins to record what a process and those that descend from it read of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// The mount.
    pub directory: PathBuf,
    /// The process, as it is numbered where the agent runs.
    pub process: u32,
}

/// Answer to [`RecordRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    /// By which it is ended.
    pub number: u64,
}

/// `POST /v1/traces/end`: ends a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndRecording {
    /// The mount.
    pub directory: PathBuf,
    /// Which recording.
    pub number: u64,
    /// What the trace is called.
    pub name: String,
}

/// Answer to [`EndRecording`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Whether more was read than a trace holds: the first of it are in the trace.
    pub is_cut: bool,
    /// The trace, a [`crate::catalog::RecordedTrace`], in Base64.
    pub document: String,
}
