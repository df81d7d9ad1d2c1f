//! A segment: whatever the index states lies within it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::chunk::SegmentIndex;
use starling::model::ContentId;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = SegmentIndex::parse(bytes) {
        for entry in &index.entries {
            assert!(entry.offset + u64::from(entry.stored_len) <= bytes.len() as u64);
        }
        let _ = SegmentIndex::check(bytes, &ContentId::of(bytes));
    }
});
