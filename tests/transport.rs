//! SSH and copies against a real host. Ignored unless asked for: it takes sshd and Nix.
//!
//! `TRANSPORT_ADDRESS`, `TRANSPORT_HOST_KEY` (a line of a .pub file) and `TRANSPORT_KEY` (a file) say where the host
//! is; `TRANSPORT_TOPLEVEL` and `TRANSPORT_NIX_STORE` what to copy, and with which `nix-store`.
//! `TRANSPORT_PORT`, `TRANSPORT_USER` (root, or one with sudo), `TRANSPORT_JUMP` (another address of the same host),
//! `TRANSPORT_STALL` and `TRANSPORT_SUBSTITUTE` (seconds) are for trying other ways. Garbage on the host is collected.

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests, helpers included")]

use std::env;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nixos_host_controller::nix::Closure;
use nixos_host_controller::world::copy::{Copied, CopyError, LocalStore, NixStore, Options, Progress, push};
use nixos_host_controller::world::ssh::{
    Command, ConnectError, ConnectOptions, ExecError, Exit, Host, HostKeyPolicy, Limits, Phase, PortError, PrivateKey, Session, Target,
    Unreached,
};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

const LIMITS: Limits = Limits::within(Duration::from_secs(20));

fn given(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn target() -> Target {
    let host = direct();
    match env::var("TRANSPORT_JUMP") {
        Ok(address) => Target { jump: Some(Box::new(Target { addresses: vec![address], ..host.clone() })), ..host },
        Err(_) => host,
    }
}

fn direct() -> Target {
    Target {
        addresses: vec![given("TRANSPORT_ADDRESS")],
        port: env::var("TRANSPORT_PORT").map_or(22, |port| port.parse().unwrap()),
        user: env::var("TRANSPORT_USER").unwrap_or("root".into()),
        key: PrivateKey::parse(&std::fs::read_to_string(given("TRANSPORT_KEY")).unwrap()).unwrap(),
        host_keys: HostKeyPolicy::Pinned(vec![given("TRANSPORT_HOST_KEY").parse().unwrap()]),
        jump: None,
    }
}

async fn session() -> Session {
    Session::connect(&target(), &ConnectOptions::default()).await.unwrap()
}

fn shell(script: &str) -> Command {
    Command::script(script)
}

#[tokio::test]
#[ignore = "needs a host"]
async fn a_command_gives_its_output_its_errors_and_its_status() {
    let host = session().await;
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

#[tokio::test]
#[ignore = "needs a host"]
async fn a_command_that_takes_too_long_or_says_too_much_is_ended() {
    let host = session().await;
    let short = Limits { deadline: Duration::from_millis(300), ..LIMITS };
    let late = host.exec(&shell("echo $$ > /tmp/late-$(id -u); exec sleep 1000"), Bytes::new(), short).await;
    assert!(matches!(late, Err(ExecError::TimedOut { .. })));
    let loud = host.exec(&shell("yes"), Bytes::new(), LIMITS).await;
    assert!(matches!(loud, Err(ExecError::TooMuchOutput { .. })));
    let noise = host.exec(&shell("yes | head -c 3000000 >&2; echo end >&2"), Bytes::new(), LIMITS).await.unwrap();
    assert!(noise.stderr_tail.len() < 17 << 10 && noise.stderr_tail.ends_with("end"));
    if host.user() == "root" {
        return; // OpenSSH passes no signals on to root's commands.
    }
    let gone = "for n in 1 2 3 4 5 6 7 8 9; do kill -0 $(cat /tmp/late-$(id -u)) 2>/dev/null || exit 0; sleep 0.2; done; exit 1";
    assert!(host.exec(&shell(gone), Bytes::new(), LIMITS).await.unwrap().status.success());
}

#[tokio::test]
#[ignore = "needs a host"]
async fn an_unread_channel_does_not_stop_the_others() {
    let host = session().await;
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

#[tokio::test]
#[ignore = "needs a host"]
async fn a_connection_that_is_lost_leaves_the_outcome_unknown() {
    let host = session().await;
    let lost = host.exec(&shell("kill -KILL $(ps -o ppid= -p $PPID); kill -KILL $PPID; sleep 5"), Bytes::new(), LIMITS).await;
    assert!(matches!(lost, Err(ExecError::Lost(_))), "{lost:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(host.is_closed());
}

#[tokio::test]
#[ignore = "needs a host"]
async fn who_answers_must_hold_the_pinned_key() {
    let options = ConnectOptions::default();
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    let rsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";
    for line in [other, rsa] {
        let wrong = Target { host_keys: HostKeyPolicy::Pinned(vec![line.parse().unwrap()]), ..target() };
        let error = Session::connect(&wrong, &options).await.unwrap_err();
        println!("{error}");
        assert!(matches!(error, ConnectError::HostKeyMismatch { .. }), "{error:?}");
    }
    let none = Target { host_keys: HostKeyPolicy::Pinned(vec![]), ..target() };
    assert!(matches!(Session::connect(&none, &options).await, Err(ConnectError::HostKeyMissing)));
    let first = Target { host_keys: HostKeyPolicy::TrustOnFirstUse { recorded: None }, ..target() };
    let seen = Session::connect(&first, &options).await.unwrap().host_key().clone();
    assert_eq!(seen, given("TRANSPORT_HOST_KEY").parse().unwrap());
    let again = Target { host_keys: HostKeyPolicy::TrustOnFirstUse { recorded: Some(seen) }, ..target() };
    Session::connect(&again, &options).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a host"]
async fn a_key_that_the_host_does_not_know_is_not_let_in() {
    let stranger = Target { user: "nobody-at-all".into(), ..target() };
    let error = Session::connect(&stranger, &ConnectOptions::default()).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, ConnectError::Authentication { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs a host"]
async fn ports_are_reached_from_here_and_from_the_host_itself() {
    let host = session().await;
    let port = target().port;
    for stream in [host.tunnel("localhost", port).await, host.neighbour(port).await] {
        let mut greeting = [0; 4];
        stream.unwrap().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"SSH-");
    }
    assert!(matches!(host.tunnel("localhost", 9).await, Err(PortError::Failed)));
    assert!(matches!(host.neighbour(9).await, Err(PortError::Io(_) | PortError::Failed)));
    host.close().await;
}

#[tokio::test]
#[ignore = "needs a host"]
async fn addresses_are_tried_in_order_and_a_jump_host_leads_on() {
    let mut many = target();
    many.addresses = vec!["10.77.250.250".into(), "no-such-name.invalid".into(), given("TRANSPORT_ADDRESS")];
    let options = ConnectOptions { per_address: Duration::from_secs(1), ..ConnectOptions::default() };
    assert_eq!(Session::connect(&many, &options).await.unwrap().address(), given("TRANSPORT_ADDRESS"));
    many.addresses.pop();
    let error = Session::connect(&many, &options).await.unwrap_err();
    println!("{error}");
    let ConnectError::Unreachable { failures } = error else { panic!("{error:?}") };
    assert!(matches!(failures[1].reason, Unreached::Resolve(_)), "{failures:?}");

    let inner = Target { addresses: vec!["127.0.0.1".into()], jump: Some(Box::new(target())), ..target() };
    let host = Session::connect(&inner, &ConnectOptions::default()).await.unwrap();
    let output = host.exec(&Command::new("wc").arg("-c"), Bytes::from(vec![0; 9 << 20]), LIMITS).await.unwrap();
    assert_eq!(output.stdout, format!("{}\n", 9 << 20).as_bytes());
    let nobody = Target { port: 1, ..inner };
    let error = Session::connect(&nobody, &ConnectOptions::default()).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs a host"]
async fn who_accepts_and_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Target { addresses: vec!["127.0.0.1".into()], port: listener.local_addr().unwrap().port(), ..target() };
    let options = ConnectOptions { handshake: Duration::from_millis(300), ..ConnectOptions::default() };
    let error = Session::connect(&silent, &options).await.unwrap_err();
    println!("{error}");
    let ConnectError::Unreachable { failures } = error else { panic!("{error:?}") };
    assert!(matches!(failures[0].reason, Unreached::TimedOut(Phase::Handshake)));
    // Nothing of ours holds the connection any longer.
    let (mut accepted, _) = listener.accept().await.unwrap();
    let mut nowhere = tokio::io::sink();
    tokio::time::timeout(Duration::from_secs(2), tokio::io::copy(&mut accepted, &mut nowhere)).await.unwrap().unwrap();
    let options = ConnectOptions { deadline: Duration::from_millis(300), ..ConnectOptions::default() };
    assert!(matches!(Session::connect(&silent, &options).await, Err(ConnectError::TimedOut { during: Phase::Handshake, .. })));
}

fn local_store() -> LocalStore {
    let environment = ["NIX_CONF_DIR", "HOME", "PATH"].into_iter().filter_map(|name| Some((name.into(), env::var_os(name)?)));
    let nix = NixStore { program: given("TRANSPORT_NIX_STORE").into(), arguments: vec![], environment: environment.collect() };
    LocalStore::new(nix, Duration::from_secs(60))
}

async fn closure() -> Arc<Closure> {
    Arc::new(local_store().closure(&given("TRANSPORT_TOPLEVEL").parse().unwrap()).await.unwrap())
}

async fn copy(host: &Session, closure: &Arc<Closure>, progress: &Progress) -> Result<Copied, CopyError> {
    let mut options = Options::new("/nix/var/nix/gcroots/nixos-host-controller/test");
    if let Ok(stall) = env::var("TRANSPORT_STALL") {
        options.stall = Duration::from_secs(stall.parse().unwrap());
    }
    options.substitute_on_host = env::var("TRANSPORT_SUBSTITUTE").ok().map(|s| Duration::from_secs(s.parse().unwrap()));
    push(host, closure, &options, progress, &CancellationToken::new()).await
}

/// The host without the closure, and without anything else that nothing roots.
async fn emptied() -> Session {
    let host = session().await;
    let empty = "rm -f /nix/var/nix/gcroots/nixos-host-controller/test && nix-store --gc --quiet";
    let limits = Limits::within(Duration::from_secs(120));
    assert!(host.exec(&shell(empty).as_root(), Bytes::new(), limits).await.unwrap().status.success());
    host
}

#[tokio::test]
#[ignore = "needs a host and a closure"]
async fn a_closure_arrives_whole_and_only_once() {
    let (closure, host) = tokio::join!(closure(), session());
    let progress = Progress::default();
    let copied = copy(&host, &closure, &progress).await;
    let memory = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{copied:?} {:?} {}", progress.snapshot(), memory.lines().find(|line| line.starts_with("VmHWM")).unwrap());
    if let Err(mut error) = copied.as_ref().map_err(|e| e as &dyn std::error::Error) {
        while let Some(source) = error.source() {
            println!("  because: {source}");
            error = source;
        }
    }
    let copied = copied.unwrap();
    assert_eq!(copied.paths + copied.skipped, closure.paths.len() as u64);
    if env::var_os("TRANSPORT_ONCE").is_none() {
        let again = copy(&host, &closure, &Progress::default()).await.unwrap();
        assert_eq!((again.paths, again.skipped), (0, closure.paths.len() as u64));
    }
    host.close().await;
}

#[tokio::test]
#[ignore = "needs a host and a closure"]
async fn a_copy_is_cancelled_and_goes_on_where_it_was() {
    let (closure, host) = tokio::join!(closure(), emptied());
    let (cancel, progress) = (CancellationToken::new(), Progress::default());
    let options = Options::new("/nix/var/nix/gcroots/nixos-host-controller/test");
    let cancelling = async {
        while progress.snapshot().paths < 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cancel.cancel();
    };
    let (copied, ()) = tokio::join!(push(&host, &closure, &options, &progress, &cancel), cancelling);
    assert!(matches!(copied, Err(CopyError::Cancelled { .. })), "{copied:?}");
    let copied = copy(&host, &closure, &Progress::default()).await.unwrap();
    println!("{copied:?}");
    assert!(copied.skipped >= 20);
    let left = "for n in 1 2 3 4 5; do pgrep -x nix-store >/dev/null || exit 0; sleep 0.2; done; exit 1";
    assert!(host.exec(&shell(left), Bytes::new(), LIMITS).await.unwrap().status.success());
}

#[tokio::test]
#[ignore = "needs a closure"]
async fn the_local_store_answers_what_is_true_now() {
    let store = local_store();
    let root = given("TRANSPORT_TOPLEVEL").parse().unwrap();
    let closure = store.closure(&root).await.unwrap();
    assert_eq!(closure.paths.last().unwrap().path, root);
    assert_eq!(closure, store.closure(&root).await.unwrap());
    let unknown = "/nix/store/00000000000000000000000000000000-x".parse().unwrap();
    assert_eq!(store.valid(&[root.clone(), unknown]).await.unwrap(), [root.clone()].into());
    let missing = store.closure(&"/nix/store/00000000000000000000000000000000-x".parse().unwrap()).await.unwrap_err();
    println!("{missing}");
    assert_eq!(store.valid(std::slice::from_ref(&root)).await.unwrap(), [root].into());
}
