//! Bytes from a peer: whatever they are, reading them neither panics nor takes memory beyond their length,
//! and what was understood can be said again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::mesh::wire::{HEADER_BYTES, Header, Message};

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let Ok(header) = Header::read(*header) else { return };
    if let Ok(Some(message)) = Message::from_body(header.kind, body) {
        let frame = message.to_frame().expect("what was read is within bounds");
        assert_eq!(Message::from_body(frame[0], &frame[HEADER_BYTES..]), Ok(Some(message)));
    }
});
