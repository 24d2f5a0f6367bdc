//! A git server of its own for a repository: HTTPS with lighttpd and git's own CGI, SSH with OpenSSH. Both count what they are asked.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::forge::NAMES;
use crate::{
    process::{Daemon, mortal, output},
    wait::until_true,
    world::{KeyPair, free_port, run_directory, script, write},
};

/// The name by which servers are reached; it is loopback in every world, and in their certificates.
pub const SERVER_NAME: &str = "git.example.test";

/// A user name and a password for HTTPS.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password, or token.
    pub password: String,
}

impl Login {
    /// As it stands in a netrc file.
    pub fn netrc(&self) -> String {
        format!("machine {SERVER_NAME} login {} password {}\n", self.user, self.password)
    }

    /// The value of an `Authorization` header.
    pub fn authorization(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// Serves one directory with repositories (`*.git`) in it; files below `www` are served as they are.
pub struct Server {
    directory: PathBuf,
    https_port: u16,
    ssh_port: u16,
    /// The SSH server's host key.
    host_key: KeyPair,
    /// A key that may fetch over SSH.
    client_key: KeyPair,
    https: Mutex<Option<Daemon>>,
    ssh: Mutex<Option<Daemon>>,
}

impl Server {
    /// Serves `directory` over HTTPS, to everybody or with a login, and over SSH, with [`Server::client_key`].
    pub async fn start(directory: &Path, login: Option<&Login>) -> Self {
        let server = Self {
            https_port: free_port(),
            ssh_port: free_port(),
            host_key: KeyPair::generate(directory.join("ssh-host-key")),
            client_key: KeyPair::generate(directory.join("ssh-client-key")),
            https: Mutex::default(),
            ssh: Mutex::default(),
            directory: directory.to_owned(),
        };
        std::fs::create_dir_all(directory.join("www")).expect("cannot make a directory");
        write(directory.join("server.pem"), certificate());
        write(directory.join("users"), login.map_or_else(String::new, |login| format!("{}:{}\n", login.user, login.password)));
        write(directory.join("authorized_keys"), format!("{}\n", server.client_key.public));
        write(directory.join("lighttpd.conf"), server.lighttpd_configuration(login.is_some()));
        write(directory.join("sshd_config"), server.sshd_configuration());
        server.resume().await;
        server
    }

    fn lighttpd_configuration(&self, login: bool) -> String {
        let authentication = r#"
auth.backend = "plain"
auth.backend.plain.userfile = "/srv/users"
auth.require = ( "" => ( "method" => "basic", "realm" => "git", "require" => "valid-user" ) )
"#;
        format!(
            r#"server.modules = ( "mod_openssl", "mod_accesslog", "mod_auth", "mod_authn_file", "mod_alias", "mod_setenv", "mod_cgi" )
server.document-root = "/srv/www"
# Not only loopback: a controller in a pod is another machine
server.bind = "0.0.0.0"
server.port = {port}
ssl.engine = "enable"
ssl.pemfile = "/srv/server.pem"
# Through a pipe: a file would be written seconds later
accesslog.filename = "|exec cat >> /srv/access.log"
accesslog.format = "%r %s"
server.errorlog = "/srv/error.log"
mimetype.assign = ( "" => "application/octet-stream" )
{authentication}
$HTTP["url"] =~ "^/git/" {{
  alias.url = ( "/git" => "/usr/lib/git-core/git-http-backend" )
  cgi.assign = ( "" => "" )
  setenv.set-environment = ( "GIT_PROJECT_ROOT" => "/srv", "GIT_HTTP_EXPORT_ALL" => "1" )
}}
"#,
            port = self.https_port,
            authentication = if login { authentication } else { "" },
        )
    }

    fn sshd_configuration(&self) -> String {
        format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey /srv/ssh-host-key\nAuthorizedKeysFile /srv/authorized_keys\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowUsers git\nLogLevel VERBOSE\nPidFile none\nUseDNS no\n",
            self.ssh_port
        )
    }

    /// Stops both servers: connections are refused.
    pub fn stop(&self) {
        *locked(&self.https) = None;
        *locked(&self.ssh) = None;
    }

    /// Starts both again on the same ports.
    pub async fn resume(&self) {
        let serve = |program: &[&str]| {
            let mut command = mortal(script("serve"));
            command.arg(&self.directory).args(program);
            command
        };
        *locked(&self.https) =
            Some(Daemon::start("lighttpd", serve(&["lighttpd", "-D", "-f", "/srv/lighttpd.conf"]), &self.directory.join("lighttpd.log")));
        *locked(&self.ssh) = Some(Daemon::start(
            "sshd of git",
            serve(&["/usr/sbin/sshd", "-D", "-e", "-f", "/srv/sshd_config"]),
            &self.directory.join("sshd.log"),
        ));
        for (daemon, port, log) in [(&self.https, self.https_port, "lighttpd.log"), (&self.ssh, self.ssh_port, "sshd.log")] {
            until_true("the git server to listen", Duration::from_secs(20), || {
                let ended = locked(daemon).as_ref().and_then(Daemon::ended);
                assert!(
                    ended.is_none(),
                    "the git server has ended:\n{}",
                    std::fs::read_to_string(self.directory.join(log)).unwrap_or_default()
                );
                std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            })
            .await;
        }
    }

    /// A repository of the served directory over HTTPS, as a flake reference.
    pub fn https_url(&self, repository: &str) -> String {
        format!("git+https://{SERVER_NAME}:{}/git/{repository}", self.https_port)
    }

    /// A repository of the served directory over SSH, as a flake reference.
    pub fn ssh_url(&self, repository: &str) -> String {
        format!("git+ssh://git@{SERVER_NAME}:{}/srv/{repository}", self.ssh_port)
    }

    /// A file below `www` over HTTPS.
    pub fn file_url(&self, file: &str) -> String {
        format!("https://{SERVER_NAME}:{}/{file}", self.https_port)
    }

    /// A key that may fetch over SSH.
    pub fn client_key(&self) -> &KeyPair {
        &self.client_key
    }

    /// The SSH server as a line of a known_hosts file.
    pub fn known_hosts(&self) -> String {
        format!("[{SERVER_NAME}]:{} {}\n", self.ssh_port, self.host_key.public)
    }

    /// What HTTPS was asked so far, oldest first: `GET /git/fleet.git/info/refs?service=git-upload-pack HTTP/2.0 200`.
    pub fn https_requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// How often the refs were looked at, over HTTPS (requests that got an answer) and SSH (logins).
    pub fn looks(&self) -> usize {
        let https = self.https_requests().iter().filter(|request| request.contains("/info/refs") && request.ends_with(" 200")).count();
        https + self.ssh_logins()
    }

    /// How many logins over SSH succeeded.
    pub fn ssh_logins(&self) -> usize {
        let log = std::fs::read_to_string(self.directory.join("sshd.log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with("Accepted publickey for ")).count()
    }
}

fn locked(daemon: &Mutex<Option<Daemon>>) -> std::sync::MutexGuard<'_, Option<Daemon>> {
    daemon.lock().expect("no test panics with the lock held")
}

/// The certificate authority of every server of this world: what goes into `SSL_CERT_FILE`, `NIX_SSL_CERT_FILE` and `GIT_SSL_CAINFO`.
pub fn authority() -> PathBuf {
    let _ = certificate();
    run_directory().join("tls/authority.pem")
}

/// The servers' certificate with its key, made with the authority by whoever comes first.
pub fn certificate() -> String {
    static CERTIFICATE: OnceLock<String> = OnceLock::new();
    CERTIFICATE
        .get_or_init(|| {
            let directory = run_directory().join("tls");
            std::fs::create_dir_all(&directory).expect("cannot make a directory");
            let script = r#"
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=e2e authority" -keyout authority.key -out authority.pem
openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -addext "subjectAltName=DNS:localhost,IP:127.0.0.1$(printf ',DNS:%s' "$@")" -keyout server.key -out server.csr
openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 30 -copy_extensions copy -out server.crt
cat server.key server.crt > server.pem
"#;
            output(Command::new("sh").args(["-euc", script, "certificates", SERVER_NAME]).args(NAMES).current_dir(&directory));
            std::fs::read_to_string(directory.join("server.pem")).expect("it was just made")
        })
        .clone()
}
