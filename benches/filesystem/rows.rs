//! The rows of the table, and how a row is measured.

use crate::Options;
use crate::table::{Cell, Outcome, Summary};
use crate::trees::{Kind, Made};
use crate::work::{Done, Work};
use crate::world::{Column, World, drop_caches};
use starling::ambient::now;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Fewest pairs of a row that takes long.
const PAIRS_MIN: usize = 5;

/// In what state the caches are before each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything was done before: all caches are hot.
    Warm,
    /// The kernel's page cache, dentries and inodes are dropped, the agents' cache files thereby as well.
    Dropped,
    /// As dropped, and the agent was started with an empty cache. Compared with the native tree, dropped.
    Empty,
    /// Hot, but nobody asked for anything for a minute.
    Idle,
    /// The repository was mounted just now, the kernel's caches dropped before; the agent's cache holds everything.
    First,
    /// The mount itself is measured: an agent with an empty cache, the kernel's caches dropped.
    Mount,
}

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Time over native time.
    Ratio,
    Seconds,
}

impl Unit {
    pub(crate) fn sign(self) -> &'static str {
        if self == Self::Seconds { " s" } else { "" }
    }

    pub(crate) fn name(self) -> &'static str {
        if self == Self::Seconds { "seconds" } else { "time over native time" }
    }
}

/// What is done in a row; the parts that depend on the tree are filled in when it is made.
#[derive(Clone, Copy, Debug)]
enum Task {
    OpenRead,
    Sequential,
    Random,
    Find,
    Lstat,
    Tar,
    List { xattrs: bool },
    Start,
    Mount,
}

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) tree: Kind,
    task: Task,
    state: State,
    pub(crate) unit: Unit,
    /// What CernVM-FS 2.12 took on such a machine.
    pub(crate) cernvm: &'static str,
    /// Most that is allowed, by profile. A profile that is not named has no limit.
    limits: &'static [(&'static str, f64)],
}

impl Row {
    pub(crate) fn limit(&self, profile: &str) -> Option<f64> {
        self.limits.iter().find(|(of, _)| *of == profile).map(|(_, limit)| *limit)
    }
}

const fn row(
    (key, title): (&'static str, &'static str),
    (tree, task, state): (Kind, Task, State),
    cernvm: &'static str,
    limits: &'static [(&'static str, f64)],
) -> Row {
    let unit = if matches!(state, State::Mount) { Unit::Seconds } else { Unit::Ratio };
    Row { key, title, tree, task, state, unit, cernvm, limits }
}

