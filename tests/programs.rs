//! Proves that real programs say of a mount what they say of the tree that was published: git, Python, cargo, editors, and those that
//! copy and compare.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, at_fingerprint, can_mount, make_tree, publish, skipped};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Commits of the repository.
const COMMITS: u64 = 300;
const REPOSITORY: &str = "programs.test";

/// Whether a program is installed.
fn is_there(program: &str) -> bool {
    Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap().status.success()
}

/// Whether a test can mount, and has what it needs.
fn can_run(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        if !is_there(program) {
            skipped(test, &format!("it needs {program}"));
            return false;
        }
    }
    can_mount(test)
}

/// Whether a program is installed that a test does without, saying so, even where everything else is required.
fn has(test: &str, program: &str) -> bool {
    let is_there = is_there(program);
    if !is_there {
        eprintln!("skipped: {test}: the part with {program}, which is not installed");
    }
    is_there
}

/// A tree, the same through a mount of each profile, and a folder to write to.
struct World {
    tree: PathBuf,
    mounts: Vec<PathBuf>,
    scratch: PathBuf,
    node: Node,
    _stratum: Stratum,
    _base: TempDir,
}

impl World {
    fn new(make: impl FnOnce(&Path)) -> Self {
        let base = tempfile::tempdir().unwrap();
        let (tree, to, scratch) =
            (base.path().join("tree"), base.path().join("to"), base.path().join("scratch"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&scratch).unwrap();
        make(&tree);
        let made = publish(&tree, REPOSITORY, &to, &base.path().join("keys"), &[]);
        let stratum = Stratum::serve(&to, base.path());
        let mut node = Node::new(base.path().join("node"));
        node.start();
        node.add_repository(&at_fingerprint(&made), &stratum.url);
        let mounts = ["small-files", "large-files"]
            .map(|profile| node.mount_with(REPOSITORY, profile, &["--profile", profile]))
            .to_vec();
        Self { tree, mounts, scratch, node, _stratum: stratum, _base: base }
    }

    /// A folder that did not exist.
    fn fresh(&self, name: &str) -> PathBuf {
        let at = (0..).map(|number| self.scratch.join(format!("{name}{number}"))).find(|at| !at.exists());
        let at = at.unwrap();
        fs::create_dir(&at).unwrap();
        at
    }

    /// What a program says of the tree, which it must say of each mount, too.
    fn same(&self, what: &str, run: impl Fn(&Path) -> String) -> String {
        let expected = run(&self.tree);
        // The second time, the kernel answers from its memory.
        for at in self.mounts.iter().chain(&self.mounts) {
            let found = run(at);
            let different = expected.lines().zip(found.lines()).find(|(should, is)| should != is);
            assert!(
                expected == found,
                "{what} at {}: the first difference is {different:?}\n--- of the tree\n{expected}\n--- of the mount\n{found}",
                at.display()
            );
        }
        expected
    }

    /// As [`Self::same`], for a line of a shell, which must succeed.
    fn same_of(&self, script: &str) -> String {
        self.same(script, |at| said_well(Command::new("sh").args(["-ec", script]).current_dir(at), at))
    }

    fn end(mut self) {
        for at in self.mounts.clone() {
            self.node.umount(&at);
        }
        assert_eq!(self.node.metric("starling_read_errors_total"), 0.0);
        self.node.stop();
    }
}

/// What a program said, without what depends on where and when it ran.
fn said(command: &mut Command, at: &Path) -> (bool, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let mut all = String::new();
    for stream in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(stream).lines() {
            let line = line.replace(at.to_str().unwrap(), "HERE");
            let timed = line.rfind(" in ").filter(|_| line.ends_with('s'));
            let is_timed = timed.is_some_and(|from| {
                line[from + 4..line.len() - 1].chars().all(|c| c.is_ascii_digit() || c == '.')
            });
            writeln!(all, "{}", timed.filter(|_| is_timed).map_or(&*line, |from| &line[..from])).unwrap();
        }
        all.push_str("--\n");
    }
    (output.status.success(), all)
}

/// As [`said`], of a program that must succeed.
fn said_well(command: &mut Command, at: &Path) -> String {
    let (is_well, all) = said(command, at);
    assert!(is_well, "{command:?} failed:\n{all}");
    all
}

