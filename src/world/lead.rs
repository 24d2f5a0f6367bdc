//! Whether this controller leads, until when, and under which epoch: what allows it to touch hosts.
//!
//! Connections to hosts ask before each command ([`super::ssh::Session`]). A term ends by the clock, whoever has noticed: also for a process that
//! was stopped for a while and wakes up.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Further ahead of the clock, in milliseconds, no epoch is believed: a hostile host could use them up for all the others. A year.
const AHEAD: u64 = 366 * 24 * 3600 * 1000;

/// The right to touch hosts. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Lead {
    state: Arc<watch::Sender<State>>,
    highest: Arc<watch::Sender<u64>>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    term: Option<Term>,
}

#[derive(Debug)]
struct Term {
    /// `None`: for ever.
    until: Option<Instant>,
    ended: CancellationToken,
}

impl State {
    fn holds(&self, now: Instant) -> bool {
        self.term.as_ref().is_some_and(|term| term.until.is_none_or(|until| now < until))
    }
}

impl Lead {
    /// One that does not lead yet.
    pub fn standby(clock: Clock) -> Self {
        Self { state: Arc::new(watch::channel(State::default()).0), highest: Arc::new(watch::channel(0).0), clock }
    }

    /// One that leads for ever: there is no other controller.
    pub fn alone(epoch: u64, clock: Clock) -> Self {
        let lead = Self::standby(clock);
        lead.begin(epoch, None);
        lead
    }

    /// A term begins. One that had not ended ends.
    pub fn begin(&self, epoch: u64, until: Option<Instant>) {
        self.end();
        self.state.send_modify(|state| *state = State { epoch, term: Some(Term { until, ended: CancellationToken::new() }) });
    }

    /// The term goes on until then, under this epoch, which is never lower than before. Without a term nothing happens.
    pub fn renew(&self, epoch: u64, until: Instant) {
        self.state.send_modify(|state| {
            state.epoch = state.epoch.max(epoch);
            if let Some(term) = &mut state.term {
                term.until = Some(until);
            }
        });
    }

    /// The term ends: who works in it is told.
    pub fn end(&self) {
        self.state.send_modify(|state| {
            if let Some(term) = state.term.take() {
                term.ended.cancel();
            }
        });
    }

    /// Whether hosts may be touched now.
    pub fn holds(&self) -> bool {
        self.state.borrow().holds(self.clock.now())
    }

    /// Returns when hosts may be touched: at once, as a rule. Who waits here has lost the lead, and is about to be ended with the term.
    pub async fn held(&self) {
        let mut state = self.state.subscribe();
        // The sender is `self`: this cannot fail.
        let _ = state.wait_for(|state| state.holds(self.clock.now())).await;
    }

