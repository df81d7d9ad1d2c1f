//! What decided in a run who was the home of what.

use super::error::LabError;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The file in which the first node keeps what reaches its core.
pub(super) const INPUTS: &str = "inputs.jsonl";
/// A stored chunk is so many bytes longer than its file at most: incompressible bytes with their frame.
const FRAME_BYTES_MAX: u64 = 64;

/// The rendezvous keys of the content's slices, the longest first, as a node learned them that got all of it. Catalogs lie in slices of
/// their own, whose chunks have other lengths than those of the content.
pub(super) fn slices(inputs: &Path, chunk_bytes: u64) -> Result<Vec<u64>, LabError> {
    let text = fs::read_to_string(inputs).map_err(LabError::file(inputs))?;
    Ok(longest_first(&text, chunk_bytes))
}

fn longest_first(inputs: &str, chunk_bytes: u64) -> Vec<u64> {
    let mut slices: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    for line in inputs.lines().filter(|line| line.contains("\"Learned\"")) {
        // The last line may be cut off.
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let learned = &line["event"]["Content"]["Learned"];
        let number = |key: &str| learned[key].as_u64();
        if let (Some(slice), Some(chunk), Some(bytes)) =
            (number("slice_key"), number("chunk"), number("len_bytes"))
            && (chunk_bytes..=chunk_bytes + FRAME_BYTES_MAX).contains(&bytes)
        {
            slices.entry(slice).or_default().insert(chunk, bytes);
        }
    }
    let mut found: Vec<(u64, u64)> =
        slices.into_iter().map(|(key, chunks)| (chunks.values().sum(), key)).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_the_content_come_by_their_length_and_those_of_catalogs_not_at_all() {
        let learned = |chunk: u32, slice_key: u64, bytes: u32| {
            format!(
                "{{\"now\":1,\"event\":{{\"Content\":{{\"Learned\":{{\"chunk\":{chunk},\"slice\":0,\"segment\":0,\"slice_key\":{slice_key},\
                 \"part\":0,\"len_bytes\":{bytes}}}}}}},\"outputs\":[]}}\n"
            )
        };
        // What is learned twice counts once.
        let text = learned(0, 5, 5_921)
            + &learned(1, 6, 32_778)
            + &learned(1, 6, 32_778)
            + &learned(2, u64::MAX, 32_778)
            + &learned(3, u64::MAX, 32_778)
            + "{\"now\":2,\"event\":{\"Peers\":{\"Up\":{\"peer\":3}}},\"outputs\":[]}\n"
            + "{\"now\":3,\"event\":{\"Content\":{\"Learned\":{\"chunk\":4";
        assert_eq!(longest_first(&text, 32_768), [u64::MAX, 6]);
    }
}
