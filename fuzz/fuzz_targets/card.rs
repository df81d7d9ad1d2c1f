//! A signed card: nobody's signature is ever good.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::trust::SignedCard;

fuzz_target!(|bytes: &[u8]| {
    assert!(SignedCard::verify(bytes, &[7; 32]).is_err());
});
