//! The packed columns of a row: a file's chunks, and extended attributes.

use crate::model::{ChunkRef, ContentId, Place, limits};
use std::sync::Arc;

/// Longest name of an extended attribute, in bytes (Linux's own bound).
pub const XATTR_NAME_MAX_BYTES: usize = 255;
/// Longest value of an extended attribute, in bytes (Linux's own bound).
pub const XATTR_VALUE_MAX_BYTES: usize = 64 << 10;
/// Most bytes of all extended attributes of an inode, packed (guess: ext4 holds less than a block).
pub const XATTRS_MAX_BYTES: usize = 1 << 20;

/// An extended attribute: name and value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// The extended attributes of an inode, sorted by name.
pub type Xattrs = Arc<[Xattr]>;

/// Appends a LEB128 number.
pub(super) fn put(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// Takes a LEB128 number from the front.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(first & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        number |= low << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    u32::try_from(take(bytes)?).ok()
}

fn take_slice<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (slice, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(slice)
}

/// Packs chunks; `number` gives the row of a segment.
pub(super) fn pack_chunks(chunks: &[ChunkRef], mut number: impl FnMut(&ContentId) -> u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * 46);
    for ChunkRef { id, plain_len, place } in chunks {
        bytes.extend_from_slice(id.digest());
        put(&mut bytes, number(&place.segment));
        put(&mut bytes, place.ordinal.into());
        put(&mut bytes, place.offset);
        put(&mut bytes, place.stored_len.into());
        put(&mut bytes, (*plain_len).into());
    }
    bytes
}

/// Unpacks the chunks of a file of `size` bytes. `segments` are the rows from 1.
pub(super) fn unpack_chunks(
    bytes: &[u8],
    segments: &[ContentId],
    size: u64,
) -> Result<Vec<ChunkRef>, String> {
    let mut chunks = Vec::with_capacity(bytes.len() / 37);
    each_chunk(bytes, segments, size, |chunk| chunks.push(chunk))?;
    Ok(chunks)
}

/// Calls `each` with the chunks of a file of `size` bytes. `Ok` only when all are sane and add up to the size.
pub(super) fn each_chunk(
    mut bytes: &[u8],
    segments: &[ContentId],
    size: u64,
    mut each: impl FnMut(ChunkRef),
) -> Result<(), String> {
    let (mut count, mut total) = (0_usize, 0_u64);
    while !bytes.is_empty() {
        let short = || format!("the list ends within chunk {count}");
        let mut digest = [0; 32];
        digest.copy_from_slice(take_slice(&mut bytes, 32).ok_or_else(short)?);
        let segment = take(&mut bytes).ok_or_else(short)?;
        let ordinal = take_u32(&mut bytes).ok_or_else(short)?;
        let offset = take(&mut bytes).ok_or_else(short)?;
        let stored_len = take_u32(&mut bytes).ok_or_else(short)?;
        let plain_len = take_u32(&mut bytes).ok_or_else(short)?;
        let segment =
            usize::try_from(segment)
                .ok()
                .and_then(|number| segments.get(number.checked_sub(1)?))
                .ok_or_else(|| format!("chunk {count} lies in segment {segment} of {}", segments.len()))?;
        let chunk = ChunkRef {
            id: ContentId::blake3(digest),
            plain_len,
            place: Place { segment: *segment, ordinal, offset, stored_len },
        };
        if !is_sane(&chunk, limits::CHUNK_MAX_BYTES) {
            return Err(format!("chunk {count} has impossible lengths: {chunk:?}"));
        }
        total += u64::from(plain_len);
        count += 1;
        each(chunk);
    }
    if total == size { Ok(()) } else { Err(format!("the chunks add up to {total} bytes of {size}")) }
}

/// Whether a reader may act on a chunk's numbers.
pub(super) fn is_sane(chunk: &ChunkRef, plain_max: u32) -> bool {
    let place = &chunk.place;
    (1..=plain_max).contains(&chunk.plain_len)
        && place.stored_len > 0
        && place.stored_len <= chunk.plain_len.saturating_add(limits::FRAME_OVERHEAD_BYTES)
        && place.ordinal < limits::SEGMENT_MAX_FRAMES
        && place.end().is_some_and(|end| end <= i64::MAX.cast_unsigned())
}

/// Packs extended attributes, or `None` when there are none.
///
/// # Errors
/// The offending value, when they are out of bounds or not sorted.
pub(super) fn pack_xattrs(xattrs: &[Xattr]) -> Result<Option<Vec<u8>>, String> {
    if xattrs.is_empty() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        put(&mut bytes, name.len() as u64);
        bytes.extend_from_slice(name);
        put(&mut bytes, value.len() as u64);
        bytes.extend_from_slice(value);
    }
    // What a reader would refuse is not written.
    unpack_xattrs(&bytes)?;
    Ok(Some(bytes))
}

