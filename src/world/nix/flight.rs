//! Single flight: equal work that is asked for at the same time is done once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Work in flight, by what it is.
pub(super) struct Flights<K, V> {
    inner: Arc<Mutex<Inner<K, V>>>,
}

struct Inner<K, V> {
    flights: HashMap<K, Flight<V>>,
    next: u64,
}

struct Flight<V> {
    /// Tells this flight from a later one with the same key.
    number: u64,
    waiters: usize,
    cancel: CancellationToken,
    result: watch::Receiver<Option<V>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { flights: HashMap::new(), next: 0 })) }
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the work called `key`: of the flight that is in the air, or else of `start`, which is given the
    /// token that ends it when the last waiter has left. `None` when the waiter was cancelled, or the work panicked.
    pub(super) async fn join<F>(&self, key: K, cancel: &CancellationToken, start: impl FnOnce(CancellationToken) -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (seat, mut result) = self.board(key, start);
        let answer = tokio::select! {
            () = cancel.cancelled() => None,
            ended = result.wait_for(Option::is_some) => ended.ok().and_then(|value| value.clone()),
        };
        drop(seat);
        answer
    }

    fn board<F>(&self, key: K, start: impl FnOnce(CancellationToken) -> F) -> (Seat<K, V>, watch::Receiver<Option<V>>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut inner = lock(&self.inner);
        if let Some(flight) = inner.flights.get_mut(&key) {
            flight.waiters += 1;
            let seat = Seat { inner: Arc::clone(&self.inner), key, number: flight.number };
            return (seat, flight.result.clone());
        }
        let (send, result) = watch::channel(None);
        let number = inner.next;
        inner.next += 1;
        let cancel = CancellationToken::new();
        inner.flights.insert(key.clone(), Flight { number, waiters: 1, cancel: cancel.clone(), result: result.clone() });
        let (shared, landing) = (Arc::clone(&self.inner), key.clone());
        let work = start(cancel);
        tokio::spawn(async move {
            // Removed even if the work panics: the next who asks starts anew.
            let _landed = Landed { inner: shared, key: landing, number };
            let value = work.await;
            send.send_replace(Some(value));
        });
        (Seat { inner: Arc::clone(&self.inner), key, number }, result)
    }
}

/// A waiter's place; the last one to leave cancels the work.
struct Seat<K: Eq + Hash, V> {
    inner: Arc<Mutex<Inner<K, V>>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Drop for Seat<K, V> {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        let Some(flight) = inner.flights.get_mut(&self.key).filter(|flight| flight.number == self.number) else { return };
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flight.cancel.cancel();
            inner.flights.remove(&self.key);
        }
    }
}

struct Landed<K: Eq + Hash, V> {
    inner: Arc<Mutex<Inner<K, V>>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Drop for Landed<K, V> {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        if inner.flights.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            inner.flights.remove(&self.key);
        }
    }
}

fn lock<K, V>(inner: &Mutex<Inner<K, V>>) -> MutexGuard<'_, Inner<K, V>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn equal_work_is_done_once_and_told_to_all() {
        let (flights, runs, go) = (Flights::<&str, usize>::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let never = CancellationToken::new();
        let start = |_| {
            let (runs, go) = (Arc::clone(&runs), Arc::clone(&go));
            async move {
                go.notified().await;
                runs.fetch_add(1, Ordering::SeqCst)
            }
        };
        let release = async {
            tokio::task::yield_now().await;
            go.notify_one();
        };
        let (one, two, ()) = tokio::join!(flights.join("a", &never, start), flights.join("a", &never, start), release);
        assert_eq!((one, two, runs.load(Ordering::SeqCst)), (Some(0), Some(0), 1));
        go.notify_one();
        assert_eq!(flights.join("a", &never, start).await, Some(1), "what has landed is not joined");
    }

    #[tokio::test]
    async fn the_work_ends_when_the_last_waiter_left_and_not_before() {
        let flights = Flights::<&str, ()>::default();
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let (told, mut tell) = (watch::channel(None::<CancellationToken>), None);
        let start = |token: CancellationToken| {
            told.0.send_replace(Some(token.clone()));
            async move { token.cancelled().await }
        };
        let watch_over = async {
            tokio::task::yield_now().await;
            let token = told.1.borrow().clone().unwrap();
            first.cancel();
            tokio::task::yield_now().await;
            assert!(!token.is_cancelled());
            second.cancel();
            token.cancelled().await;
            tell = Some(());
        };
        let unused = |_| async { unreachable!("it joins") };
        let (one, two, ()) = tokio::join!(flights.join("a", &first, start), flights.join("a", &second, unused), watch_over);
        assert_eq!((one, two, tell), (None, None, Some(())));
    }

    #[tokio::test]
    async fn work_that_panics_is_not_waited_for() {
        let flights = Flights::<&str, ()>::default();
        let work = |_| async { panic!("as a test") };
        assert_eq!(flights.join("a", &CancellationToken::new(), work).await, None);
    }
}
