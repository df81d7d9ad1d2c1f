//! Events in line, in as many words of four bytes as each needs: millions are on their way at once, and nearly all are short.

use super::fleet::{Event, Named, Says};
use crate::mesh::proto::{Ask, Chunk, Peer, Source, prefetch};
use crate::model::Class;

/// Words in a page: few, for many lists hold hardly any.
const PAGE: usize = 512;
/// Words of the longest event.
const LONGEST: usize = 8;

/// Pages that are empty.
pub(super) type Spare = Vec<Page>;

/// What the first word after the receiver says: the kind, in its lowest bits, then what is short.
const KIND: u32 = 0xf;
const ASK: u32 = 0;
const WITHDRAW: u32 = 1;
const ANSWER: u32 = 2;
const DATA: u32 = 3;
const DATA_OF_STRATA: u32 = 4;
const WRONG: u32 = 5;
const STALL: u32 = 6;
const SENT: u32 = 7;
const NEWS: u32 = 8;
const NEWS_OF_NOBODY: u32 = 9;
const DOWN: u32 = 10;
const UP: u32 = 11;
const WAKE: u32 = 12;
/// It does not fit: the next word is its number among those that lie apart.
const APART: u32 = 13;

/// Where what is short lies in that word.
const SHORT: u32 = 4;
const COUNT: u32 = 8;
const LOAD: u32 = 16;

const CLASSES: [Class; 3] = [Class::Read, Class::Prefetch, Class::Fill];
const SAYS: [Says; 3] = [Says::Wait, Says::Busy, Says::Missing];

/// Words of one event, the receiver's first; of a shorter one, what follows says nothing.
type Words = [u32; LONGEST];

/// An event as words; `None` if it does not fit.
fn encode(to: u32, event: &Event) -> Option<Words> {
    let of = |head: u32, a: u32, b: u32, c: u32| Some([to, head, a, b, c, 0, 0, 0]);
    match event {
        Event::Ask { from, chunk, class } => of(ASK | (*class as u32) << SHORT, *from, chunk.0, 0),
        Event::Withdraw { from, chunk } => of(WITHDRAW, *from, chunk.0, 0),
        Event::Answer { from, chunk, says, load, named: Named::Few { count, peers: [a, b, c, d] } } => {
            let short = (*says as u32) << SHORT | u32::from(*count) << COUNT | u32::from(*load) << LOAD;
            Some([to, ANSWER | short, *from, chunk.0, *a, *b, *c, *d])
        }
        Event::Data { chunk, from: Source::Peer(peer) } => of(DATA, peer.0, chunk.0, 0),
        Event::Data { chunk, from: Source::Strata } => of(DATA_OF_STRATA, 0, chunk.0, 0),
        Event::Wrong { chunk, from } => of(WRONG, *from, chunk.0, 0),
        Event::Stall { to, chunk } => of(STALL, *to, chunk.0, 0),
        Event::Sent { ask, to, chunk } => of(SENT, *to, chunk.0, ask.0),
        Event::News(Some(from)) => of(NEWS, *from, 0, 0),
        Event::News(None) => of(NEWS_OF_NOBODY, 0, 0, 0),
        Event::Down(peer) => of(DOWN, *peer, 0, 0),
        Event::Up(peer) => of(UP, *peer, 0, 0),
        Event::Wake => of(WAKE, 0, 0, 0),
        Event::WantAll(..)
        | Event::Possession { .. }
        | Event::Providers { .. }
        | Event::Answer { named: Named::Many(_), .. } => None,
    }
}

/// Words of the event that begins with this one, its receiver included.
fn words_of(head: u32) -> usize {
    match head & KIND {
        WAKE | NEWS_OF_NOBODY => 2,
        NEWS | DOWN | UP | APART => 3,
        SENT => 5,
        ANSWER => 4 + (head >> COUNT & 0xff) as usize,
        _ => 4,
    }
}

