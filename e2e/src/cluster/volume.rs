//! A persistent volume that the test makes itself: a file system of a given size on the node, as a `local` volume. There is no provisioner.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use super::{Cluster, NODE};
use crate::{process::output, world::fresh_directory};

/// The storage class of every [`Volume`].
pub const STORAGE_CLASS: &str = "local";

/// A small disk of the node.
pub struct Volume {
    path: PathBuf,
}

impl Volume {
    /// A file system of `mib` mebibytes and the PersistentVolume for it.
    pub fn create(cluster: &Cluster, name: &str, mib: u32) -> Self {
        let (_, path) = fresh_directory("volumes");
        output(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("mode=755,size={mib}m"), "tmpfs"]).arg(&path));
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": STORAGE_CLASS },
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        });
        let here = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] });
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
            "spec": {
                "capacity": { "storage": format!("{mib}Mi") }, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": STORAGE_CLASS,
                "local": { "path": path },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [here] }] } },
            },
        });
        for object in [class, volume] {
            cluster.kubectl("default").apply(&object.to_string());
        }
        Self { path }
    }

    /// Where it is on the node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it, so that so many mebibytes stay free.
    pub fn fill_up_to(&self, mib: u64) {
        let file = std::fs::File::create(self.filler()).expect("cannot make a file on the volume");
        let free = rustix::fs::statvfs(&self.path).map(|at| at.f_bavail * at.f_frsize).expect("a mounted file system says what is free");
        let size = free.checked_sub(mib << 20).unwrap_or_else(|| panic!("only {free} bytes of the volume are free"));
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).expect("so much is free");
    }

    /// The end of [`Volume::fill_up_to`].
    pub fn unfill(&self) {
        std::fs::remove_file(self.filler()).expect("the volume was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}
