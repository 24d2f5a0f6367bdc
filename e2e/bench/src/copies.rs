//! Copies alone: the controller's library beside `nix copy`, each to a host of its own.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use nixos_host_controller::{
    nix::Closure,
    world::{
        copy::{LocalStore, NixStore, Options, Progress, push},
        ssh::{ConnectOptions, HostKeyPolicy, PrivateKey, Session, Target},
    },
};
use nixos_host_e2e::{
    Host,
    host::proxy::DelayingProxy,
    process::output,
    world::{BRIDGE_ADDRESS, KeyPair, fresh_directory, write},
};
use tokio_util::sync::CancellationToken;

use crate::{
    RUNS, Wanted,
    sides::{LONG, calm, ssh_options},
    table::{Goal, Row, Rows, say},
};

const GC_ROOT: &str = "/nix/var/nix/gcroots/nixos-host-controller/bench";
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// Measures the rows that are wanted.
pub(crate) async fn measure(wanted: Wanted, into: Rows) {
    if wanted.contains(&"copy-large") {
        into.push(large().await);
    }
    if wanted.contains(&"copy-small") {
        into.push(small().await);
    }
}

/// 210 paths of 515 MB over the link as it is.
async fn large() -> Row {
    say("making 210 paths of 515 MB");
    let root = store_paths(209, 515_000_000 / 209);
    let (ours, theirs) = (Side::start().await, Side::start().await);
    let mut row = row("copy alone, 210 paths of 515 MB", Goal::Ratio(0.8));
    for run in 0..RUNS {
        ours.forget().await;
        theirs.forget().await;
        calm().await;
        row.ours.push(ours.push(&root, None).await);
        calm().await;
        row.theirs.push(theirs.nix_copy(&root, None));
        tell(&row, run);
    }
    row
}

/// 2,000 small paths over a link with a round trip of 50 ms. `nix copy` takes minutes: it is run once.
async fn small() -> Row {
    say("making 2,000 small paths");
    let root = store_paths(1999, 2000);
    let (ours, theirs) = (Side::start().await, Side::start().await);
    let (our_link, their_link) = (ours.long_link().await, theirs.long_link().await);
    let mut row = row("copy alone, 2,000 small paths, round trip 50 ms (`nix copy` once)", Goal::Ratio(0.1));
    for run in 0..RUNS {
        ours.forget().await;
        calm().await;
        row.ours.push(ours.push(&root, Some(our_link.address().port())).await);
        if run == 0 {
            let port = their_link.address().port();
            row.theirs.push(tokio::task::block_in_place(|| theirs.nix_copy(&root, Some(port))));
        }
        tell(&row, run);
    }
    row
}

fn row(what: &str, goal: Goal) -> Row {
    Row { what: what.to_owned(), unit: "s", ours: Vec::new(), theirs: Vec::new(), goal }
}

fn tell(row: &Row, run: u32) {
    let last = |samples: &[f64]| samples.last().copied().unwrap_or_default();
    say(&format!("{} {}: {:.2} s, {:.2} s", row.what, run + 1, last(&row.ours), last(&row.theirs)));
}

/// A path that refers to `count` others, each of `size` random bytes.
fn store_paths(count: usize, size: usize) -> String {
    let (_, directory) = fresh_directory("bench");
    let script = r#"
i=0
while [ $i -lt "$2" ]; do i=$((i + 1)); head -c "$3" /dev/urandom > "$1/file-$i"; done
find "$1" -name 'file-*' -print0 | xargs -0 nix-store --add > "$1/paths"
rm "$1"/file-*
"#;
    output(Command::new("sh").args(["-euc", script, "paths"]).arg(&directory).args([count.to_string(), size.to_string()]));
    let paths = std::fs::read_to_string(directory.join("paths")).expect("it was just written");
    assert_eq!(paths.lines().count(), count, "not every file became a path of its own");
    let list = paths.lines().map(|path| format!("(builtins.storePath {path})")).collect::<Vec<_>>().join("\n");
    let expression = directory.join("root.nix");
    write(&expression, format!("builtins.toFile \"root\" (toString [\n{list}\n])"));
    output(Command::new("nix").args(["eval", "--impure", "--raw", "--file"]).arg(&expression))
}

/// A host to copy to.
struct Side {
    host: Host,
    ssh_options: String,
    key: KeyPair,
}

impl Side {
    async fn start() -> Self {
        let host = Host::start();
        host.up().await;
        let (_, directory) = fresh_directory("bench");
        let key = KeyPair::generate(directory.join("key"));
        host.authorize("root", &key.public);
        Self { ssh_options: ssh_options(std::slice::from_ref(&host)), host, key }
    }

    /// A way to it with a long round trip.
    async fn long_link(&self) -> DelayingProxy {
        DelayingProxy::start(&format!("{}:22", self.host.address()), ROUND_TRIP).await
    }

    /// Removes what was copied.
    async fn forget(&self) {
        self.host.shell(&format!("rm -f {GC_ROOT}; nix-store --gc --quiet 2>/dev/null"));
        calm().await;
    }

    /// A connection and a copy by the controller's library; the seconds from nothing to the last confirmation.
    async fn push(&self, root: &str, proxied: Option<u16>) -> f64 {
        let target = Target {
            addresses: vec![if proxied.is_some() { BRIDGE_ADDRESS.to_owned() } else { self.host.address() }],
            port: proxied.unwrap_or(22),
            user: "root".to_owned(),
            key: PrivateKey::parse(&self.key.private()).expect("the key was just made"),
            host_keys: HostKeyPolicy::Pinned(vec![self.host.host_key().parse().expect("a host has a host key")]),
            jump: None,
        };
        let began = Instant::now();
        let closure = closure(root).await;
        let session = Session::connect(&target, &ConnectOptions::default()).await.expect("the host answers");
        let copied = push(&session, &closure, &Options::new(GC_ROOT), &Progress::default(), &CancellationToken::new()).await;
        let took = began.elapsed().as_secs_f64();
        assert_eq!(copied.expect("the copy succeeds").paths, closure.paths.len() as u64, "the host had some of it already");
        took
    }

    /// `nix copy --to ssh://`; the seconds that it takes.
    fn nix_copy(&self, root: &str, proxied: Option<u16>) -> f64 {
        let mut options = self.ssh_options.clone();
        let mut address = self.host.address();
        if let Some(port) = proxied {
            options = format!("{options} -p {port} -o HostKeyAlias={address}");
            BRIDGE_ADDRESS.clone_into(&mut address);
        }
        let mut command = Command::new("nix");
        command.args(["copy", "--to", &format!("ssh://root@{address}"), root]).env("NIX_SSHOPTS", options);
        let began = Instant::now();
        output(&mut command);
        let took = began.elapsed().as_secs_f64();
        let paths = self.host.store_paths();
        assert!(paths.iter().any(|path| path == root), "nix copy did not copy");
        took
    }
}

/// The closure of a path, asked of a process that is started for it: no head start over `nix copy`.
async fn closure(root: &str) -> Arc<Closure> {
    let environment = ["NIX_CONF_DIR", "HOME", "PATH"].into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let nix = NixStore { program: "nix-store".into(), arguments: Vec::new(), environment: environment.collect() };
    let store = LocalStore::new(nix, LONG);
    Arc::new(store.closure(&root.parse().expect("a store path")).await.expect("the store answers"))
}
