//! The interned content of a running node: what [`Content`] answers from.

use super::{Chunk, Content, ContentUpdate, Segment, Slice};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ChunkRow {
    slice: u32,
    len_bytes: u32,
    part: u8,
    known: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SliceRow {
    key: u64,
    segment: u32,
    chunks: u32,
}

/// Dense rows by interned number. Numbers of what is forgotten may be used again.
///
/// The table is as long as the largest number; whoever interns keeps numbers dense and below
/// [`super::Settings::numbers_max`], which is checked by [`Self::apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentTable {
    chunks: Vec<ChunkRow>,
    slices: Vec<SliceRow>,
}

/// A number that the core's tables have no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("number {found} is not below {limit}")]
pub struct NumberTooLarge {
    /// The offending number.
    pub found: u32,
    /// The settings' bound.
    pub limit: u32,
}

impl ContentTable {
    /// Applies a change. Returns the slice whose number now means something else, so that what was remembered of
    /// it is dropped.
    ///
    /// # Errors
    /// [`NumberTooLarge`] when a number is not below `limit`; the table is unchanged.
    pub fn apply(&mut self, update: &ContentUpdate, limit: u32) -> Result<Option<Slice>, NumberTooLarge> {
        match *update {
            ContentUpdate::Learned { chunk, slice, segment, slice_key, part, len_bytes } => {
                if let Some(found) = [chunk.0, slice.0].into_iter().find(|number| *number >= limit) {
                    return Err(NumberTooLarge { found, limit });
                }
                self.forget(chunk);
                let row = at(&mut self.slices, slice.0);
                let replaced = row.chunks == 0 || row.key != slice_key;
                if row.key != slice_key {
                    row.chunks = 0;
                }
                *row = SliceRow { key: slice_key, segment: segment.0, chunks: row.chunks + 1 };
                let part = part.min(63);
                *at(&mut self.chunks, chunk.0) = ChunkRow { slice: slice.0, len_bytes, part, known: true };
                Ok(replaced.then_some(slice))
            }
            ContentUpdate::Belongs { slice, .. } if slice.0 >= limit => {
                Err(NumberTooLarge { found: slice.0, limit })
            }
            // Where homes are concerned, the view of the peers knows it.
            ContentUpdate::Belongs { .. } => Ok(None),
            ContentUpdate::Forgotten { chunk } => {
                self.forget(chunk);
                Ok(None)
            }
        }
    }

    /// Whether the chunk's number means something.
    pub fn knows(&self, chunk: Chunk) -> bool {
        self.chunks.get(chunk.0 as usize).is_some_and(|row| row.known)
    }

    fn forget(&mut self, chunk: Chunk) {
        let Some(row) = self.chunks.get_mut(chunk.0 as usize).filter(|row| row.known) else { return };
        row.known = false;
        let slice = &mut self.slices[row.slice as usize];
        slice.chunks = slice.chunks.saturating_sub(1);
    }

    fn row(&self, chunk: Chunk) -> ChunkRow {
        self.chunks.get(chunk.0 as usize).copied().unwrap_or_default()
    }
}

fn at<T: Clone + Default>(rows: &mut Vec<T>, number: u32) -> &mut T {
    let index = number as usize;
    if rows.len() <= index {
        rows.resize(index + 1, T::default());
    }
    &mut rows[index]
}

impl Content for ContentTable {
    fn slice(&self, chunk: Chunk) -> Slice {
        Slice(self.row(chunk).slice)
    }

    fn segment(&self, slice: Slice) -> Segment {
        Segment(self.slices.get(slice.0 as usize).map_or(0, |row| row.segment))
    }

    fn part(&self, chunk: Chunk) -> u8 {
        self.row(chunk).part
    }

    fn len_bytes(&self, chunk: Chunk) -> u32 {
        self.row(chunk).len_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(chunk: u32, slice: u32, slice_key: u64) -> ContentUpdate {
        ContentUpdate::Learned {
            chunk: Chunk(chunk),
            slice: Slice(slice),
            segment: Segment(slice + 100),
            slice_key,
            part: 3,
            len_bytes: 7,
        }
    }

    #[test]
    fn a_number_that_is_used_again_means_the_new_thing() {
        let mut table = ContentTable::default();
        assert_eq!(table.apply(&learned(1, 2, 9), 10), Ok(Some(Slice(2))));
        assert_eq!(table.apply(&learned(3, 2, 9), 10), Ok(None), "the slice is known already");
        assert_eq!((table.slice(Chunk(3)), table.segment(Slice(2))), (Slice(2), Segment(102)));
        assert_eq!((table.part(Chunk(3)), table.len_bytes(Chunk(3))), (3, 7));
        for chunk in [1, 3] {
            table.apply(&ContentUpdate::Forgotten { chunk: Chunk(chunk) }, 10).unwrap();
            assert!(!table.knows(Chunk(chunk)));
        }
        assert_eq!(table.apply(&learned(1, 2, 11), 10), Ok(Some(Slice(2))), "another slice has the number");
    }

    #[test]
    fn a_number_beyond_the_bound_is_refused_and_nothing_changes() {
        let mut table = ContentTable::default();
        assert_eq!(table.apply(&learned(10, 0, 1), 10), Err(NumberTooLarge { found: 10, limit: 10 }));
        assert_eq!(table.apply(&learned(0, 11, 1), 10), Err(NumberTooLarge { found: 11, limit: 10 }));
        assert_eq!(table, ContentTable::default());
    }
}
