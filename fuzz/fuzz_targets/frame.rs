//! One frame: decoded, it is the named content or an error, and never longer than stated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::chunk::decode;
use starling::model::ContentId;

fuzz_target!(|input: (u32, &[u8])| {
    let (plain_len, frame) = input;
    let plain_len = plain_len % (1 << 20);
    if let Ok(plain) = decode(frame, &ContentId::of(b"content"), plain_len) {
        assert_eq!(&plain[..], b"content");
    }
});
