//! Profiles: what is written is read again, what is taken together stays what it was, and nothing foreign is taken.

use super::*;
use proptest::prelude::*;

fn subject() -> ProfileSubject {
    ProfileSubject {
        repository: "sw.example.org".to_owned(),
        revision: 7,
        since: Some(6),
        trace: None,
        files: 3,
        distinct_chunks: 1_000_000,
        plain_bytes: 9_000,
    }
}

fn chunk(segment: u32, offset: u64, stored_len: u32) -> ProfiledChunk {
    ProfiledChunk { segment, offset, stored_len }
}

/// Five chunks in three slices of two segments.
fn profile() -> ContentProfile {
    let slice = limits::SLICE_BYTES;
    let chunks = vec![
        chunk(0, 0, 700),
        chunk(0, 700, 50),
        chunk(0, 9_000, 60),
        chunk(0, slice + 5, 2_000),
        chunk(1, 3 * slice, 10),
    ];
    ContentProfile::new(subject(), chunks, Some(vec![4, 0, 1, 3, 2])).unwrap()
}

const TEXT: &str = r#"{"content_profile":1,"subject":{"repository":"sw.example.org","revision":7,"since":6,"files":3,"distinct_chunks":1000000,"plain_bytes":9000},"chunks":5,"stored_bytes":2820,"segments":[[[0,700,50],[9000,60],[1048581,2000]],[[3145728,10]]],"order":[[4,1],[0,2],[3,1],[2,1]]}
"#;

#[test]
fn the_text_is_the_documented_one_and_is_read_again() {
    assert_eq!(profile().to_text(), TEXT);
    let read = ContentProfile::from_text(TEXT).unwrap();
    assert_eq!(read, profile());
    assert_eq!((read.len(), read.slices(), read.segments(), read.stored_bytes()), (5, 3, 2, 2_820));
    assert_eq!(read.slice_numbers(), (vec![0, 0, 0, 1, 2], vec![0, 0, 1]));
    assert_eq!(read.mean_len(), 564);
    let documentation = include_str!("../../docs/simulation.md");
    assert!(documentation.contains(TEXT.trim()), "docs/simulation.md shows this file:\n{TEXT}");
}

