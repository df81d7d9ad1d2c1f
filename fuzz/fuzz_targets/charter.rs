//! A charter as a member hears it from anybody: parsed, every signature checked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::mesh::{Charter, MeshId, MeshTrust};
use starling::model::UnixTime;

fuzz_target!(|data: &[u8]| {
    let _ = Charter::parse(data, MeshId([7; 32]));
    // As the charter of whatever mesh its first key names: then its links are looked at, too.
    let Some(first) = data.get(1..33).and_then(|key| <[u8; 32]>::try_from(key).ok()) else { return };
    let Ok(key) = starling::mesh::AuthorityKey::from_bytes(&first) else { return };
    if let Ok(charter) = Charter::parse(data, key.mesh()) {
        let trust = MeshTrust::in_memory(charter);
        assert!(trust.verify(data, UnixTime(0)).is_err(), "a charter is no certificate");
    }
});
