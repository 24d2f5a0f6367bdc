//! Ways to a machine: users, addresses, ports, jump hosts.

use std::net::TcpListener;
use std::process::Command;

use nixos_host_e2e::host::Shape;
use nixos_host_e2e::scenario::{SSH_SECRET, name};
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::world::KeyPair;
use nixos_host_e2e::{Host, Scenario};
use serde_json::{Value, json};

use crate::cases::{case, each_says_so};
use crate::{SOON, message};

fn connection(patch: Value) -> Value {
    json!({"spec": {"connection": patch}})
}

/// Runs a pass of host number `index` to its end.
async fn pass(scenario: &Scenario, index: usize) {
    let token = scenario.request(index);
    until_true("the pass to have ended", SOON, || scenario.get(index)["status"]["lastHandledReconcileAt"] == token).await;
    scenario.ready(index, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_not_root_lands_with_sudo_and_with_doas_where_there_is_no_sudo() {
    let scenario = Scenario::builder().hosts(2).start().await;
    let rev = scenario.repository.head();
    scenario.hosts[1].remove_sudo();
    for index in 0..2 {
        scenario.apply(index, &connection(json!({"user": "deploy"})));
    }
    for index in 0..2 {
        scenario.landed(index, &rev, SOON).await;
    }
    scenario.hosts[1].shell("mv /etc/doas.conf /root/doas.conf");
    scenario.request(1);
    let refused = scenario.condition(1, "Ready", "False", Some("PrivilegeRefused"), SOON).await;
    assert!(message(&refused, "Ready").contains("by sudo or doas: doas"), "{}", message(&refused, "Ready"));
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_that_worked_is_tried_first_and_ipv6_zones_and_ports_lead_to_a_machine() {
    let scenario = Scenario::builder().hosts(3).start().await;
    let (rev, hosts) = (scenario.repository.head(), &scenario.hosts);
    // An address of this side, where nobody listens yet
    let dead = "10.77.255.1";
    assert!(Command::new("ip").args(["addr", "add", &format!("{dead}/32"), "dev", "br0"]).status().unwrap().success());
    hosts[2].listen_on(2222);
    scenario.apply(0, &connection(json!({"addresses": [dead, hosts[0].address()]})));
    scenario.apply(1, &connection(json!({"addresses": [hosts[1].ipv6()]})));
    scenario.apply(2, &connection(json!({"addresses": [hosts[2].link_local()], "port": 2222})));
    for index in 0..3 {
        scenario.landed(index, &rev, SOON).await;
    }
    let listener = TcpListener::bind((dead, 22)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let cursor = hosts[0].cursor();
    pass(&scenario, 0).await;
    assert!(hosts[0].sessions_since(&cursor).logins > 0, "the pass has looked at the machine");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the dead address was not called");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_behind_a_jump_host_lands_and_each_fault_of_the_jump_host_names_it() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    let bastion = Host::start_as(Shape { nixos: false, nix: false });
    let key = KeyPair::generate(scenario.key.file.with_file_name("bastion-key"));
    scenario.kubectl.secret("bastion", "kubernetes.io/ssh-auth", &[("ssh-privatekey", &key.private())]);
    bastion.up().await;
    bastion.authorize("deploy", &format!("restrict,port-forwarding {}", key.public));
    let inner = scenario.hosts[0].only_behind(&bastion);
    let jump =
        json!({"addresses": [bastion.address()], "user": "deploy", "sshKeyRef": {"name": "bastion"}, "hostKeys": [bastion.host_key()]});
    let through = |patch: Value| {
        let mut jump = jump.clone();
        nixos_host_e2e::scenario::merge(&mut jump, &patch);
        connection(json!({"addresses": [inner], "jump": jump}))
    };
    let at = bastion.address();

    scenario.apply(0, &connection(json!({"addresses": [inner]})));
    each_says_so(&scenario, &[case(&name(0), "Unreachable", &[&format!("{inner}:22 has no route")], json!({}))]).await;
    scenario.apply(0, &through(json!({"hostKeys": [scenario.hosts[0].host_key()]})));
    let says = ["connecting to the jump host", &at, "was expected", "if the jump host was reinstalled", "spec.connection.jump.hostKeys"];
    each_says_so(&scenario, &[case(&name(0), "HostKeyMismatch", &says, json!({}))]).await;
    scenario.apply(0, &through(json!({"sshKeyRef": {"name": SSH_SECRET}})));
    let says = ["connecting to the jump host", "does not let deploy in", "spec.connection.jump.sshKeyRef"];
    each_says_so(&scenario, &[case(&name(0), "AuthenticationFailed", &says, json!({}))]).await;

    let cursor = bastion.cursor();
    scenario.apply(0, &through(json!({})));
    scenario.landed(0, &rev, SOON).await;
    let logins = bastion.messages_since(&cursor, "sshd").join("\n");
    let (own, of_the_machine) = (key.fingerprint(), scenario.key.fingerprint());
    assert!(logins.contains(&own) && !logins.contains(&of_the_machine), "the jump host is shown its own key only: {logins}");
    assert_eq!(scenario.get(0)["status"]["jumpHostKey"], Value::Null, "a key that is pinned is not recorded");

    bastion.stop_sshd();
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(1));
    scenario.request(0);
    let says = [format!("connecting to the jump host: no address answers: {at}:22 refuses connections")];
    each_says_so(&scenario, &[case(&name(0), "Unreachable", &[&says[0]], json!({}))]).await;
    bastion.start_sshd();
    scenario.apply(0, &through(json!({"hostKeys": null, "hostKeyPolicy": "TrustOnFirstUse"})));
    scenario.landed(0, &rev, SOON).await;
    let status = &scenario.get(0)["status"];
    assert_eq!((&status["jumpHostKey"], &status["hostKey"]), (&json!(bastion.host_key()), &Value::Null));
    bastion.change_host_key();
    scenario.request(0);
    scenario.condition(0, "Ready", "False", Some("HostKeyMismatch"), SOON).await;
    scenario.finish().await;
}
