//! What a mount shows: a revision, out of a root or out of the history that a root names.

use super::api::{Choice, Refusal, RefusalKind};
use crate::catalog::{History, PastRevision};
use crate::model::{RepositoryName, Revision, UnixTime};
use crate::trust::VerifiedRoot;
use serde::{Deserialize, Serialize};

/// Names that a message lists.
const NAMED_MAX: usize = 12;

/// A revision of a repository that was verified, with all that is needed to open its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shown {
    /// The repository.
    pub(super) repository: RepositoryName,
    /// The revision.
    pub(super) of: PastRevision,
    /// When its root expires. `None` for a past one: nothing is newer or older than what was asked for by name.
    pub(super) expires: Option<UnixTime>,
}

impl Shown {
    /// The revision of a root.
    pub(super) fn newest(root: &VerifiedRoot) -> Self {
        let repository = root.root().repository.clone();
        Self { repository, of: PastRevision::of(root), expires: Some(root.expires()) }
    }

    /// Its number.
    pub(super) fn revision(&self) -> Revision {
        self.of.revision
    }

    /// Since when it has expired, if it has at `now`.
    pub(super) fn expired_at(&self, now: UnixTime) -> Option<UnixTime> {
        self.expires.filter(|expires| *expires <= now)
    }
}

/// The revision that was asked for, out of the newest root and the history that it names.
///
/// # Errors
/// A [`Refusal`] that says what there is instead.
pub(super) fn choose(newest: &VerifiedRoot, history: &History, choice: &Choice) -> Result<Shown, Refusal> {
    let name = &newest.root().repository;
    let current = PastRevision::of(newest);
    let find = |wanted: Revision| {
        let past = || history.revisions().iter().find(|past| past.revision == wanted);
        (wanted == current.revision).then_some(&current).or_else(past)
    };
    let found = match choice {
        Choice::Newest => return Ok(Shown::newest(newest)),
        Choice::Revision(wanted) => find(*wanted).ok_or_else(|| {
            let all = history.revisions().iter().chain([&current]).map(|past| past.revision);
            let there = format!("there are {}", spans(all));
            Refusal::new(RefusalKind::NotFound, format!("{name} has no revision {wanted}")).hint(there)
        }),
        Choice::Tag(tag) => match history.tags().get(tag) {
            Some(wanted) => find(*wanted).ok_or_else(|| {
                let message =
                    format!("the tag {tag} of {name} names revision {wanted}, which is not kept any more");
                Refusal::new(RefusalKind::NotFound, message)
            }),
            None => Err(Refusal::new(RefusalKind::NotFound, format!("{name} has no tag {tag}"))
                .hint(tags_of(history))),
        },
        Choice::Date(date) => {
            let all = history.revisions().iter().chain([&current]);
            all.clone().rfind(|past| past.issued <= *date).ok_or_else(|| {
                let oldest = all.clone().next().map_or(current.issued, |past| past.issued);
                let message = format!("{name} had no revision at {date}");
                Refusal::new(RefusalKind::NotFound, message)
                    .hint(format!("the oldest that is kept is of {oldest}"))
            })
        }
    };
    Ok(Shown { repository: name.clone(), of: found?.clone(), expires: None })
}

fn tags_of(history: &History) -> String {
    if history.tags().is_empty() {
        return "it has no tags; `starling publish --tag NAME` gives one".to_owned();
    }
    // The newest revisions first: those are asked for.
    let mut tags: Vec<_> = history.tags().iter().collect();
    tags.sort_by(|one, other| other.1.cmp(one.1));
    let named: Vec<&str> = tags.iter().take(NAMED_MAX).map(|(tag, _)| tag.as_str()).collect();
    let more =
        if tags.len() > NAMED_MAX { format!(" and {} more", tags.len() - NAMED_MAX) } else { String::new() };
    format!("it has {}{more}", named.join(", "))
}

