//! A semaphore that is fair between keys: who waits gets a permit in turn with the other keys, not behind all that came before.
//!
//! The keys are namespaces. One with 200 hosts in line holds up another one's single host until the next permit is given back, and no longer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Permits for one kind of work.
#[derive(Debug)]
pub struct Fair(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    turns: Turns<oneshot::Sender<()>>,
}

/// A permit, given back when dropped.
#[derive(Debug)]
pub struct Permit<'f>(&'f Fair);

impl Fair {
    /// `permits` at a time.
    pub fn new(permits: usize) -> Self {
        Self(Mutex::new(State { free: permits, turns: Turns::default() }))
    }

    /// Waits for the turn of `key`. Who stops waiting leaves the line.
    pub async fn acquire(&self, key: &str) -> Permit<'_> {
        let (ticket, granted) = {
            let mut state = self.lock();
            // Nobody waits while a permit is free.
            if state.free > 0 {
                state.free -= 1;
                return Permit(self);
            }
            let (grant, granted) = oneshot::channel();
            (state.turns.join(key, grant), granted)
        };
        let place = Place { fair: self, key, ticket };
        // The sender is dropped only by `place`, or after it was used.
        let _ = granted.await;
        // It has come to its end: leaving it now would give the permit back.
        std::mem::forget(place);
        Permit(self)
    }

    /// Permits that nobody has.
    pub fn free(&self) -> usize {
        self.lock().free
    }

    fn give_back(&self) {
        let mut state = self.lock();
        match state.turns.next() {
            // If the waiter is about to leave, its place gives the permit back: it finds itself called.
            Some(grant) => drop(grant.send(())),
            None => state.free += 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// A place in the line, of somebody who may stop waiting.
struct Place<'f> {
    fair: &'f Fair,
    key: &'f str,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.fair.lock().turns.leave(self.key, self.ticket);
        if left.is_none() {
            // It was called already.
            self.fair.give_back();
        }
    }
}

/// PURE. Who waits, by key, and whose turn it is.
#[derive(Debug)]
struct Turns<T> {
    waiting: HashMap<String, BTreeMap<u64, T>>,
    /// The keys that wait, the next one first.
    order: VecDeque<String>,
    tickets: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), order: VecDeque::new(), tickets: 0 }
    }
}

impl<T> Turns<T> {
    /// Gets in line; the ticket is for leaving it.
    fn join(&mut self, key: &str, waiter: T) -> u64 {
        self.tickets += 1;
        if !self.waiting.contains_key(key) {
            self.order.push_back(key.to_owned());
        }
        self.waiting.entry(key.to_owned()).or_default().insert(self.tickets, waiter);
        self.tickets
    }

    /// Leaves the line; `None` if it was called before.
    fn leave(&mut self, key: &str, ticket: u64) -> Option<T> {
        let line = self.waiting.get_mut(key)?;
        let waiter = line.remove(&ticket);
        if line.is_empty() {
            self.waiting.remove(key);
            self.order.retain(|waiting| waiting != key);
        }
        waiter
    }

    /// Calls the first of the key whose turn it is; the key goes to the end if more of it wait.
    fn next(&mut self) -> Option<T> {
        let key = self.order.pop_front()?;
        let line = self.waiting.get_mut(&key)?;
        let (_, waiter) = line.pop_first()?;
        if line.is_empty() {
            self.waiting.remove(&key);
        } else {
            self.order.push_back(key);
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_single_one_of_another_key_is_next_but_one_whatever_the_length_of_the_line() {
        let mut turns = Turns::default();
        for number in 0..200 {
            turns.join("many", number);
        }
        assert_eq!(turns.next(), Some(0));
        turns.join("one", 1000);
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(1), Some(1000), Some(2)));
    }

    proptest! {
        /// Between two calls of a key that waits, each other key is called at most once; within a key the order is kept.
        #[test]
        fn keys_take_turns(steps in prop::collection::vec((0_u8..4, 0_u8..3), 1..200)) {
            let mut turns = Turns::default();
            let (mut lines, mut since): (Vec<VecDeque<u64>>, Vec<Vec<u8>>) = (vec![VecDeque::new(); 4], vec![Vec::new(); 4]);
            for (key, deed) in steps {
                let line = &mut lines[usize::from(key)];
                match deed {
                    0 => {
                        let ticket = turns.tickets + 1;
                        prop_assert_eq!(turns.join(&key.to_string(), (key, ticket)), ticket);
                        if line.is_empty() { since[usize::from(key)].clear(); }
                        line.push_back(ticket);
                    }
                    1 => {
                        let ticket = line.pop_back();
                        prop_assert_eq!(turns.leave(&key.to_string(), ticket.unwrap_or(u64::MAX)).map(|(_, ticket)| ticket), ticket);
                    }
                    _ => match turns.next() {
                        None => prop_assert!(lines.iter().all(VecDeque::is_empty)),
                        Some((called, ticket)) => {
                            prop_assert_eq!(lines[usize::from(called)].pop_front(), Some(ticket));
                            for (other, seen) in since.iter_mut().enumerate().filter(|(other, _)| *other != usize::from(called)) {
                                prop_assert!(lines[other].is_empty() || !seen.contains(&called), "{} was passed over twice", other);
                                seen.push(called);
                            }
                            since[usize::from(called)].clear();
                        }
                    },
                }
                prop_assert_eq!(turns.order.len(), turns.waiting.len());
                prop_assert_eq!(turns.waiting.len(), lines.iter().filter(|line| !line.is_empty()).count());
            }
        }
    }

    #[test]
    fn who_stops_waiting_costs_no_permit_called_or_not() {
        let fair = Fair::new(1);
        let first = fair.acquire("a").now_or_never().unwrap();
        {
            let mut second = pin!(fair.acquire("a"));
            assert!(second.as_mut().now_or_never().is_none());
        }
        {
            let mut third = pin!(fair.acquire("b"));
            assert!(third.as_mut().now_or_never().is_none());
            drop(first);
            assert_eq!(fair.free(), 0, "it was called");
        }
        assert_eq!(fair.free(), 1);
        let again = fair.acquire("a").now_or_never().unwrap();
        let mut next = pin!(fair.acquire("b"));
        assert!(next.as_mut().now_or_never().is_none());
        drop(again);
        assert!(next.now_or_never().is_some());
        assert_eq!(fair.free(), 1);
    }
}
