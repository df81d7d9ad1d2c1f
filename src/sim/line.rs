//! Events in line, in as many words of four bytes as each needs: millions are on their way at once, and nearly all are short.

use super::fleet::{Event, Named, Says};
use crate::mesh::proto::{Ask, Chunk, Peer, Source, prefetch};
use crate::model::Class;

/// Words in a page: few, for many lists hold hardly any.
const PAGE: usize = 512;
/// Words of the longest event.
const LONGEST: usize = 8;

/// Pages that are empty.
pub(super) type Spare = Vec<Vec<u32>>;

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

/// An event as words, without its receiver; `None` if it does not fit.
fn encode(event: &Event) -> Option<([u32; LONGEST - 1], usize)> {
    let of = |kind: u32, words: &[u32]| {
        let mut all = [0; LONGEST - 1];
        all[0] = kind;
        all[1..=words.len()].copy_from_slice(words);
        Some((all, 1 + words.len()))
    };
    match event {
        Event::Ask { from, chunk, class } => of(ASK | (*class as u32) << SHORT, &[*from, chunk.0]),
        Event::Withdraw { from, chunk } => of(WITHDRAW, &[*from, chunk.0]),
        Event::Answer { from, chunk, says, load, named: Named::Few { count, peers } } => {
            let short = (*says as u32) << SHORT | u32::from(*count) << COUNT | u32::from(*load) << LOAD;
            let [a, b, c, d] = *peers;
            let words = [*from, chunk.0, a, b, c, d];
            of(ANSWER | short, &words[..2 + usize::from(*count)])
        }
        Event::Data { chunk, from: Source::Peer(peer) } => of(DATA, &[peer.0, chunk.0]),
        Event::Data { chunk, from: Source::Strata } => of(DATA_OF_STRATA, &[0, chunk.0]),
        Event::Wrong { chunk, from } => of(WRONG, &[*from, chunk.0]),
        Event::Stall { to, chunk } => of(STALL, &[*to, chunk.0]),
        Event::Sent { ask, to, chunk } => of(SENT, &[*to, chunk.0, ask.0]),
        Event::News(Some(from)) => of(NEWS, &[*from]),
        Event::News(None) => of(NEWS_OF_NOBODY, &[]),
        Event::Down(peer) => of(DOWN, &[*peer]),
        Event::Up(peer) => of(UP, &[*peer]),
        Event::Wake => of(WAKE, &[]),
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

/// The event of these words, which begin after the receiver, unless it lies apart.
fn decode(words: &[u32]) -> Option<Event> {
    let (head, short) = (words[0], (words[0] >> SHORT & 3) as usize);
    let at = |place: usize| words.get(place).copied().unwrap_or(0);
    let (first, chunk) = (at(1), Chunk(at(2)));
    Some(match head & KIND {
        ASK => Event::Ask { from: first, chunk, class: CLASSES[short] },
        WITHDRAW => Event::Withdraw { from: first, chunk },
        ANSWER => {
            let load = u8::try_from(head >> LOAD & 0xff).unwrap_or(u8::MAX);
            let count = u8::try_from(head >> COUNT & 0xff).unwrap_or(0);
            let mut peers = [0; 4];
            let named = words.get(3..3 + usize::from(count)).unwrap_or_default();
            peers[..named.len()].copy_from_slice(named);
            Event::Answer { from: first, chunk, says: SAYS[short], load, named: Named::Few { count, peers } }
        }
        DATA => Event::Data { chunk, from: Source::Peer(Peer(first)) },
        DATA_OF_STRATA => Event::Data { chunk, from: Source::Strata },
        WRONG => Event::Wrong { chunk, from: first },
        STALL => Event::Stall { to: first, chunk },
        SENT => Event::Sent { ask: Ask(at(3)), to: first, chunk },
        NEWS => Event::News(Some(first)),
        NEWS_OF_NOBODY => Event::News(None),
        DOWN => Event::Down(first),
        UP => Event::Up(first),
        WAKE => Event::Wake,
        _ => return None,
    })
}

/// Events with their receivers, in the order in which they were put in line. A place is given to each, which it keeps.
#[derive(Debug, Default)]
pub(super) struct Line {
    pages: Vec<Vec<u32>>,
    /// Events that do not fit words.
    apart: Vec<Event>,
    len: usize,
}

impl Line {
    /// Puts an event in line.
    pub(super) fn push(&mut self, to: u32, event: Event, spare: &mut Spare) {
        match encode(&event) {
            Some((words, len)) => {
                let page = self.page(1 + len, spare);
                page.push(to);
                page.extend_from_slice(&words[..len]);
            }
            None => self.push_apart(to, event, spare),
        }
    }

    fn push_apart(&mut self, to: u32, event: Event, spare: &mut Spare) {
        let number = u32::try_from(self.apart.len()).unwrap_or(u32::MAX);
        self.apart.push(event);
        self.page(3, spare).extend_from_slice(&[to, APART, number]);
    }

    /// A page with room for so many words of one more event.
    fn page(&mut self, words: usize, spare: &mut Spare) -> &mut Vec<u32> {
        self.len += 1;
        if self.pages.last().is_none_or(|page| page.len() + words > PAGE) {
            self.pages.push(spare.pop().unwrap_or_else(|| Vec::with_capacity(PAGE)));
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
    pub(super) fn receivers(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.pages.iter().enumerate().flat_map(|(number, page)| {
            let (mut rest, mut place) = (&page[..], number * PAGE);
            std::iter::from_fn(move || {
                let [to, head, ..] = *rest else { return None };
                let (found, words) = (place, words_of(head));
                (rest, place) = (rest.get(words..)?, place + words);
                Some((u32::try_from(found).unwrap_or(u32::MAX), to))
            })
        })
    }

    /// The words at a place, without the receiver.
    fn words(&self, place: u32) -> &[u32] {
        let place = place as usize;
        &self.pages[place / PAGE][place % PAGE + 1..]
    }

    /// Calls the event at a place into the processor's cache.
    pub(super) fn prefetch(&self, place: u32) {
        let first = self.words(place).as_ptr();
        prefetch(first);
        prefetch(first.wrapping_add(LONGEST - 2));
    }

    /// The event at a place, unless it lies apart.
    pub(super) fn peek(&self, place: u32) -> Option<Event> {
        decode(self.words(place))
    }

    /// Takes the event at a place out, each once.
    pub(super) fn take(&mut self, place: u32) -> Event {
        let words = self.words(place);
        let number = words.get(1).copied().unwrap_or(0);
        decode(words).unwrap_or_else(|| std::mem::replace(&mut self.apart[number as usize], Event::Wake))
    }

    /// Takes all out, in their order.
    pub(super) fn pour(&mut self, mut take: impl FnMut(Letter<'_>)) {
        let mut apart = std::mem::take(&mut self.apart);
        for page in &self.pages {
            let mut rest = &page[..];
            while let [to, head, ..] = *rest {
                let (words, others) = rest.split_at(words_of(head));
                rest = others;
                let event = match head & KIND {
                    APART => std::mem::replace(&mut apart[words[2] as usize], Event::Wake),
                    _ => Event::Wake,
                };
                take(Letter { to, words, apart: event });
            }
        }
        apart.clear();
        self.apart = apart;
    }

    /// The same event as in another list.
    pub(super) fn push_letter(&mut self, letter: Letter<'_>, spare: &mut Spare) {
        if letter.words[1] & KIND == APART {
            self.push_apart(letter.to, letter.apart, spare);
        } else {
            self.page(letter.words.len(), spare).extend_from_slice(letter.words);
        }
    }

    /// Gives the pages back when all events were taken out.
    pub(super) fn recycle(&mut self, spare: &mut Spare) {
        for mut page in self.pages.drain(..) {
            page.clear();
            spare.push(page);
        }
        self.apart.clear();
        self.len = 0;
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        heap_bytes(&self.pages) + self.apart.capacity() * size_of::<Event>()
    }
}

/// Bytes of pages.
pub(super) fn heap_bytes(pages: &[Vec<u32>]) -> usize {
    size_of_val(pages) + pages.len() * PAGE * size_of::<u32>()
}

/// An event on its way from one list to another.
#[derive(Debug)]
pub(super) struct Letter<'a> {
    pub(super) to: u32,
    words: &'a [u32],
    /// Itself, if it lies apart.
    apart: Event,
}

impl Letter<'_> {
    /// Who sent it: of messages, which say so.
    pub(super) fn from(&self) -> u32 {
        match (self.words[1] & KIND, &self.apart) {
            (APART, Event::Answer { from, .. } | Event::Possession { from, .. }) => *from,
            (APART, _) => self.to,
            _ => self.words[2],
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
        decode(&self.words[1..]).unwrap_or(self.apart)
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
            let places: Vec<(u32, u32)> = line.receivers().collect();
            assert!(places.iter().map(|(_, to)| *to).eq(0..u32::try_from(all.len()).unwrap()));
            for ((place, _), event) in places.iter().zip(&all).rev() {
                if let Some(found) = line.peek(*place) {
                    assert_eq!(shown(&found), shown(event));
                }
                assert_eq!(shown(&line.take(*place)), shown(event));
            }
            line.recycle(&mut spare);
            assert!(line.is_empty() && line.receivers().next().is_none());
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
            assert_eq!((letter.from(), letter.stream(), letter.to), (*from, event.stream(), 1));
            assert_eq!(format!("{:?}", letter.into_event()), format!("{event:?}"));
        });
        assert!(events.next().is_none());
    }
}
