//! What the landing protocol costs on the host beyond the switch itself: one host, both systems there already, the whole of a landing as a
//! pass does it beside `nix-env --set` and `switch-to-configuration switch` over one connection.

use std::time::Instant;

use nixos_host_controller::{
    landing::{self, Client, LandingState, Order},
    world::ssh::{Command, ConnectOptions, Exit, Host as _, HostKeyPolicy, Limits, PrivateKey, Session, Target},
};
use nixos_host_e2e::{
    Host, Repository,
    world::{KeyPair, fresh_directory},
};

use crate::{
    RUNS,
    changes::processor_time,
    sides::{LONG, calm, fleet},
    table::{Goal, Row, Rows, say},
};

/// Measures the row.
pub(crate) async fn measure(into: Rows) {
    let host = Bench::start().await;
    let mut repository = Repository::create(|all| {
        all.host("web-1");
        fleet(all, 0);
    });
    let mut row = Row {
        what: "landing protocol on one host, beyond the switch itself".into(),
        unit: "s",
        ours: vec![],
        theirs: vec![],
        goal: Goal::Beyond(0.7),
    };
    let mut revision = 0;
    for run in 0..=RUNS {
        let (mut times, mut processor) = ([0.0; 2], [0.0; 2]);
        for side in if run % 2 == 0 { [0, 1] } else { [1, 0] } {
            revision += 1;
            let rev = repository.commit(|all| fleet(all, revision));
            let toplevel = repository.toplevel(&rev, "web-1");
            host.host.receive(&toplevel);
            calm().await;
            let (began, used) = (Instant::now(), processor_time(&[host.host.name()]));
            if side == 0 {
                host.land(revision, &toplevel).await;
            } else {
                host.switch(&toplevel).await;
            }
            times[side] = began.elapsed().as_secs_f64();
            processor[side] = (processor_time(&[host.host.name()]) - used) * 1e3;
            assert_eq!((host.host.current_system(), host.host.boot_default()), (toplevel.clone(), toplevel));
        }
        say(&format!(
            "protocol {run}: {:.2} s (processor {:.0} ms), {:.2} s (processor {:.0} ms)",
            times[0], processor[0], times[1], processor[1]
        ));
        // The first of each fills the host's caches
        if run > 0 {
            row.ours.push(times[0]);
            row.theirs.push(times[1]);
        }
    }
    into.push(row);
}

struct Bench {
    host: Host,
    target: Target,
}

impl Bench {
    async fn start() -> Self {
        let host = Host::start();
        host.up().await;
        let (_, directory) = fresh_directory("bench");
        let key = KeyPair::generate(directory.join("key"));
        host.authorize("root", &key.public);
        let target = Target {
            addresses: vec![host.address()],
            port: 22,
            user: "root".to_owned(),
            key: PrivateKey::parse(&key.private()).expect("the key was just made"),
            host_keys: HostKeyPolicy::Pinned(vec![host.host_key().parse().expect("a host has a host key")]),
            jump: None,
        };
        Self { host, target }
    }

    async fn connect(&self) -> Session {
        Session::connect(&self.target, &ConnectOptions::default()).await.expect("the host answers")
    }

    async fn switch(&self, toplevel: &str) {
        let script = "nix-env -p /nix/var/nix/profiles/system --set $1 && $1/bin/switch-to-configuration switch";
        let command = Command::script(format!(". /etc/profile; {script}")).arg(toplevel);
        let output = self.connect().await.exec(&command, Vec::new().into(), Limits::within(LONG)).await.expect("the host answers");
        assert_eq!(output.status, Exit::Status(0), "{}", output.stderr_tail);
    }

    async fn land(&self, number: u32, toplevel: &str) {
        let lap = || (Instant::now(), processor_time(&[self.host.name()]));
        let mut laps = vec![lap()];
        let order = Order {
            id: format!("bench-{number}"),
            epoch: 1,
            new: toplevel.parse().expect("a store path"),
            goal: landing::Goal::Switch,
            activate_within: LONG,
            commit_within: LONG,
        };
        let first = self.connect().await;
        let client = Client::new(&first, "root");
        laps.push(lap());
        client.status().await.expect("the host says what it is");
        laps.push(lap());
        let mut host = client.land(&order).await.expect("the host takes the order");
        while host.landing.as_ref().is_some_and(|landing| landing.state == LandingState::Activating) {
            host = client.wait(&order.id).await.expect("the host says how far it is");
        }
        laps.push(lap());
        let second = self.connect().await;
        let client = Client::new(&second, "root");
        laps.push(lap());
        let found = client.verify(false).await.expect("the host says what it runs");
        assert_eq!((found.host.current, found.failed), (Some(order.new.clone()), vec![]));
        laps.push(lap());
        let host = client.commit(&order.id, order.epoch).await.expect("the host commits");
        assert_eq!(host.landing.map(|landing| landing.state), Some(LandingState::Committed));
        laps.push(lap());
        let steps = ["connect", "status", "land", "connect", "verify", "commit"];
        let laps = laps.windows(2).zip(steps).map(|(lap, step)| {
            format!("{step} {:.0} ms (processor {:.0})", (lap[1].0 - lap[0].0).as_secs_f64() * 1e3, (lap[1].1 - lap[0].1) * 1e3)
        });
        say(&format!("  {}", laps.collect::<Vec<_>>().join(", ")));
    }
}
