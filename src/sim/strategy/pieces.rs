//! What moves: the content in pieces, and who has which of them.

/// The content, cut into pieces of one length, of which the last may be shorter. A layer is a run of pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    bytes: u64,
    piece_bytes: u32,
    pieces: u32,
    layers: u32,
}

/// Most bytes of the parts in which a layer moves.
const PART_MAX: u64 = 16 << 20;
/// Least bytes of such a part.
const PART_MIN: u64 = 64 << 10;
/// Parts of a layer, if they are not too large then.
const PARTS: u64 = 8;

impl Layout {
    /// Content that has no layers.
    pub(super) fn new(bytes: u64, piece_bytes: u32) -> Self {
        let pieces = u32::try_from(bytes.div_ceil(u64::from(piece_bytes))).unwrap_or(u32::MAX);
        Self { bytes, piece_bytes, pieces, layers: 1 }
    }

    /// So many layers, or fewer if the content is short. Each moves in parts, one after the other, which nobody outside of the
    /// model sees.
    pub(super) fn layered(bytes: u64, layers: u32) -> Self {
        let part = (bytes / u64::from(layers) / PARTS).clamp(PART_MIN, PART_MAX);
        let layout = Self::new(bytes, u32::try_from(part).unwrap_or(u32::MAX));
        Self { layers: layers.min(layout.pieces), ..layout }
    }

    /// The number of pieces.
    pub(super) fn pieces(self) -> u32 {
        self.pieces
    }

    /// All but the last piece.
    pub(super) fn piece_bytes(self) -> u32 {
        self.piece_bytes
    }

    /// All of it.
    pub(super) fn bytes(self) -> u64 {
        self.bytes
    }

    /// The bytes of one piece.
    pub(super) fn len_bytes(self, piece: u32) -> u32 {
        let before = u64::from(piece) * u64::from(self.piece_bytes);
        let left = self.bytes.saturating_sub(before).min(u64::from(self.piece_bytes));
        u32::try_from(left).unwrap_or(self.piece_bytes)
    }

    /// The number of layers.
    pub(super) fn layers(self) -> u32 {
        self.layers
    }

    /// The pieces of a layer.
    pub(super) fn layer(self, layer: u32) -> std::ops::Range<u32> {
        let start = |layer: u32| {
            let place = u64::from(layer) * u64::from(self.pieces) / u64::from(self.layers);
            u32::try_from(place).unwrap_or(self.pieces)
        };
        start(layer)..start(layer + 1)
    }
}

/// A set of pieces for each end, one bit each.
#[derive(Clone, Debug)]
pub(super) struct Held {
    words: Vec<u64>,
    counts: Vec<u32>,
    row: usize,
    pieces: u32,
}

impl Held {
    /// Nobody has anything.
    pub(super) fn new(ends: usize, pieces: u32) -> Self {
        let row = (pieces as usize).div_ceil(64);
        Self { words: vec![0; ends * row], counts: vec![0; ends], row, pieces }
    }

    fn row(&self, end: u32) -> &[u64] {
        let first = end as usize * self.row;
        &self.words[first..first + self.row]
    }

    /// Whether an end has a piece.
    pub(super) fn has(&self, end: u32, piece: u32) -> bool {
        self.row(end)[(piece / 64) as usize] >> (piece % 64) & 1 == 1
    }

    /// How many it has.
    pub(super) fn count(&self, end: u32) -> u32 {
        self.counts[end as usize]
    }

    /// Whether it has all.
    pub(super) fn has_all(&self, end: u32) -> bool {
        self.count(end) == self.pieces
    }

    fn word(&mut self, end: u32, piece: u32) -> &mut u64 {
        &mut self.words[end as usize * self.row + (piece / 64) as usize]
    }

    /// It has this one from now on. `false` if it had it before.
    pub(super) fn set(&mut self, end: u32, piece: u32) -> bool {
        let is_new = !self.has(end, piece);
        if is_new {
            *self.word(end, piece) |= 1 << (piece % 64);
            self.counts[end as usize] += 1;
        }
        is_new
    }

    /// It has this one no longer.
    pub(super) fn unset(&mut self, end: u32, piece: u32) {
        if self.has(end, piece) {
            *self.word(end, piece) &= !(1 << (piece % 64));
            self.counts[end as usize] -= 1;
        }
    }

