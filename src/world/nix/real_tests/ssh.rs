//! git+ssh against a real git and ssh, and a server in process.

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream};
use russh::{Channel, ChannelId};
use tokio::io::AsyncWriteExt as _;

use super::world::{credentials, flake, host, never, resolve};
use super::*;

/// Runs `git-upload-pack` for whoever has the key.
struct Server {
    allowed: PublicKey,
    channel: Option<Channel<Msg>>,
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let allowed = user == "git" && key.public_key.key_data() == self.allowed.key_data();
        Ok(if allowed { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(&mut self, channel: Channel<Msg>, reply: ChannelOpenHandle, _: &mut Session) -> Result<(), Self::Error> {
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "the test's own server")]
    async fn exec_request(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        // git-upload-pack '/path'
        let path = String::from_utf8_lossy(data).split('\'').nth(1).unwrap_or_default().to_owned();
        session.channel_success(id)?;
        let channel = self.channel.take().unwrap();
        let mut git = tokio::process::Command::new("git");
        let mut child =
            git.args(["upload-pack", &path]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        tokio::spawn(async move {
            let (mut read, write) = channel.split();
            let (mut reader, mut writer) = (read.make_reader(), write.make_writer());
            let input = async {
                let _ = tokio::io::copy(&mut reader, &mut stdin).await;
                drop(stdin);
                std::future::pending::<()>().await;
            };
            // It has ended when it has nothing more to say, whatever it is still told.
            let output = async {
                let _ = tokio::io::copy(&mut stdout, &mut writer).await;
                let _ = writer.flush().await;
                let _ = write.exit_status(0).await;
                let _ = write.close().await;
            };
            tokio::select! { () = output => (), () = input => () }
            let _ = child.wait().await;
        });
        Ok(())
    }
}

/// A server on some port, and a line of known_hosts for it.
async fn serve(allowed: PublicKey) -> (u16, String) {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let known = key.public_key().to_openssh().unwrap();
    let config = Arc::new(Config { keys: vec![key], ..Config::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (config, allowed) = (Arc::clone(&config), allowed.clone());
            tokio::spawn(async move {
                if let Ok(session) = run_stream(config, stream, Server { allowed, channel: None }).await {
                    let _ = session.await;
                }
            });
        }
    });
    (port, format!("[127.0.0.1]:{port} {known}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nix, git, ssh and a store to write"]
async fn a_repository_is_read_over_ssh_with_a_key_that_no_file_holds() {
    let world = World::new();
    let rev = world.commit("infra", &[("flake.nix", &flake(&[("web", &host("echo > $out"))]))]);
    let nix = world.nix().await;
    for algorithm in [Algorithm::Ed25519, Algorithm::Rsa { hash: None }] {
        let key = PrivateKey::random(&mut rand::rng(), algorithm).unwrap();
        let (port, known) = serve(key.public_key().clone()).await;
        let pem = key.to_openssh(LineEnding::LF).unwrap().to_string();
        let url = format!("git+ssh://git@127.0.0.1:{port}{}/repositories/infra", world.path().display());
        let wanted = FlakeRef::new(&url, None, Some("main"), false).unwrap();
        let held = credentials(&[("ssh-privatekey", &pem), ("known_hosts", &known)]);
        let locked = resolve(&nix, &wanted, Some(Arc::clone(&held))).await.unwrap();
        assert_eq!(locked.rev.as_ref(), Some(&rev));
        nix.evaluate(
            Evaluate { flake: locked, attribute: "web".into(), credentials: Some(held), retry: false, namespace: String::new() },
            &never(),
        )
        .await
        .unwrap();
        // Another key, and another host key.
        let other = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap().to_openssh(LineEnding::LF).unwrap().to_string();
        let error = resolve(&nix, &wanted, Some(credentials(&[("ssh-privatekey", &other), ("known_hosts", &known)]))).await.unwrap_err();
        assert!(matches!(error, ResolveError::CredentialsRefused { .. }), "{error:?}");
        let (_, stranger) = serve(key.public_key().clone()).await;
        let stranger = stranger.split_once(' ').unwrap().1.to_owned();
        let wrong = format!("[127.0.0.1]:{port} {stranger}");
        let error = resolve(&nix, &wanted, Some(credentials(&[("ssh-privatekey", &pem), ("known_hosts", &wrong)]))).await.unwrap_err();
        assert!(matches!(error, ResolveError::HostKey { .. }), "{error:?}");
        let error = resolve(&nix, &wanted, None).await.unwrap_err();
        assert!(matches!(error, ResolveError::HostKey { .. }), "{error:?}");
        let line = pem.lines().nth(2).unwrap();
        let found = super::world::run("sh", &["-c", &format!("grep -rlF '{line}' {}/data || true", world.path().display())]);
        assert_eq!(found, "", "the key is on the disk");
    }
}