    /// The term, once there is one: cancelled when it ends.
    pub async fn term(&self) -> CancellationToken {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| state.term.is_some()).await {
            Ok(state) => state.term.as_ref().map(|term| term.ended.clone()).unwrap_or_default(),
            Err(_) => CancellationToken::new(),
        }
    }

    /// The epoch of the term, or of the last one.
    pub fn epoch(&self) -> u64 {
        self.state.borrow().epoch
    }

    /// A host knows this epoch. If it is above ours, somebody led after us, or epochs went back: see [`Lead::outranked`].
    pub fn saw(&self, epoch: u64) {
        let believable = epoch <= self.next_epoch(0).saturating_add(AHEAD);
        self.highest.send_if_modified(|highest| {
            let news = believable && epoch > *highest;
            if news {
                *highest = epoch;
            }
            news && epoch > self.epoch()
        });
    }

    /// An epoch above `known`: milliseconds since 1970, so that it is above those of earlier starts as well.
    pub fn next_epoch(&self, known: u64) -> u64 {
        u64::try_from(self.clock.wall().as_millisecond()).unwrap_or_default().max(known.saturating_add(1))
    }

    /// Waits until a host is seen that knows an epoch above ours.
    pub async fn outranked(&self) {
        let mut highest = self.highest.subscribe();
        // The sender is `self`: this cannot fail.
        let _ = highest.wait_for(|highest| *highest > self.epoch()).await;
    }

    /// Without an election: keeps above the epochs that hosts know, which may come from a clock that was ahead when an earlier controller started.
    ///
    /// An epoch of the time since we started is not gone above: somebody was started after us, and manages the hosts now.
    pub async fn climb(self) {
        let begun = self.clock.now();
        loop {
            self.outranked().await;
            let (known, epoch) = (self.highest(), self.epoch());
            if self.rise(begun) {
                tracing::warn!(
                    known,
                    epoch,
                    "a host knows a later start than ours, by a clock that was wrong: orders are given under {}",
                    self.epoch()
                );
                continue;
            }
            tracing::warn!(
                known,
                epoch,
                "a host was given orders by a controller that was started after this one, and takes none from this one: end one of them, or run both with --leader-elect"
            );
            let mut highest = self.highest.subscribe();
            // The sender is `self`: this cannot fail.
            let _ = highest.wait_for(|highest| *highest > known).await;
        }
    }

    /// Goes above the highest epoch that a host knows, unless that may be the start of another controller since `begun`.
    fn rise(&self, begun: Instant) -> bool {
        let (known, now) = (self.highest(), self.next_epoch(0));
        let age = u64::try_from(self.clock.now().saturating_duration_since(begun).as_millis()).unwrap_or(u64::MAX);
        // By the clock as it is now: it may have been set right since we started.
        let ours = now.saturating_sub(age);
        let later = ours < known && known <= now;
        if !later {
            let epoch = self.next_epoch(known);
            self.state.send_modify(|state| state.epoch = state.epoch.max(epoch));
        }
        !later
    }

    /// The highest epoch that any host was seen to know.
    pub fn highest(&self) -> u64 {
        *self.highest.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    /// A clock that stands until it is moved.
    fn clock() -> (Clock, Arc<Mutex<Instant>>) {
        let (clock, now, _) = clocks();
        (clock, now)
    }

    /// The same, and its seconds since 1970.
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    fn clocks() -> (Clock, Arc<Mutex<Instant>>, Arc<Mutex<i64>>) {
        let (now, wall) = (Arc::new(Mutex::new(Instant::now())), Arc::new(Mutex::new(0)));
        let (read, shown) = (Arc::clone(&now), Arc::clone(&wall));
        let clock = Clock::new(move || *read.lock().unwrap(), move || jiff::Timestamp::from_second(*shown.lock().unwrap()).unwrap());
        (clock, now, wall)
    }

    #[test]
    fn a_term_ends_by_the_clock_whoever_has_noticed() {
        let (clock, now) = clock();
        let lead = Lead::standby(clock.clone());
        assert!(!lead.holds() && lead.term().now_or_never().is_none() && lead.held().now_or_never().is_none());
        lead.begin(7, Some(clock.now() + Duration::from_secs(10)));
        let term = lead.term().now_or_never().unwrap();
        assert!(lead.holds() && lead.held().now_or_never().is_some());
        *now.lock().unwrap() += Duration::from_secs(10);
        assert!(!lead.holds() && lead.held().now_or_never().is_none(), "nobody has ended it, and it is over");
        assert!(!term.is_cancelled());
        lead.end();
        assert!(term.is_cancelled() && lead.term().now_or_never().is_none());
    }

    #[test]
    fn a_renewal_keeps_the_term_and_never_lowers_the_epoch() {
        let (clock, now) = clock();
        let lead = Lead::standby(clock.clone());
        lead.begin(7, Some(clock.now() + Duration::from_secs(10)));
        let term = lead.term().now_or_never().unwrap();
        lead.renew(5, clock.now() + Duration::from_secs(20));
        *now.lock().unwrap() += Duration::from_secs(15);
        assert!(lead.holds() && !term.is_cancelled() && lead.epoch() == 7);
        lead.end();
        lead.renew(9, clock.now() + Duration::from_secs(20));
        assert!(!lead.holds(), "a term that has ended is not renewed");
    }

    #[test]
    fn a_host_that_knows_a_higher_epoch_is_heard_of_and_one_that_does_not_is_not() {
        let lead = Lead::alone(7, clock().0);
        lead.saw(7);
        assert!(lead.outranked().now_or_never().is_none());
        lead.saw(u64::MAX);
        assert!(lead.outranked().now_or_never().is_none(), "nobody's epoch is a year ahead");
        lead.saw(9);
        lead.saw(8);
        assert!(lead.outranked().now_or_never().is_some() && lead.highest() == 9);
        lead.begin(10, None);
        assert!(lead.outranked().now_or_never().is_none());
    }

    /// What a controller without an election, which started at 1000 s, does at 2000 s by its clock then, when a host knows this epoch.
    fn climbs(started: i64, known: u64) -> (bool, u64) {
        let (clock, now, wall) = clocks();
        *wall.lock().unwrap() = started;
        let begun = clock.now();
        let lead = Lead::alone(Lead::standby(clock.clone()).next_epoch(0), clock);
        *now.lock().unwrap() += Duration::from_secs(1000);
        *wall.lock().unwrap() = 2000;
        lead.saw(known);
        assert!(lead.outranked().now_or_never().is_some());
        let rose = lead.rise(begun);
        assert_eq!(lead.outranked().now_or_never().is_none(), rose);
        (rose, lead.epoch())
    }

    #[test]
    fn without_an_election_an_epoch_by_a_wrong_clock_is_gone_above_and_that_of_a_later_start_is_not() {
        assert_eq!(climbs(1000, 5_000_000), (true, 5_000_001), "an earlier controller's clock was ahead");
        assert_eq!(climbs(1000, 1_500_000), (false, 1_000_000), "another one was started after us");
        assert_eq!(climbs(10, 900_000), (true, 2_000_000), "our own clock was behind when we started");
        assert_eq!(climbs(10, 1_500_000), (false, 10_000));
    }

    #[tokio::test]
    async fn a_climber_goes_on_climbing() {
        let lead = Lead::alone(7, clock().0);
        let climber = tokio::spawn(lead.clone().climb());
        for known in [9, 30] {
            lead.saw(known);
            let mut state = lead.state.subscribe();
            state.wait_for(|state| state.epoch > known).await.unwrap();
            assert!(lead.holds());
        }
        climber.abort();
    }
}
