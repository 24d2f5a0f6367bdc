//! What is asked of a landing, by whom, and over what.

use std::{fs::File, process::Stdio, time::Duration};

use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::world::write;

use crate::machine::{BEGUN, Machine, SCRIPT};

/// As the controller does: the script on stdin, the verb as arguments.
fn over_ssh(machine: &Machine, words: &str) -> std::process::Child {
    let script = machine.host.directory().join("script");
    write(&script, SCRIPT);
    let command = format!("sh -c 'script=$(cat); eval \"$script\"' landing {words}");
    let mut ssh = machine.host.ssh_command(&[&command]);
    ssh.stdin(File::open(script).unwrap()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_killed_leaves_a_whole_landing_or_none() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let mut begun = 0;
    for (index, delay) in [50, 150, 250, 350, 500, 700].into_iter().enumerate() {
        let id = format!("a{index}");
        let mut client = over_ssh(&machine, &format!("land {id} 1 {new} switch 60 1"));
        tokio::time::sleep(Duration::from_millis(delay)).await;
        client.kill().unwrap();
        client.wait().unwrap();
        // What was sent may still be on its way through sshd
        tokio::time::sleep(Duration::from_millis(500)).await;
        if machine.word("id") == id {
            begun += 1;
            machine.reverted("not-committed").await;
        } else {
            machine.is_on(&machine.old).await;
        }
    }
    assert!(begun > 0, "the last one at least has begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_in_mid_activation_ends_in_a_revert_or_in_a_commit_if_it_heals_in_time() {
    let machine = Machine::start().await;
    let new = machine.receive("slow");
    for (id, commit) in [("late", 3), ("in-time", 60)] {
        let mut client = over_ssh(&machine, &format!("land {id} 1 {new} switch 60 {commit}"));
        until_true("the landing to begin", Duration::from_secs(30), || machine.word("id") == id && machine.word("state") == "activating")
            .await;
        machine.host.cut_link();
        if id == "late" {
            machine.ended("reverted", "not-committed").await;
        } else {
            machine.is("activated").await;
        }
        machine.host.heal_link();
        client.kill().unwrap();
        client.wait().unwrap();
    }
    machine.host.up().await;
    assert!(over_ssh(&machine, "commit in-time 1").wait().unwrap().success());
    machine.ended("committed", "").await;
    machine.is_on(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_second_is_told_who_came_first_before_that_one_has_recorded_anything() {
    let machine = Machine::start().await;
    let (new, other) = (machine.receive("plain"), machine.receive("other"));
    machine.gate(BEGUN);
    machine.begin("first", &new, 60, 1);
    machine.reaches_the_gate().await;
    assert_eq!(machine.word("id"), "", "nothing is recorded yet");
    let refused = machine.land("second", &other, 60, 1);
    assert_eq!(refused.stdout.trim(), "landing: refused: busy: another landing is running: first");
    machine.open();
    machine.reverted("not-committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_shuts_down_begins_no_landing_and_says_why() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    // A service that takes its time to stop keeps the shutdown waiting
    machine.host.shell("systemd-run --quiet --unit=slow -p TimeoutStopSec=60 -p 'ExecStop=/bin/sleep 8' /bin/sleep 600");
    machine.host.shell("systemctl reboot --no-block");
    let refused = machine.land("a", &new, 60, 1);
    assert_eq!(refused.stdout.trim(), "landing: refused: not-ready: the host is stopping", "{}", refused.stderr);
    machine.rebooted(1).await;
    machine.is_on(&machine.old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_controllers_that_begin_at_once_one_lands_and_the_other_is_told() {
    let machine = Machine::start().await;
    let systems = [machine.receive("plain"), machine.receive("other")];
    for round in 0..4 {
        let ids = [format!("left-{round}"), format!("right-{round}")];
        let calls: Vec<_> = ids
            .iter()
            .zip(&systems)
            .map(|(id, new)| format!("(landing land {id} 1 {new} switch 60 1; echo exit=$?) > /run/{id} 2>&1 &"))
            .collect();
        machine.host.shell(&format!("{} wait", calls.join(" ")));
        let said = ids.each_ref().map(|id| machine.host.output(&["cat", &format!("/run/{id}")]));
        let landed = said.each_ref().map(|said| said.contains("exit=0"));
        assert!(landed[0] != landed[1], "{said:?}");
        let winner = usize::from(landed[1]);
        assert!(said[1 - winner].contains(&format!("refused: busy: another landing is running: {}", ids[winner])), "{said:?}");
        machine.reverted("not-committed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_races_the_deadline_wins_or_loses_and_nothing_in_between() {
    let machine = Machine::start().await;
    let systems = [machine.receive("plain"), machine.receive("other")];
    let (mut on, mut outcomes) = (machine.old.clone(), [0, 0]);
    // The first and the last are in time and too late on a loaded machine as well
    let rounds = [(10, 9000), (2, 700), (2, 300), (2, 100), (2, 0), (2, 0), (2, -100), (2, -300), (2, -2000)];
    for (round, (within, early)) in rounds.into_iter().enumerate() {
        let (id, new) = (format!("a{round}"), systems.iter().find(|system| **system != on).unwrap());
        machine.activated(&id, new, within);
        let left = r#"read -r up _ </proc/uptime; read -r end </run/nixos-host-controller/deadline; awk "BEGIN { print int(($end - $up) * 1000) }""#;
        let left: i64 = machine.host.shell(left).parse().unwrap();
        tokio::time::sleep(Duration::from_millis(u64::try_from(left - early).unwrap_or(0))).await;
        let output = machine.ask(&["commit", &id, "1"]);
        let committed = output.stdout.contains("landing_state=committed");
        outcomes[usize::from(committed)] += 1;
        if committed {
            on.clone_from(new);
        }
        let (state, code) = if committed { ("committed", "") } else { ("reverted", "not-committed") };
        machine.ended(state, code).await;
        machine.is_on(&on).await;
    }
    eprintln!("reverted, committed: {outcomes:?}");
    assert!(outcomes.iter().all(|times| *times > 0), "reverted, committed: {outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_epoch_neither_lands_nor_commits() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let newer = machine.ask(&["land", "a", "7", &new, "switch", "60", "60"]);
    assert!(newer.stdout.contains("landing_state=activated"), "{}", newer.stdout);
    let deposed = machine.ask(&["commit", "a", "6"]);
    assert!(deposed.stdout.contains("refused: fenced: epoch 6 is older than 7"), "{}", deposed.stdout);
    assert_eq!(machine.word("state"), "activated");
    machine.ask(&["revert", "a", "7"]);
    machine.reverted("asked").await;
    let deposed = machine.ask(&["land", "b", "6", &new, "switch", "60", "60"]);
    assert!(deposed.stdout.contains("refused: fenced: epoch 6 is older than 7"), "{}", deposed.stdout);
    machine.is_on(&machine.old).await;
    assert_eq!(machine.word("id"), "a", "the record of what has ended stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_attaches_with_a_newer_epoch_shuts_out_who_led_before() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let land = |epoch| machine.ask(&["land", "a", epoch, &new, "switch", "60", "60"]).stdout;
    assert!(land("7").contains("landing_epoch=7"));
    let attached = land("9");
    assert!(attached.contains("landing_epoch=9") && attached.contains("landing_state=activated"), "{attached}");
    for words in [["revert", "a", "8"], ["commit", "a", "7"]] {
        let deposed = machine.ask(&words);
        assert!(deposed.stdout.contains("is older than 9"), "{words:?}: {}", deposed.stdout);
    }
    assert_eq!(machine.word("state"), "activated", "nothing that they asked for was done");
    assert!(land("8").contains("refused: fenced"), "nor may they attach");
    assert!(machine.ask(&["commit", "a", "9"]).stdout.contains("landing_state=committed"));
    machine.is_on(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_user_with_sudo_lands_commits_and_reverts() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let sudo = |words: &[&str]| machine.host.exec(&[&["runuser", "-u", "deploy", "--", "sudo", "-n", "/usr/bin/landing"], words].concat());
    sudo(&["land", "a", "1", &new, "switch", "60", "1"]);
    machine.reverted("not-committed").await;
    sudo(&["land", "b", "1", &new, "switch", "60", "60"]);
    sudo(&["revert", "b", "1"]);
    machine.reverted("asked").await;
    sudo(&["land", "c", "1", &new, "switch", "60", "60"]);
    assert_eq!(sudo(&["commit", "c", "1"]).code(), 0);
    machine.ended("committed", "").await;
    machine.is_on(&new).await;
    let status = machine.host.exec(&["runuser", "-u", "deploy", "--", "/usr/bin/landing", "status"]);
    assert!(status.stdout.contains("landing_state=committed"), "status needs no sudo: {}{}", status.stdout, status.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_landing_says_how_long_it_waits_and_only_while_it_does() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let left = |answer: &str| answer.lines().find_map(|line| line.strip_prefix("landing_left=")).map(|left| left.parse::<u64>().unwrap());
    assert_eq!(left(&machine.ask(&["status"]).stdout), None);
    let activated = left(&machine.land("a", &new, 60, 90).stdout);
    assert!(activated.is_some_and(|left| (60..=90).contains(&left)), "{activated:?}");
    let before = left(&machine.ask(&["status"]).stdout).unwrap();
    until_true("time to pass on the host", Duration::from_secs(30), || left(&machine.ask(&["status"]).stdout).unwrap() < before).await;
    let reverted = machine.ask(&["revert", "a", "1"]);
    assert!(reverted.stdout.contains("landing_state=reverted"), "{reverted:?}");
    assert_eq!(left(&reverted.stdout), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_that_fails_says_so() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let fine = machine.ask(&["dry", &new]);
    assert!(fine.status.success() && fine.stdout.contains("would start the following units: web.service"), "{fine:?}");
    machine.host.shell("mkdir -p /root/bad/bin; printf '#!/bin/sh\\necho first\\necho no bus >&2\\nexit 3\\n' >/root/bad/bin/switch-to-configuration; chmod 755 /root/bad/bin/*");
    let bad = machine.ask(&["dry", "/root/bad"]);
    assert!(!bad.status.success(), "{bad:?}");
    assert_eq!(bad.stdout, "landing: refused: failed: switch-to-configuration dry-activate exited with 3: no bus\n");
}
