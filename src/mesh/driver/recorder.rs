//! Records everything that reaches the core, so that its decisions can be replayed to the byte
//! (the format is the core's own: [`event_line`]).
//!
//! A thread writes; when it cannot keep up the loop waits for it, because a record with a gap would be
//! worthless.

use super::super::proto::{Event, Output, Start, event_line, header_line};
use crate::model::Time;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Lines that wait for the writer.
const LINES_MAX: usize = 4_096;

/// The writing end. Dropping it ends the thread once everything is written.
pub(super) struct Recorder {
    lines: Option<SyncSender<String>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Recorder {
    /// Writes the first line and starts the thread.
    ///
    /// # Errors
    /// When the first line cannot be written, or there is no thread.
    pub(super) fn start(to: Box<dyn Write + Send>, start: &Start) -> io::Result<Self> {
        let mut to = BufWriter::new(to);
        to.write_all(header_line(start).as_bytes())?;
        to.flush()?;
        let (lines, queue) = sync_channel::<String>(LINES_MAX);
        let writer = std::thread::Builder::new().name("mesh-record".into()).spawn(move || {
            while let Ok(line) = queue.recv() {
                let mut result = to.write_all(line.as_bytes());
                // Whatever waits is written before the flush: one system call for a burst.
                while result.is_ok()
                    && let Ok(line) = queue.try_recv()
                {
                    result = to.write_all(line.as_bytes());
                }
                if let Err(error) = result.and_then(|()| to.flush()) {
                    tracing::error!(%error, "the record of the core's inputs ends here");
                    return;
                }
            }
        })?;
        Ok(Self { lines: Some(lines), writer: Some(writer) })
    }

    /// Records one event. Waits when the writer is behind.
    pub(super) fn record(&self, now: Time, event: &Event, outputs: &[Output]) {
        if let Some(lines) = &self.lines {
            // The writer is gone only after it said why.
            let _ = lines.send(event_line(now, event, outputs));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.lines.take();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::{Core, Input, Outbox, Peer, PeerUpdate, Replay, Settings};
    use crate::model::Generator;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_is_complete_and_replays_to_the_same_outputs() {
        let shared = Shared::default();
        let start = Start { me: Peer(0), settings: Settings::default(), generator: Generator::new(5) };
        let recorder = Recorder::start(Box::new(shared.clone()), &start).unwrap();
        let mut core = Core::new(start);
        let met = PeerUpdate::Met { peer: Peer(0), key: 1, cell: 0, cell_key: 2, region: 0, weight: 100 };
        let mut events = vec![Event::Peers(met), Event::Peers(PeerUpdate::Up { peer: Peer(0) })];
        events.extend((0..10_000).map(|_| Event::Input(Input::Tick)));
        let mut out = Outbox::default();
        for (number, event) in (0u64..).zip(events) {
            core.apply(Time::from_nanos(number), event.clone(), &mut out).unwrap();
            recorder.record(Time::from_nanos(number), &event, out.as_slice());
            out.drain();
        }
        drop(recorder);
        let replay = Replay::run(&shared.0.lock().unwrap()[..]).unwrap();
        assert!(replay.is_identical());
        assert_eq!(replay.events, 10_002);
    }
}
