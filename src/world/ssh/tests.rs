//! Whoever answers need not be an sshd: each is given up in time, and nothing of ours holds its connection any longer.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::{ConnectError, ConnectOptions, HostKeyPolicy, Phase, PrivateKey, Session, Target, Unreached, some_private_key};

const SOON: Duration = Duration::from_millis(300);

async fn listening() -> (TcpListener, Target) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        addresses: vec!["127.0.0.1".into()],
        port: listener.local_addr().unwrap().port(),
        user: "root".into(),
        key: PrivateKey::parse(&some_private_key()).unwrap(),
        host_keys: HostKeyPolicy::TrustOnFirstUse { recorded: None },
        jump: None,
    };
    (listener, target)
}

/// Writes `text` until nobody takes it any more: how many bytes were taken.
async fn flood(mut stream: TcpStream, text: &[u8], pause: Duration) -> usize {
    let mut taken = 0;
    while let Ok(written) = stream.write(text).await {
        taken += written;
        tokio::time::sleep(pause).await;
    }
    taken
}

fn fell_silent(error: ConnectError) -> bool {
    let ConnectError::Unreachable { failures } = error else { return false };
    matches!(failures[0].reason, Unreached::TimedOut(Phase::Handshake))
}

#[tokio::test]
async fn who_accepts_and_says_nothing_is_given_up() {
    let (listener, silent) = listening().await;
    let options = ConnectOptions { handshake: SOON, ..ConnectOptions::default() };
    assert!(fell_silent(Session::connect(&silent, &options).await.unwrap_err()));
    let (mut accepted, _) = listener.accept().await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), tokio::io::copy(&mut accepted, &mut tokio::io::sink())).await.unwrap().unwrap();
    let options = ConnectOptions { deadline: SOON, ..ConnectOptions::default() };
    let error = Session::connect(&silent, &options).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { during: Phase::Handshake, .. }), "{error:?}");
}

#[tokio::test]
async fn who_says_one_byte_at_a_time_is_given_up() {
    let (listener, slow) = listening().await;
    let options = ConnectOptions { handshake: SOON, ..ConnectOptions::default() };
    let drip = async { flood(listener.accept().await.unwrap().0, b"S", Duration::from_millis(20)).await };
    let (connected, taken) = tokio::join!(Session::connect(&slow, &options), drip);
    assert!(fell_silent(connected.unwrap_err()));
    assert!(taken > 1);
}

#[tokio::test]
async fn of_a_banner_without_end_little_is_read() {
    for text in ["welcome\r\n".repeat(1000), "x".repeat(10_000), format!("SSH-2.0-{}", "x".repeat(10_000))] {
        let (listener, loud) = listening().await;
        let endless = async { flood(listener.accept().await.unwrap().0, text.as_bytes(), Duration::ZERO).await };
        let options = ConnectOptions::default();
        let (connected, taken) = tokio::join!(Session::connect(&loud, &options), endless);
        assert!(matches!(connected, Err(ConnectError::Protocol { .. })), "{connected:?}");
        // The kernel takes some megabytes on loopback
        assert!(taken < 32 << 20, "{taken}");
    }
}

#[tokio::test]
async fn a_jump_host_that_says_nothing_is_named() {
    let (_listener, silent) = listening().await;
    let target = Target { addresses: vec!["inner".into()], jump: Some(Box::new(silent.clone())), ..silent.clone() };
    let options = ConnectOptions { handshake: SOON, ..ConnectOptions::default() };
    let Err(ConnectError::Jump(why)) = Session::connect(&target, &options).await else { panic!("it is the jump host's fault") };
    assert!(why.to_string().contains(&format!("127.0.0.1:{} fell silent", silent.port)), "{why}");
}
