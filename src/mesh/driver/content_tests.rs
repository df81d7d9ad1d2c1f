//! The book of content.

use super::*;

fn chunk(number: u8, offset: u64) -> ChunkRef {
    let place = Place { segment: ContentId::of(&[number / 10]), ordinal: 0, offset, stored_len: 10 };
    ChunkRef { id: ContentId::of(&[number]), plain_len: 10, place }
}

fn repository() -> RepositoryName {
    "a.example".parse().unwrap()
}

fn intern(book: &mut ContentBook, chunk: ChunkRef) -> (Chunk, Changes) {
    book.intern(chunk, &repository(), false).unwrap()
}

#[test]
fn a_reference_that_lies_gets_a_number_of_its_own() {
    let mut book = ContentBook::new(10);
    let honest = chunk(1, 0);
    let (a, _) = intern(&mut book, honest);
    let (b, _) = intern(&mut book, ChunkRef { plain_len: 11, ..honest });
    assert_ne!(a, b);
    assert_eq!(intern(&mut book, honest), (a, Changes::default()));
    assert_eq!(book.with_id(&honest.id).as_slice(), [a, b]);
}

#[test]
fn lies_about_one_chunk_take_each_others_place() {
    let mut book = ContentBook::new(100);
    let honest = chunk(1, 0);
    let (number, _) = intern(&mut book, honest);
    book.pin(number);
    for lie in 0..50 {
        intern(&mut book, ChunkRef { plain_len: 11 + lie, ..honest });
        assert!(book.with_id(&honest.id).len() <= REFERENCES_MAX);
    }
    assert_eq!(book.number(&honest, &repository()), Some(number), "the one that is in use stays");
    book.unpin(number);
}

#[test]
fn lies_that_are_all_in_use_keep_no_reader_from_the_chunk() {
    let mut book = ContentBook::new(100);
    let honest = chunk(1, 0);
    for lie in (0..).take(REFERENCES_MAX) {
        let (number, _) = intern(&mut book, ChunkRef { plain_len: 11 + lie, ..honest });
        book.pin(number);
    }
    assert_eq!(book.intern(honest, &repository(), false), None, "a peer may lie once more");
    let (number, _) = book.intern(honest, &repository(), true).unwrap();
    assert_eq!(book.number(&honest, &repository()), Some(number));
    assert_eq!(book.intern(honest, &repository(), false), Some((number, Changes::default())));
}

#[test]
fn a_chunk_has_a_number_for_each_repository_in_which_it_is_asked_for() {
    let mut book = ContentBook::new(10);
    let (own, other) = (repository(), "other.example".parse().unwrap());
    let (a, learned) = book.intern(chunk(1, 0), &own, false).unwrap();
    let (b, learned_too) = book.intern(chunk(1, 0), &other, false).unwrap();
    let belongs = |changes: Changes| match changes.learned.as_slice() {
        [
            ContentUpdate::Learned { slice, slice_key, .. },
            ContentUpdate::Belongs { slice: same, repository },
        ] => {
            assert_eq!(slice, same);
            (*slice, *slice_key, *repository)
        }
        learned => unreachable!("{learned:?}"),
    };
    let (first, second) = (belongs(learned), belongs(learned_too));
    assert_eq!(first.1, second.1);
    assert!(a != b && first.0 != second.0 && first.2 != second.2);
    book.vouch(a);
    assert!(book.is_vouched(a) && !book.is_vouched(b) && book.is_vouched_anywhere(&chunk(1, 0).id));
    assert_eq!(book.get(a).unwrap().repository, own);
    assert_eq!(book.get(b).unwrap().repository, other);
    let place = chunk(1, 0).place;
    assert_eq!(book.slice_numbers(&place.segment, 0).collect::<Vec<_>>(), [first.0, second.0]);
    // The slice is known, and where it belongs.
    assert_eq!(book.intern(chunk(2, 1 << 19), &own, false).unwrap().1.learned.len(), 1);
    // The segment is given up when nothing of it is left under either name.
    for number in [a, b] {
        book.set_stored(number, true);
        book.announced(book.segment_of(number).unwrap());
    }
    book.set_stored(a, false);
    assert_eq!(book.take_turns(), []);
    book.set_stored(b, false);
    assert_eq!(book.take_turns(), [(place.segment, false)]);
}