/// All rows, by tree; in a tree those with an empty cache last. Figures and limits are those of the project's promise.
pub(crate) static ROWS: [Row; 20] = [
    row(
        ("small-warm", "10 000 small files open+read+close, warm"),
        (Kind::Small, Task::OpenRead, State::Warm),
        "11.8",
        &[("auto", 4.0), ("small-files", 1.5)],
    ),
    row(
        ("small-dropped", "10 000 small files, dropped"),
        (Kind::Small, Task::OpenRead, State::Dropped),
        "2.3",
        &[("auto", 1.2)],
    ),
    row(
        ("small-empty", "10 000 small files, empty cache"),
        (Kind::Small, Task::OpenRead, State::Empty),
        "7.5",
        &[("auto", 2.5)],
    ),
    row(
        ("sequential-warm", "500 MB sequential, warm"),
        (Kind::Large, Task::Sequential, State::Warm),
        "1.0-2.9",
        &[("auto", 1.05)],
    ),
    row(
        ("sequential-dropped", "500 MB sequential, dropped"),
        (Kind::Large, Task::Sequential, State::Dropped),
        "2.6",
        &[("auto", 1.2)],
    ),
    row(
        ("random-warm", "4 KiB random reads, warm"),
        (Kind::Large, Task::Random, State::Warm),
        "1.0",
        &[("auto", 1.2)],
    ),
    row(
        ("random-dropped", "4 KiB random reads, dropped"),
        (Kind::Large, Task::Random, State::Dropped),
        "1.5",
        &[("auto", 1.2)],
    ),
    row(
        ("sequential-empty", "500 MB sequential, empty cache"),
        (Kind::Large, Task::Sequential, State::Empty),
        "4.4",
        &[("auto", 2.0)],
    ),
    row(
        ("find-warm", "find + stat of 130 000 files, warm"),
        (Kind::Many, Task::Find, State::Warm),
        "6.2",
        &[("auto", 1.0)],
    ),
    row(
        ("find-dropped", "find + stat of 130 000 files, dropped"),
        (Kind::Many, Task::Find, State::Dropped),
        "3.1",
        &[("auto", 1.0)],
    ),
    row(
        ("lstat-idle", "lstat of 150 000 entries after 60 s of idling"),
        (Kind::Many, Task::Lstat, State::Idle),
        "9-17",
        &[("auto", 1.2)],
    ),
    row(
        ("find-empty", "find + stat of 130 000 files, empty cache"),
        (Kind::Many, Task::Find, State::Empty),
        "3.8",
        &[("auto", 1.2)],
    ),
    row(
        ("tar-warm", "tar of a 175 MB root, warm"),
        (Kind::Root, Task::Tar, State::Warm),
        "4.0",
        &[("auto", 1.7), ("small-files", 1.2)],
    ),
    row(
        ("tar-dropped", "tar of a 175 MB root, dropped"),
        (Kind::Root, Task::Tar, State::Dropped),
        "1.7",
        &[("auto", 1.2)],
    ),
    row(
        ("tar-empty", "tar of a 175 MB root, empty cache"),
        (Kind::Root, Task::Tar, State::Empty),
        "6.8",
        &[("auto", 2.5)],
    ),
    row(
        ("mount-list", "mount to first ls, cold"),
        (Kind::Root, Task::Mount, State::Mount),
        "0.18 s",
        &[("auto", 0.05)],
    ),
    row(
        ("list-first", "ls -l of 50 000 entries, first time"),
        (Kind::Wide, Task::List { xattrs: true }, State::First),
        "-",
        &[("auto", 1.0)],
    ),
    row(
        ("list-first-plain", "ls -l without its two xattr questions, first"),
        (Kind::Wide, Task::List { xattrs: false }, State::First),
        "-",
        &[],
    ),
    row(
        ("list-warm", "ls -l of 50 000 entries, warm"),
        (Kind::Wide, Task::List { xattrs: true }, State::Warm),
        "-",
        &[],
    ),
    row(
        ("start-warm", "start of a program with 3 500 small files, warm"),
        (Kind::Python, Task::Start, State::Warm),
        "-",
        &[("auto", 1.3), ("small-files", 1.1)],
    ),
];

fn work(task: Task, state: State, made: &Made) -> Work {
    match task {
        Task::OpenRead => Work::OpenRead(made.files.clone()),
        Task::Sequential => Work::Sequential(made.files[0].clone()),
        Task::Random => Work::random(made, state == State::Warm),
        // Of the mount nothing is done but what `World` does itself.
        Task::Find | Task::Mount => Work::Find,
        Task::Lstat => {
            let mut paths = [made.files.clone(), made.others.clone()].concat();
            paths.sort();
            Work::Lstat(paths)
        }
        Task::Tar => Work::Tar,
        Task::List { xattrs } => Work::List { xattrs },
        Task::Start => Work::start(made),
    }
}

/// The runs of one side, a pair each.
#[derive(Default)]
struct Runs {
    seconds: Vec<f64>,
    obtained: Option<(f64, f64)>,
}

