//! Mount options as `mount -o` and fstab lines write them: words and `NAME=VALUE`, with commas between.

use crate::agent::api::{Choice, MountOptions};
use crate::agent::{AutomountHow, AutomountOptions};
use crate::config::EVERY_OTHER;
use crate::fs::Restrictions;
use crate::model::{Revision, UnixTime};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Options that mean something to others: to `mount` itself, to the boot, to the system's service manager, or to file systems that can be
/// written to. They are accepted, so that a line of fstab may say what lines there say.
const OF_OTHERS: [&str; 27] = [
    "defaults",
    "ro",
    "rw",
    "auto",
    "noauto",
    "nouser",
    "nofail",
    "fail",
    "_netdev",
    "_rnetdev",
    "dev",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "nomand",
];
/// Those that a list may have, for whoever misspells one.
const OURS: &str = "revision=N, tag=NAME, date=TIME, path=/DIR, uid=N, gid=N, uid_map=FROM:TO, gid_map=FROM:TO, profile=NAME, \
                    fill, suid, nosuid, nodev, exec, noexec, socket=PATH";
/// What to do about an option that is known and cannot be had.
const NO_REMOUNT: &str = "a mount cannot be told other options while it is there (`remount`): unmount it (`umount DIRECTORY`), \
                          and mount it anew";

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) options: MountOptions,
    /// Whether all content is to be brought into the cache.
    pub(super) fill: bool,
    /// Which agent is to mount, where it is not the usual one.
    pub(super) socket: Option<PathBuf>,
}

/// Makes a choice of a revision out of what was given; at most one may be.
///
/// # Errors
/// In words.
pub(super) fn choice(
    revision: Option<u64>,
    tag: Option<String>,
    date: Option<UnixTime>,
) -> Result<Choice, String> {
    match (revision, tag, date) {
        (None, None, None) => Ok(Choice::Newest),
        (Some(revision), None, None) => Ok(Choice::Revision(Revision(revision))),
        (None, Some(tag), None) => Ok(Choice::Tag(tag)),
        (None, None, Some(date)) => Ok(Choice::Date(date)),
        _ => Err("a revision is chosen by its number, by a tag or by a date: give one of them".to_owned()),
    }
}

/// Reads a list.
///
/// # Errors
/// In words, naming the option; one that nobody knows is an error, unless `sloppy`.
pub(super) fn parse_list(text: &str, sloppy: bool) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    let (mut revision, mut tag, mut date) = (None, None, None);
    for option in text.split(',').filter(|option| !option.is_empty()) {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let needed = || {
            value
                .filter(|v| !v.is_empty())
                .ok_or_else(|| format!("the option `{name}` needs a value: {name}=…"))
        };
        let number =
            |text: &str| text.parse().map_err(|_| format!("the option `{option}`: `{text}` is no number"));
        let in_option = |problem: String| format!("the option `{option}`: {problem}");
        let options = &mut wanted.options;
        match name {
            "revision" => {
                let text = needed()?;
                revision =
                    Some(text.parse().map_err(|_| format!("the option `{option}`: `{text}` is no number"))?);
            }
            "tag" => tag = Some(needed()?.to_owned()),
            "date" => {
                let read = needed()?
                    .parse()
                    .map_err(|error: crate::model::ParseMomentError| in_option(error.to_string()));
                date = Some(read?);
            }
            "path" => options.path = needed()?.to_owned(),
            "uid" => options.uids.others = Some(number(needed()?)?),
            "gid" => options.gids.others = Some(number(needed()?)?),
            "uid_map" => options.uids.add(needed()?).map_err(in_option)?,
            "gid_map" => options.gids.add(needed()?).map_err(in_option)?,
            "profile" => options.profile = needed()?.parse().map_err(in_option)?,
            "socket" => wanted.socket = Some(needed()?.into()),
            "fill" if value.is_none() => wanted.fill = true,
            "suid" if value.is_none() => options.restrict.nosuid = false,
            "nosuid" if value.is_none() => options.restrict.nosuid = true,
            "nodev" if value.is_none() => options.restrict.nodev = true,
            "exec" if value.is_none() => options.restrict.noexec = false,
            "noexec" if value.is_none() => options.restrict.noexec = true,
            // As in mount(8), where later options take it back. With a name (`user=joe`) `mount` only tells who has called it.
            "user" | "users" if value.is_none() => {
                options.restrict = Restrictions { nosuid: true, nodev: true, noexec: true };
            }
            "owner" | "group" if value.is_none() => {
                (options.restrict.nosuid, options.restrict.nodev) = (true, true);
            }
            // Also for who asks for indulgence: it would not be done.
            "remount" => return Err(NO_REMOUNT.to_owned()),
            _ if is_of_others(name) => {}
            _ if sloppy => {}
            _ => return Err(format!("the option `{option}` is not known; there are {OURS}")),
        }
    }
    wanted.options.show = choice(revision, tag, date)?;
    wanted.options = wanted.options.checked()?;
    Ok(wanted)
}

