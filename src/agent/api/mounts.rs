//! What is mounted, and how it is asked for.

use crate::catalog::{IdMap, Owners};
use crate::fs::{Profile, Restrictions};
use crate::model::{ContentId, RepositoryName, Revision, UnixTime};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// What is mounted.
    pub repository: RepositoryName,
    /// Where.
    pub directory: PathBuf,
    /// The revision that it shows; `None` when it could not be mounted.
    pub revision: Option<Revision>,
    /// Name of that revision's signed root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<ContentId>,
    /// How it was asked for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: MountOptions,
    /// Whether it was mounted because somebody looked into the folder of all repositories.
    #[serde(default, skip_serializing_if = "is_default")]
    pub automatic: bool,
    /// Whether the root of that revision has expired: the mount reads on and does not switch.
    pub expired: bool,
    /// Why it is not mounted, although it should be.
    pub problem: Option<String>,
    /// What it is tuned for, where `auto` may have been asked for: `small-files` or `large-files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// What it has not got of what would make it faster, or was asked for, although it works: each with what it takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
    /// What a person should know of it, although it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How far the background fill of this revision is, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill: Option<FillStatus>,
}

/// How much of a revision is in the cache, as far as a background fill has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillStatus {
    /// Plain bytes of files that are there.
    pub done_bytes: u64,
    /// Plain bytes of all files that the mount shows; 0 as long as that is not known.
    pub total_bytes: u64,
    /// Whether everything was brought into the cache. (What is evicted later comes back when it is read.)
    pub complete: bool,
    /// Whether it has ended: it is complete, or `problem` says why it will not be.
    #[serde(default)]
    pub ended: bool,
    /// What holds it up, if anything does. It goes on trying, unless what it is to bring is larger than the cache or damaged.
    pub problem: Option<String>,
}

/// `GET /v1/mounts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// All mounts, by directory.
    pub mounts: Vec<MountStatus>,
}

/// `POST /v1/mounts`: mounts a repository. Answered with a [`MountStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// What to mount.
    pub repository: RepositoryName,
    /// Where: an absolute path of an empty directory.
    pub directory: PathBuf,
    /// Whether to bring each revision that is shown into the cache as a whole, in the background.
    #[serde(default)]
    pub fill: bool,
    /// What else was asked for.
    #[serde(default)]
    pub options: MountOptions,
}

/// Longest path inside a repository, in bytes (Linux's own bound).
const PATH_MAX_BYTES: usize = 4_095;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How a repository is to be mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountOptions {
    /// What the mount is tuned for.
    #[serde(skip_serializing_if = "is_default")]
    pub profile: Profile,
    /// Which revision it shows.
    #[serde(skip_serializing_if = "is_default")]
    pub show: Choice,
    /// The directory of the tree that is mounted as if it were all, such as `/a/b`; empty: all of it.
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// Whose the files are shown to be.
    #[serde(skip_serializing_if = "is_default")]
    pub uids: IdMap,
    /// And of which groups.
    #[serde(skip_serializing_if = "is_default")]
    pub gids: IdMap,
    /// What the kernel does not do there.
    #[serde(skip_serializing_if = "is_default")]
    pub restrict: Restrictions,
}

impl MountOptions {
    /// The same, with its path as it is remembered.
    ///
    /// # Errors
    /// In words, when something is out of bounds.
    pub fn checked(mut self) -> Result<Self, String> {
        let names: Vec<&str> = self.path.split('/').filter(|name| !name.is_empty()).collect();
        let strange = |name: &&str| matches!(*name, "." | "..") || name.contains('\0');
        if self.path.len() > PATH_MAX_BYTES || names.iter().any(strange) {
            let path: String = self.path.chars().take(160).collect();
            return Err(format!(
                "`{path}` is no path inside a repository: write it from its root, such as /releases/2.1"
            ));
        }
        self.path = names.iter().map(|name| format!("/{name}")).collect();
        self.uids.check()?;
        self.gids.check()?;
        Ok(self)
    }

    /// Whose the files are.
    pub fn owners(&self) -> Owners {
        Owners { uids: self.uids.clone(), gids: self.gids.clone() }
    }
}

/// Which revision of a repository a mount shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The newest, always: it switches when there is a newer one.
    #[default]
    Newest,
    /// This one, for good.
    Revision(Revision),
    /// The one that has this tag when it is mounted first, for good.
    Tag(String),
    /// The newest that was published until then, for good.
    Date(UnixTime),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("the newest"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Date(date) => write!(f, "as of {date}"),
        }
    }
}

/// `DELETE /v1/mounts`: unmounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnmountRequest {
    /// Where it is mounted.
    pub directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_remembered_in_one_form_and_none_leads_out_of_the_tree() {
        let checked = |path: &str| MountOptions { path: path.into(), ..MountOptions::default() }.checked();
        for (given, kept) in
            [("", ""), ("/", ""), ("a//b/", "/a/b"), ("/a/b", "/a/b"), ("/..a/b.", "/..a/b.")]
        {
            assert_eq!(checked(given).unwrap().path, kept);
        }
        for bad in ["/a/../b", "..", "./a", "/a\0b", &"/a".repeat(3_000)] {
            assert!(checked(bad).unwrap_err().contains("no path"), "{bad}");
        }
    }

    #[test]
    fn options_that_say_nothing_take_no_room_and_choices_are_written_in_one_way() {
        let json = |options: &MountOptions| serde_json::to_string(options).unwrap();
        assert_eq!(json(&MountOptions::default()), "{}");
        let choices = [
            (Choice::Revision(Revision(7)), r#"{"show":{"revision":7}}"#),
            (Choice::Tag("2.1".into()), r#"{"show":{"tag":"2.1"}}"#),
            (Choice::Date(UnixTime(60)), r#"{"show":{"date":60}}"#),
        ];
        for (show, text) in choices {
            let options = MountOptions { show, ..MountOptions::default() };
            assert_eq!(json(&options), text);
            assert_eq!(serde_json::from_str::<MountOptions>(text).unwrap(), options);
        }
    }
}