#[test]
fn a_known_chunk_takes_less_than_sixty_six_bytes() {
    assert_eq!(size_of::<Row>(), 52);
    let mut book = ContentBook::new(200_000);
    let count = 200_000u64;
    for n in 0..count {
        let place = Place {
            segment: ContentId::of(&(n / 128).to_le_bytes()),
            ordinal: 0,
            offset: (n % 128) << 16,
            stored_len: 1 << 16,
        };
        intern(&mut book, ChunkRef { id: ContentId::of(&n.to_le_bytes()), plain_len: 1, place });
    }
    let slices = book.by_slice.capacity() * 14 + book.slices.bytes();
    let segments = (book.segments.capacity() + book.by_segment.capacity()) * 80;
    let segments = segments + book.namesakes.capacity() * 64;
    let bytes = book.chunks.bytes() + book.by_id.bytes() + slices + segments;
    assert!(bytes as u64 / count < 66, "{} bytes a chunk", bytes as u64 / count);
}

#[test]
fn an_announced_segment_is_given_up_with_its_last_chunk_and_comes_back_with_the_next() {
    let mut book = ContentBook::new(10);
    let numbers = [1, 2].map(|n| intern(&mut book, chunk(n, 0)).0);
    let segment = chunk(1, 0).place.segment;
    numbers.iter().for_each(|number| assert!(book.set_stored(*number, true)));
    book.obtained(numbers[0]);
    assert_eq!(book.announced(Segment(0)), Some((segment, true)));
    book.set_stored(numbers[0], false);
    assert_eq!(book.take_turns(), []);
    book.set_stored(numbers[1], false);
    book.set_stored(numbers[0], true);
    assert_eq!(book.take_turns(), [(segment, false), (segment, true)]);
    book.remove(numbers[0]);
    assert_eq!(book.take_turns(), [(segment, false)], "its number was given away");
}

#[test]
fn the_same_slice_has_one_number_and_the_same_key_everywhere() {
    let (mut one, mut two) = (ContentBook::new(10), ContentBook::new(10));
    let learned = |changes: Changes| match &changes.learned[0] {
        ContentUpdate::Learned { slice, segment, slice_key, part, .. } => {
            (*slice, *segment, *slice_key, *part)
        }
        other => unreachable!("{other:?}"),
    };
    let first = learned(intern(&mut one, chunk(1, 0)).1);
    let same_slice = learned(intern(&mut one, chunk(2, 1 << 19)).1);
    let next_slice = learned(intern(&mut one, chunk(3, 1 << 20)).1);
    assert_eq!((first.0, first.1, first.2), (same_slice.0, same_slice.1, same_slice.2));
    assert_eq!((first.3, same_slice.3), (0, 32));
    assert_eq!(first.1, next_slice.1);
    assert_ne!(first.2, next_slice.2);
    intern(&mut two, chunk(50, 0));
    assert_eq!(learned(intern(&mut two, chunk(3, 1 << 20)).1).2, next_slice.2);
}

#[test]
fn a_full_book_gives_away_what_is_not_in_use_and_refuses_when_all_is() {
    let mut book = ContentBook::new(3);
    let numbers: Vec<Chunk> = (0..3).map(|n| intern(&mut book, chunk(n, 0)).0).collect();
    for number in &numbers[..2] {
        book.pin(*number);
    }
    assert!(book.set_stored(numbers[2], true));
    let (new, changes) = intern(&mut book, chunk(30, 0));
    assert_eq!(changes.forgotten, Some((numbers[2], true)), "stored: to be evicted first");
    assert_eq!((new, book.chunks.len()), (numbers[2], 3), "the number is used again");
    assert_eq!(book.get(new).unwrap().chunk, chunk(30, 0));
    assert!(book.with_id(&chunk(2, 0).id).is_empty());
    book.pin(new);
    assert!(book.intern(chunk(31, 0), &repository(), false).is_none());
    book.unpin(numbers[0]);
    assert!(book.intern(chunk(31, 0), &repository(), false).is_some());
}

#[test]
fn segments_and_slices_go_with_their_last_chunk() {
    let mut book = ContentBook::new(1);
    for number in 0..100 {
        intern(&mut book, chunk(number, u64::from(number) << 20));
    }
    assert_eq!((book.by_slice.len(), book.segments.len(), book.slices.len()), (1, 1, 1));
}
