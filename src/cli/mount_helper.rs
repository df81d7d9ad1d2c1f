//! `mount.starling`: what `mount -t starling` and fstab lines call. The program is it when it is called by that name.

use super::CliError;
use super::ask::{AgentArgs, block_on};
use super::mount::mount_point;
use super::mount_options::{Wanted, parse_list};
use crate::agent::ClientError;
use crate::agent::api::{MountRequest, MountStatus};
use crate::ambient;
use crate::model::RepositoryName;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The name by which `mount` calls its helper for this type.
pub(super) const NAME: &str = "mount.starling";
/// Exit codes of `mount(8)`.
const USAGE: u8 = 1;
const MOUNT_FAILURE: u8 = 32;
/// How long an agent is waited for that does not answer yet: at boot it may be starting (guess).
const AGENT_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const USAGE_TEXT: &str = "usage: mount.starling REPOSITORY DIRECTORY [-o OPTIONS] [-sfnv]
`mount -t starling` and fstab lines call it. For example:
  mount -t starling sw.example.org /mnt/sw -o tag=2.1,path=/releases/2.1
  sw.example.org  /mnt/sw  starling  _netdev,x-systemd.requires=starling.service  0 0
docs/file-system.md lists the options.";

/// What the helper is asked to do.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    repository: RepositoryName,
    directory: PathBuf,
    wanted: Wanted,
    /// Do everything but mount.
    fake: bool,
}

/// Whether the program was called as the helper.
pub(super) fn is_called() -> bool {
    std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some(NAME.as_ref()))
}

/// Runs it, and tells the exit code as `mount` understands it.
pub(super) fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let call = match parse(&arguments) {
        Ok(call) => call,
        Err(problem) => {
            eprintln!("{NAME}: {problem}");
            return ExitCode::from(USAGE);
        }
    };
    match mount(call) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::from(MOUNT_FAILURE)
        }
    }
}

/// Flags may stand anywhere, and several in one word, as `mount` writes them.
fn parse(arguments: &[OsString]) -> Result<Call, String> {
    let (mut places, mut lists) = (Vec::new(), Vec::new());
    let (mut sloppy, mut fake) = (false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flags) = argument.to_str().and_then(|text| text.strip_prefix('-')).filter(|f| !f.is_empty())
        else {
            places.push(argument);
            continue;
        };
        for (at, flag) in flags.char_indices() {
            match flag {
                's' => sloppy = true,
                'f' => fake = true,
                // Nothing is written to /etc/mtab, and there is nothing more to tell.
                'n' | 'v' | 'r' | 'w' => {}
                // Their value stands behind them or in the next word: options, the type, a namespace that `mount` has entered.
                'o' | 't' | 'N' => {
                    let behind = &flags[at + 1..];
                    let mut next = || rest.next().and_then(|next| next.to_str());
                    let value = if behind.is_empty() { next() } else { Some(behind) };
                    let value = value.ok_or_else(|| format!("-{flag} needs a value\n{USAGE_TEXT}"))?;
                    if flag == 'o' {
                        lists.push(value.to_owned());
                    }
                    break;
                }
                'h' => return Err(USAGE_TEXT.to_owned()),
                _ => return Err(format!("-{flag} is not known\n{USAGE_TEXT}")),
            }
        }
    }
    let [repository, directory] = places[..] else { return Err(USAGE_TEXT.to_owned()) };
    let name = repository.to_str().unwrap_or_default();
    // As the kernel's list of mounts shows it, by which `mount -a` finds what is mounted already.
    let name = name.strip_prefix("starling:").unwrap_or(name);
    let parsed: Result<RepositoryName, _> = name.parse();
    let repository = parsed.map_err(|error| format!("{}: {error}", repository.display()))?;
    let wanted = parse_list(&lists.join(","), sloppy)?;
    Ok(Call { repository, directory: directory.into(), wanted, fake })
}

fn mount(call: Call) -> Result<(), CliError> {
    let directory = mount_point(&call.directory)?;
    if call.fake {
        return Ok(());
    }
    let Wanted { options, fill, socket } = call.wanted;
    let client = AgentArgs::at(socket).client();
    let request = MountRequest { repository: call.repository, directory, fill, options };
    block_on(async {
        let until = ambient::now() + AGENT_WITHIN;
        loop {
            match client.mount(&request).await {
                Err(ClientError::NoAgent { .. }) if ambient::now() < until => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                // The agent remembers mounts itself, and so it may have been faster at boot.
                Err(ClientError::Refused(refusal)) => {
                    let Ok(mounts) = client.mounts().await else {
                        return Err(ClientError::Refused(refusal).into());
                    };
                    return match there(&mounts.mounts, &request) {
                        There::Exactly => Ok(()),
                        There::Unfilled => Err(unfilled(&request.directory)),
                        There::Else => Err(ClientError::Refused(refusal).into()),
                    };
                }
                other => return Ok(other.map(drop)?),
            }
        }
    })
}

