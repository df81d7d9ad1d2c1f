//! Recordings of real runs: one JSON file a trial, which `starling lab --grid` writes and `starling simulate --validate` reads.

use super::CliError;
use crate::sim::validation::{Recorded, TRIALS_MAX};
use std::fs;
use std::io;
use std::path::Path;
#[cfg(feature = "node")]
use std::path::PathBuf;

/// Largest recording that is read, in bytes: some hundred nodes.
const BYTES_MAX: u64 = 1 << 20;

/// The file of a trial.
#[cfg(feature = "node")]
pub(super) fn path(directory: &Path, trial: u32) -> PathBuf {
    directory.join(format!("trial-{trial:02}.json"))
}

/// A recording, if there is one.
pub(super) fn read(path: &Path) -> Result<Option<Recorded>, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::failed(format!("{}: {error}", path.display()));
    let length = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    if length > BYTES_MAX {
        return Err(failed(&format_args!("a recording has at most {BYTES_MAX} bytes")));
    }
    let text = fs::read(path).map_err(|error| failed(&error))?;
    let recorded = serde_json::from_slice(&text).map_err(|error| {
        failed(&error).hint("it is no recording of this program's form; remove it, and record it again with `starling lab --grid`")
    })?;
    Ok(Some(recorded))
}

/// All recordings of a folder, in the order of their names.
pub(super) fn read_all(directory: &Path) -> Result<Vec<Recorded>, CliError> {
    let failed = |error: &io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; `starling lab --grid DIR` records real nodes into a folder",
            _ => "",
        };
        CliError::failed(format!("{}: {error}{hint}", directory.display()))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| failed(&error))? {
        let path = entry.map_err(|error| failed(&error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("trial-") && name.ends_with(".json") {
            paths.push(path);
        }
    }
    if paths.len() > TRIALS_MAX as usize {
        return Err(CliError::failed(format!("{}: more than {TRIALS_MAX} recordings", directory.display())));
    }
    paths.sort();
    paths.iter().filter_map(|path| read(path).transpose()).collect()
}

/// Writes a recording. Whoever looks meanwhile finds the old one, or none, or all of it.
#[cfg(feature = "node")]
pub(super) fn write(path: &Path, recorded: &Recorded) -> Result<(), CliError> {
    let mut text = serde_json::to_vec(recorded).map_err(CliError::failed)?;
    text.push(b'\n');
    super::pending::write(path, &text)
        .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))
}

#[cfg(all(test, feature = "node"))]
mod tests {
    use super::*;
    use crate::sim::Keys;
    use crate::sim::validation::{FORMAT, draw};

    fn recorded(trial: u32) -> Recorded {
        let trial = draw(1, 12).swap_remove(trial as usize);
        Recorded {
            format: FORMAT,
            grid_seed: 1,
            grid_trials: 12,
            drawn: trial.clone(),
            trial: trial.scaled(0.75),
            recorded_unix_s: 1_700_000_000,
            version: "0".to_owned(),
            model: "a model".to_owned(),
            cpu: 0.5,
            void: false,
            problems: Vec::new(),
            strata_bytes: 1,
            strata_link_bytes: 2,
            nodes: Vec::new(),
            into_cells_bytes: vec![3],
            keys: Some(Keys { nodes: vec![u64::MAX, 7], cells: vec![1], slices: vec![2, 3] }),
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_half_written_files_are_no_recordings() {
        let folder = tempfile::tempdir().unwrap();
        for trial in [10, 2] {
            write(&path(folder.path(), trial), &recorded(trial)).unwrap();
        }
        fs::write(folder.path().join("trial-03.json.part"), "{").unwrap();
        fs::write(folder.path().join("calibrated.toml"), "").unwrap();
        assert_eq!(read_all(folder.path()).unwrap(), [recorded(2), recorded(10)]);
        assert_eq!(read(&path(folder.path(), 4)).unwrap(), None);
    }

    #[test]
    fn what_is_no_recording_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(path(folder.path(), 5), "{\"format\": 1}").unwrap();
        let error = read_all(folder.path()).unwrap_err().to_string();
        assert!(error.contains("trial-05.json") && error.contains("--grid"), "{error}");
    }
}