    /// It has nothing.
    pub(super) fn clear(&mut self, end: u32) {
        let first = end as usize * self.row;
        self.words[first..first + self.row].fill(0);
        self.counts[end as usize] = 0;
    }

    /// It has everything.
    pub(super) fn fill(&mut self, end: u32) {
        (0..self.pieces).for_each(|piece| {
            self.set(end, piece);
        });
    }

    /// The pieces that one end has and another neither has nor waits for.
    pub(super) fn useful<'a>(
        &'a self,
        from: u32,
        to: u32,
        awaited: &'a Self,
    ) -> impl Iterator<Item = u32> + 'a {
        let words = self.row(from).iter().zip(self.row(to)).zip(awaited.row(to));
        (0_u32..)
            .zip(words)
            .flat_map(|(place, ((from, to), awaited))| bits(place * 64, from & !(to | awaited)))
    }

    /// The first such piece at or after `start`, going around.
    pub(super) fn useful_after(&self, from: u32, to: u32, awaited: &Self, start: u32) -> Option<u32> {
        let (from, to, awaited) = (self.row(from), self.row(to), awaited.row(to));
        let word = |place: usize| from[place] & !(to[place] | awaited[place]);
        let (first, shift) = ((start / 64) as usize, start % 64);
        let found = |place: usize, word: u64| {
            (word != 0).then(|| u32::try_from(place * 64).unwrap_or(0) + word.trailing_zeros())
        };
        let after = word(first) & (u64::MAX << shift);
        found(first, after)
            .or_else(|| (first + 1..self.row).find_map(|place| found(place, word(place))))
            .or_else(|| (0..first).find_map(|place| found(place, word(place))))
            .or_else(|| found(first, word(first) & !(u64::MAX << shift)))
    }
}

/// The numbers of the bits that are set.
fn bits(first: u32, mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| first + word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_and_layers_cover_the_content_without_gaps() {
        for (bytes, layers) in [(1, 8), (100_000_000, 8), (1 << 30, 3), (7 << 30, 1), (1_000_001, 1_000)] {
            let layout = Layout::layered(bytes, layers);
            let all: u64 = (0..layout.pieces()).map(|piece| u64::from(layout.len_bytes(piece))).sum();
            assert_eq!(all, bytes);
            let mut next = 0;
            for layer in 0..layout.layers() {
                assert_eq!(layout.layer(layer).start, next);
                next = layout.layer(layer).end;
                assert!(next > layout.layer(layer).start, "{bytes} {layers}");
            }
            assert_eq!(next, layout.pieces());
            assert!(layout.layers() <= layers && u64::from(layout.piece_bytes()) <= PART_MAX);
        }
        assert_eq!((Layout::new(10, 4).pieces(), Layout::new(10, 4).len_bytes(2)), (3, 2));
    }

    proptest! {
        #[test]
        fn what_is_useful_is_what_one_has_and_the_other_neither_has_nor_awaits(
            sets in proptest::collection::vec((0_u32..150, 0_usize..4), 0..200),
            start in 0_u32..150,
        ) {
            let (mut held, mut awaited) = (Held::new(2, 150), Held::new(2, 150));
            for (piece, what) in sets {
                match what {
                    0 => { held.set(0, piece); }
                    1 => { held.set(1, piece); }
                    2 => { awaited.set(1, piece); }
                    _ => held.unset(0, piece),
                }
            }
            let is_useful = |piece: &u32| held.has(0, *piece) && !held.has(1, *piece) && !awaited.has(1, *piece);
            let expected: Vec<u32> = (0..150).filter(is_useful).collect();
            prop_assert_eq!(held.useful(0, 1, &awaited).collect::<Vec<_>>(), expected.clone());
            let after = expected.iter().find(|piece| **piece >= start).or(expected.first()).copied();
            prop_assert_eq!(held.useful_after(0, 1, &awaited, start), after);
            let count = (0..150).filter(|piece| held.has(0, *piece)).count();
            prop_assert_eq!(held.count(0) as usize, count);
            held.fill(0);
            prop_assert!(held.has_all(0));
            held.clear(0);
            prop_assert!(held.count(0) == 0 && !held.has(0, start));
        }
    }
}
