//! `starling check`: verify everything that a published repository's root names.

use super::CliError;
use crate::ambient;
use crate::model::RepositoryName;
use crate::publish::check::repository;
use crate::store::{DirectoryObjects, ObjectStore as _};
use crate::trust::{Fingerprint, Standing};
use std::path::PathBuf;
use std::str::FromStr;

const EXAMPLES: &str = "\
Examples:
  starling check /srv/stratum --repo sw.example.org@2d114c0a2ecde84f559d99b49c7e16ae7eb006a4050b20064f8f600905d2cb32

Reads every segment, catalog and chunk that the newest root names and compares each with its hash. Exit code 1 and
the first fault, if there is one.";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Directory of the stratum
    stratum: PathBuf,
    /// The repository and the fingerprint of its root keys
    #[arg(long, value_name = "NAME@FINGERPRINT")]
    repo: Trusted,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// A repository as one trusts it.
#[derive(Clone, Debug)]
pub(super) struct Trusted {
    pub(super) name: RepositoryName,
    pub(super) fingerprint: Fingerprint,
}

impl FromStr for Trusted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, fingerprint) = text.split_once('@').ok_or("write NAME@FINGERPRINT")?;
        Ok(Self {
            name: name.parse().map_err(|error| format!("{error}"))?,
            fingerprint: fingerprint.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let Trusted { name, fingerprint } = &args.repo;
    let root = DirectoryObjects::new(&args.stratum, name).root().map_err(CliError::failed)?;
    let root = root
        .ok_or_else(|| CliError::failed(format!("{name} is not published in {}", args.stratum.display())))?;
    let found = repository(&args.stratum, name, fingerprint, ambient::unix_now(), &root)
        .map_err(|error| CliError::failed(format!("{name}: {error}")))?;
    if let Standing::Expired { since } = found.standing {
        eprintln!("warning: the root expired on {since}; publish again to sign it anew");
    }
    if args.json {
        let line = serde_json::json!({
            "repository": name.as_str(),
            "revision": found.revision.0,
            "catalogs": found.catalogs,
            "chunks": found.chunks,
            "plain_bytes": found.plain_bytes,
            "segments": found.segments,
            "stored_bytes": found.stored_bytes,
        });
        println!("{line}");
    } else {
        println!(
            "{name}: revision {} is whole: {} chunks and {} catalogs in {} segments, {} bytes",
            found.revision, found.chunks, found.catalogs, found.segments, found.stored_bytes
        );
    }
    Ok(())
}
