//! A scenario of the simulator with all that it sweeps: parsed and checked, never run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::sim::{NODE_CHUNKS_MAX, Plan, RUNS_MAX};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Plan::parse(text, None, None) {
        Ok(plan) => {
            assert!((1..=RUNS_MAX as usize).contains(&plan.runs().len()));
            assert!(plan.cases.iter().all(|case| case.scenario.node_chunks() <= NODE_CHUNKS_MAX));
        }
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(error.line().is_none_or(|line| (1..=lines).contains(&line)), "{error}");
        }
    }
});
