//! What most things of a kind never have.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// Whatever has a value that says nothing.
pub(super) trait Nothing: Default + 'static {
    /// It.
    const NOTHING: &'static Self;
}

impl<T: 'static> Nothing for Vec<T> {
    const NOTHING: &'static Self = &Self::new();
}

impl<K: 'static, V: 'static> Nothing for BTreeMap<K, V> {
    const NOTHING: &'static Self = &Self::new();
}

/// A part of something of which there are very many, and which seldom says anything: a pointer until it is first changed. To look at
/// it makes nothing of it; whoever changes it in a hot place looks first whether there is anything to change.
#[derive(Clone, Debug)]
pub(super) struct Rare<T>(Option<Box<T>>);

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Rare<T> {
    /// Whether it was ever changed.
    pub(super) const fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Itself, if it was ever changed.
    pub(super) fn there(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// Bytes on the heap, without what it owns there itself.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |_| size_of::<T>())
    }
}

impl<T: Nothing> Deref for Rare<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::NOTHING)
    }
}

impl<T: Nothing> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_look_at_it_makes_nothing_and_to_change_it_does() {
        let mut rare = Rare::<Vec<u8>>::default();
        assert!(rare.is_empty() && !rare.is_there() && rare.there().is_none() && rare.heap_bytes() == 0);
        rare.push(7);
        assert!(rare.is_there() && *rare == [7] && rare.heap_bytes() > 0);
        rare.clear();
        assert!(rare.is_empty() && !rare.is_there());
    }
}