/// Measures a row in all columns. `None` where a program is missing that it needs.
pub(crate) fn measure(row: &'static Row, world: &mut World, options: &Options) -> Option<Outcome> {
    if matches!(row.task, Task::Tar) && !crate::work::has_program("tar") {
        return None;
    }
    if row.state == State::Mount {
        return Some(measure_mount(row, world, options));
    }
    let work = work(row.task, row.state, &world.made);
    if matches!(work, Work::StartImitated(_)) {
        println!("there is no python3: start-warm asks for attributes and reads, without a program");
    }
    if row.state != State::Empty {
        world.fill();
    }
    let expected = work.run(&world.tree);
    if matches!(row.state, State::Warm | State::Idle) {
        // Neither side has anything of how its pages came to the cache: files that were just written lie there in other pieces.
        drop_caches();
        // Twice: what was found in the cache is verified the first time.
        for _ in 0..2 {
            assert_eq!(work.run(&world.tree), expected, "the tree changes");
            (0..world.columns.len()).for_each(|column| check(&work, &expected, &world.mount_point(column)));
        }
    }
    let sides = world.columns.len() + 1;
    let mut runs: Vec<Runs> = (0..sides).map(|_| Runs::default()).collect();
    let mut pairs = 0;
    let begun = now();
    while pairs < options.pairs
        && (pairs < PAIRS_MIN.min(options.pairs) || now().since(begun).as_secs_f64() < options.seconds)
    {
        if row.state == State::Idle {
            std::thread::sleep(Duration::from_secs(options.idle_s));
        }
        for turn in 0..sides {
            // Who comes first changes from pair to pair. Side 0 is the native tree.
            let side = (turn + pairs) % sides;
            let root = prepare(row.state, side, &work, world);
            let began = now();
            let done = work.run(&root);
            runs[side].seconds.push(now().since(began).as_secs_f64());
            assert_eq!(done, expected, "{}: {} is not the native tree", row.key, root.display());
            if row.state == State::Empty && side > 0 {
                runs[side].obtained = Some(world.obtained(side - 1));
            }
        }
        pairs += 1;
    }
    let native = runs.remove(0).seconds;
    let cells = runs.iter().zip(&world.columns).map(|(runs, column)| {
        let ratios: Vec<f64> = runs.seconds.iter().zip(&native).map(|(ours, native)| ours / native).collect();
        Cell {
            column: column.name.clone(),
            figure: Summary::of(&ratios),
            ours_s: runs.seconds.clone(),
            obtained: runs.obtained,
        }
    });
    Some(Outcome { row, pairs, cells: cells.collect(), native_s: native })
}

fn check(work: &Work, expected: &Done, root: &Path) {
    assert_eq!(work.run(root), *expected, "{} is not the native tree", root.display());
}

/// Brings caches and mount into the row's state before a run of `side`; where it runs.
fn prepare(state: State, side: usize, work: &Work, world: &mut World) -> PathBuf {
    let column = side.checked_sub(1);
    match (state, column) {
        (State::Warm | State::Idle | State::Mount, _) => {}
        (State::Empty, Some(column)) => {
            world.empty(column);
            world.mount_bare(column);
        }
        (State::First, Some(column)) => world.mount_again(column),
        (State::Dropped, _) | (State::Empty | State::First, None) => {
            drop_caches();
            world.rest();
        }
    }
    if let Some(program) = work.program().filter(|_| state != State::Warm) {
        let run = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        assert!(run.is_ok_and(|status| status.success()), "{program} runs");
    }
    column.map_or_else(|| world.tree.clone(), |column| world.mount_point(column))
}

/// Seconds from `starling mount` to the end of the first listing.
fn measure_mount(row: &'static Row, world: &mut World, options: &Options) -> Outcome {
    let mut runs: Vec<Runs> = world.columns.iter().map(|_| Runs::default()).collect();
    let begun = now();
    let mut pairs = 0;
    while pairs < options.pairs
        && (pairs < PAIRS_MIN.min(options.pairs) || now().since(begun).as_secs_f64() < options.seconds)
    {
        for (column, runs) in runs.iter_mut().enumerate() {
            world.empty(column);
            runs.seconds.push(world.mount_to_first_list(column));
            runs.obtained = Some(world.obtained(column));
        }
        pairs += 1;
    }
    let cells = runs.iter().zip(&world.columns).map(|(runs, Column { name, .. })| {
        let figure = Summary::of(&runs.seconds);
        Cell { column: name.clone(), figure, ours_s: runs.seconds.clone(), obtained: runs.obtained }
    });
    Outcome { row, pairs, cells: cells.collect(), native_s: Vec::new() }
}
