//! A disk that is larger than what lies beneath it: it takes every write, and later loses what found no room.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a shared module of several programs")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// ext4 in a file with holes on a small disk in memory. All of it is gone when the test ends.
pub struct ThinDisk {
    at: PathBuf,
    beneath: PathBuf,
    _base: tempfile::TempDir,
}

impl ThinDisk {
    /// One of 256 MiB, with room for 64.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn new() -> Result<Self, String> {
        let base = tempfile::tempdir().unwrap();
        let (at, beneath) = (base.path().join("at"), base.path().join("beneath"));
        fs::create_dir(&at).unwrap();
        fs::create_dir(&beneath).unwrap();
        rustix::mount::mount("starling-test", &beneath, "tmpfs", MountFlags::empty(), Some(c"size=64m"))
            .map_err(|error| format!("a small tmpfs cannot be mounted: {error}"))?;
        // From here on it is unmounted whatever happens.
        let disk = Self { at, beneath, _base: base };
        let image = disk.beneath.join("image");
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        // Without a journal, which would fail first and end all writing.
        let made = ran(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0"])
            .arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk.at));
        if made { Ok(disk) } else { Err("it needs mkfs.ext4 and a loop device".to_owned()) }
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Nothing new finds room from now on, and nobody who writes is told.
    pub fn fill_beneath(&self) {
        rustix::fs::sync();
        let mut ballast = File::create(self.beneath.join("ballast")).unwrap();
        while std::io::Write::write_all(&mut ballast, &[1; 4096]).is_ok() {}
        fs::write(self.at.join("told"), b"nobody").unwrap();
    }
}

impl Drop for ThinDisk {
    fn drop(&mut self) {
        for at in [&self.at, &self.beneath] {
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
        }
    }
}
