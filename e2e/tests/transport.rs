//! SSH and copies of the library itself, against a real sshd and a real Nix.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nixos_host_controller::nix::{Closure, StorePath};
use nixos_host_controller::world::copy::{Copied, CopyError, LocalStore, NixStore, Options, Progress, push};
use nixos_host_controller::world::ssh::{
    Command, ConnectError, ConnectOptions, ExecError, Exit, Host as _, HostKeyPolicy, Limits, PortError, PrivateKey, Session, Target,
    Unreached,
};
use nixos_host_e2e::flake::fleet::{Fill, Packages};
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::world::KeyPair;
use nixos_host_e2e::{Host, Repository};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

const LIMITS: Limits = Limits::within(Duration::from_secs(20));

/// A host, and the way into it.
struct Way {
    host: Host,
    target: Target,
}

/// A host that lets us in as `user`.
async fn way(user: &str) -> Way {
    let host = Host::start();
    let key = KeyPair::generate(host.directory().join("key"));
    host.up().await;
    host.authorize(user, &key.public);
    let target = Target {
        addresses: vec![host.address()],
        port: 22,
        user: user.into(),
        key: PrivateKey::parse(&key.private()).unwrap(),
        host_keys: HostKeyPolicy::Pinned(vec![host.host_key().parse().unwrap()]),
        jump: None,
    };
    Way { host, target }
}

async fn connect(target: &Target) -> Session {
    Session::connect(target, &ConnectOptions::default()).await.unwrap()
}

