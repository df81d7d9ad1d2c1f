//! The trees: made from a seed, so that they are the same on every machine and in every run.

use crate::common::Dice;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// 10 000 files of about 4 KB in 100 directories.
    Small,
    /// One file of 500 MB that cannot be compressed.
    Large,
    /// 150 000 entries: 130 000 files of up to 4 KiB, about 14 400 directories, symbolic links.
    Many,
    /// 175 MB like the root of a small Debian: see [`ROOT_SIZES`].
    Root,
    /// 50 000 files in one directory.
    Wide,
    /// 70 Python packages of 50 modules each, compiled.
    Python,
}

/// What was made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// Every regular file, relative to the root, in the order of a walk.
    pub(crate) files: Vec<CString>,
    /// Directories and symbolic links.
    pub(crate) others: Vec<CString>,
    /// Bytes in all files.
    pub(crate) bytes: u64,
}

impl Made {
    /// Files, directories and links.
    pub(crate) fn entries(&self) -> usize {
        self.files.len() + self.others.len()
    }
}

/// Sizes of the 5 728 files of Debian 12's packages of priority required and important (100 MB), as quantiles: share,
/// bytes. In between, sizes are interpolated by their logarithm.
const ROOT_SIZES: [(f64, f64); 18] = [
    (0.0, 6.0),
    (0.01, 92.0),
    (0.05, 235.0),
    (0.1, 498.0),
    (0.2, 703.0),
    (0.3, 1_039.0),
    (0.4, 1_493.0),
    (0.5, 2_032.0),
    (0.6, 2_839.0),
    (0.7, 4_993.0),
    (0.8, 14_560.0),
    (0.9, 36_459.0),
    (0.95, 69_417.0),
    (0.98, 155_216.0),
    (0.99, 225_649.0),
    (0.995, 353_616.0),
    (0.999, 982_880.0),
    (1.0, 3_804_432.0),
];
/// Directories and symbolic links a file there: 844 and 760.
const ROOT_DIRECTORIES: f64 = 0.147;
const ROOT_LINKS: f64 = 0.133;
/// Packages of the Python tree, and modules in each, `__init__` included.
pub(crate) const PACKAGES: usize = 70;
pub(crate) const MODULES: usize = 50;
/// Files above this look like programs, half of them incompressible; below like text.
const TEXT_MAX: usize = 16 << 10;
const POOL_BYTES: usize = 1 << 20;
const PIECE: usize = 4 << 10;
/// All files were changed in the same week.
const MTIME_S: u64 = 1_700_000_000;

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
            Self::Many => "many",
            Self::Root => "root",
            Self::Wide => "wide",
            Self::Python => "python",
        }
    }

    /// Makes the tree at `root`, with `scale` times the entries or bytes that its name promises.
    pub(crate) fn make(self, root: &Path, scale: f64) -> Made {
        let mut builder = Builder::new(root, 0x5eed_0004 + self as u64);
        let scaled = |count: usize| part(count, scale).max(1);
        match self {
            Self::Small => builder.small(scaled(10_000)),
            Self::Large => builder.large(scaled(500_000_000)),
            Self::Many => builder.many(scaled(130_000), scaled(600), scaled(5_575)),
            Self::Root => builder.root(scaled(175_000_000) as u64),
            Self::Wide => builder.wide(scaled(50_000)),
            Self::Python => builder.python(scaled(PACKAGES)),
        }
        builder.made
    }
}

/// A number below `bound`.
fn index(dice: &mut Dice, bound: usize) -> usize {
    usize::try_from(dice.below(bound as u64)).expect("below a usize")
}

/// As many as this share of `count`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between zero and a few hundred million"
)]
fn part(count: usize, share: f64) -> usize {
    (count as f64 * share) as usize
}

struct Builder<'a> {
    root: &'a Path,
    dice: Dice,
    /// Text of invented words, which compresses as text does.
    pool: Vec<u8>,
    made: Made,
}

