//! Attributes that come from no tree: `user.starling.…`, which tell of which revision a file is, and what it is made of.
//!
//! They are answered when they are asked for by name and never listed, so that whoever copies or compares all attributes
//! does not meet them. `user.starling` itself lists the names.

use super::error::FsError;
use super::system::FileSystem;
use crate::catalog::{Attributes, FileKind, Inode, Tree};
use crate::model::{ChunkRef, ContentId};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What their names begin with; by itself, the list of them.
const LIST: &[u8] = b"user.starling";
/// Longest value, in bytes (Linux's own bound).
const VALUE_MAX_BYTES: usize = 64 << 10;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Magic {
    Repository,
    Revision,
    Root,
    Tag,
    Hash,
    Chunks,
    ChunkList,
    Sources,
}

impl Magic {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Repository, "user.starling.repository"),
        (Self::Revision, "user.starling.revision"),
        (Self::Root, "user.starling.root"),
        (Self::Tag, "user.starling.tag"),
        (Self::Hash, "user.starling.hash"),
        (Self::Chunks, "user.starling.chunks"),
        (Self::ChunkList, "user.starling.chunk_list"),
        (Self::Sources, "user.starling.sources"),
    ];

    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| known.as_bytes() == name).map(|(magic, _)| *magic)
    }

    /// Whether it tells of a file's content.
    fn is_of_content(self) -> bool {
        matches!(self, Self::Hash | Self::Chunks | Self::ChunkList | Self::Sources)
    }
}

/// Whether a name is one of ours, there or not.
pub(super) fn is_magic(name: &[u8]) -> bool {
    name.strip_prefix(LIST).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
}

impl FileSystem {
    /// The value of one of these attributes; `None` where the inode has none of that name.
    pub(super) async fn magic(
        &self,
        tree: &dyn Tree,
        inode: Inode,
        name: &[u8],
    ) -> Result<Option<String>, FsError> {
        let of_inode = |cause| FsError::of_tree(inode, cause);
        let Some(magic) = Magic::named(name) else {
            let is_list = name == LIST;
            return Ok(is_list.then(|| Magic::ALL.map(|(_, name)| format!("{name}\n")).concat()));
        };
        if magic.is_of_content() {
            let found = tree.attributes(inode).await.map_err(of_inode)?;
            if found.kind != FileKind::File {
                return Ok(None);
            }
            let chunks = tree.chunks(inode).await.map_err(of_inode)?;
            return Ok(self.of_content(magic, &found, &chunks));
        }
        let of = tree.name();
        Ok(match magic {
            Magic::Repository => Some(self.label().to_owned()),
            Magic::Revision => of.map(|of| of.revision.to_string()),
            Magic::Root => of.map(|of| of.root.to_string()),
            _ => self.tag().map(str::to_owned),
        })
    }

    fn of_content(&self, magic: Magic, file: &Attributes, chunks: &[ChunkRef]) -> Option<String> {
        match magic {
            // Of many chunks nobody has hashed the whole.
            Magic::Hash => match chunks {
                [] if file.size == 0 => Some(ContentId::of(b"").to_string()),
                [one] => Some(one.id.to_string()),
                _ => None,
            },
            Magic::Chunks => Some(chunks.len().to_string()),
            Magic::ChunkList => Some(list(chunks)),
            _ => {
                let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
                for chunk in chunks {
                    *counts.entry(self.origin(&chunk.id).unwrap_or("missing")).or_default() += 1;
                }
                Some(counts.iter().map(|(word, count)| format!("{word} {count}\n")).collect())
            }
        }
    }
}

/// A line a chunk: where it begins in the file, its length, its name. What does not fit is left out, and the last line says so.
fn list(chunks: &[ChunkRef]) -> String {
    let (mut text, mut offset) = (String::new(), 0_u64);
    for (number, chunk) in chunks.iter().enumerate() {
        let line = format!("{offset} {} {}\n", chunk.plain_len, chunk.id);
        if text.len() + line.len() > VALUE_MAX_BYTES - 32 {
            let _ = writeln!(text, "and {} more", chunks.len() - number);
            break;
        }
        text.push_str(&line);
        offset += u64::from(chunk.plain_len);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    #[test]
    fn names_of_ours_are_told_from_those_that_only_begin_alike() {
        for ours in ["user.starling", "user.starling.revision", "user.starling.unknown"] {
            assert!(is_magic(ours.as_bytes()), "{ours}");
        }
        for other in ["user.starlings", "user.starlingx.revision", "trusted.starling", "user.star"] {
            assert!(!is_magic(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_list_of_too_many_chunks_says_how_many_it_leaves_out() {
        let id = ContentId::of(b"x");
        let place = Place { segment: id, ordinal: 0, offset: 0, stored_len: 9 };
        let chunk = ChunkRef { id, plain_len: 1 << 20, place };
        assert_eq!(list(&[chunk; 2]), format!("0 1048576 {id}\n1048576 1048576 {id}\n"));
        let text = list(&[chunk; 5_000]);
        let told = text.lines().count() - 1;
        assert!(text.len() <= VALUE_MAX_BYTES && told > 500, "{told} lines in {} bytes", text.len());
        assert!(text.ends_with(&format!("and {} more\n", 5_000 - told)));
    }
}