#[test]
fn what_contradicts_itself_is_refused_with_its_field() {
    for (from, to, part) in [
        ("\"content_profile\":1", "\"content_profile\":2", "version 2; this program reads version 1"),
        ("\"content_profile\":1,", "", "content_profile"),
        ("\"revision\":7,", "", "revision"),
        ("\"revision\":7", "\"revision\":-7", "-7"),
        ("\"chunks\":5", "\"chunks\":6", "chunks: 6 are said to be there and 5 are"),
        ("\"chunks\":5", "\"chunks\":5,\"more\":1", "more"),
        ("\"stored_bytes\":2820", "\"stored_bytes\":2821", "stored_bytes: 2821"),
        ("sw.example.org", "", "repository"),
        ("sw.example.org", "sw \\u001b[31m", "repository"),
        ("1000000", "4", "distinct_chunks"),
        ("[0,700,50]", "[0]", "segments: segment 0"),
        ("[0,700,50]", "[]", "segments: segment 0"),
        ("[0,700,50]", "[0,700,0]", "chunk 1 has 0 bytes"),
        ("[0,700,50]", "[0,700,4294967296]", "4294967296"),
        ("[0,700,50]", "[0,700,2147483648]", "2147483648"),
        ("[9000,60]", "[749,60]", "chunk 2 at 749"),
        ("[[3145728,10]]", "[]", "segment 1: it has no chunks"),
        ("[[3145728,10]]", "[[1099511627776,10]]", "chunk 4 ends at"),
        ("[[3145728,10]]", "[[18446744073709551615,10]]", "chunk 4 ends at"),
        ("[[[0,700", "[[],[[0,700", "segment 0: it has no chunks"),
        ("[0,2]", "[0,1]", "order: chunk 1 is missing"),
        ("[0,2]", "[0,3]", "order: 1 chunks from 2, of 5"),
        ("[0,2]", "[0,0]", "order: 0 chunks"),
        ("[0,2]", "[1,2]", "order: chunk 2 twice"),
        ("[4,1]", "[5,1]", "there is no chunk 5"),
        ("[4,1]", "[4294967295,1]", "there is no chunk 4294967295"),
        ("[4,1],[0,2]", "[0,1],[0,2]", "chunk 0 twice"),
    ] {
        assert!(TEXT.contains(from), "{from}");
        let error = ContentProfile::from_text(&TEXT.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(part), "{from} -> {to}: {error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
    for text in ["", "[]", "null", "{}", &"[".repeat(100_000), &" ".repeat(13 << 20)] {
        assert!(ContentProfile::from_text(text).is_err());
    }
}

#[test]
fn more_chunks_than_are_possible_are_refused_before_they_are_kept() {
    let lens = "1,".repeat(PROFILE_CHUNKS_MAX as usize);
    let text = TEXT.replacen("[0,700,50]", &format!("[0,{lens}1]"), 1);
    assert!(ContentProfile::from_text(&text).unwrap_err().to_string().contains("more than 262144 chunks"));
    assert!(ContentProfile::new(subject(), Vec::new(), None).is_err());
}

#[test]
fn as_few_are_taken_together_as_it_needs_and_never_of_two_slices() {
    let most = |most| profile().together(NonZeroU32::new(most).unwrap());
    assert_eq!(most(5).unwrap(), profile());
    let four = most(4).unwrap();
    let lens: Vec<u32> = four.chunks().iter().map(|chunk| chunk.stored_len).collect();
    assert_eq!(lens, [750, 60, 2_000, 10]);
    assert_eq!(four.order(), Some(&[3, 0, 2, 1][..]));
    let three = most(3).unwrap();
    assert_eq!((three.len(), three.slices(), three.stored_bytes()), (3, 3, 2_820));
    assert_eq!(three.order(), Some(&[2, 0, 1][..]));
    let error = most(2).unwrap_err().to_string();
    assert!(error.contains("3 slices") && error.contains("2 chunks"), "{error}");
}

/// Chunks somewhere, in order.
fn chunks() -> impl Strategy<Value = Vec<ProfiledChunk>> {
    let step = (0_u64..300_000, 1_u32..400_000, prop::bool::weighted(0.1));
    prop::collection::vec(step, 1..200).prop_map(|steps| {
        let (mut segment, mut end) = (0, 0);
        let place = |(number, (gap, stored_len, is_new)): (usize, (u64, u32, bool))| {
            if is_new && number > 0 {
                (segment, end) = (segment + 1, 0);
            }
            let offset = end + if gap % 3 == 0 { gap } else { 0 };
            end = offset + u64::from(stored_len);
            chunk(segment, offset, stored_len)
        };
        steps.into_iter().enumerate().map(place).collect()
    })
}

proptest! {
    #[test]
    fn any_profile_is_read_as_it_was_written(chunks in chunks(), seed in any::<u64>(), ordered in any::<bool>()) {
        let mut order: Vec<u32> = (0..u32::try_from(chunks.len()).unwrap()).collect();
        order.sort_by_key(|chunk| crate::model::mix(seed ^ u64::from(*chunk)));
        let profile = ContentProfile::new(subject(), chunks, ordered.then_some(order)).unwrap();
        prop_assert_eq!(ContentProfile::from_text(&profile.to_text()), Ok(profile));
    }

    #[test]
    fn taken_together_bytes_slices_and_their_order_stay(chunks in chunks(), most in 1_u32..200, seed in any::<u64>()) {
        let mut order: Vec<u32> = (0..u32::try_from(chunks.len()).unwrap()).collect();
        order.sort_by_key(|chunk| crate::model::mix(seed ^ u64::from(*chunk)));
        let profile = ContentProfile::new(subject(), chunks, Some(order)).unwrap();
        let together = profile.clone().together(NonZeroU32::new(most).unwrap());
        if profile.slices() > most && profile.len() > most {
            prop_assert!(together.is_err());
            return Ok(());
        }
        let together = together.unwrap();
        prop_assert!(together.len() <= most.max(1));
        let whole = (profile.stored_bytes(), profile.slices(), profile.segments());
        prop_assert_eq!((together.stored_bytes(), together.slices(), together.segments()), whole);
        let bytes_of_slices = |profile: &ContentProfile| {
            let (slices, _) = profile.slice_numbers();
            let mut bytes = vec![0_u64; profile.slices() as usize];
            for (chunk, slice) in profile.chunks().iter().zip(slices) {
                bytes[slice as usize] += u64::from(chunk.stored_len);
            }
            bytes
        };
        prop_assert_eq!(bytes_of_slices(&together), bytes_of_slices(&profile));
        // What is read first is the same place.
        let first = |profile: &ContentProfile| profile.chunks()[profile.order().unwrap()[0] as usize];
        let (one, other) = (first(&together), first(&profile));
        prop_assert!((one.segment, one.offset) <= (other.segment, other.offset));
    }

    #[test]
    fn foreign_texts_are_refused_or_sound(at in 0_usize..400, with in "[\\[\\]{},0-9a-z\"-]{0,6}", cut in 0_usize..4) {
        let mut text = TEXT.to_owned();
        let at = at.min(text.len());
        text.replace_range(at..(at + cut).min(text.len()), &with);
        if let Ok(profile) = ContentProfile::from_text(&text) {
            prop_assert_eq!(ContentProfile::from_text(&profile.to_text()), Ok(profile));
        }
    }
}
