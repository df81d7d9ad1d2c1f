//! Directories to mount on: what is required of one, and what a killed predecessor left there.

use super::api::{Refusal, RefusalKind};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Refuses what is no absolute path of an empty directory that nothing is mounted on.
pub(super) fn check(directory: &Path) -> Result<(), Refusal> {
    let shown = directory.display();
    if !directory.is_absolute() {
        return Err(Refusal::new(RefusalKind::Invalid, format!("{shown} is not an absolute path")));
    }
    let conflict = |what: &str| Refusal::new(RefusalKind::Conflict, format!("mount point {shown} {what}"));
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refusal::new(RefusalKind::NotFound, format!("mount point {shown} is not there"))
                .hint(format!("make it first: mkdir -p {shown}")));
        }
        Err(error) if is_dead(&error) => {
            return Err(conflict("holds a mount whose server is gone")
                .hint(format!("clear it: umount -l {shown}, or fusermount3 -uz {shown}")));
        }
        Err(error) => return Err(conflict(&format!("cannot be used: {error}"))),
        Ok(found) if !found.is_dir() => return Err(conflict("is not a directory")),
        Ok(_) => {}
    }
    if is_mounted(directory) {
        return Err(
            conflict("already has something mounted on it").hint("choose another directory, or unmount it")
        );
    }
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(conflict("is not empty").hint("choose an empty directory: a mount hides what is in it"))
        }
        Err(error) => Err(conflict(&format!("cannot be used: {error}"))),
    }
}

/// Takes away a mount whose server has died, if there is one. `true`: there was.
///
/// # Errors
/// When it is there and cannot be taken away.
pub(super) fn clear_stale(directory: &Path) -> io::Result<bool> {
    match fs::metadata(directory) {
        Err(error) if is_dead(&error) => {}
        _ => return Ok(false),
    }
    let direct = rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH);
    if direct.is_err() {
        // Without privileges only FUSE's own helper may.
        let helper = Command::new("fusermount3")
            .args(["-u", "-z", "--"])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !helper.is_ok_and(|status| status.success()) {
            return Err(direct.map_or_else(io::Error::from, |()| io::ErrorKind::Other.into()));
        }
    }
    Ok(true)
}

/// What every call on a FUSE mount says once its server is gone.
fn is_dead(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
        || error.raw_os_error() == Some(rustix::io::Errno::CONNABORTED.raw_os_error())
}

/// Whether the kernel's table has a mount on exactly this directory.
fn is_mounted(directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let Ok(table) = fs::read("/proc/self/mountinfo") else { return false };
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .any(|field| unescape(field) == directory.as_os_str().as_bytes())
}

/// The table writes blanks, line ends and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        if let Some(digits) = digits {
            bytes.push(
                digits.iter().fold(0_u8, |byte, digit| byte.wrapping_mul(8).wrapping_add(digit - b'0')),
            );
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_directory_may_be_mounted_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(check(path).is_ok());
        let refused = |path: &Path| check(path).unwrap_err().to_string();
        assert!(refused(Path::new("relative")).contains("absolute"));
        assert!(refused(&path.join("missing")).contains("is not there"));
        fs::write(path.join("file"), "").unwrap();
        assert!(refused(&path.join("file")).contains("not a directory"));
        assert!(refused(path).contains("is not empty"));
        assert!(refused(Path::new("/proc")).contains("already has something mounted"));
    }

    #[test]
    fn the_kernels_table_is_read_with_its_escapes() {
        assert_eq!(unescape(br"/a\040b\134c\011"), b"/a b\\c\t");
        assert_eq!(unescape(br"/plain\9\04"), br"/plain\9\04");
    }

    #[test]
    fn a_directory_without_a_dead_mount_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!clear_stale(dir.path()).unwrap());
        assert!(!clear_stale(&dir.path().join("missing")).unwrap());
    }
}