/// `1, 4-7, 9`, the last of them if they are many.
fn spans(ascending: impl Iterator<Item = Revision>) -> String {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for Revision(number) in ascending {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => spans.push((number, number)),
        }
    }
    let skipped = spans.len().saturating_sub(NAMED_MAX);
    let shown: Vec<String> = spans[skipped..]
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    format!("{}{}", if skipped > 0 { "older ones and " } else { "" }, shown.join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::chunk::Chunking;
    use crate::model::{ChunkRef, ContentId, Place};
    use crate::trust::{Keys, Root, SignedRoot};

    fn chunk() -> ChunkRef {
        let id = ContentId::of(b"x");
        ChunkRef { id, plain_len: 7, place: Place { segment: id, ordinal: 0, offset: 0, stored_len: 9 } }
    }

    /// Some revision that is mounted for good.
    pub(in crate::agent) fn past(revision: u64) -> Shown {
        let chunk = chunk();
        let of = PastRevision {
            revision: Revision(revision),
            root: chunk.id,
            root_catalog: chunk,
            catalog_index: chunk,
            inodes: 1,
            plain_bytes: 0,
            issued: UnixTime(revision * 100),
        };
        Shown { repository: "sw.example.org".parse().unwrap(), of, expires: None }
    }

    /// Revisions 1, 2 and 4 before 5, each published at a hundred times its number.
    fn world() -> (VerifiedRoot, History) {
        let name: RepositoryName = "sw.example.org".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(dir.path(), &name, UnixTime(1)).unwrap();
        let chunk = chunk();
        let root = Root {
            repository: name.clone(),
            revision: Revision(5),
            signings: 0,
            root_catalog: chunk,
            catalog_index: chunk,
            history: chunk,
            previous: Some(chunk.id),
            inodes: 1,
            plain_bytes: 0,
            chunking: Chunking::default(),
            issued: UnixTime(500),
            expires: UnixTime(9_000),
        };
        let signed = SignedRoot::sign(&root, &keys).unwrap();
        let root = SignedRoot::verify(&signed, &name, &keys.fingerprint(), UnixTime(600)).unwrap();
        let mut history = History::default();
        for revision in [1, 2, 4] {
            history.push(past(revision).of);
        }
        history.tag("old", Revision(2)).unwrap();
        history.tag("gone", Revision(3)).unwrap();
        history.tag("new", Revision(5)).unwrap();
        (root, history)
    }

    fn chosen(choice: &Choice) -> Result<u64, String> {
        let (root, history) = world();
        let shown = choose(&root, &history, choice)
            .map_err(|r| format!("{r} ({})", r.hint.clone().unwrap_or_default()))?;
        assert_eq!(shown.expires.is_none(), *choice != Choice::Newest, "what is fixed does not expire");
        Ok(shown.revision().0)
    }

    #[test]
    fn a_revision_is_chosen_by_number_tag_and_date() {
        assert_eq!(chosen(&Choice::Newest), Ok(5));
        for revision in [1, 2, 4, 5] {
            assert_eq!(chosen(&Choice::Revision(Revision(revision))), Ok(revision));
        }
        assert_eq!((chosen(&Choice::Tag("old".into())), chosen(&Choice::Tag("new".into()))), (Ok(2), Ok(5)));
        for (date, revision) in [(100, 1), (199, 1), (399, 2), (499, 4), (500, 5), (u64::MAX, 5)] {
            assert_eq!(chosen(&Choice::Date(UnixTime(date))), Ok(revision), "{date}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_there_is() {
        let said = |choice: Choice| chosen(&choice).unwrap_err();
        assert!(said(Choice::Revision(Revision(3))).contains("there are 1-2, 4-5"));
        assert!(said(Choice::Revision(Revision(6))).contains("no revision 6"));
        let tag = said(Choice::Tag("other".into()));
        assert!(tag.contains("no tag other") && tag.contains("it has new, gone, old"), "{tag}");
        assert!(said(Choice::Tag("gone".into())).contains("revision 3, which is not kept"));
        let date = said(Choice::Date(UnixTime(99)));
        assert!(date.contains("1970-01-01T00:01:39Z") && date.contains("1970-01-01T00:01:40Z"), "{date}");
    }

    #[test]
    fn many_revisions_are_named_by_the_last_of_them() {
        assert_eq!(spans([1, 2, 3, 7].map(Revision).into_iter()), "1-3, 7");
        let odd = (0..40).map(|number| Revision(number * 2 + 1));
        assert!(spans(odd).starts_with("older ones and 57, ") && spans((1..4).map(Revision)) == "1-3");
    }
}
