//! Records what the processes of one command read of a mount.

use super::content::Content;
use crate::catalog::{Inode, TRACED_FILES_MAX, TRACED_READS_MAX, TracedRead};
use crate::model::ContentId;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Recordings of one mount at once (guess).
const RECORDINGS_MAX: usize = 8;
/// Tasks of which it is remembered whether they belong to the command.
const TASKS_MAX: usize = 4_096;

/// Chunks of a recording that are remembered: more than are replayed (guess).
const CHUNKS_MAX: usize = 1 << 18;

/// Whether a task, as the kernel numbers it, is to be recorded.
pub type Belongs = Box<dyn Fn(u32) -> bool + Send + Sync>;

/// What was read so far.
#[derive(Default)]
struct Seen {
    numbers: HashMap<Inode, u32>,
    /// The files in order, each with the names of its chunks.
    files: Vec<(Inode, Vec<ContentId>)>,
    chunks: HashSet<(u32, u32)>,
    reads: Vec<TracedRead>,
    tasks: HashMap<u32, bool>,
    /// Whether something was left out because of the bounds.
    is_full: bool,
}

/// What a recording saw.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// The files in order of the first read, each with the names of its chunks.
    pub(super) files: Vec<(Inode, Vec<ContentId>)>,
    pub(super) reads: Vec<TracedRead>,
    /// Whether something was left out because of the bounds.
    pub(super) is_full: bool,
}

/// One recording under way.
struct Recorder {
    /// The process for which it is made. It belongs, as long as it is there.
    process: u32,
    belongs: Belongs,
    seen: Mutex<Seen>,
}

impl Recorder {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Each note is whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_of(&self, task: u32) -> bool {
        if let Some(known) = self.seen().tasks.get(&task) {
            return *known;
        }
        let belongs = (self.belongs)(task);
        let mut seen = self.seen();
        if seen.tasks.len() >= TASKS_MAX {
            seen.tasks.clear();
        }
        seen.tasks.insert(task, belongs);
        belongs
    }

    /// Whether nobody is left who would end it.
    fn is_over(&self) -> bool {
        !(self.belongs)(self.process)
    }

    /// Chunks `first` to before `end` of a file are read.
    fn note(&self, inode: Inode, content: &Content, first: usize, end: usize) {
        let mut seen = self.seen();
        if seen.is_full {
            return;
        }
        let number = match seen.numbers.get(&inode) {
            Some(number) => *number,
            None if seen.files.len() >= TRACED_FILES_MAX => return seen.is_full = true,
            None => {
                let number = u32::try_from(seen.files.len()).expect("bounded above");
                seen.files.push((inode, content.chunks().iter().map(|chunk| chunk.id).collect()));
                seen.numbers.insert(inode, number);
                number
            }
        };
        for chunk in (first..end).filter_map(|chunk| u32::try_from(chunk).ok()) {
            if seen.chunks.contains(&(number, chunk)) {
                continue;
            }
            let (no_reads, no_chunks) =
                (seen.reads.len() >= TRACED_READS_MAX, seen.chunks.len() >= CHUNKS_MAX);
            match seen.reads.last_mut() {
                _ if no_chunks => return seen.is_full = true,
                Some(last) if last.file == number && last.first + last.count == chunk => last.count += 1,
                _ if no_reads => return seen.is_full = true,
                _ => seen.reads.push(TracedRead { file: number, first: chunk, count: 1 }),
            }
            seen.chunks.insert((number, chunk));
        }
    }
}

/// The recordings of a mount.
#[derive(Default)]
pub(super) struct Recorders {
    running: RwLock<Vec<(u64, Arc<Recorder>)>>,
}

impl Recorders {
    /// Ends those whose process is gone: it was to end them.
    pub(super) fn end_orphans(&self) {
        let is_over = || {
            let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
            running.iter().any(|(_, recorder)| recorder.is_over())
        };
        if is_over() {
            let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
            running.retain(|(_, recorder)| !recorder.is_over());
        }
    }

    /// Begins one for a process and others that belong to it; its number, or `None` when too many run.
    pub(super) fn begin(&self, process: u32, belongs: Belongs) -> Option<u64> {
        self.end_orphans();
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        if running.len() >= RECORDINGS_MAX {
            return None;
        }
        let number = (0..).find(|number| running.iter().all(|(other, _)| other != number))?;
        running.push((number, Arc::new(Recorder { process, belongs, seen: Mutex::default() })));
        Some(number)
    }

