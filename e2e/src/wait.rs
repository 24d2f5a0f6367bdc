//! Waiting for the world: a condition and a deadline, never a sleep.

use std::time::Duration;

use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_millis(100);

/// Looks again and again until `look` gives `Ok`; past the deadline, panics with `what` and what the last look saw (its `Err`).
pub async fn until<T, Look, Seen>(what: &str, deadline: Duration, mut look: Look) -> T
where
    Look: FnMut() -> Seen,
    Seen: Future<Output = Result<T, String>>,
{
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if began.elapsed() > deadline => panic!("waited {deadline:?} for {what}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

/// [`until`], for a yes-or-no question that does not wait for anything itself.
pub async fn until_true(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) {
    until(what, deadline, || std::future::ready(if look() { Ok(()) } else { Err("not yet".to_owned()) })).await;
}

/// Looks for the whole of `duration`, and panics as soon as `look` gives `Err`: for what must *not* happen.
pub async fn throughout<Look, Seen>(what: &str, duration: Duration, mut look: Look)
where
    Look: FnMut() -> Seen,
    Seen: Future<Output = Result<(), String>>,
{
    let began = Instant::now();
    while began.elapsed() < duration {
        if let Err(seen) = look().await {
            panic!("{what} did not hold after {:?}: {seen}", began.elapsed());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
