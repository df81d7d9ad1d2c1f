//! Where a file is cut into chunks.

use crate::model::limits;
use fastcdc::v2020::FastCDC;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};

/// Least bytes of the buffer that a file is read through: a few large reads cost less than many small ones.
const BUFFER_MIN_BYTES: usize = 1 << 20;

/// The parameters of FastCDC 2020 (Xia et al., IEEE TPDS 2020; normalization level 1, seed 0).
///
/// The shortest chunk is a quarter of the average, the longest four times the average.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// Files of at most this many bytes are one chunk.
    pub whole_max_bytes: u32,
    /// Average chunk of an ordinary file, in bytes.
    pub ordinary_average_bytes: u32,
    /// Average chunk of a large file, in bytes.
    pub large_average_bytes: u32,
    /// From this size on, in bytes, a file is large.
    pub large_from_bytes: u64,
}

impl Default for Chunking {
    /// 64 KiB on average, 1 MiB from 256 MiB on (design: small enough for on-demand reads of a
    /// container image, measured 8.6 MB against 11.1 MB in whole files for a Python start).
    fn default() -> Self {
        Self {
            whole_max_bytes: 64 << 10,
            ordinary_average_bytes: 64 << 10,
            large_average_bytes: 1 << 20,
            large_from_bytes: 256 << 20,
        }
    }
}

/// A chunking parameter that no repository may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunking: {what} is {found}, allowed are {least} to {most} (averages: powers of two)")]
pub struct ChunkingError {
    what: &'static str,
    found: u64,
    least: u64,
    most: u64,
}

impl Chunking {
    /// Refuses parameters with which chunks could be longer than [`limits::CHUNK_MAX_BYTES`] or needlessly small.
    ///
    /// # Errors
    /// [`ChunkingError`] with the offending parameter.
    pub fn check(&self) -> Result<(), ChunkingError> {
        let most = limits::CHUNK_MAX_BYTES;
        let within = |what, found: u32, least: u32, most: u32, power: bool| {
            if (least..=most).contains(&found) && (!power || found.is_power_of_two()) {
                Ok(())
            } else {
                Err(ChunkingError { what, found: found.into(), least: least.into(), most: most.into() })
            }
        };
        within("whole_max_bytes", self.whole_max_bytes, 0, most, false)?;
        within("ordinary_average_bytes", self.ordinary_average_bytes, 4096, most / 4, true)?;
        within("large_average_bytes", self.large_average_bytes, 4096, most / 4, true)
    }

    /// The average for a file of `size` bytes, or `None` when it is one chunk.
    fn average(&self, size: u64) -> Option<usize> {
        if size <= u64::from(self.whole_max_bytes) {
            None
        } else if size < self.large_from_bytes {
            Some(self.ordinary_average_bytes as usize)
        } else {
            Some(self.large_average_bytes as usize)
        }
    }
}

