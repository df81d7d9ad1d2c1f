//! What became of each chunk: whom it was asked of, what they said, and when. For `starling why`.
//!
//! The loop notes every event that reaches the core and every output; a story is closed when its chunk arrives or is
//! given up. Closed stories are kept, the newest of each chunk, first in first out.

use super::super::proto::{Answer, Chunk, Event, Failure, GiveUp, Input, Output, Peer, Source};
use super::content::ContentBook;
use super::peers::PeerBook;
use crate::model::{Class, ContentId, NodeId, Time};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Stories that are kept once they are closed: about 4 MiB (guess: what was read in the last minutes).
const CLOSED_MAX: usize = 16_384;
/// Stories that are open: more than the core can have under way.
const OPEN_MAX: usize = 4_096;
/// Steps of a story; the last one is always kept.
const STEPS_MAX: usize = 24;

/// One thing that happened to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// A node was asked.
    Asked(NodeId),
    /// A node said that it comes.
    ToldToWait(NodeId),
    /// A node had no upload free.
    Busy(NodeId),
    /// A node did not have it.
    Missing(NodeId),
    /// A node could not be reached, was too slow, refused or sent wrong bytes.
    Failed(NodeId, Failure),
    /// It was not wanted from a node any more.
    Withdrawn(NodeId),
    /// The DHT was asked who holds its segment.
    LookedUp,
    /// The DHT named so many.
    Found(usize),
    /// The strata were asked.
    AskedStrata,
    /// The strata did not deliver.
    StrataFailed(Failure),
    /// It was not wanted from the strata any more.
    StrataWithdrawn,
    /// It came from a node, and was verified.
    FromNode(NodeId),
    /// It came from the strata, and was verified.
    FromStrata,
    /// No source was left, or no time.
    GaveUp(GiveUp),
}

/// A step of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Since the story began.
    pub after: Duration,
    /// What happened.
    pub what: Happened,
}

/// How a chunk came to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// When it was first wanted or asked for.
    pub began: Time,
    /// For whom on this node; `None`: for a neighbour only.
    pub class: Option<Class>,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// Steps that were left out before the last.
    pub omitted: u32,
}

impl Story {
    fn note(&mut self, now: Time, what: Happened) {
        if self.steps.len() >= STEPS_MAX {
            self.steps.pop();
            self.omitted += 1;
        }
        self.steps.push(Step { after: now.since(self.began), what });
    }
}

#[derive(Default)]
struct Closed {
    by_id: HashMap<ContentId, Story>,
    order: VecDeque<ContentId>,
}

/// Closed stories, for whoever wants to look. Cloning shares them.
#[derive(Clone, Default)]
pub(super) struct Stories(Arc<Mutex<Closed>>);

impl Stories {
    /// The last story of a chunk.
    pub(super) fn get(&self, id: &ContentId) -> Option<Story> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    fn put(&self, id: ContentId, story: Story) {
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.by_id.insert(id, story).is_none() {
            closed.order.push_back(id);
        }
        if closed.order.len() > CLOSED_MAX
            && let Some(oldest) = closed.order.pop_front()
        {
            closed.by_id.remove(&oldest);
        }
    }
}

/// The open stories.
#[derive(Default)]
pub(super) struct Journal {
    open: HashMap<Chunk, Story>,
    closed: Stories,
}

/// The books in which numbers are looked up.
pub(super) struct Books<'a> {
    pub(super) peers: &'a PeerBook,
    pub(super) content: &'a ContentBook,
}

impl Books<'_> {
    fn node(&self, peer: Peer) -> NodeId {
        self.peers.get(peer).map_or(NodeId([0; 32]), |entry| entry.node)
    }
}

impl Journal {
    /// Where closed stories are found.
    pub(super) fn stories(&self) -> Stories {
        self.closed.clone()
    }

    /// Notes an event and what the core decided upon it.
    pub(super) fn note(&mut self, now: Time, event: &Event, outputs: &[Output], books: &Books<'_>) {
        match event {
            Event::Input(input) => self.note_input(now, input, books),
            Event::Content(super::super::proto::ContentUpdate::Forgotten { chunk }) => {
                self.open.remove(chunk);
            }
            Event::Content(_) | Event::Peers(_) => {}
        }
        for output in outputs {
            self.note_output(now, output, books);
        }
    }

