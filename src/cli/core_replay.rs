//! `starling core-replay`: replay recorded decisions of an agent and compare them byte for byte.

use super::CliError;
use crate::mesh::proto::Replay;
use serde::Serialize;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  starling agent --record-inputs /tmp/core.jsonl   # on a node, for a while
  starling core-replay /tmp/core.jsonl             # anywhere, also without network code built in

Ends with exit code 1 when the decisions differ.")]
pub(super) struct Args {
    /// The recording, as `starling agent --record-inputs` wrote it.
    file: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    identical: bool,
    #[serde(flatten)]
    replay: &'a Replay,
}

#[expect(clippy::needless_pass_by_value, reason = "every verb is called like this")]
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let name = args.file.display();
    let failed = |error: &dyn std::fmt::Display| CliError::failed(format!("{name}: {error}"));
    let file = File::open(&args.file).map_err(|error| failed(&error))?;
    let replay = Replay::run(BufReader::new(file)).map_err(|error| failed(&error))?;
    let identical = replay.is_identical();
    let text = if args.json {
        serde_json::to_string(&Shown { identical, replay: &replay }).map_err(CliError::failed)?
    } else {
        table(&replay)
    };
    println!("{text}");
    match replay.difference {
        None => Ok(()),
        Some(difference) => Err(CliError::failed(format!("{name}: line {} differs", difference.line))
            .hint("the recording must come from the same version of the program")),
    }
}

fn table(replay: &Replay) -> String {
    let mut lines = vec![format!("{} events", replay.events)];
    for (title, counts) in [("in", &replay.inputs), ("out", &replay.outputs)] {
        lines.extend(counts.iter().map(|(kind, count)| format!("{title:<4} {kind:<24} {count}")));
    }
    match &replay.difference {
        None => lines.push("identical".to_owned()),
        Some(difference) => {
            lines.push(format!("different from line {} on", difference.line));
            lines.push(format!("recorded: {}", difference.recorded));
            lines.push(format!("replayed: {}", difference.replayed));
        }
    }
    lines.join("\n")
}