/// A shell that must succeed.
fn sh(at: &Path, script: &str) {
    said_well(isolated(Command::new("sh").args(["-ec", script])).current_dir(at), at);
}

/// Has git look at no settings but its own, and write nothing by the way.
fn isolated(command: &mut Command) -> &mut Command {
    for (key, value) in [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_OPTIONAL_LOCKS", "0"),
        ("GIT_PAGER", "cat"),
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
    ] {
        command.env(key, value);
    }
    command
}

/// A history for `git fast-import`: files in several folders that are changed, renamed and removed, and a branch that is merged.
fn history() -> String {
    let mut all = String::new();
    let person =
        |number: u64| format!("Somebody <somebody@example.org> {} +0000", 1_700_000_000 + number * 60);
    let data = |text: &str| format!("data {}\n{text}\n", text.len());
    for number in 1..=COMMITS {
        let branch = if number % 7 == 0 { "side" } else { "main" };
        writeln!(all, "commit refs/heads/{branch}\nmark :{number}\ncommitter {}", person(number)).unwrap();
        all += &data(&format!("Change {number}\n\nWhat it is good for."));
        if number == 7 {
            all += "from :6\n";
        }
        if number % 50 == 1 && number > 50 {
            writeln!(all, "merge :{}", (number - 1) / 7 * 7).unwrap();
        }
        let text: String = (0..60)
            .map(|line| format!("line {line}, changed by {}\n", number.saturating_sub((number + line) % 5)))
            .collect();
        let path = format!("src/part{}/file{}.txt", number % 6, number % 40);
        write!(all, "M 100644 inline {path}\n{}", data(&text)).unwrap();
        if number % 25 == 0 {
            write!(all, "M 100755 inline tools/run{number}\n{}", data("#!/bin/sh\necho run\n")).unwrap();
            write!(all, "M 120000 inline current\n{}", data(&path)).unwrap();
        }
        if number % 100 == 60 {
            writeln!(all, "R tools/run{} tools/old{number}", number - 10).unwrap();
        }
    }
    write!(all, "tag first\nfrom :9\ntagger {}\n{}", person(9), data("The first")).unwrap();
    all
}

