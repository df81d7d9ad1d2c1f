//! A content profile, which a scenario names: parsed, written and read again, and taken together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::sim::{ContentProfile, PROFILE_CHUNKS_MAX};
use std::num::NonZeroU32;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(profile) = ContentProfile::from_text(text) else { return };
    assert!((1..=PROFILE_CHUNKS_MAX).contains(&profile.len()));
    assert!(profile.slices() <= profile.len() && profile.segments() <= profile.slices());
    assert_eq!(ContentProfile::from_text(&profile.to_text()).as_ref(), Ok(&profile));
    let most = NonZeroU32::new(profile.len().div_ceil(2)).expect("half of one or more, rounded up");
    if let Ok(fewer) = profile.clone().together(most) {
        assert!(fewer.len() <= most.get() && fewer.slices() == profile.slices());
    }
});