    /// Ends one.
    pub(super) fn end(&self, number: u64) -> Option<Recording> {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let at = running.iter().position(|(other, _)| *other == number)?;
        let (_, recorder) = running.remove(at);
        let seen = std::mem::take(&mut *recorder.seen());
        Some(Recording { files: seen.files, reads: seen.reads, is_full: seen.is_full })
    }

    /// Whether what a task reads is recorded.
    pub(super) fn is_recorded(&self, task: u32) -> bool {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        !running.is_empty() && running.iter().any(|(_, recorder)| recorder.is_of(task))
    }

    /// A task reads chunks `first` to before `end` of a file.
    pub(super) fn note(&self, task: u32, inode: Inode, content: &Content, (first, end): (usize, usize)) {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner).clone();
        for (_, recorder) in running.iter().filter(|(_, recorder)| recorder.is_of(task)) {
            recorder.note(inode, content, first, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Attributes, FileKind};
    use crate::model::{ChunkRef, Place};

    fn content(inode: u64, chunks: usize) -> Content {
        let chunk = |number: usize| {
            let id = ContentId::of(&[inode.to_le_bytes(), number.to_le_bytes()].concat());
            ChunkRef { id, plain_len: 1, place: Place { segment: id, ordinal: 0, offset: 0, stored_len: 1 } }
        };
        let attributes = Attributes {
            permissions: 0o644,
            size: chunks as u64,
            links: 1,
            ..Attributes::blank(Inode(inode), FileKind::File)
        };
        Content::new(attributes, (0..chunks).map(chunk).collect()).unwrap()
    }

    #[test]
    fn each_chunk_is_noted_once_in_order_and_only_of_tasks_that_belong() {
        let recorders = Recorders::default();
        let number = recorders.begin(7, Box::new(|task| task == 7)).unwrap();
        assert!(recorders.is_recorded(7) && !recorders.is_recorded(8));
        let (one, two) = (content(1, 10), content(2, 3));
        let note = |task, inode, content: &Content, range| recorders.note(task, Inode(inode), content, range);
        note(7, 2, &two, (0, 1));
        note(8, 1, &one, (0, 10));
        note(7, 1, &one, (4, 6));
        note(7, 1, &one, (5, 8));
        note(7, 2, &two, (0, 3));
        let recording = recorders.end(number).unwrap();
        let reads: Vec<_> = recording.reads.iter().map(|read| (read.file, read.first, read.count)).collect();
        assert_eq!(reads, [(0, 0, 1), (1, 4, 4), (0, 1, 2)]);
        let inodes: Vec<_> = recording.files.iter().map(|(inode, _)| inode.0).collect();
        assert_eq!((inodes, recording.is_full), (vec![2, 1], false));
        assert!(recorders.end(number).is_none() && !recorders.is_recorded(7));
    }

    #[test]
    fn recordings_and_what_they_hold_are_bounded() {
        let recorders = Recorders::default();
        let numbers: Vec<u64> = std::iter::from_fn(|| recorders.begin(1, Box::new(|_| true))).collect();
        assert_eq!(numbers.len(), RECORDINGS_MAX);
        let large = content(1, 2 * TRACED_READS_MAX + 2);
        for chunk in 0..=TRACED_READS_MAX {
            recorders.note(1, Inode(1), &large, (2 * chunk, 2 * chunk + 1));
        }
        let recording = recorders.end(numbers[0]).unwrap();
        assert_eq!((recording.reads.len(), recording.is_full), (TRACED_READS_MAX, true));
        assert!(recorders.begin(1, Box::new(|_| true)).is_some());
    }

    #[test]
    fn a_full_recording_grows_no_more() {
        let recorders = Recorders::default();
        recorders.begin(1, Box::new(|_| true)).unwrap();
        let recorder = Arc::clone(&recorders.running.read().unwrap()[0].1);
        let large = content(1, CHUNKS_MAX + 9);
        recorders.note(1, Inode(1), &large, (0, CHUNKS_MAX + 9));
        recorders.note(1, Inode(2), &content(2, 2), (0, 2));
        let seen = recorder.seen();
        assert_eq!((seen.chunks.len(), seen.files.len(), seen.is_full), (CHUNKS_MAX, 1, true));
    }

    #[test]
    fn a_recording_ends_with_its_process() {
        let alive = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let recorders = Recorders::default();
        let begin = || {
            let alive = Arc::clone(&alive);
            recorders.begin(1, Box::new(move |_| alive.load(std::sync::atomic::Ordering::SeqCst)))
        };
        while begin().is_some() {}
        alive.store(false, std::sync::atomic::Ordering::SeqCst);
        assert!(begin().is_some());
        recorders.end_orphans();
        assert!(recorders.running.read().unwrap().is_empty());
    }
}
