//! What happens to the host, the network and the resource meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::catalogue::REVISIONS;
use super::fault::Event;
use super::{Sim, lock};

impl Sim {
    /// Lets it happen.
    pub(super) fn happen(self: &Arc<Self>, event: Event) {
        match event {
            Event::LinkCut(time) => {
                self.host(|machine| std::mem::take(&mut machine.links).cancel());
                self.cut(time);
            }
            Event::LinkSilent(time) => self.cut(time),
            Event::ApiDown(time) => {
                lock(&self.network).api_down_until = self.now() + time;
                self.end_watches();
            }
            Event::WatchesEnd => self.end_watches(),
            Event::NewRevision => {
                if self.head().0 < REVISIONS {
                    self.revision.fetch_add(1, Ordering::Relaxed);
                    self.say(|| format!("git: the branch moves to {}", self.head().name()));
                    let now = self.now();
                    self.monitor(|monitor| monitor.anew(now));
                }
            }
            Event::SpecChange => {
                let seconds = self.chance(|chance| 20 + chance.below(20));
                self.edit(|object| object["spec"]["activation"]["activateWithin"] = json!(format!("{seconds}s")));
            }
            Event::Requested => self.request(),
            Event::Suspend(time) => self.suspend(time),
            Event::Delete => self.edit(|object| object["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z")),
            Event::SecondLeader(time) => self.second_leader(time, false),
            Event::Frozen(time) => self.second_leader(time, true),
            other => self.host_event(other),
        }
        self.check();
    }

    fn cut(self: &Arc<Self>, time: Duration) {
        lock(&self.network).cut_until = self.now() + time;
        let sim = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            sim.host(|_| ());
        });
    }

    /// Somebody asks for a pass.
    pub(super) fn request(&self) {
        let token = format!("{:?}", self.now());
        self.edit(|object| object["metadata"]["annotations"] = json!({nixos_host_api::REQUESTED_AT: token}));
    }

    fn suspend(self: &Arc<Self>, time: Duration) {
        self.edit(|object| object["spec"]["suspend"] = json!(true));
        let sim = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            sim.edit(|object| object["spec"]["suspend"] = json!(false));
        });
    }

    fn second_leader(self: &Arc<Self>, time: Duration, first_stands_still: bool) {
        let Some(first) = self.running().last().cloned() else { return };
        let goes_on = self.chance(|chance| chance.millis(1_000, 60_000));
        if first_stands_still {
            self.freeze(&first, time);
        }
        self.start_process();
        let sim = Arc::clone(self);
        tokio::spawn(async move {
            // It still believes that it leads when it wakes up, and for a while after.
            tokio::time::sleep(time + if first_stands_still { goes_on } else { Duration::ZERO }).await;
            if first.alive() {
                sim.kill(&first);
                if sim.running().is_empty() {
                    sim.start_process();
                }
            }
        });
    }

    /// Nothing goes wrong any more: what was cut is mended, and one controller runs.
    pub(super) fn calm(self: &Arc<Self>) {
        self.quiet.store(true, Ordering::Relaxed);
        self.say(|| "from here on nothing goes wrong".into());
        *lock(&self.network) = super::Network::default();
        self.host(|machine| {
            if machine.links.is_cancelled() && machine.up {
                machine.links = CancellationToken::new();
            }
        });
        let running = self.running();
        for process in running.iter().rev().skip(1) {
            self.kill(process);
        }
        match running.last() {
            Some(process) => self.freeze(process, Duration::ZERO),
            None => self.start_process(),
        }
        self.edit(|object| object["spec"]["suspend"] = json!(false));
    }
}
