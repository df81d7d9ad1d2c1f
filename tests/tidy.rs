//! Proves the shape of the house: who may use whom, and habits that no lint knows.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that each room may use. `model` is free for all; `ambient` for all that may do I/O.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("ambient", &[]),
    ("seldom", &["ambient"]),
    ("chunk", &["ambient"]),
    ("trust", &["ambient", "chunk", "seldom"]),
    ("catalog", &["ambient", "chunk", "trust"]),
    ("store", &["ambient", "chunk"]),
    ("upstream", &["ambient", "chunk"]),
    ("cache", &["ambient", "chunk", "store"]),
    ("publish", &["ambient", "chunk", "catalog", "trust", "store"]),
    ("mesh/proto", &[]),
    ("mesh", &["ambient", "mesh/proto", "chunk", "seldom", "trust"]),
    ("fetch", &["ambient", "chunk", "cache", "mesh", "mesh/proto", "store", "trust", "upstream"]),
    ("fs", &["ambient", "catalog", "chunk", "seldom"]),
    ("sim", &["mesh/proto", "cache/policy"]),
    ("config", &[]),
    ("lab", &["agent", "ambient", "config", "mesh", "mesh/proto", "sim", "upstream"]),
    (
        "agent",
        &[
            "ambient",
            "cache",
            "catalog",
            "chunk",
            "config",
            "fetch",
            "fs",
            "mesh",
            "mesh/proto",
            "store",
            "seldom",
            "trust",
            "upstream",
        ],
    ),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The room of a file, or of a path after `crate::`.
fn room(parts: &[&str]) -> Option<String> {
    match parts {
        ["mesh", "proto", ..] => Some("mesh/proto".into()),
        ["cache", "policy", ..] => Some("cache/policy".into()),
        [first, ..] => Some((*first).to_string()),
        [] => None,
    }
}

/// The source without comments, strings with `crate::` in them being rare enough to ignore.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// All paths that follow `crate::` (or `starling::`), braces opened.
fn used_paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        expand(&code[at + "crate::".len()..], &mut Vec::new(), &mut found);
    }
    found
}

fn expand(rest: &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let after = &rest[word.len()..];
    if !word.is_empty() {
        prefix.push(word);
        if let Some(next) = after.strip_prefix("::") {
            expand(next, prefix, found);
        } else {
            found.push(prefix.clone());
        }
        prefix.pop();
    } else if let Some(group) = rest.strip_prefix('{') {
        let mut depth = 1;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                expand(group[start..i].trim(), prefix, found);
                start = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    } else {
        found.push(prefix.clone());
    }
}

#[test]
fn rooms_use_only_the_rooms_that_the_design_allows() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_USE.iter().map(|(room, others)| (*room, others.iter().copied().collect())).collect();
    let src = root().join("src");
    let mut wrong = Vec::new();
    for path in sources(&src) {
        let relative = path.strip_prefix(&src).unwrap().with_extension("");
        let parts: Vec<&str> = relative.iter().map(|p| p.to_str().unwrap()).collect();
        if matches!(parts[0], "lib" | "main" | "cli") {
            continue;
        }
        let own = room(&parts).unwrap();
        let may = allowed.get(own.as_str()).or_else(|| allowed.get(parts[0]));
        let Some(may) = may else {
            wrong.push(format!("{}: the room `{own}` is not in the table", relative.display()));
            continue;
        };
        for used in used_paths(&code(&fs::read_to_string(&path).unwrap())) {
            let used: Vec<&str> = used.iter().map(String::as_str).collect();
            let Some(other) = room(&used) else { continue };
            let same = other == own || parts[0] == other && own != "mesh/proto";
            let covered = may.contains(other.as_str()) || may.contains(used[0]) && other != "mesh/proto";
            if !same && other != "model" && !covered {
                wrong.push(format!("{} uses {}", relative.display(), used.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden uses:\n{}", wrong.join("\n"));
}

#[test]
fn the_core_and_the_simulator_have_no_hash_maps_no_io_and_no_clock() {
    let mut wrong = Vec::new();
    for dir in ["src/mesh/proto", "src/sim", "src/model"] {
        for path in sources(&root().join(dir)) {
            let text = fs::read_to_string(&path).unwrap();
            let code = code(&text);
            for word in
                ["HashMap", "HashSet", "std::net", "tokio", "Instant", "SystemTime", "thread_rng", "rand::"]
            {
                // Reading the scenario file and the wall time of a run belong to the simulator's command, not here.
                if code.contains(word) {
                    wrong.push(format!("{}: {word}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_one_room_imports_fuser() {
    for path in sources(&root().join("src")) {
        let uses = code(&fs::read_to_string(&path).unwrap()).contains("fuser::");
        assert!(!uses || path.starts_with(root().join("src/fs/fuse")), "{} uses fuser", path.display());
    }
}

#[test]
fn every_test_file_says_in_its_first_line_what_it_proves() {
    for path in sources(&root().join("tests")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with its purpose", path.display());
    }
}

#[test]
fn nothing_unfinished_is_committed() {
    // Spelled apart, so that this file does not find itself.
    let words = [["to", "do!("], ["unimple", "mented!("], ["FIX", "ME"], ["#[ig", "nore"], ["db", "g!("]]
        .map(|w| w.concat());
    for dir in ["src", "tests"] {
        for path in sources(&root().join(dir)) {
            let text = fs::read_to_string(&path).unwrap();
            for word in &words {
                assert!(!text.contains(word.as_str()), "{}: {word}", path.display());
            }
        }
    }
}