    fn note_input(&mut self, now: Time, input: &Input, books: &Books<'_>) {
        match *input {
            Input::Wanted { chunk, class, .. } => {
                let story = self.story(now, chunk);
                story.class = Some(story.class.map_or(class, |before| before.min(class)));
            }
            // Others may still wait for what was begun. If not, withdrawing it is the next that is noted.
            Input::Unwanted { chunk }
                if self.open.get(&chunk).is_some_and(|story| story.steps.is_empty()) =>
            {
                self.open.remove(&chunk);
            }
            Input::Told { peer, chunk, ref answer, .. } => {
                let node = books.node(peer);
                let what = match answer {
                    Answer::Wait => Happened::ToldToWait(node),
                    Answer::Busy { .. } => Happened::Busy(node),
                    Answer::Missing { .. } => Happened::Missing(node),
                };
                self.step(now, chunk, what);
            }
            Input::Failed { chunk, from, why } => {
                let what = match from {
                    Source::Peer(peer) => Happened::Failed(books.node(peer), why),
                    Source::Strata => Happened::StrataFailed(why),
                };
                self.step(now, chunk, what);
            }
            Input::Arrived { chunk, from } => {
                let what = match from {
                    Source::Peer(peer) => Happened::FromNode(books.node(peer)),
                    Source::Strata => Happened::FromStrata,
                };
                self.close(now, chunk, what, books);
            }
            Input::Providers { segment, ref peers } => {
                let of_segment = |chunk: &Chunk| {
                    books.content.segment_of(*chunk).is_some_and(|its_segment| its_segment == segment)
                };
                for (_, story) in self.open.iter_mut().filter(|(chunk, _)| of_segment(chunk)) {
                    if story.steps.iter().any(|step| step.what == Happened::LookedUp) {
                        story.note(now, Happened::Found(peers.len()));
                    }
                }
            }
            _ => {}
        }
    }

    fn note_output(&mut self, now: Time, output: &Output, books: &Books<'_>) {
        match *output {
            Output::Ask { peer, chunk, .. } => self.begin(now, chunk, Happened::Asked(books.node(peer))),
            Output::Cancel { peer, chunk } => self.step(now, chunk, Happened::Withdrawn(books.node(peer))),
            Output::FetchUpstream { chunk } => self.begin(now, chunk, Happened::AskedStrata),
            Output::CancelUpstream { chunk } => self.step(now, chunk, Happened::StrataWithdrawn),
            Output::FindProviders { segment } => {
                let of_segment = |chunk: &Chunk| {
                    books.content.segment_of(*chunk).is_some_and(|its_segment| its_segment == segment)
                };
                for (_, story) in self.open.iter_mut().filter(|(chunk, _)| of_segment(chunk)) {
                    story.note(now, Happened::LookedUp);
                }
            }
            Output::Deliver { chunk } => {
                // It was here all the time.
                self.open.remove(&chunk);
            }
            Output::GiveUp { chunk, why } => self.close(now, chunk, Happened::GaveUp(why), books),
            _ => {}
        }
    }

