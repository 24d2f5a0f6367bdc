//! Images, without a registry: OCI archives for `ctr images import`. The controller's own has the layout, user and entry point of
//! `e2e/world/image/description.json`, as the one that flake.nix describes.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    controller::binary,
    process::output,
    world::{cache, fresh_directory, nix_flavour, script, write},
};

/// What an image is like: `description.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Description {
    /// The repository's last part.
    pub name: String,
    /// The user's name, in `/etc/passwd`.
    pub user: String,
    /// Whom it runs as.
    pub uid: u32,
    /// With which group.
    pub gid: u32,
    /// What is started.
    pub entrypoint: Vec<String>,
    /// Where.
    pub working_directory: String,
    /// The environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// What is where.
    pub paths: Paths,
}

/// Places in an image.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// Programs that have to be there.
    pub programs: Vec<String>,
    /// Directories that its user may write to, if the root is not read-only.
    pub writable: Vec<String>,
    /// What Nix has to know about the image's own store paths.
    pub registration: String,
}

impl Description {
    /// The one that the project has.
    pub fn read() -> Self {
        let text = std::fs::read_to_string(script("image/description.json")).expect("the description is part of the project");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("e2e/world/image/description.json: {error}"))
    }

    /// The `config` of the image's OCI configuration.
    pub fn config(&self) -> Value {
        let env: Vec<_> = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        json!({
            "User": format!("{}:{}", self.uid, self.gid),
            "Entrypoint": self.entrypoint,
            "WorkingDir": self.working_directory,
            "Env": env,
            "ExposedPorts": { "8080/tcp": {}, "8081/tcp": {} },
            "Labels": { "org.opencontainers.image.licenses": "Apache-2.0" },
        })
    }
}

/// An archive with an image in it.
#[derive(Clone, Debug)]
pub struct Image {
    /// `registry.example.test/name:tag`.
    pub name: String,
    /// The archive.
    pub file: PathBuf,
    /// The store paths whose files it has in its root; the controller's is the first.
    pub contents: Vec<String>,
}

impl Image {
    /// The controller with all that it needs. Another `release` is another image.
    pub fn of_the_controller(release: &str) -> Self {
        let description = Description::read();
        let (_, directory) = fresh_directory("images");
        let root = directory.join("root");
        let contents = contents(release);
        let closure = output(Command::new("nix-store").args(["--query", "--requisites"]).args(&contents));
        std::fs::create_dir_all(root.join("nix/store")).expect("cannot make the image's root");
        output(Command::new("cp").arg("-a").args(closure.lines()).arg(root.join("nix/store")));
        let registration = output(Command::new("nix-store").arg("--dump-db").args(closure.lines()));
        write(below(&root, &description.paths.registration), registration + "\n");
        for path in &contents {
            merge(Path::new(path), &root);
        }
        system_files(&description, &root);
        for program in &description.paths.programs {
            assert!(below(&root, program).symlink_metadata().is_ok(), "the image has no {program}");
        }
        let name = format!("registry.example.test/{}:{release}", description.name);
        Self { contents, ..Self::archive(&name, &root, &description.config()) }
    }

    /// What holds a pod's namespaces: it sleeps.
    pub fn pause() -> Self {
        let (_, directory) = fresh_directory("images");
        let root = directory.join("root");
        std::fs::create_dir_all(root.join("bin")).expect("cannot make the image's root");
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("cannot copy busybox");
        Self::archive("registry.example.test/pause:1", &root, &json!({ "Entrypoint": ["/bin/busybox", "sleep", "1000000000"] }))
    }

    /// An image of one layer.
    fn archive(name: &str, root: &Path, config: &Value) -> Self {
        let directory = root.parent().expect("an image's root lies in a directory of its own");
        let layer_file = directory.join("layer.tar");
        tar(root, &layer_file, &["."]);
        let layer = std::fs::read(&layer_file).expect("tar wrote it");
        let blobs = directory.join("archive/blobs/sha256");
        let layer = blob(&blobs, "layer.v1.tar", &layer);
        let config = json!({ "architecture": "amd64", "os": "linux", "config": config, "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] } });
        let config = blob(&blobs, "config.v1+json", config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type("manifest.v1+json"), "config": config, "layers": [layer] });
        let mut manifest = blob(&blobs, "manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "io.containerd.image.name": name });
        write(directory.join("archive/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
        write(directory.join("archive/index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string());
        let file = directory.join("image.tar");
        tar(&directory.join("archive"), &file, &["oci-layout", "index.json", "blobs"]);
        Self { name: name.to_owned(), file, contents: Vec::new() }
    }
}

/// The store paths whose files the image has in its root.
fn contents(release: &str) -> Vec<String> {
    let expression = script("image/default.nix");
    let nix = std::fs::canonicalize(cache().join(nix_flavour())).expect("setup has made Nix");
    let mut command = Command::new("nix-build");
    command.arg(expression).args(["--no-out-link", "--option", "sandbox", "false"]);
    command.arg("--argstr").arg("nix").arg(nix);
    command.arg("--argstr").arg("controller").arg(binary());
    command.args(["--argstr", "release", release]);
    output(&mut command).lines().map(str::to_owned).collect()
}

/// Links in the image's root to what a store path has in `bin`, `etc` and `libexec`.
fn merge(path: &Path, root: &Path) {
    for part in ["bin", "etc", "libexec"] {
        let from = path.join(part);
        if from.is_dir() {
            link_all(&from, &root.join(part));
        }
    }
}

fn link_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("cannot make a directory of the image");
    for file in std::fs::read_dir(from).expect("a directory can be read") {
        let file = file.expect("a directory can be read").path();
        let link = to.join(file.file_name().expect("a file has a name"));
        if file.is_dir() {
            link_all(&file, &link);
        } else if let Err(error) = symlink(&file, &link) {
            panic!("two of the image's store paths have {}: {error}", link.display());
        }
    }
}

fn system_files(description: &Description, root: &Path) {
    let Description { user, uid, gid, env, paths, .. } = description;
    let home = env.get("HOME").map_or("/", String::as_str);
    write(root.join("etc/passwd"), format!("root:x:0:0::/:/bin/sh\n{user}:x:{uid}:{gid}::{home}:/bin/sh\n"));
    write(root.join("etc/group"), format!("root:x:0:\n{user}:x:{gid}:\n"));
    write(root.join("etc/nix/nix.conf"), "build-users-group =\n");
    std::fs::create_dir_all(root.join("usr/lib")).expect("cannot make a directory of the image");
    symlink("/libexec/git-core", root.join("usr/lib/git-core")).expect("the root is new");
    for directory in &paths.writable {
        let directory = below(root, directory);
        std::fs::create_dir_all(&directory).expect("cannot make a directory of the image");
        output(Command::new("chown").args(["--recursive", "--no-dereference", &format!("{uid}:{gid}")]).arg(directory));
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn tar(directory: &Path, file: &Path, members: &[&str]) {
    let mut command = Command::new("tar");
    command.arg("--create").arg("--file").arg(file).arg("--directory").arg(directory);
    output(command.args(["--sort=name", "--numeric-owner", "--mtime=@1"]).args(members));
}

fn media_type(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}")
}

/// Stores a blob under its digest; its descriptor.
fn blob(directory: &Path, kind: &str, content: &[u8]) -> Value {
    let digest = Sha256::digest(content).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    write(directory.join(&digest), content);
    json!({ "mediaType": media_type(kind), "digest": format!("sha256:{digest}"), "size": content.len() })
}
