//! A list of revocations as a member hears it from anybody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::mesh::{AuthorityKey, MeshId, Revocations};

fuzz_target!(|data: &[u8]| {
    // The key that the list names counts, so that its signature is looked at.
    let named = data.get(1..33).and_then(|key| <[u8; 32]>::try_from(key).ok());
    let keys = named.and_then(|key| AuthorityKey::from_bytes(&key).ok());
    let _ = Revocations::parse(data, MeshId([7; 32]), keys);
});
