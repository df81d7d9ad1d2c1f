//! What stands where in which revision: a pure function, so that readers can be checked against all revisions that they may see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Names of the directory whose listing takes several requests.
const NAMES: u64 = 150;
/// Time stamps count from here, in seconds.
const EPOCH_S: u64 = 1_700_000_000;
/// Length of a line of a file, in bytes.
const LINE_BYTES: usize = 48;

/// What stands at a path, or was seen there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Nothing,
    Directory,
    Link(String),
    /// A file of the revision `stamp`, which its time says, too.
    File {
        key: String,
        stamp: u64,
        len: usize,
    },
}

/// All of one revision: path -> what stands there. A file with the key of another path is a further name of that one.
pub(crate) type State = BTreeMap<String, What>;

/// The tree of a revision.
pub(crate) fn state(revision: u64) -> State {
    let mut found = State::new();
    let mut put = |path: &str, what: What| {
        for (at, _) in path.match_indices('/') {
            found.insert(path[..at].to_owned(), What::Directory);
        }
        found.insert(path.to_owned(), what);
    };
    let file = |key: &str, stamp: u64, len: u64| What::File {
        key: key.to_owned(),
        stamp,
        len: usize::try_from(len).unwrap(),
    };
    // When what changes every so many revisions changed last.
    let since = |period: u64| revision - revision % period;
    for number in 0..6 {
        let path = format!("often/f{number}");
        put(&path, file(&path, revision, 200 + 900 * number + revision % 7 * 100));
    }
    put("often/twin", file("often/f0", revision, 200 + revision % 7 * 100));
    for period in 2..9 {
        let path = format!("seldom/every-{period}");
        put(&path, file(&path, since(period), 3_000 * period + since(period) % 11 * 10));
    }
    // Large enough to be read by the kernel itself, where they live for long enough.
    for (period, len) in [(1, 140_000), (4, 300_000), (15, 400_000), (1_000, 500_000)] {
        let path = format!("large/every-{period}");
        put(&path, file(&path, since(period), len + since(period) % 5 * 1_000));
    }
    // Each name says of which revision the listing is.
    for number in 0..NAMES {
        put(&format!("names/{number:03}-of-{revision}"), file("name", 0, 10 + number));
    }
    // The same content elsewhere.
    let place = ["here", "there", "elsewhere"][usize::try_from(revision % 3).unwrap()];
    put(&format!("moved/{place}"), file("moves", 0, 5_000));
    for name in ["a", "b", "inner/c"] {
        put(&format!("room-{}/{name}", revision % 2), file(name, 0, 1_500));
    }
    // What comes and goes.
    for number in 0..8 {
        if (revision >> (number / 2)) & 1 == number & 1 {
            put(&format!("some/x{number}"), file("x", number, 700));
        }
    }
    put("some/stays", file("stays", 0, 70));
    for number in 0..3 {
        if (revision / (number + 2)).is_multiple_of(2) {
            put(&format!("halls/h{number}/new"), file("new", revision, 2_000));
            put(&format!("halls/h{number}/old"), file("old", 0, 2_000));
        }
    }
    put("halls/stays", file("stays", 0, 80));
    match revision % 3 {
        0 => put("kind", file("kind", revision, 300)),
        1 => put("kind/inside", file("inside", revision, 300)),
        _ => put("kind", What::Link("often/f0".into())),
    }
    put("to", What::Link(format!("often/f{}", revision % 6)));
    put("says", What::Link(format!("revision {revision}")));
    found
}

/// The bytes of a file: each line says of which file and revision it is.
pub(crate) fn content(key: &str, stamp: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + LINE_BYTES);
    while bytes.len() < len {
        let at = bytes.len();
        writeln!(bytes, "{key:>20} of {stamp:>8} at {at:>10}").unwrap();
    }
    bytes.truncate(len);
    bytes
}

/// The stamp that a modification time tells.
pub(crate) fn stamp_of(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap() - EPOCH_S
}

/// Makes the tree at `tree`, which shows `before`, show `next`.
pub(crate) fn become_next(tree: &Path, before: &State, next: &State) {
    for (path, was) in before.iter().rev() {
        if next.get(path) == Some(was) {
            continue;
        }
        match was {
            What::Directory => fs::remove_dir(tree.join(path)).unwrap(),
            _ => fs::remove_file(tree.join(path)).unwrap(),
        }
    }
    for (path, is) in next {
        if before.get(path) == Some(is) {
            continue;
        }
        let at = tree.join(path);
        match is {
            What::Nothing => unreachable!("nothing stands nowhere"),
            What::Directory => fs::create_dir(at).unwrap(),
            What::Link(target) => symlink(target, at).unwrap(),
            What::File { key, .. } if next.contains_key(key) && key != path => {
                fs::hard_link(tree.join(key), at).unwrap();
            }
            What::File { key, stamp, len } => {
                let mut file = File::create(at).unwrap();
                file.write_all(&content(key, *stamp, *len)).unwrap();
                let time = UNIX_EPOCH + Duration::from_secs(EPOCH_S + stamp);
                file.set_times(FileTimes::new().set_modified(time)).unwrap();
            }
        }
    }
}

/// All revisions that are to come.
pub(crate) struct Story {
    states: Vec<State>,
}

impl Story {
    pub(crate) fn of(revisions: u64) -> Self {
        Self { states: (0..=revisions).map(state).collect() }
    }

    pub(crate) fn last(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    pub(crate) fn state(&self, revision: u64) -> &State {
        &self.states[usize::try_from(revision).unwrap()]
    }

    /// What stands at `path`.
    pub(crate) fn at(&self, revision: u64, path: &str) -> &What {
        self.state(revision).get(path).unwrap_or(&What::Nothing)
    }

    /// The names in a directory.
    pub(crate) fn names(&self, revision: u64, directory: &str) -> BTreeSet<String> {
        let below = format!("{directory}/");
        let inside = self.state(revision).range(below.clone()..);
        let inside = inside.map_while(|(path, _)| path.strip_prefix(&below));
        inside.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    }

    /// The first revision of `window` in which `path` is as it was seen.
    pub(crate) fn shows(&self, window: RangeInclusive<u64>, path: &str, seen: &What) -> Option<u64> {
        window.into_iter().find(|revision| {
            let is = self.at(*revision, path);
            match (is, seen) {
                // Of which file it is its bytes say.
                (What::File { stamp, len, .. }, What::File { stamp: seen, len: long, .. }) => {
                    (stamp, len) == (seen, long)
                }
                _ => is == seen,
            }
        })
    }
}