#[test]
fn git_shows_the_same_state_and_history() {
    if !can_run("programs_git", &["git"]) {
        return;
    }
    let world = World::new(|tree| {
        sh(tree, "git init -q -b main .");
        let mut import = Command::new("git");
        isolated(&mut import).args(["fast-import", "--quiet"]).current_dir(tree).stdin(Stdio::piped());
        let mut import = import.spawn().unwrap();
        import.stdin.take().unwrap().write_all(history().as_bytes()).unwrap();
        assert!(import.wait().unwrap().success());
        sh(tree, "git reset -q --hard && git branch old HEAD~100");
        // Loose objects beside the pack, and a state that has something of everything.
        let change = "git config user.name Me && git config user.email me@example.org
            echo more >>src/part1/file1.txt && git commit -qam 'By hand' && git stash list
            echo staged >>src/part2/file2.txt && git add src/part2/file2.txt
            echo unstaged >>src/part3/file3.txt
            git rm -q --cached src/part4/file4.txt
            rm src/part5/file5.txt
            git mv tools/run25 tools/moved
            mkdir untracked && echo x >untracked/file && echo '*.o' >.gitignore && echo o >ignored.o";
        sh(tree, change);
    });
    let git = |what: &str| {
        let args: Vec<&str> = what.split(' ').collect();
        world.same(&format!("git {what}"), |at| {
            said_well(isolated(Command::new("git").args(&args)).current_dir(at), at)
        })
    };
    let status = git("status");
    for part in ["renamed", "modified", "deleted", "Untracked", "untracked/"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    git("status --porcelain=v2 --branch --ignored --untracked-files=all");
    let log = git("log --stat --format=fuller");
    assert!(log.matches("\ncommit ").count() as u64 >= COMMITS * 3 / 4, "{log}");
    git("log --graph --oneline --all --decorate");
    git("log --follow --patch -- tools/old160");
    git("diff");
    git("diff --cached --stat");
    git("diff --stat old main");
    git("blame src/part1/file1.txt");
    git("grep -n changed.by.17[0-9]");
    git("ls-files --stage --eol");
    git("fsck --full --strict");
    world.same("git clone", |at| {
        let clone = world.fresh("clone");
        let script = format!("git clone -q --no-local {} . && git log --oneline && git status", at.display());
        let said = said_well(isolated(Command::new("sh").args(["-ec", &script])).current_dir(&clone), at);
        said.replace(clone.to_str().unwrap(), "CLONE")
    });
    world.end();
}

/// Where the interpreter keeps its own modules.
fn standard_library() -> Option<PathBuf> {
    let ask = "import json, os, test.test_json; print(os.path.dirname(os.path.dirname(json.__file__)))";
    let output = Command::new("python3").args(["-c", ask]).output().unwrap();
    output.status.success().then(|| PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

/// A Python that writes no bytecode unless it is told where.
fn python() -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONHASHSEED", "0").env_remove("PYTHONPYCACHEPREFIX");
    python
}

#[test]
fn python_compiles_and_runs_the_same() {
    if !can_run("programs_python", &["python3"]) {
        return;
    }
    let Some(library) = standard_library() else {
        return skipped("programs_python", "it needs the tests of Python's own modules (test.test_json)");
    };
    let world = World::new(|tree| {
        for part in ["json", "email", "test/test_json", "test/support"] {
            let to = tree.join("lib").join(part);
            fs::create_dir_all(&to).unwrap();
            sh(&library, &format!("cp -rp {part}/. {}", to.display()));
        }
        sh(tree, "find lib -name __pycache__ -prune -exec rm -r {} + && touch lib/test/__init__.py");
        let compiled = python().args(["-m", "compileall", "-q", "lib"]).current_dir(tree).status().unwrap();
        assert!(compiled.success());
    });
    // What is compiled is up to date: nothing is to be done, and what is imported is not compiled again.
    let compile = |more: &[&str], at: &Path| {
        let mut command = python();
        command.args(["-m", "compileall"]).args(more).arg("lib").current_dir(at);
        command
    };
    let listed = world.same("compileall", |at| said_well(&mut compile(&[], at), at));
    assert!(listed.contains("Listing 'lib/json'") && !listed.contains("Compiling"), "{listed}");
    let imported = world.same("import", |at| {
        let script = "import email.parser, json; print(json.__file__)";
        let mut command = python();
        let said = said_well(command.args(["-v", "-c", script]).env("PYTHONPATH", at.join("lib")), at);
        said.lines().filter(|line| line.contains("HERE")).fold(String::new(), |all, line| all + line + "\n")
    });
    assert!(imported.matches("matches HERE/lib/").count() > 10, "{imported}");
    // All of it compiled anew, elsewhere: the same bytecode, with the sources' times and sizes.
    world.same("compileall -f", |at| {
        let to = world.fresh("bytecode");
        let said = said_well(compile(&["-f", "-d", "lib"], at).env("PYTHONPYCACHEPREFIX", &to), at);
        let script = "find . -type f -exec sha256sum {} + | sed 's, .*/lib/, lib/,' | sort";
        assert!(said.contains("Compiling 'lib/json/decoder.py'"), "{said}");
        said + &said_well(Command::new("sh").args(["-ec", script]).current_dir(&to), at)
    });
    let tested = world.same("unittest", |at| {
        let mut command = python();
        command.args(["-m", "unittest", "-v", "test.test_json"]).env("PYTHONPATH", at.join("lib"));
        said_well(command.current_dir(world.fresh("tests")), at)
    });
    assert!(tested.contains("test_decimal") && tested.contains("\nRan "), "{tested}");
    world.end();
}

/// Packs the crate at `from` as a registry has it, into the registry at `registry`.
fn into_registry(name: &str, from: &Path, registry: &Path, dependencies: &str, scratch: &Path) {
    let script = format!(
        "cargo package -q --offline --no-verify --allow-dirty --target-dir {0} &&
         cp {0}/package/{name}-1.0.0.crate {1}/",
        scratch.display(),
        registry.display()
    );
    said_well(cargo(scratch).args(["-ec", &script]).current_dir(from), from);
    let crate_file = registry.join(format!("{name}-1.0.0.crate"));
    let sum = Command::new("sha256sum").arg(&crate_file).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let folder = registry.join("index").join(&name[..2]).join(&name[2..4]);
    fs::create_dir_all(&folder).unwrap();
    let line = format!(
        r#"{{"name":"{name}","vers":"1.0.0","deps":[{dependencies}],"cksum":"{}","features":{{}},"yanked":false}}"#,
        sum.split(' ').next().unwrap()
    );
    fs::write(folder.join(name), line + "\n").unwrap();
}

/// A shell in which cargo uses nothing of whoever runs the test but the compiler.
fn cargo(home: &Path) -> Command {
    let mut command = Command::new("sh");
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO") && name != "CARGO_BUILD_JOBS" || name.starts_with("RUSTFLAGS") {
            command.env_remove(key);
        }
    }
    command.env("CARGO_HOME", home).env("CARGO_TERM_COLOR", "never");
    command
}

