//! The commands of the documentation, as they stand there: fenced blocks of `sh` below `<!-- run -->`, with only names and addresses replaced.

use std::process::Command;

use nixos_host_e2e::{Scenario, controller::Options, process::output, world::fresh_directory};

use crate::SOON;

/// The marked blocks of a page, in order.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("<!-- run -->\n```sh\n").skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned()).collect()
}

/// Runs a page's commands for `web-1` in one directory.
fn follow(scenario: &Scenario, directory: &std::path::Path, page: &str, replaced: &[(&str, &str)]) -> String {
    let (host, path) = (&scenario.hosts[0], |file: &str| scenario.hosts[0].directory().join(file).display().to_string());
    // Whoever reads the page has a way to the machine, and a cluster
    let options =
        format!("-o IdentityFile={} -o UserKnownHostsFile={} -o BatchMode=yes -o LogLevel=ERROR", path("admin"), path("known_hosts"));
    let yours = format!(
        "mkdir -p ~/.ssh\nssh() {{ command ssh -F /dev/null {options} \"$@\"; }}\nssh-copy-id() {{ command ssh-copy-id -f {options} \"$@\"; }}\n\
         kubectl() {{ command kubectl --kubeconfig {} --namespace {} \"$@\"; }}\n",
        scenario.plane.kubeconfig().display(),
        scenario.namespace
    );
    let blocks = commands(page);
    assert!(!blocks.is_empty(), "the page has no commands to run");
    let url = scenario.server.https_url("fleet.git");
    let names = [("web-01.example.org", host.address()), ("git+https://git.example.org/fleet.git", url)];
    let mut printed = String::new();
    for block in blocks {
        let block = names.iter().fold(block, |block, (from, to)| block.replace(from, to));
        let block = replaced.iter().fold(block, |block, (from, to)| block.replace(from, to));
        printed += &output(Command::new("bash").current_dir(directory).args(["-euo", "pipefail", "-c", &(yours.clone() + &block)]));
    }
    printed
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_the_pages_of_the_first_host_and_of_gitops_gets_what_they_say() {
    let mut scenario = Scenario::builder().controller(Options::confined()).start().await;
    let (_, directory) = fresh_directory("docs");
    let first = scenario.repository.head();
    let printed = follow(&scenario, &directory, include_str!("../../../docs/first-host.md"), &[]);
    assert!(printed.contains(&first[..7]), "{printed}");
    scenario.landed(0, &first, SOON).await;
    scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    let second = scenario.repository.head();
    let page = include_str!("../../../docs/gitops.md");
    follow(&scenario, &directory, page, &[("3f2a9c1d3f2a9c1d3f2a9c1d3f2a9c1d3f2a9c1d", &second)]);
    scenario.landed(0, &second, SOON).await;
    scenario.finish().await;
}
