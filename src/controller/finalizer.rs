//! The finalizer: a deleted resource waits until its work has ended.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Error, ResourceExt};
use nixos_host_api::{FINALIZER, NixOSHost};

/// Longer than the client's own time-outs: this never fires unless those fail.
const WITHIN: Duration = Duration::from_secs(20);

/// Adds ours to those that are there; refused by the API server if the object changed meanwhile.
pub(super) async fn add(api: &Api<NixOSHost>, object: &NixOSHost) -> Result<NixOSHost, Error> {
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    let patch = serde_json::json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
    bounded(api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch))).await
}

/// Removes ours, if it is still where it was seen; also of an object of which only the metadata can be read.
pub(super) async fn remove(api: &Api<NixOSHost>, metadata: &ObjectMeta) -> Result<(), Error> {
    let Some(index) = metadata.finalizers.iter().flatten().position(|finalizer| finalizer == FINALIZER) else { return Ok(()) };
    let name = metadata.name.as_deref().unwrap_or_default();
    let ours = format!("/metadata/finalizers/{index}");
    let operations = serde_json::json!([{"op": "test", "path": ours, "value": FINALIZER}, {"op": "remove", "path": ours}]);
    let removal: Patch<()> = Patch::Json(serde_json::from_value(operations).map_err(Error::SerdeError)?);
    match bounded(api.patch_metadata(name, &PatchParams::default(), &removal)).await {
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(|_| ()),
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(WITHIN, call).await {
        Ok(result) => result,
        Err(_) => Err(Error::Service("the API server did not answer".into())),
    }
}