impl<'a> Builder<'a> {
    fn new(root: &'a Path, seed: u64) -> Self {
        fs::create_dir_all(root).unwrap();
        let mut dice = Dice(seed);
        let words: Vec<Vec<u8>> = (0..2_000)
            .map(|_| {
                let len = 2 + dice.below(8);
                (0..len).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[index(&mut dice, 26)]).collect()
            })
            .collect();
        let mut pool = Vec::with_capacity(POOL_BYTES + 16);
        while pool.len() < POOL_BYTES {
            // The first words are the frequent ones.
            let bound = index(&mut dice, words.len()) + 1;
            pool.extend_from_slice(&words[index(&mut dice, bound)]);
            pool.push(if dice.below(12) == 0 { b'\n' } else { b' ' });
        }
        Self { root, dice, pool, made: Made::default() }
    }

    fn below(&mut self, bound: usize) -> usize {
        index(&mut self.dice, bound)
    }

    fn share(&mut self) -> f64 {
        self.dice.below(1 << 32) as f64 / (1_u64 << 32) as f64
    }

    fn directory(&mut self, path: &str) {
        fs::create_dir(self.at(path)).unwrap();
        self.made.others.push(CString::new(path).unwrap());
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn file(&mut self, path: &str, bytes: &[u8]) {
        let mut file = File::create_new(self.at(path)).unwrap();
        file.write_all(bytes).unwrap();
        self.finish(path, &file, bytes.len());
    }

    /// Sets the time of a file that was written, and notes it.
    fn finish(&mut self, path: &str, file: &File, len: usize) {
        let age = Duration::from_secs(MTIME_S + self.made.files.len() as u64);
        file.set_modified(SystemTime::UNIX_EPOCH + age).unwrap();
        self.made.files.push(CString::new(path).unwrap());
        self.made.bytes += len as u64;
    }

    fn link(&mut self, path: &str, target: &str) {
        symlink(target, self.at(path)).unwrap();
        self.made.others.push(CString::new(path).unwrap());
    }

    /// Bytes that no other file has.
    fn content(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = format!("{:016x}\n", self.made.files.len()).into_bytes();
        let is_text = len <= TEXT_MAX;
        while bytes.len() < len {
            let from = self.below(self.pool.len() - TEXT_MAX);
            if is_text {
                bytes.extend_from_slice(&self.pool[from..from + len]);
            } else {
                bytes.extend_from_slice(&self.pool[from..from + PIECE]);
                let noise = self.dice.bytes(PIECE);
                bytes.extend_from_slice(&noise);
            }
        }
        bytes.truncate(len);
        bytes
    }

    fn small(&mut self, files: usize) {
        let each = files.div_ceil(100);
        for number in 0..files {
            let directory = format!("d{:02}", number / each);
            if number % each == 0 {
                self.directory(&directory);
            }
            let len = 2_048 + self.below(4_096);
            let bytes = self.content(len);
            self.file(&format!("{directory}/f{number:05}"), &bytes);
        }
    }

    fn large(&mut self, len: usize) {
        let mut file = File::create_new(self.at("large")).unwrap();
        let mut left = len;
        while left > 0 {
            let piece = self.dice.bytes(left.min(4 << 20));
            file.write_all(&piece).unwrap();
            left -= piece.len();
        }
        self.finish("large", &file, len);
    }

    /// A few full directories and many with a handful of files, three deep.
    fn many(&mut self, files: usize, middles: usize, links: usize) {
        let (tops, leaves) = (25, middles * 23);
        for top in 0..tops.min(middles) {
            self.directory(&format!("a{top:02}"));
        }
        let middle = |number: usize| format!("a{:02}/b{:03}", number % tops, number / tops);
        (0..middles).for_each(|number| self.directory(&middle(number)));
        let leaf = |number: usize| format!("{}/c{:03}", middle(number % middles), number / middles);
        (0..leaves).for_each(|number| self.directory(&leaf(number)));
        for number in 0..files {
            let share = self.share();
            let directory = leaf(part(leaves, share * share).min(leaves - 1));
            let len = self.below(4_096);
            let bytes = self.content(len);
            self.file(&format!("{directory}/file-{number}"), &bytes);
        }
        for number in 0..links {
            let of = self.below(leaves);
            self.link(&format!("{}/link-{number}", leaf(of)), "../nearby");
        }
        self.made.files.sort();
    }

    fn root(&mut self, bytes: u64) {
        let mut directories = vec![String::from("usr"), String::from("etc"), String::from("var")];
        for directory in directories.clone() {
            self.directory(&directory);
        }
        let mut number = 0;
        while self.made.bytes < bytes {
            number += 1;
            if self.share() < ROOT_DIRECTORIES {
                let parent = self.below(directories.len());
                let depth = directories[parent].matches('/').count();
                let parent = if depth < 6 { &directories[parent] } else { &directories[0] };
                let new = format!("{parent}/dir{number}");
                self.directory(&new);
                directories.push(new);
            }
            // Young directories are filled first, as packages are unpacked one by one.
            let bound = self.below(directories.len()) + 1;
            let directory = directories[directories.len() - 1 - self.below(bound)].clone();
            let share = self.share();
            let len = root_size(share);
            let content = self.content(len);
            let path = format!("{directory}/file{number}");
            self.file(&path, &content);
            if number % 8 == 0 {
                fs::set_permissions(self.at(&path), fs::Permissions::from_mode(0o755)).unwrap();
            }
            if self.share() < ROOT_LINKS {
                self.link(&format!("{directory}/lib{number}.so"), &format!("file{number}"));
            }
        }
        self.made.files.sort();
    }

    fn wide(&mut self, files: usize) {
        self.directory("wide");
        for number in 0..files {
            let len = self.below(600);
            let bytes = self.content(len);
            self.file(&format!("wide/entry-{number:06}.dat"), &bytes);
        }
    }

    fn python(&mut self, packages: usize) {
        for package in 0..packages {
            self.directory(&format!("p{package:02}"));
            for module in 0..MODULES {
                let name = if module == 0 { "__init__".to_owned() } else { format!("m{module:02}") };
                let source = self.module();
                self.file(&format!("p{package:02}/{name}.py"), source.as_bytes());
            }
        }
        let start = format!(
            "import importlib, sys\n\
             for package in range({packages}):\n    importlib.import_module(f'p{{package:02}}')\n    \
             for module in range(1, {MODULES}):\n        importlib.import_module(f'p{{package:02}}.m{{module:02}}')\n\
             print(sum(1 for name in sys.modules if name[0] == 'p' and name[1:3].isdigit()))\n"
        );
        fs::write(self.at("start.py"), start).unwrap();
        if crate::work::has_program("python3") {
            // As an installed package has it; the names inside must not tell where it was made.
            let compiled = Command::new("python3")
                .args(["-m", "compileall", "-q", "-p", "/", "-s"])
                .args([self.root, self.root])
                .status();
            assert!(compiled.unwrap().success(), "the modules compile");
        }
    }

    /// A module of about 2 KB.
    fn module(&mut self) -> String {
        let mut source = String::from("\"\"\"A generated module.\"\"\"\n");
        for number in 0..6 {
            let from = self.below(self.pool.len() - 200);
            let words = String::from_utf8_lossy(&self.pool[from..from + 150]).replace('\n', " ");
            let constant = self.dice.next();
            source.push_str(&format!(
                "\nLIMIT_{number} = {constant}\n\n\ndef function_{number}(first, second=LIMIT_{number}):\n    \
                 \"\"\"{words}\"\"\"\n    if first > second:\n        return [first - second, '{number}']\n    \
                 return {{'sum': first + second}}\n"
            ));
        }
        source
    }
}

/// The size of a file of a Debian root: the quantile `share`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size below 4 MB")]
fn root_size(share: f64) -> usize {
    let above =
        ROOT_SIZES.iter().position(|(upper, _)| share < *upper).unwrap_or(ROOT_SIZES.len() - 1).max(1);
    let ((low, small), (high, large)) = (ROOT_SIZES[above - 1], ROOT_SIZES[above]);
    let at = (share - low) / (high - low);
    (small.ln() + at * (large.ln() - small.ln())).exp() as usize
}