/// Reads `file` to its end and calls `each` with every chunk in turn. Returns the bytes read.
///
/// `size` is what the file's attributes say: it chooses the parameters. Where the file turns out
/// longer or shorter, it is cut all the same and the caller compares the sizes. At most a few chunks
/// are in memory; `buffer` is reused from file to file.
///
/// # Errors
/// Whatever `file` or `each` fails with.
///
/// # Panics
/// When `chunking` was not checked.
pub fn cut<E: From<io::Error>>(
    mut file: impl Read,
    size: u64,
    chunking: &Chunking,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    let average = chunking.average(size).unwrap_or(chunking.whole_max_bytes.max(4096) as usize);
    let longest = average * 4;
    assert!(longest <= 4 * limits::CHUNK_MAX_BYTES as usize, "chunking parameters are checked first");
    let room = (longest * 4).max(BUFFER_MIN_BYTES);
    if buffer.len() < room {
        buffer.resize(room, 0);
    }
    let (mut filled, mut total, mut ended) = (0, 0_u64, false);
    loop {
        while !ended && filled < room {
            match file.read(&mut buffer[filled..room]) {
                Ok(0) => ended = true,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            // A small file ends here without the second read that would only say so.
            ended |= total + filled as u64 == size && size < room as u64;
        }
        let mut start = 0;
        while start < filled && (ended || filled - start >= longest) {
            let rest = &buffer[start..filled];
            let whole = ended && total + rest.len() as u64 <= u64::from(chunking.whole_max_bytes);
            let len = if whole {
                rest.len()
            } else {
                FastCDC::new(rest, average / 4, average, longest).cut(0, rest.len()).1
            };
            let len = len.clamp(1, limits::CHUNK_MAX_BYTES as usize).min(rest.len());
            each(&rest[..len])?;
            start += len;
            total += len as u64;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if ended && filled == 0 {
            return Ok(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};
    use proptest::prelude::*;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut generator = Generator::new(seed);
        let mut bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| generator.next_u64().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn chunks(bytes: &[u8], chunking: &Chunking) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let total = cut::<io::Error>(bytes, bytes.len() as u64, chunking, &mut Vec::new(), |chunk| {
            found.push(chunk.to_vec());
            Ok(())
        })
        .unwrap();
        assert_eq!(total, bytes.len() as u64);
        found
    }

    /// A reader that gives a few bytes at a time, as a slow disk may.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.0.len().min(self.1).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    #[test]
    fn small_files_are_one_chunk_and_empty_files_none() {
        let chunking = Chunking::default();
        assert!(chunks(&[], &chunking).is_empty());
        for len in [1, 4095, 64 << 10] {
            assert_eq!(chunks(&noise(len, 1), &chunking).len(), 1);
        }
        assert!(chunks(&noise((64 << 10) + 1, 1), &chunking).len() <= 2);
    }

    #[test]
    fn chunks_have_the_stated_average_and_bounds() {
        let bytes = noise(24 << 20, 7);
        for (large_from_bytes, average) in [(256 << 20, 64 << 10), (1, 1 << 20)] {
            let chunking = Chunking { large_from_bytes, ..Chunking::default() };
            let found = chunks(&bytes, &chunking);
            assert_eq!(found.concat(), bytes);
            let mean = bytes.len() / found.len();
            assert!((average / 2..average * 2).contains(&mean), "mean {mean} for {average}");
            for chunk in &found[..found.len() - 1] {
                assert!((average / 4..=average * 4).contains(&chunk.len()), "{}", chunk.len());
            }
        }
    }

    #[test]
    fn cuts_move_with_the_content() {
        let bytes = noise(4 << 20, 3);
        let mut moved = noise(1000, 4);
        moved.extend_from_slice(&bytes);
        let before = chunks(&bytes, &Chunking::default());
        let after = chunks(&moved, &Chunking::default());
        let shared = before.iter().filter(|chunk| after.contains(chunk)).count();
        assert!(shared + 3 >= before.len(), "{shared} of {}", before.len());
    }

    #[test]
    fn where_the_reads_end_changes_nothing() {
        let bytes = noise(3 << 20, 9);
        let whole = chunks(&bytes, &Chunking::default());
        let mut found = Vec::new();
        cut::<io::Error>(
            Dribble(&bytes, 4099),
            bytes.len() as u64,
            &Chunking::default(),
            &mut Vec::new(),
            |chunk| {
                found.push(chunk.to_vec());
                Ok(())
            },
        )
        .unwrap();
        assert!(found == whole);
    }

    #[test]
    fn a_file_that_is_longer_or_shorter_than_its_attributes_say_is_cut_to_its_end() {
        let bytes = noise(2 << 20, 5);
        for size in [0, 10, 1 << 20, 1 << 40] {
            let mut all = Vec::new();
            let total = cut::<io::Error>(&bytes[..], size, &Chunking::default(), &mut Vec::new(), |chunk| {
                assert!(chunk.len() <= limits::CHUNK_MAX_BYTES as usize);
                all.extend_from_slice(chunk);
                Ok(())
            })
            .unwrap();
            assert_eq!((total, all == bytes), (bytes.len() as u64, true), "size {size}");
        }
    }

    #[test]
    fn parameters_out_of_bounds_are_refused() {
        assert!(Chunking::default().check().is_ok());
        let bad = Chunking { large_average_bytes: 2 << 20, ..Chunking::default() };
        assert!(bad.check().unwrap_err().to_string().contains("2097152"));
        assert!(Chunking { ordinary_average_bytes: 65_000, ..Chunking::default() }.check().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn chunks_put_together_give_the_file(len in 0_usize..600_000, seed: u64) {
            let bytes = noise(len, seed);
            prop_assert!(chunks(&bytes, &Chunking::default()).concat() == bytes);
        }
    }
}
