//! A number of slots for one kind of work, given out in turn, and counted.

use super::Fair;
use super::fair::Permit;
use crate::clock::Clock;
use crate::metrics::queue::{Queue, Working};

/// The slots.
#[derive(Debug)]
pub struct Slots {
    fair: Fair,
    queue: Queue,
    clock: Clock,
}

/// A slot, given back when dropped.
#[derive(Debug)]
pub struct Slot<'s> {
    _working: Working,
    _permit: Permit<'s>,
}

impl Slots {
    /// `slots` at a time, counted by `queue`.
    pub fn new(slots: usize, queue: Queue, clock: Clock) -> Self {
        Self { fair: Fair::new(slots), queue, clock }
    }

    /// Waits for the turn of `key`. Who stops waiting leaves the line.
    pub async fn acquire(&self, key: &str) -> Slot<'_> {
        let waiting = self.queue.wait(&self.clock);
        let permit = self.fair.acquire(key).await;
        Slot { _working: waiting.work(), _permit: permit }
    }
}
