//! Reading strata over HTTP, and serving one.
//!
//! A stratum is any HTTP server that holds, for each repository, the signed root and its segments:
//!
//! ```text
//! <stratum>/<repository>/root
//! <stratum>/<repository>/objects/<first 2 hex digits of the segment's name>/<the other 62>
//! ```
//!
//! * [`Upstream`] is the port: roots as they lie there, chunks decoded and verified. [`MemoryStratum`]
//!   is its double; both pass the same conformance suite.
//! * [`HttpStratum`] reads one stratum. Chunks that lie near each other travel in one Range request.
//! * [`Several`] orders the strata of a repository, nearest first, and fails over between them;
//!   [`Retrying`] repeats what may succeed the second time. Both are decorators with the same port.
//! * [`Server`] is `starling stratum serve`.

mod error;
mod frame;
mod http;
mod layout;
mod memory;
mod port;
mod range;
mod retry;
mod runs;
mod serve;
mod several;

#[cfg(test)]
mod conformance;

pub use error::UpstreamError;
pub use http::{ClientError, HttpClient, HttpOptions, HttpStratum};
pub use memory::MemoryStratum;
pub use port::{Arrived, Upstream};
pub use retry::{RetryPolicy, Retrying};
pub use runs::check_row;
pub use serve::{AccessLine, LogTarget, ParseAccessError, ServeError, ServeOptions, Server};
pub use several::Several;