/// Whether a list may begin with this option: it is one of [`OURS`], and well written.
pub(super) fn is_ours(option: &str) -> bool {
    let name = option.split('=').next().unwrap_or_default();
    let is_named = OURS.split(", ").any(|ours| ours.split('=').next() == Some(name));
    is_named && parse_list(option, false).is_ok()
}

/// Reads the setting `automount_options`.
///
/// # Errors
/// In words, naming the entry.
pub(super) fn automount_options(setting: &BTreeMap<String, String>) -> Result<AutomountOptions, String> {
    let mut read = AutomountOptions::default();
    for (name, list) in setting {
        let wrong = |problem: String| format!("`automount_options`, `{name}`: {problem}");
        let wanted = parse_list(list, false).map_err(wrong)?;
        if wanted.socket.is_some() {
            return Err(wrong("the agent mounts by itself, and `socket` has no sense here".to_owned()));
        }
        let how = AutomountHow { options: wanted.options, fill: wanted.fill };
        if name == EVERY_OTHER {
            read.others = how;
        } else {
            read.named.insert(name.parse().map_err(|error| wrong(format!("{error}")))?, how);
        }
    }
    Ok(read)
}

fn is_of_others(name: &str) -> bool {
    // systemd's and other programs' comments begin with x-; `mount` tells its helpers the user's name.
    OF_OTHERS.contains(&name)
        || name.starts_with("x-")
        || name.starts_with("X-")
        || matches!(name, "comment" | "user")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Profile;

    #[test]
    fn a_list_says_all_that_a_mount_can_be_told() {
        let text = "tag=2.1,path=releases//2.1/,uid_map=1000:0,uid=5,gid_map=*:6,profile=small-files,fill,suid,noexec,socket=/s";
        let wanted = parse_list(text, false).unwrap();
        let options = &wanted.options;
        assert_eq!((&options.show, options.path.as_str()), (&Choice::Tag("2.1".into()), "/releases/2.1"));
        assert_eq!((options.uids.rules.get(&1000), options.uids.others), (Some(&0), Some(5)));
        assert_eq!((options.gids.others, options.profile), (Some(6), Profile::SmallFiles));
        assert_eq!(options.restrict, Restrictions { nosuid: false, nodev: true, noexec: true });
        assert!(wanted.fill && wanted.socket == Some("/s".into()));
        assert_eq!(parse_list("revision=7", false).unwrap().options.show, Choice::Revision(Revision(7)));
        assert_eq!(
            parse_list("date=1970-01-01", false).unwrap().options.show,
            Choice::Date(UnixTime(86_399))
        );
    }

    #[test]
    fn set_id_bits_are_asked_for_by_name_and_by_nothing_else() {
        let restricted = |list: &str| parse_list(list, false).unwrap().options.restrict;
        for usual in ["", "defaults", "nosuid", "nodev", "nosuid,nodev", "dev", "exec", "rw", "suid,nosuid"] {
            assert_eq!(restricted(usual), Restrictions::default(), "{usual}");
        }
        assert_eq!(restricted("nosuid,suid"), Restrictions { nosuid: false, ..Restrictions::default() });
        assert!(parse_list("suid=1", false).unwrap_err().contains("suid=1"));
    }

    #[test]
    fn of_options_that_contradict_each_other_the_last_one_wins_and_some_stand_for_several() {
        let restricted = |list: &str| parse_list(list, false).unwrap().options.restrict;
        let (usual, noexec) =
            (Restrictions::default(), Restrictions { noexec: true, ..Restrictions::default() });
        for (list, expected) in [
            ("noexec,exec", usual),
            ("exec,noexec", noexec),
            ("user", noexec),
            ("suid,users", noexec),
            ("exec,user", noexec),
            ("user,exec", usual),
            ("suid,owner", usual),
            ("suid,group", usual),
            ("noexec,owner", noexec),
            ("users,suid,dev,exec", Restrictions { nosuid: false, ..usual }),
        ] {
            assert_eq!(restricted(list), expected, "{list}");
        }
    }

    #[test]
    fn who_wants_to_mount_again_with_other_options_is_told_what_to_do() {
        for sloppy in [false, true] {
            let said = parse_list("remount,noexec", sloppy).unwrap_err();
            assert!(said.contains("unmount it") && said.contains("mount it anew"), "{said}");
            assert!(!said.contains("not known"), "{said}");
        }
    }

    #[test]
    fn the_folder_of_all_repositories_has_options_for_each_and_a_wrong_entry_is_named() {
        let read = |entries: &[(&str, &str)]| {
            let own = |(name, list): &(&str, &str)| ((*name).to_owned(), (*list).to_owned());
            automount_options(&entries.iter().map(own).collect())
        };
        let all = read(&[("*", "noexec"), ("sw.example.org", "tag=2.1,suid,fill")]).unwrap();
        let of = |name: &str| all.of(&name.parse().unwrap());
        assert_eq!(of("other.example.org").options, parse_list("noexec", false).unwrap().options);
        assert_eq!(of("sw.example.org").options, parse_list("tag=2.1,suid", false).unwrap().options);
        assert!(of("sw.example.org").fill && !of("other.example.org").fill);
        for (name, list, says) in [
            ("sw.example.org", "taag=2", "taag=2"),
            ("*", "path=/../x", "no path"),
            ("*", "socket=/s", "socket"),
            ("NO NAME", "noexec", "NO NAME"),
        ] {
            let said = read(&[("a.b", "noexec"), (name, list)]).unwrap_err();
            assert!(
                said.contains("automount_options") && said.contains(name) && said.contains(says),
                "{said}"
            );
        }
    }

    #[test]
    fn what_others_understand_is_accepted_and_changes_nothing() {
        let text = "rw,ro,defaults,noauto,nouser,_netdev,nofail,relatime,x-systemd.requires=starling.service,\
                    x-systemd.automount,X-mount.mkdir=0755,comment=mine,user=joe,,";
        assert_eq!(parse_list(text, false), Ok(Wanted::default()));
    }

    #[test]
    fn what_nobody_knows_and_what_has_no_sense_is_refused_by_name() {
        for (text, says) in [
            ("taag=2", "taag=2"),
            ("tag", "needs a value"),
            ("tag=", "needs a value"),
            ("revision=x", "`x` is no number"),
            ("uid=-1", "`-1` is no number"),
            ("gid=4294967295", "no user and no group"),
            ("uid_map=4294967295:0", "no user and no group"),
            ("exec=1", "exec=1"),
            ("uid_map=1", "FROM:TO"),
            ("date=yesterday", "`yesterday` is no moment"),
            ("path=/a/../b", "no path"),
            ("profile=fast", "`fast` is no profile"),
            ("fill=yes", "fill=yes"),
            ("tag=a,revision=1", "one of them"),
        ] {
            let said = parse_list(text, false).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        assert_eq!(parse_list("taag=2,unknown", true), Ok(Wanted::default()));
    }
}
