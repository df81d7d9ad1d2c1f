//! Catalog index, history and traces: what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::catalog::{CatalogIndex, History, RecordedTrace, Replay};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = CatalogIndex::from_bytes(bytes) {
        assert_eq!(CatalogIndex::from_bytes(&index.to_bytes()), Ok(index));
    }
    if let Ok(history) = History::from_bytes(bytes) {
        assert_eq!(History::from_bytes(&history.to_bytes()), Ok(history));
    }
    if let Ok(trace) = RecordedTrace::from_bytes(bytes) {
        assert_eq!(RecordedTrace::from_bytes(&trace.to_bytes()), Ok(trace));
    }
    if let Ok(replay) = Replay::from_bytes(bytes) {
        assert_eq!(Replay::from_bytes(&replay.to_bytes()), Ok(replay));
    }
});
