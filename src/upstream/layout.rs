//! Where a stratum keeps what: paths from names, and names from paths.

use crate::model::{Algorithm, ContentId, RepositoryName};

/// The root's path below the stratum.
pub(super) fn root_path(repository: &RepositoryName) -> String {
    format!("{repository}/root")
}

/// A segment's path below the stratum.
pub(super) fn object_path(repository: &RepositoryName, object: &ContentId) -> String {
    let name = object.to_string();
    let (shelf, rest) = name.split_at(2);
    format!("{repository}/objects/{shelf}/{rest}")
}

/// Something that lies on a stratum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A repository's signed root.
    Root(RepositoryName),
    /// An immutable object.
    Object(RepositoryName, ContentId),
}

impl Item {
    /// The item that the path of a URL names, if it names one. Nothing is decoded: every legal
    /// character stands for itself, so there is one spelling of each path.
    pub(super) fn from_url_path(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.splitn(5, '/').collect();
        match parts.as_slice() {
            [repository, "root"] => Some(Self::Root(repository.parse().ok()?)),
            [repository, "objects", shelf, rest] if shelf.len() == 2 => {
                let object: ContentId = format!("{shelf}{rest}").parse().ok()?;
                (object.algorithm() == Algorithm::Blake3)
                    .then_some(Self::Object(repository.parse().ok()?, object))
            }
            _ => None,
        }
    }

    /// Its path below the stratum.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Root(repository) => root_path(repository),
            Self::Object(repository, object) => object_path(repository, object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_item_has_one_path() {
        let repository: RepositoryName = "sw.example.org".parse().unwrap();
        let items = [Item::Root(repository.clone()), Item::Object(repository, ContentId::of(b"a segment"))];
        for item in items {
            assert_eq!(Item::from_url_path(&format!("/{}", item.path())), Some(item));
        }
    }

    #[test]
    fn paths_outside_the_layout_name_nothing() {
        let object = ContentId::of(b"x").to_string();
        let (shelf, rest) = object.split_at(2);
        for bad in [
            String::new(),
            "/".into(),
            "root".into(),
            "/sw/root/".into(),
            "//sw/root".into(),
            "/sw/../root".into(),
            "/../etc/passwd".into(),
            "/.hidden/root".into(),
            "/sw/.tmp".into(),
            "/sw/r%6fot".into(),
            format!("/sw/objects/{object}"),
            format!("/sw/objects/{shelf}/{rest}/"),
            format!("/sw/objects/{shelf}/{}", &rest[..61]),
            format!("/sw/objects/{shelf}/{}", rest.to_uppercase()),
            format!("/sw/objects/sh/a1-{}", "0".repeat(40)),
            format!("/sw/objects/../{rest}"),
        ] {
            assert_eq!(Item::from_url_path(&bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_is_its_own_only_spelling(path in "/?[a-z0-9./%]{0,80}") {
            if let Some(item) = Item::from_url_path(&path) {
                prop_assert_eq!(format!("/{}", item.path()), path);
            }
        }
    }
}