/// The event of these words, unless it lies apart.
fn decode(words: &Words) -> Option<Event> {
    let [_, head, first, chunk, a, b, c, d] = *words;
    let (chunk, short) = (Chunk(chunk), (head >> SHORT & 3) as usize);
    Some(match head & KIND {
        ASK => Event::Ask { from: first, chunk, class: CLASSES[short] },
        WITHDRAW => Event::Withdraw { from: first, chunk },
        ANSWER => {
            let load = u8::try_from(head >> LOAD & 0xff).unwrap_or(u8::MAX);
            let count = u8::try_from(head >> COUNT & 0xff).unwrap_or(0);
            // Behind them lies the next event.
            let mut peers = [a, b, c, d];
            peers[usize::from(count).min(4)..].fill(0);
            let named = Named::Few { count, peers };
            Event::Answer { from: first, chunk, says: SAYS[short], load, named }
        }
        DATA => Event::Data { chunk, from: Source::Peer(Peer(first)) },
        DATA_OF_STRATA => Event::Data { chunk, from: Source::Strata },
        WRONG => Event::Wrong { chunk, from: first },
        STALL => Event::Stall { to: first, chunk },
        SENT => Event::Sent { ask: Ask(a), to: first, chunk },
        NEWS => Event::News(Some(first)),
        NEWS_OF_NOBODY => Event::News(None),
        DOWN => Event::Down(first),
        UP => Event::Up(first),
        WAKE => Event::Wake,
        _ => return None,
    })
}

/// What is seen of an event at a glance: what its receiver will look it up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Glance {
    Ask(Chunk),
    Withdraw(Chunk),
    Answer(Peer, Chunk),
    Data(Option<Peer>, Chunk),
    Sent(Ask),
    Wake,
    Other,
}

impl Glance {
    pub(super) fn chunk(self) -> Option<Chunk> {
        match self {
            Self::Ask(chunk) | Self::Withdraw(chunk) | Self::Answer(_, chunk) | Self::Data(_, chunk) => {
                Some(chunk)
            }
            Self::Sent(_) | Self::Wake | Self::Other => None,
        }
    }
}

/// Events as words. An event does not go on in another page.
#[derive(Debug)]
pub(super) struct Page {
    words: Box<[u32; PAGE]>,
    used: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { words: Box::new([0; PAGE]), used: 0 }
    }
}

impl Page {
    /// The words that begin at a place where there is room for the longest event.
    fn at(&self, place: usize) -> &Words {
        const NONE: Words = [0, WAKE, 0, 0, 0, 0, 0, 0];
        self.words.get(place..place + LONGEST).and_then(|words| words.try_into().ok()).unwrap_or(&NONE)
    }

    fn has_room(&self) -> bool {
        self.used + LONGEST <= PAGE
    }

    /// Copies all of the longest event, which is quicker than to copy what it has.
    fn push(&mut self, words: &Words) {
        self.words[self.used..self.used + LONGEST].copy_from_slice(words);
        self.used += words_of(words[1]);
    }
}

/// Events with their receivers, in the order in which they were put in line. A place is given to each, which it keeps.
#[derive(Debug, Default)]
pub(super) struct Line {
    pages: Vec<Page>,
    /// Events that do not fit words.
    apart: Vec<Event>,
    len: usize,
}

impl Line {
    /// Puts an event in line.
    pub(super) fn push(&mut self, to: u32, event: Event, spare: &mut Spare) {
        match encode(to, &event) {
            Some(words) => self.page(spare).push(&words),
            None => self.push_apart(to, event, spare),
        }
    }

    fn push_apart(&mut self, to: u32, event: Event, spare: &mut Spare) {
        let number = u32::try_from(self.apart.len()).unwrap_or(u32::MAX);
        self.apart.push(event);
        self.page(spare).push(&[to, APART, number, 0, 0, 0, 0, 0]);
    }

