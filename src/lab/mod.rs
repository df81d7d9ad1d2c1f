//! The lab: real agents in network namespaces, behind links of known rates, among faults, measured.
//!
//! [`Scenario`] says what happens, [`run`] builds the network, starts the agents, lets it happen and removes everything
//! again, [`Report`] tells what came out, in the form of the simulator's report.

mod content;
mod error;
mod faults;
mod homes;
mod lease;
mod liar;
mod measure;
mod netns;
mod node;
mod process;
mod report;
mod rounds;
mod run;
mod scenario;
#[cfg(test)]
mod tests;
mod work;

pub use error::LabError;
pub use liar::tamper;
pub use process::{Folder, Interrupt, Launcher, Process, ProcessError, may_mount};
pub use report::{CPU_MAX, Crossing, Fate, Moment, NodeReport, Report};
pub use rounds::{Rounds, resized};
pub use run::{Options, check, run};
pub use scenario::{
    Content, Fault, Fleet, Goals, How, LiarKind, NODES_MAX, Network, Scenario, Stratum, Which, Work,
};
