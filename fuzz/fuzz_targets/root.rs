//! A signed root under the fingerprint of the golden repository: only the golden roots verify.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::model::UnixTime;
use starling::trust::SignedRoot;

const FINGERPRINT: &str = "2d114c0a2ecde84f559d99b49c7e16ae7eb006a4050b20064f8f600905d2cb32";

fuzz_target!(|bytes: &[u8]| {
    let name = "golden.example".parse().expect("a repository name");
    let fingerprint = FINGERPRINT.parse().expect("a fingerprint");
    if let Ok(root) = SignedRoot::verify(bytes, &name, &fingerprint, UnixTime(0)) {
        assert!((1..=2).contains(&root.root().revision.0));
    }
});