    fn story(&mut self, now: Time, chunk: Chunk) -> &mut Story {
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&chunk) {
            // Left over from what nobody wanted any more. The oldest half goes.
            let mut began: Vec<Time> = self.open.values().map(|story| story.began).collect();
            let middle = began.len() / 2;
            let (_, median, _) = began.select_nth_unstable(middle);
            let median = *median;
            self.open.retain(|_, story| story.began > median);
        }
        let fresh = || Story { began: now, class: None, steps: Vec::new(), omitted: 0 };
        self.open.entry(chunk).or_insert_with(fresh)
    }

    fn begin(&mut self, now: Time, chunk: Chunk, what: Happened) {
        self.story(now, chunk).note(now, what);
    }

    fn step(&mut self, now: Time, chunk: Chunk, what: Happened) {
        if let Some(story) = self.open.get_mut(&chunk) {
            story.note(now, what);
        }
    }

    fn close(&mut self, now: Time, chunk: Chunk, what: Happened, books: &Books<'_>) {
        let Some(mut story) = self.open.remove(&chunk) else { return };
        story.note(now, what);
        if let Some(entry) = books.content.get(chunk) {
            self.closed.put(entry.chunk.id, story);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::Holders;
    use crate::model::{CellLabel, ChunkRef, Place};

    /// Books with this node, one peer and one chunk in them.
    struct World {
        peers: PeerBook,
        content: ContentBook,
        peer: Peer,
        chunk: Chunk,
        journal: Journal,
        now: Time,
    }

    fn reference(number: u8) -> ChunkRef {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 10 };
        ChunkRef { id: ContentId::of(&[number]), plain_len: 10, place }
    }

    impl World {
        fn new() -> Self {
            let addr = "127.0.0.1:1".parse().unwrap();
            let (mut peers, mut updates) = PeerBook::new(NodeId([0; 32]), addr, &CellLabel::default());
            let peer = peers.meet(NodeId([7; 32]), addr, None, &mut updates).unwrap();
            let mut content = ContentBook::new(CLOSED_MAX + 100);
            let (chunk, _) = content.intern(reference(1), &"a.example".parse().unwrap(), true).unwrap();
            Self { peers, content, peer, chunk, journal: Journal::default(), now: Time::from_nanos(1_000) }
        }

        fn note(&mut self, input: Input, outputs: &[Output]) {
            self.now = self.now + Duration::from_millis(1);
            let books = Books { peers: &self.peers, content: &self.content };
            self.journal.note(self.now, &Event::Input(input), outputs, &books);
        }

        fn want(&mut self) {
            let (peer, chunk) = (self.peer, self.chunk);
            let ask = Output::Ask { peer, chunk, class: Class::Read };
            self.note(Input::Wanted { chunk, class: Class::Read, deadline: Time::NEVER }, &[ask]);
        }
    }

    #[test]
    fn a_story_tells_who_was_asked_what_they_said_and_when() {
        let mut world = World::new();
        let (peer, chunk, node) = (world.peer, world.chunk, NodeId([7; 32]));
        world.want();
        let answer = Answer::Busy { holders: Holders::new() };
        world.note(Input::Told { peer, chunk, answer, load: 1 }, &[Output::FetchUpstream { chunk }]);
        assert_eq!(world.journal.stories().get(&reference(1).id), None, "not over yet");
        world.note(Input::Arrived { chunk, from: Source::Strata }, &[Output::Deliver { chunk }]);
        let story = world.journal.stories().get(&reference(1).id).unwrap();
        let told: Vec<_> = story.steps.iter().map(|step| (step.after.as_millis(), step.what)).collect();
        let expected = [
            (0, Happened::Asked(node)),
            (1, Happened::Busy(node)),
            (1, Happened::AskedStrata),
            (2, Happened::FromStrata),
        ];
        assert_eq!((told.as_slice(), story.class), (&expected[..], Some(Class::Read)));
        assert!(world.journal.open.is_empty());
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let mut world = World::new();
        let (peer, chunk) = (world.peer, world.chunk);
        world.want();
        for _ in 0..1_000 {
            world.note(Input::Told { peer, chunk, answer: Answer::Wait, load: 1 }, &[]);
        }
        world.note(Input::Arrived { chunk, from: Source::Peer(peer) }, &[]);
        let story = world.journal.stories().get(&reference(1).id).unwrap();
        assert_eq!(
            (story.steps.len(), story.omitted),
            (STEPS_MAX, u32::try_from(1_002 - STEPS_MAX).unwrap())
        );
        assert_eq!(story.steps.last().unwrap().what, Happened::FromNode(NodeId([7; 32])));
    }

    #[test]
    fn what_was_here_all_the_time_has_no_story_and_open_ones_are_bounded() {
        let mut world = World::new();
        let chunk = world.chunk;
        let want = Input::Wanted { chunk, class: Class::Read, deadline: Time::NEVER };
        world.note(want, &[Output::Deliver { chunk }]);
        assert!(world.journal.open.is_empty());
        for number in 0..10 * OPEN_MAX {
            let chunk = Chunk(u32::try_from(number).unwrap());
            world.note(Input::Tick, &[Output::FetchUpstream { chunk }]);
            assert!(world.journal.open.len() <= OPEN_MAX);
        }
        let newest = Chunk(u32::try_from(10 * OPEN_MAX).unwrap() - 1);
        assert!(world.journal.open.contains_key(&newest));
    }

    #[test]
    fn closed_stories_are_bounded_and_the_newest_of_a_chunk_counts() {
        let stories = Stories::default();
        let story =
            |nanos| Story { began: Time::from_nanos(nanos), class: None, steps: Vec::new(), omitted: 0 };
        for number in 0..(CLOSED_MAX as u64 + 50) {
            stories.put(ContentId::of(&number.to_le_bytes()), story(number));
        }
        assert_eq!(stories.0.lock().unwrap().by_id.len(), CLOSED_MAX);
        assert!(stories.get(&ContentId::of(&49_u64.to_le_bytes())).is_none());
        let id = ContentId::of(&50_u64.to_le_bytes());
        stories.put(id, story(7));
        assert_eq!(stories.get(&id).unwrap().began, Time::from_nanos(7));
        assert_eq!(stories.0.lock().unwrap().order.len(), CLOSED_MAX);
    }
}
