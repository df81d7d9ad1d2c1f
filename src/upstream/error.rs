//! What can go wrong between this node and a stratum, and what to do about it.

use crate::model::ContentId;

/// Why a stratum did not deliver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection, or it broke.
    #[error("{url}: {detail}")]
    Connection {
        /// What was asked for.
        url: String,
        /// What the network said.
        detail: String,
    },
    /// No progress, or not done, in time.
    #[error("{url}: timed out ({detail})")]
    TimedOut {
        /// What was asked for.
        url: String,
        /// Which bound passed.
        detail: String,
    },
    /// The server answered with a status that is no success.
    #[error("{url}: HTTP status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The server's answer does not fit the question: another range, another length, too many bytes.
    #[error("{url}: {detail}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// The offending value.
        detail: String,
    },
    /// The bytes do not decode to the chunk that was asked for.
    #[error("{url}: wrong bytes for chunk {chunk}: {detail}")]
    WrongBytes {
        /// What was asked for.
        url: String,
        /// The chunk.
        chunk: ContentId,
        /// What is wrong with them.
        detail: String,
    },
    /// The chunk's row is nonsense, so that no stratum can be asked for it.
    #[error("chunk {chunk}: {detail}")]
    InvalidRow {
        /// The chunk.
        chunk: ContentId,
        /// The offending value.
        detail: String,
    },
    /// There is no stratum to ask.
    #[error("no stratum is known")]
    NoStratum,
}

impl UpstreamError {
    /// Whether the same stratum, asked the same again soon, is bound to fail again.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::TimedOut { .. } => false,
            Self::Status { status, .. } => !matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Malformed { .. } | Self::WrongBytes { .. } | Self::InvalidRow { .. } | Self::NoStratum => {
                true
            }
        }
    }

    /// Whether the failure speaks against the stratum as a whole, so that others go first for a
    /// while. A missing object does not: a replica may lag behind.
    pub(super) fn blames_the_stratum(&self) -> bool {
        match self {
            Self::Connection { .. }
            | Self::TimedOut { .. }
            | Self::Malformed { .. }
            | Self::WrongBytes { .. } => true,
            Self::Status { .. } => !self.is_permanent(),
            Self::InvalidRow { .. } | Self::NoStratum => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_worth_repeating() {
        let status = |status| UpstreamError::Status { url: String::new(), status };
        for (code, permanent) in
            [(404, true), (403, true), (416, true), (429, false), (500, false), (503, false)]
        {
            assert_eq!(status(code).is_permanent(), permanent, "{code}");
            assert_eq!(status(code).blames_the_stratum(), !permanent, "{code}");
        }
        let broken = UpstreamError::Connection { url: String::new(), detail: String::new() };
        assert!(!broken.is_permanent() && broken.blames_the_stratum());
        let malformed = UpstreamError::Malformed { url: String::new(), detail: String::new() };
        assert!(malformed.is_permanent() && malformed.blames_the_stratum());
    }
}