/// What is mounted where something was to be mounted.
#[derive(Debug, PartialEq, Eq)]
enum There {
    /// Exactly that.
    Exactly,
    /// That, but nobody has asked for its content to be brought, as is asked now.
    Unfilled,
    /// Something else, or nothing that works.
    Else,
}

fn there(mounts: &[MountStatus], request: &MountRequest) -> There {
    let is_same = |mount: &&MountStatus| {
        let same = mount.directory == request.directory && mount.repository == request.repository;
        same && mount.options == request.options && mount.problem.is_none()
    };
    match mounts.iter().find(is_same) {
        None => There::Else,
        // One that is to be filled has a fill, under way or ended.
        Some(mount) if request.fill && mount.fill.is_none() => There::Unfilled,
        Some(_) => There::Exactly,
    }
}

fn unfilled(directory: &Path) -> CliError {
    let at = directory.display();
    CliError::failed(format!("{at} is mounted already, without `fill`, and a mount is not told so later"))
        .hint(format!("unmount it and mount it anew: umount {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::FillStatus;

    fn called(words: &[&str]) -> Result<Call, String> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn it_understands_what_mount_calls_it_with() {
        let call = called(&["sw.example.org", "/mnt/sw", "-o", "rw,tag=2.1"]).unwrap();
        assert_eq!(
            (call.repository.as_str(), call.directory.as_path()),
            ("sw.example.org", Path::new("/mnt/sw"))
        );
        assert_eq!(call.wanted, parse_list("tag=2.1", false).unwrap());
        let call =
            called(&["-sn", "starling:sw.example.org", "-t", "starling", "/mnt", "-ofill,strange", "-f"])
                .unwrap();
        assert!(call.wanted.fill && call.fake && call.repository.as_str() == "sw.example.org");
    }

    #[test]
    fn what_is_there_without_the_fill_that_is_asked_for_is_no_success() {
        let request = |list: &str| {
            let Wanted { options, fill, .. } = parse_list(list, false).unwrap();
            let repository = "sw.example.org".parse().unwrap();
            MountRequest { repository, directory: "/mnt/sw".into(), fill, options }
        };
        let mounted = MountStatus {
            repository: "sw.example.org".parse().unwrap(),
            directory: "/mnt/sw".into(),
            revision: None,
            root: None,
            options: parse_list("noexec", false).unwrap().options,
            automatic: false,
            expired: false,
            problem: None,
            profile: None,
            lacks: Vec::new(),
            note: None,
            fill: None,
        };
        let fill = FillStatus { done_bytes: 0, total_bytes: 4, complete: false, ended: false, problem: None };
        let filled = MountStatus { fill: Some(fill), ..mounted.clone() };
        let failed = MountStatus { problem: Some("not yet".into()), ..mounted.clone() };
        for (mount, list, expected) in [
            (&mounted, "noexec", There::Exactly),
            (&mounted, "noexec,fill", There::Unfilled),
            (&mounted, "fill", There::Else),
            (&filled, "noexec,fill", There::Exactly),
            (&filled, "noexec", There::Exactly),
            (&failed, "noexec", There::Else),
        ] {
            assert_eq!(there(std::slice::from_ref(mount), &request(list)), expected, "{list}");
        }
        let said = unfilled(Path::new("/mnt/sw")).to_string();
        assert!(said.contains("`fill`") && said.contains("umount /mnt/sw"), "{said}");
    }

    #[test]
    fn a_wrong_call_is_told_what_is_wrong() {
        for (words, says) in [
            (&["sw.example.org"][..], "usage"),
            (&["a", "/b", "/c"], "usage"),
            (&["-h"], "usage"),
            (&["a", "/b", "-o"], "-o needs a value"),
            (&["a", "/b", "-x"], "-x is not known"),
            (&["a", "/b", "-o", "strange"], "`strange` is not known"),
            (&["A B", "/b"], "A B"),
        ] {
            let said = called(words).unwrap_err();
            assert!(said.contains(says), "{words:?}: {said}");
        }
    }
}