fn shell(script: &str) -> Command {
    Command::script(script)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gives_its_output_its_errors_and_its_status() {
    let way = way("root").await;
    let host = connect(&way.target).await;
    let output = host.exec(&shell("cat; echo oops >&2; exit 3"), Bytes::from_static(b"in"), LIMITS).await.unwrap();
    assert_eq!((output.status, output.stdout.as_slice(), output.stderr_tail.as_str()), (Exit::Status(3), &b"in"[..], "oops"));
    let killed = host.exec(&shell("kill -KILL $$"), Bytes::new(), LIMITS).await.unwrap();
    assert_eq!(killed.status, Exit::Signal("KILL".into()));
    let megabytes = Bytes::from(vec![7; 5 << 20]);
    let counted = host.exec(&Command::new("wc").arg("-c"), megabytes.clone(), LIMITS).await.unwrap();
    assert_eq!(counted.stdout, format!("{}\n", megabytes.len()).as_bytes());
    let deaf = host.exec(&Command::new("true"), megabytes, LIMITS).await.unwrap();
    assert!(deaf.status.success());
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_or_says_too_much_is_ended() {
    let way = way("deploy").await;
    let host = connect(&way.target).await;
    let short = Limits { deadline: Duration::from_millis(300), ..LIMITS };
    let late = host.exec(&shell("echo $$ > /tmp/late-$(id -u); exec sleep 1000"), Bytes::new(), short).await;
    assert!(matches!(late, Err(ExecError::TimedOut { .. })));
    let loud = host.exec(&shell("yes"), Bytes::new(), LIMITS).await;
    assert!(matches!(loud, Err(ExecError::TooMuchOutput { .. })));
    let noise = host.exec(&shell("yes | head -c 3000000 >&2; echo end >&2"), Bytes::new(), LIMITS).await.unwrap();
    assert!(noise.stderr_tail.len() < 17 << 10 && noise.stderr_tail.ends_with("end"));
    // OpenSSH passes signals on to commands of all users but root.
    let gone = "for n in 1 2 3 4 5 6 7 8 9; do kill -0 $(cat /tmp/late-$(id -u)) 2>/dev/null || exit 0; sleep 0.2; done; exit 1";
    assert!(host.exec(&shell(gone), Bytes::new(), LIMITS).await.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_channel_does_not_stop_the_others() {
    let way = way("root").await;
    let host = connect(&way.target).await;
    let unread = host.open(&shell("yes | head -c 6000000; cat")).await.unwrap();
    for _ in 0..20 {
        assert!(host.exec(&Command::new("true"), Bytes::new(), LIMITS).await.unwrap().status.success());
    }
    let forever = host.open(&Command::new("yes")).await.unwrap();
    assert!(matches!(forever.ending.wait().await, Err(ExecError::TooMuchOutput { .. })));
    assert!(host.exec(&Command::new("true"), Bytes::new(), LIMITS).await.unwrap().status.success());
    drop(unread);
    assert!(host.exec(&Command::new("true"), Bytes::new(), LIMITS).await.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_lost_leaves_the_outcome_unknown() {
    let way = way("root").await;
    let host = connect(&way.target).await;
    let kill = "systemctl kill -s KILL ssh.service; systemctl kill -s KILL 'session-*.scope' || true";
    let lost = async {
        let command = shell("touch /tmp/begun; exec sleep 1000");
        host.exec(&command, Bytes::new(), LIMITS).await
    };
    let cut = async {
        until_true("the command to run", LIMITS.deadline, || way.host.exec(&["test", "-e", "/tmp/begun"]).status.success()).await;
        way.host.shell(kill);
    };
    let (lost, ()) = tokio::join!(lost, cut);
    assert!(matches!(lost, Err(ExecError::Lost(_))), "{lost:?}");
    until_true("the connection to be known to be gone", LIMITS.deadline, || host.is_closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_must_hold_the_pinned_key() {
    let Way { host, target } = way("root").await;
    let options = ConnectOptions::default();
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    let rsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";
    for line in [other, rsa] {
        let wrong = Target { host_keys: HostKeyPolicy::Pinned(vec![line.parse().unwrap()]), ..target.clone() };
        let error = Session::connect(&wrong, &options).await.unwrap_err();
        assert!(matches!(error, ConnectError::HostKeyMismatch { .. }), "{error:?}");
    }
    let none = Target { host_keys: HostKeyPolicy::Pinned(vec![]), ..target.clone() };
    assert!(matches!(Session::connect(&none, &options).await, Err(ConnectError::HostKeyMissing)));
    let first = Target { host_keys: HostKeyPolicy::TrustOnFirstUse { recorded: None }, ..target.clone() };
    let seen = Session::connect(&first, &options).await.unwrap().host_key().clone();
    assert_eq!(seen, host.host_key().parse().unwrap());
    let again = Target { host_keys: HostKeyPolicy::TrustOnFirstUse { recorded: Some(seen) }, ..target.clone() };
    Session::connect(&again, &options).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_host_does_not_know_is_not_let_in() {
    let way = way("root").await;
    connect(&way.target).await;
    let key = PrivateKey::parse(&KeyPair::generate(way.host.directory().join("other")).private()).unwrap();
    for stranger in [Target { key, ..way.target.clone() }, Target { user: "nobody-at-all".into(), ..way.target }] {
        let error = Session::connect(&stranger, &ConnectOptions::default()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Authentication { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_reached_from_here_and_from_the_host_itself() {
    let way = way("root").await;
    let host = connect(&way.target).await;
    for stream in [host.tunnel("localhost", 22).await, host.neighbour(22).await] {
        let mut greeting = [0; 4];
        stream.unwrap().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"SSH-");
    }
    assert!(matches!(host.tunnel("localhost", 9).await, Err(PortError::Failed)));
    assert!(matches!(host.neighbour(9).await, Err(PortError::Io(_) | PortError::Failed)));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_tried_in_order() {
    let Way { host, target } = way("root").await;
    let mut many = Target { addresses: vec!["10.77.250.250".into(), "no-such-name.invalid".into(), host.address()], ..target };
    let options = ConnectOptions { per_address: Duration::from_secs(1), ..ConnectOptions::default() };
    assert_eq!(Session::connect(&many, &options).await.unwrap().address(), host.address());
    many.addresses.pop();
    let error = Session::connect(&many, &options).await.unwrap_err();
    let ConnectError::Unreachable { failures } = error else { panic!("{error:?}") };
    assert!(matches!(failures[1].reason, Unreached::Resolve(_)), "{failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_host_leads_on_with_much_in_both_directions_and_says_what_it_forbids() {
    let Way { host, target } = way("root").await;
    let inner = Target { addresses: vec!["127.0.0.1".into()], jump: Some(Box::new(target.clone())), ..target.clone() };
    let through = connect(&inner).await;
    assert_eq!(through.jump().map(Session::address), Some(&*host.address()));
    let limits = Limits { stdout: 64 << 20, ..LIMITS };
    let there_and_back = Bytes::from(vec![7; 24 << 20]);
    let output = through.exec(&Command::new("cat"), there_and_back.clone(), limits).await.unwrap();
    assert!(output.stdout == there_and_back, "{} bytes came back", output.stdout.len());
    through.close().await;

    let nobody = Target { port: 1, ..inner.clone() };
    let error = Session::connect(&nobody, &ConnectOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1 cannot be reached from the jump host"), "{error}");
    let key = KeyPair::generate(host.directory().join("restricted"));
    host.authorize("deploy", &format!("restrict {}", key.public));
    let restricted = Target { user: "deploy".into(), key: PrivateKey::parse(&key.private()).unwrap(), ..target };
    let error = Session::connect(&Target { jump: Some(Box::new(restricted)), ..inner }, &ConnectOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("whose sshd refuses it (AllowTcpForwarding, PermitOpen)"), "{error}");
}

/// A store that has the closure of a toplevel of `packages` packages, and that toplevel.
fn local(packages: u32) -> (LocalStore, StorePath) {
    let repository = Repository::create(|fleet| {
        fleet.host("web").own = Some(Packages { count: packages, kib: 256, kind: Fill::Random, rev: 0, changed: 0 });
    });
    let toplevel = repository.toplevel(&repository.head(), "web").parse().unwrap();
    let environment = ["NIX_CONF_DIR", "HOME", "PATH"].into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let path = std::env::var_os("PATH").unwrap();
    let program = std::env::split_paths(&path).map(|directory| directory.join("nix-store")).find(|program| program.exists()).unwrap();
    let nix = NixStore { program, arguments: vec![], environment: environment.collect() };
    (LocalStore::new(nix, Duration::from_secs(60)), toplevel)
}

async fn closure(packages: u32) -> Arc<Closure> {
    let (store, toplevel) = local(packages);
    Arc::new(store.closure(&toplevel).await.unwrap())
}

fn options() -> Options {
    Options::new("/nix/var/nix/gcroots/nixos-host-controller/test")
}

async fn copy(host: &Session, closure: &Arc<Closure>) -> Result<Copied, CopyError> {
    push(host, closure, &options(), &Progress::default(), &CancellationToken::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_arrives_whole_and_only_once() {
    let (closure, way) = tokio::join!(closure(8), way("deploy"));
    let host = connect(&way.target).await;
    let copied = copy(&host, &closure).await.unwrap();
    assert_eq!(copied.paths + copied.skipped, closure.paths.len() as u64);
    assert!(copied.paths >= 8, "{copied:?}");
    way.host.output(&["nix-store", "--gc", "--quiet"]);
    let again = copy(&host, &closure).await.unwrap();
    assert_eq!((again.paths, again.skipped), (0, closure.paths.len() as u64), "what was copied is no garbage");
    way.host.output(&["nix-store", "--verify", "--check-contents"]);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_cancelled_and_goes_on_where_it_was() {
    let (closure, way) = tokio::join!(closure(100), way("root"));
    let host = connect(&way.target).await;
    let (cancel, progress) = (CancellationToken::new(), Progress::default());
    let options = options();
    way.host.slow_link("80mbit");
    let cancelling = async {
        while progress.snapshot().paths < 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cancel.cancel();
    };
    let (copied, ()) = tokio::join!(push(&host, &closure, &options, &progress, &cancel), cancelling);
    assert!(matches!(copied, Err(CopyError::Cancelled { .. })), "{copied:?}");
    way.host.full_speed();
    let copied = copy(&host, &closure).await.unwrap();
    assert!(copied.skipped >= 20, "{copied:?}");
    let processes = "! grep -qx nix-store /proc/[0-9]*/comm";
    until_true("nothing to be left of it", LIMITS.deadline, || way.host.exec(&["sh", "-c", processes]).status.success()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_store_answers_what_is_true_now() {
    let (store, root) = local(1);
    let closure = store.closure(&root).await.unwrap();
    assert_eq!(closure.paths.last().unwrap().path, root);
    assert_eq!(closure, store.closure(&root).await.unwrap());
    let unknown: StorePath = "/nix/store/00000000000000000000000000000000-x".parse().unwrap();
    assert_eq!(store.valid(&[root.clone(), unknown.clone()]).await.unwrap(), [root.clone()].into());
    store.closure(&unknown).await.unwrap_err();
    assert_eq!(store.valid(std::slice::from_ref(&root)).await.unwrap(), [root].into(), "an error does no harm to the next question");
}