    /// A page with room for one more event.
    fn page(&mut self, spare: &mut Spare) -> &mut Page {
        self.len += 1;
        if !self.pages.last().is_some_and(Page::has_room) {
            self.pages.push(spare.pop().unwrap_or_default());
        }
        let last = self.pages.len() - 1;
        &mut self.pages[last]
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// By place, whom each event reaches.
    pub(super) fn each(&self, mut see: impl FnMut(u32, u32)) {
        for (number, page) in self.pages.iter().enumerate() {
            let mut place = 0;
            while place < page.used {
                let words = page.at(place);
                see(u32::try_from(number * PAGE + place).unwrap_or(u32::MAX), words[0]);
                place += words_of(words[1]);
            }
        }
    }

    fn words(&self, place: u32) -> &Words {
        let place = place as usize;
        self.pages[place / PAGE].at(place % PAGE)
    }

    /// Calls the event at a place into the processor's cache.
    pub(super) fn prefetch(&self, place: u32) {
        let words = self.words(place);
        prefetch(&raw const words[0]);
        prefetch(&raw const words[LONGEST - 1]);
    }

    /// What is seen of the event at a place.
    pub(super) fn glance(&self, place: u32) -> Glance {
        let [_, head, first, chunk, ask, ..] = *self.words(place);
        let chunk = Chunk(chunk);
        match head & KIND {
            ASK => Glance::Ask(chunk),
            WITHDRAW => Glance::Withdraw(chunk),
            ANSWER => Glance::Answer(Peer(first), chunk),
            DATA => Glance::Data(Some(Peer(first)), chunk),
            DATA_OF_STRATA => Glance::Data(None, chunk),
            SENT => Glance::Sent(Ask(ask)),
            WAKE => Glance::Wake,
            _ => Glance::Other,
        }
    }

    /// Takes the event at a place out, each once.
    pub(super) fn take(&mut self, place: u32) -> Event {
        let words = self.words(place);
        let number = words[2];
        decode(words).unwrap_or_else(|| std::mem::replace(&mut self.apart[number as usize], Event::Wake))
    }

    /// Takes all out, in their order.
    pub(super) fn pour(&mut self, mut take: impl FnMut(Letter)) {
        for page in &self.pages {
            let mut place = 0;
            while place < page.used {
                let words = *page.at(place);
                place += words_of(words[1]);
                let apart = match words[1] & KIND {
                    APART => std::mem::replace(&mut self.apart[words[2] as usize], Event::Wake),
                    _ => Event::Wake,
                };
                take(Letter { words, apart });
            }
        }
    }

    /// The same event as in another list.
    pub(super) fn push_letter(&mut self, letter: Letter, spare: &mut Spare) {
        if letter.words[1] & KIND == APART {
            self.push_apart(letter.to(), letter.apart, spare);
        } else {
            self.page(spare).push(&letter.words);
        }
    }

    /// Gives the pages back when all events were taken out.
    pub(super) fn recycle(&mut self, spare: &mut Spare) {
        for mut page in self.pages.drain(..) {
            page.used = 0;
            spare.push(page);
        }
        // When all nodes begin there are very many, and later hardly any.
        self.apart = Vec::new();
        self.len = 0;
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        heap_bytes(&self.pages) + self.apart.capacity() * size_of::<Event>()
    }
}

/// Bytes of pages.
pub(super) fn heap_bytes(pages: &[Page]) -> usize {
    size_of_val(pages) + pages.len() * PAGE * size_of::<u32>()
}

/// An event on its way from one list to another.
#[derive(Debug)]
pub(super) struct Letter {
    words: Words,
    /// Itself, if it lies apart.
    apart: Event,
}

impl Letter {
    pub(super) fn to(&self) -> u32 {
        self.words[0]
    }

    /// Who sent it: of messages, which say so.
    pub(super) fn from(&self) -> u32 {
        match (self.words[1] & KIND, &self.apart) {
            (APART, Event::Answer { from, .. } | Event::Possession { from, .. }) => *from,
            (APART, _) => self.to(),
            _ => self.words[2],
        }
    }

    /// Whether it asks for a chunk.
    pub(super) fn is_ask(&self) -> bool {
        self.words[1] & KIND == ASK
    }

    /// Whether it goes to whom its sender believes to be there, and not to somebody who just asked.
    pub(super) fn is_unasked(&self) -> bool {
        match self.words[1] & KIND {
            ASK | WITHDRAW => true,
            APART => matches!(self.apart, Event::Possession { .. }),
            _ => false,
        }
    }

    /// See [`Event::stream`].
    pub(super) fn stream(&self) -> u32 {
        match self.words[1] & KIND {
            APART => self.apart.stream(),
            ASK | WITHDRAW | ANSWER => self.words[3],
            _ => u32::MAX,
        }
    }