#[test]
fn cargo_builds_offline_with_the_registry_on_the_mount() {
    if !can_run("programs_cargo", &["cargo", "sha256sum", "cc"]) {
        return;
    }
    let world = World::new(|tree| {
        let scratch = tempfile::tempdir().unwrap();
        let manifest = |name: &str, more: &str| {
            format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2021\"\n{more}")
        };
        let make = |at: &Path, name: &str, more: &str, file: &str, source: &str| {
            fs::create_dir_all(at.join("src")).unwrap();
            fs::write(at.join("Cargo.toml"), manifest(name, more)).unwrap();
            fs::write(at.join("src").join(file), source).unwrap();
        };
        let registry = tree.join("registry");
        fs::create_dir_all(registry.join("index")).unwrap();
        fs::create_dir_all(tree.join("program/.cargo")).unwrap();
        let config =
            "[source.crates-io]\nreplace-with = \"here\"\n[source.here]\nlocal-registry = \"../registry\"\n";
        fs::write(tree.join("program/.cargo/config.toml"), config).unwrap();
        let feather = scratch.path().join("feather");
        make(&feather, "feather", "", "lib.rs", "pub fn weight() -> u32 { 17 }\n");
        into_registry("feather", &feather, &registry, "", scratch.path());
        // Packing one that depends on another asks the registry for it.
        let wing = scratch.path().join("wing");
        let source = "pub fn weight() -> u32 { 100 * feather::weight() }\n";
        make(&wing, "wing", "[dependencies]\nfeather = \"1\"\n", "lib.rs", source);
        fs::create_dir(wing.join(".cargo")).unwrap();
        fs::write(wing.join(".cargo/config.toml"), config.replace("../registry", registry.to_str().unwrap()))
            .unwrap();
        let needs = r#"{"name":"feather","req":"^1","features":[],"optional":false,"default_features":true,"target":null,"kind":"normal"}"#;
        into_registry("wing", &wing, &registry, needs, scratch.path());
        let source = "fn main() { println!(\"a wing weighs {}\", wing::weight()); }\n";
        let program = tree.join("program");
        make(&program, "program", "build = \"build.rs\"\n[dependencies]\nwing = \"1\"\n", "main.rs", source);
        fs::write(program.join("build.rs"), "fn main() { println!(\"cargo::rerun-if-changed=src\"); }\n")
            .unwrap();
        said_well(
            cargo(scratch.path()).args(["-ec", "cargo generate-lockfile --offline"]).current_dir(&program),
            tree,
        );
    });
    let built = world.same("cargo build", |at| {
        let (home, target) = (world.fresh("cargo-home"), world.fresh("target"));
        let build = format!("cargo build --offline --locked -j1 --target-dir {}", target.display());
        // The second time, all is fresh: by the times of the files.
        let script = format!("{build} && {build} -v && {}/debug/program", target.display());
        let said = said_well(cargo(&home).args(["-ec", &script]).current_dir(at.join("program")), at);
        let said = said.replace(home.to_str().unwrap(), "HOME").replace(target.to_str().unwrap(), "TARGET");
        // What does not depend on each other is built in any order.
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    });
    assert!(built.contains("a wing weighs 1700"), "{built}");
    assert_eq!((built.matches("Compiling").count(), built.matches("Fresh").count()), (3, 3), "{built}");
    world.end();
}