/// Unpacks extended attributes.
pub(super) fn unpack_xattrs(bytes: &[u8]) -> Result<Xattrs, String> {
    let mut xattrs: Vec<Xattr> = Vec::new();
    each_xattr(bytes, |name, value| xattrs.push((name.into(), value.into())))?;
    Ok(xattrs.into())
}

/// Extended attributes for which programs ask of every file that they list or copy, and which few trees have.
const ASKED: [&[u8]; 3] = [b"security.selinux", b"system.posix_acl_access", b"system.posix_acl_default"];

/// A set of such names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked(pub(super) u8);

impl Asked {
    /// The name alone, or `None` when it is another.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        ASKED.iter().position(|asked| *asked == name).map(|at| Self(1 << at))
    }

    /// Those that packed extended attributes have.
    pub(super) fn in_xattrs(bytes: &[u8]) -> Self {
        let mut found = Self::default();
        // What is malformed is refused elsewhere.
        let _ = each_xattr(bytes, |name, _| found.0 |= Self::of(name).unwrap_or_default().0);
        found
    }
}

/// Calls `each` with names and values of extended attributes. `Ok` only when all are sane and sorted by name.
pub(super) fn each_xattr<'a>(
    mut bytes: &'a [u8],
    mut each: impl FnMut(&'a [u8], &'a [u8]),
) -> Result<(), String> {
    if bytes.len() > XATTRS_MAX_BYTES {
        return Err(format!("{} bytes of extended attributes", bytes.len()));
    }
    let (mut count, mut last) = (0_usize, None);
    while !bytes.is_empty() {
        let mut string = |least: usize, most: usize| {
            let len = usize::try_from(take(&mut bytes)?).ok().filter(|len| (least..=most).contains(len))?;
            take_slice(&mut bytes, len)
        };
        let pair = string(1, XATTR_NAME_MAX_BYTES).zip(string(0, XATTR_VALUE_MAX_BYTES));
        let Some((name, value)) = pair.filter(|(name, _)| !name.contains(&0)) else {
            return Err(format!("extended attribute {count} is malformed"));
        };
        if last.is_some_and(|last| last >= name) {
            return Err(format!("extended attribute {count} is out of order"));
        }
        (count, last) = (count + 1, Some(name));
        each(name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_survive_and_overlong_ones_are_refused() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            let mut rest = &bytes[..];
            assert_eq!((take(&mut rest), rest), (Some(number), &[][..]));
        }
        for bad in [&[][..], &[0x80], &[0xff; 10], &[0x80; 11]] {
            assert_eq!(take(&mut { bad }), None, "{bad:?}");
        }
    }

    #[test]
    fn chunks_that_do_not_add_up_or_lie_nowhere_are_refused() {
        let segment = ContentId::of(b"segment");
        let chunk = ChunkRef {
            id: ContentId::of(b"x"),
            plain_len: 10,
            place: Place { segment, ordinal: 1, offset: 2, stored_len: 3 },
        };
        let packed = pack_chunks(&[chunk], |_| 1);
        assert_eq!(unpack_chunks(&packed, &[segment], 10), Ok(vec![chunk]));
        assert!(unpack_chunks(&packed, &[segment], 11).unwrap_err().contains("10 bytes of 11"));
        assert!(unpack_chunks(&packed, &[], 10).unwrap_err().contains("segment 1 of 0"));
        let long = ChunkRef { plain_len: limits::CHUNK_MAX_BYTES + 1, ..chunk };
        assert!(unpack_chunks(&pack_chunks(&[long], |_| 1), &[segment], 1 << 23).is_err());
    }

    #[test]
    fn unsorted_or_oversized_attributes_are_not_written() {
        let pair = |name: &[u8], len: usize| (Box::from(name), vec![0; len].into_boxed_slice());
        assert!(pack_xattrs(&[pair(b"b", 1), pair(b"a", 1)]).is_err());
        assert!(pack_xattrs(&[pair(b"a", 1), pair(b"a", 1)]).is_err());
        assert!(pack_xattrs(&[pair(b"a", XATTR_VALUE_MAX_BYTES + 1)]).is_err());
        assert_eq!(pack_xattrs(&[]), Ok(None));
    }

    proptest! {
        #[test]
        fn attributes_survive(map in proptest::collection::btree_map(
            proptest::collection::vec(1_u8.., 1..20), proptest::collection::vec(any::<u8>(), 0..50), 1..6)) {
            let xattrs: Vec<Xattr> =
                map.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            let packed = pack_xattrs(&xattrs).unwrap().unwrap();
            let unpacked = unpack_xattrs(&packed).unwrap();
            prop_assert_eq!(&unpacked[..], &xattrs[..]);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size: u64) {
            let _ = unpack_xattrs(&bytes);
            let _ = unpack_chunks(&bytes, &[ContentId::of(b"s")], size);
        }
    }
}
