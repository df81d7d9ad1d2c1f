//! The tree of Python packages, the order in which a program reads it, and the Debian root.

use crate::common::Dice;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Words of which modules are made: they compress about as source code does.
const WORDS: [&str; 24] = [
    "def",
    "return",
    "self",
    "import",
    "from",
    "class",
    "None",
    "raise",
    "ValueError",
    "lambda",
    "config",
    "value",
    "result",
    "for",
    "in",
    "if",
    "not",
    "else",
    "yield",
    "assert",
    "__name__",
    "__init__",
    "path",
    "buffer",
];

/// A module of about `len` bytes.
fn module(dice: &mut Dice, len: usize) -> String {
    let mut text = String::with_capacity(len + 80);
    while text.len() < len {
        let indent = "    ".repeat(usize::try_from(dice.below(3)).unwrap());
        text.push_str(&indent);
        for _ in 0..3 + dice.below(7) {
            match dice.below(4) {
                0 => text.push_str(&format!("{}_{:x}", WORDS[pick(dice, WORDS.len())], dice.below(4_096))),
                1 => text.push_str(&format!("({})", dice.below(1 << 20))),
                _ => text.push_str(WORDS[pick(dice, WORDS.len())]),
            }
            text.push(' ');
        }
        text.push('\n');
    }
    text
}

fn pick(dice: &mut Dice, bound: usize) -> usize {
    usize::try_from(dice.below(bound as u64)).unwrap()
}

fn shuffle<T>(dice: &mut Dice, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, pick(dice, last + 1));
    }
}

/// Makes `files` modules below `at`, in packages of 4 to 36 and every fifth of them in a package inside a package. Returns their paths
/// in the order in which a program that imports all of them reads them: packages in no order, of each its `__init__.py` first,
/// then its modules in no order.
pub(crate) fn python(at: &Path, files: usize) -> (Vec<PathBuf>, u64) {
    let mut dice = Dice(0x5eed);
    let mut packages: Vec<Vec<PathBuf>> = Vec::new();
    let (mut made, mut bytes, mut above) = (0, 0, PathBuf::new());
    while made < files {
        let name =
            format!("pkg_{:03}_{}", packages.len(), WORDS[pick(&mut dice, WORDS.len())].to_lowercase());
        let inside = packages.len() % 5 == 4;
        let folder = if inside { above.join(name) } else { PathBuf::from(name) };
        above.clone_from(&folder);
        fs::create_dir_all(at.join(&folder)).unwrap();
        let modules = (4 + pick(&mut dice, 33)).min(files - made);
        let mut package = Vec::new();
        for number in 0..modules {
            let name = if number == 0 { "__init__.py".to_owned() } else { format!("mod_{number:02}.py") };
            // Sizes as they are in site-packages: half below 4 KiB, a few of some 60.
            let least = 200 << pick(&mut dice, 9);
            let len = least + pick(&mut dice, least);
            let text = module(&mut dice, len);
            bytes += text.len() as u64;
            fs::write(at.join(&folder).join(&name), text).unwrap();
            package.push(folder.join(name));
        }
        made += modules;
        shuffle(&mut dice, &mut package[1..]);
        packages.push(package);
    }
    shuffle(&mut dice, &mut packages);
    (packages.concat(), bytes)
}

/// A Debian root below `at`: a copy of `given`, or one that debootstrap makes. Says which.
///
/// # Errors
/// Why there is none.
pub(crate) fn debian(at: &Path, given: Option<&Path>) -> Result<String, String> {
    let run = |command: &mut Command| {
        let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    if let Some(given) = given {
        run(Command::new("cp").arg("-a").arg(given).arg(at))?;
        return Ok(format!("a copy of {}", given.display()));
    }
    let said = "debootstrap --variant=minbase bookworm";
    run(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(at))
        .map_err(|why| format!("{said}: {why} (give a root with --root DIR)"))?;
    Ok(said.to_owned())
}