#[test]
fn what_copies_and_compares_finds_no_difference() {
    if !can_run("programs_copy", &["tar", "diff", "find", "cp", "sha256sum", "python3"]) {
        return;
    }
    let world = World::new(|tree| {
        make_tree(tree, 5, 200, 4 << 20);
        for (number, path) in ["d0/f0", "d1/f1", "large", "d2"].into_iter().enumerate() {
            for name in ["user.origin", "user.\u{e4}"].into_iter().take(number + 1) {
                if xattr::set(tree.join(path), name, &[u8::try_from(number).unwrap(), 0, 255]).is_err() {
                    eprintln!("skipped: programs_copy: extended attributes, which the disk has not");
                }
            }
        }
    });
    // Times of access and of change are not published; the names of headers would hold a process's number.
    let headers = "exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime";
    world.same_of(&format!(
        "tar --sort=name --xattrs --numeric-owner --pax-option={headers} -cf - . | sha256sum"
    ));
    world.same_of("find . -type f -exec sha256sum {} + | sort");
    // Sizes of directories, and how many names they have, are each file system's own.
    world.same_of("find . ! -type d -printf '%y %m %n %U:%G %s %T@ %l %P\\n' | sort");
    world.same_of("find . -type d -printf '%y %m %U:%G %T@ %P\\n' | sort");
    world.same_of("find . ! -type d -links +1 | sort; find . -perm -111 -o -empty | sort");
    let walk = "import os
for at, directories, files in os.walk('.'):
    directories.sort()
    for name in sorted(directories + files):
        path = os.path.join(at, name)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        if names:
            print(ascii(path), [(name, os.getxattr(path, name)) for name in names])";
    let found = world.same("a walk over extended attributes", |at| {
        said_well(python().args(["-c", walk]).current_dir(at), at)
    });
    println!("{found}");
    for at in &world.mounts {
        let tree = world.tree.to_str().unwrap();
        said_well(Command::new("diff").args(["-r", "--no-dereference", tree, "."]).current_dir(at), at);
        let copy = world.fresh("copy");
        sh(at, &format!("cp -a . {}", copy.display()));
        common::assert_same(&common::listing(&world.tree), &common::listing(&copy));
        if has("programs_copy", "rsync") {
            // Only names of what differs in content, attributes or links are printed.
            for (from, to) in [(tree, at.to_str().unwrap()), (at.to_str().unwrap(), tree)] {
                let mut rsync = Command::new("rsync");
                rsync
                    .args(["-nacHX", "--delete", "--out-format=%i %n"])
                    .args([format!("{from}/"), format!("{to}/")]);
                assert_eq!(said_well(&mut rsync, at), "--\n--\n", "rsync from {from} to {to}");
            }
        }
    }
    if has("programs_copy", "getfattr") {
        world.same_of("getfattr -R -h -d -m - . 2>&1 | grep -v '^$' | sort");
    }
    if has("programs_copy", "bfs") {
        world.same_of("bfs . -xattr | sort; bfs . -xattrname user.origin | sort");
    }
    world.end();
}

#[test]
fn an_editor_opens_a_file_without_a_word_of_recovery() {
    if !can_run("programs_editor", &["sh"]) {
        return;
    }
    let world = World::new(|tree| {
        fs::create_dir(tree.join("folder")).unwrap();
        let text: String = (0..5_000).map(|line| format!("line {line}\n")).collect();
        fs::write(tree.join("folder/text"), text).unwrap();
    });
    // With a swap file, as somebody has it who just opens a file: not beside the file, which cannot be written to.
    for editor in ["vim", "vi", "nvim"] {
        if !has("programs_editor", editor) {
            continue;
        }
        let home = world.fresh("home");
        let said = world.same(editor, |at| {
            let mut command = Command::new(editor);
            command.args(["-N", "-u", "NONE", "-i", "NONE", "-es", "folder/text"]);
            command.args(["-c", "set directory=.,~ | edit", "-c", "%print", "-c", "messages", "-c", "quit!"]);
            said_well(command.env("HOME", &home).env("TERM", "dumb").current_dir(at), at)
        });
        assert!(said.contains("line 4999"), "{editor}: {said}");
        for trouble in ["recover", "swap", "E3"] {
            assert!(!said.to_lowercase().contains(&trouble.to_lowercase()), "{editor}: {said}");
        }
    }
    if has("programs_editor", "ed") {
        let said = world.same_of("printf ',p\\nq\\n' | ed folder/text");
        assert!(said.contains("line 4999"), "{said}");
    }
    world.end();
}
