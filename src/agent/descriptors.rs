//! As many open files as the system allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises what the process may have open to the most that the system lets it. Most processes are begun with 1 024, for the sake of
/// programs older than `poll`; an agent has a file open for each large file that the kernel reads by itself.
pub fn allow_many_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if current.is_none() || current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(
            limit = current,
            "the agent cannot raise its limit of open files: {error}; files are read more slowly at it"
        );
    }
}
