//! Catalog index and history: what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::catalog::{CatalogIndex, History};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = CatalogIndex::from_bytes(bytes) {
        assert_eq!(CatalogIndex::from_bytes(&index.to_bytes()), Ok(index));
    }
    if let Ok(history) = History::from_bytes(bytes) {
        assert_eq!(History::from_bytes(&history.to_bytes()), Ok(history));
    }
});