    /// The event itself.
    pub(super) fn into_event(self) -> Event {
        decode(&self.words).unwrap_or(self.apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::{Answer, Holders, Segment, Slice};
    use crate::model::Time;

    /// One of each kind, and answers with all numbers of names.
    fn events() -> Vec<Event> {
        let chunk = Chunk(77);
        let mut events = vec![
            Event::WantAll(Some(Class::Fill), Time::NEVER),
            Event::Withdraw { from: 9, chunk },
            Event::Data { chunk, from: Source::Peer(Peer(4)) },
            Event::Data { chunk, from: Source::Strata },
            Event::Wrong { chunk, from: 3 },
            Event::Stall { to: 8, chunk },
            Event::Sent { ask: Ask(6), to: 5, chunk },
            Event::Possession { from: 2, slices: Box::new([(Slice(3), 1 << 40)]) },
            Event::Providers { segment: Segment(4), peers: Box::new([Peer(1), Peer(2)]) },
            Event::News(None),
            Event::News(Some(u32::MAX)),
            Event::Wake,
            Event::Down(1),
            Event::Up(2),
        ];
        events.extend(CLASSES.map(|class| Event::Ask { from: 7, chunk, class }));
        events.push(Event::answer(6, chunk, Answer::Wait, 0));
        for count in 0..7 {
            let holders: Holders = (0..count).map(|peer| Peer(1_000 + peer)).collect();
            events.push(Event::answer(6, chunk, Answer::Busy { holders: holders.clone() }, 255));
            events.push(Event::answer(6, chunk, Answer::Missing { holders }, 3));
        }
        events
    }

    #[test]
    fn every_event_comes_out_as_it_was_put_in_and_pages_are_given_back() {
        let (mut line, mut spare) = (Line::default(), Spare::new());
        let shown = |event: &Event| format!("{event:?}");
        for round in 0..3 {
            let all: Vec<Event> = (0..40).flat_map(|_| events()).collect();
            for (to, event) in (0..).zip(&all) {
                line.push(to, event.clone(), &mut spare);
            }
            assert_eq!(line.len(), all.len());
            if round == 1 {
                // From one list to another.
                let mut other = Line::default();
                line.pour(|letter| other.push_letter(letter, &mut spare));
                line.recycle(&mut spare);
                line = other;
            }
            let mut places = Vec::new();
            line.each(|place, to| places.push((place, to)));
            assert!(places.iter().map(|(_, to)| *to).eq(0..u32::try_from(all.len()).unwrap()));
            for ((place, _), event) in places.iter().zip(&all).rev() {
                let glance = match event {
                    Event::Ask { chunk, .. } => Glance::Ask(*chunk),
                    Event::Withdraw { chunk, .. } => Glance::Withdraw(*chunk),
                    Event::Answer { from, chunk, named: Named::Few { .. }, .. } => {
                        Glance::Answer(Peer(*from), *chunk)
                    }
                    Event::Data { from: Source::Peer(peer), chunk } => Glance::Data(Some(*peer), *chunk),
                    Event::Data { from: Source::Strata, chunk } => Glance::Data(None, *chunk),
                    Event::Sent { ask, .. } => Glance::Sent(*ask),
                    Event::Wake => Glance::Wake,
                    _ => Glance::Other,
                };
                assert_eq!(line.glance(*place), glance);
                assert_eq!(shown(&line.take(*place)), shown(event));
            }
            line.recycle(&mut spare);
            line.each(|place, _| panic!("{place} is still there"));
            assert!(line.is_empty());
        }
        assert!(spare.len() < 40, "{}", spare.len());
    }

    #[test]
    fn a_letter_says_from_whom_it_is_and_about_what() {
        let (mut line, mut spare) = (Line::default(), Spare::new());
        let sent: Vec<Event> = events()
            .into_iter()
            .filter(|event| {
                matches!(
                    event,
                    Event::Ask { .. }
                        | Event::Withdraw { .. }
                        | Event::Answer { .. }
                        | Event::Possession { .. }
                )
            })
            .collect();
        sent.iter().for_each(|event| line.push(1, event.clone(), &mut spare));
        let mut events = sent.iter();
        line.pour(|letter| {
            let event = events.next().unwrap();
            let (Event::Ask { from, .. }
            | Event::Withdraw { from, .. }
            | Event::Answer { from, .. }
            | Event::Possession { from, .. }) = event
            else {
                panic!("{event:?}")
            };
            assert_eq!((letter.from(), letter.stream(), letter.to()), (*from, event.stream(), 1));
            assert_eq!(format!("{:?}", letter.into_event()), format!("{event:?}"));
        });
        assert!(events.next().is_none());
    }
}
