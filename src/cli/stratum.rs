//! `starling stratum`: serve a published repository over http.

use super::CliError;
use super::output::Output;
use crate::upstream::{LogTarget, ServeError, ServeOptions, Server};
use std::io::Write as _;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Serve a folder that `starling publish --to` wrote, until SIGTERM or SIGINT.
    #[command(after_help = EXAMPLES)]
    Serve(Serve),
}

const EXAMPLES: &str = "Examples:
  starling stratum serve /srv/stratum --listen 0.0.0.0:8000
  starling stratum serve /srv/stratum --listen 127.0.0.1:0 --access-log -
  curl -r 0-99 http://127.0.0.1:8000/sw.example.org/root

Any web server serves the same folder as well; docs/strata.md shows how.";

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// The folder: it holds <repository>/root and <repository>/objects/.
    dir: PathBuf,
    /// Address to listen on; port 0 takes any free one, which is printed.
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// Write one line a request to a file, or `-` for standard output.
    #[arg(long, value_name = "FILE")]
    access_log: Option<LogTarget>,
    /// Print the address and the access log as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    let Command::Serve(args) = command;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(args))
}

async fn serve(args: Serve) -> Result<(), CliError> {
    // Before the address is printed: whoever reads it may send a signal at once.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let Serve { dir, listen, access_log, json } = args;
    let options = ServeOptions { dir: dir.clone(), listen, log: access_log, log_json: json };
    let server = Server::bind(options).await.map_err(|error| explain(&error))?;
    if !server.has_repository() {
        eprintln!("warning: {} holds no repository yet; publish with --to {0}", dir.display());
    }
    let url = format!("http://{}", server.address());
    let line = if json {
        serde_json::json!({ "listening": url, "dir": dir }).to_string()
    } else {
        format!("listening on {url}")
    };
    writeln!(Output, "{line}").and_then(|()| Output.flush())?;
    server
        .run(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        })
        .await;
    Ok(())
}

fn explain(error: &ServeError) -> CliError {
    let failed = CliError::failed(error);
    match error {
        ServeError::Dir { .. } => failed.hint("give the folder that `starling publish --to` wrote"),
        ServeError::Listen { .. } => {
            failed.hint("choose another --listen HOST:PORT; port 0 takes any free one")
        }
        ServeError::Log { .. } => failed,
    }
}
