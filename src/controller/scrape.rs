//! What Prometheus reads: what was counted, and what is so at this moment.

use std::path::PathBuf;
use std::time::Duration;

use super::Controller;
use crate::world::own;

/// Where the controller's own Nix store is.
const STORE: &str = "/nix/store";

/// Asking how full a disk is takes microseconds; only a disk that hangs takes longer.
const DISK_WITHIN: Duration = Duration::from_secs(1);

/// What Prometheus reads. A replica that stands by says nothing of hosts: the leader does.
pub(super) async fn text(controller: &Controller) -> prometheus::Result<String> {
    let world = &controller.world;
    let (metrics, leads) = (&world.metrics, world.lead.holds());
    let lease = controller.args.leader_elect.then_some(&*controller.args.lease_name);
    metrics.governed(leads, lease, controller.brake.stops().is_some());
    let running = world.effects.running();
    metrics.in_flight(running.evaluations, running.builds, running.processes);
    let directories = [("store", PathBuf::from(STORE)), ("data", controller.args.data_dir.clone())];
    // A disk that hangs holds up neither a scrape nor the controller.
    let own = tokio::task::spawn_blocking(move || (directories.map(|(name, path)| (name, own::room(&path).ok())), own::usage()));
    if let Ok(Ok((rooms, usage))) = tokio::time::timeout(DISK_WITHIN, own).await {
        for (name, room) in rooms {
            metrics.room(name, room);
        }
        let _ = usage.map(|usage| metrics.usage(usage));
    }
    let hosts = controller.hosts.all();
    let told = if leads { &*hosts } else { &[] };
    metrics.render(world.clock.now(), hosts.len(), told.iter().map(|host| &**host))
}
