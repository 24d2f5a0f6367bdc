//! Requests that come together are served together.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the first of a group waits for others.
const WINDOW: Duration = Duration::from_millis(50);

/// Requests that wait, by what they have in common.
pub(super) struct Gather<K, T> {
    waiting: Arc<Mutex<HashMap<K, Vec<T>>>>,
}

impl<K, T> Default for Gather<K, T> {
    fn default() -> Self {
        Self { waiting: Arc::default() }
    }
}

impl<K, T> Gather<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Send + 'static,
{
    /// Adds a request. The first of a group brings the means to serve it: when `ready` is, all that wait by then go to
    /// `serve`; what comes while that runs is the next group.
    pub(super) fn add<R, S>(
        &self,
        key: K,
        request: T,
        ready: impl Fn() -> R + Send + 'static,
        serve: impl Fn(R::Output, Vec<T>) -> S + Send + 'static,
    ) where
        R: Future<Output: Send> + Send,
        S: Future<Output = ()> + Send,
    {
        {
            let mut waiting = lock(&self.waiting);
            if let Some(group) = waiting.get_mut(&key) {
                group.push(request);
                return;
            }
            waiting.insert(key.clone(), vec![request]);
        }
        let mut table = Table { waiting: Arc::clone(&self.waiting), key, closed: false };
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(WINDOW).await;
                let means = ready().await;
                let Some(group) = table.take() else { break };
                serve(means, group).await;
            }
        });
    }
}

/// Where a group gathers. If serving panics it is cleared away, and with it the requests: nobody waits for ever.
struct Table<K: Eq + Hash, T> {
    waiting: Arc<Mutex<HashMap<K, Vec<T>>>>,
    key: K,
    closed: bool,
}

impl<K: Eq + Hash, T> Table<K, T> {
    /// Those that wait; `None`, and no such table any more, when nobody does.
    fn take(&mut self) -> Option<Vec<T>> {
        let mut waiting = lock(&self.waiting);
        let group = waiting.get_mut(&self.key).map(std::mem::take).filter(|group| !group.is_empty());
        if group.is_none() {
            waiting.remove(&self.key);
            self.closed = true;
        }
        group
    }
}

impl<K: Eq + Hash, T> Drop for Table<K, T> {
    fn drop(&mut self) {
        if !self.closed {
            lock(&self.waiting).remove(&self.key);
        }
    }
}

fn lock<K, T>(waiting: &Mutex<HashMap<K, Vec<T>>>) -> MutexGuard<'_, HashMap<K, Vec<T>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::{mpsc, oneshot};

    #[tokio::test]
    async fn what_comes_in_the_window_or_while_a_group_is_served_is_one_group() {
        let gather = Gather::<&str, u32>::default();
        let (groups, mut served) = mpsc::unbounded_channel();
        let add = |key, request| {
            let groups = groups.clone();
            let serve = move |(), group: Vec<u32>| {
                groups.send((key, group)).unwrap();
                tokio::time::sleep(WINDOW * 6)
            };
            gather.add(key, request, || async {}, serve);
        };
        add("a", 1);
        add("b", 9);
        add("a", 2);
        let mut first = [served.recv().await.unwrap(), served.recv().await.unwrap()];
        first.sort();
        assert_eq!(first, [("a", vec![1, 2]), ("b", vec![9])]);
        add("a", 3);
        tokio::time::sleep(WINDOW * 2).await;
        add("a", 4);
        assert_eq!(served.recv().await.unwrap(), ("a", vec![3, 4]));
    }

    #[tokio::test]
    async fn a_panic_leaves_nobody_waiting() {
        let gather = Gather::<(), oneshot::Sender<()>>::default();
        let serve = |(), _group| async { panic!("as a test") };
        let (send, receive) = oneshot::channel();
        gather.add((), send, || async {}, serve);
        assert!(receive.await.is_err());
        tokio::task::yield_now().await;
        let (send, receive) = oneshot::channel();
        gather.add(
            (),
            send,
            || async {},
            |(), group: Vec<oneshot::Sender<()>>| async {
                for reply in group {
                    reply.send(()).unwrap();
                }
            },
        );
        assert!(receive.await.is_ok());
    }
}
