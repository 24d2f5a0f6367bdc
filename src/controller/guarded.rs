//! A NixOSHost as the API server has it, which a newer CRD may have let be what this controller cannot read: that harms only itself.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use nixos_host_api::NixOSHost;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// As kube's `DeserializeGuard`; what is wrong names its field.
#[derive(Debug, Clone)]
pub(super) struct Guarded(pub(super) Result<Box<NixOSHost>, Undecodable>);

/// What can be said of one that cannot be read.
#[derive(Debug, Clone)]
pub(super) struct Undecodable {
    /// What can be read of any object.
    pub(super) metadata: ObjectMeta,
    /// The field, and what is wrong with it.
    pub(super) why: String,
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(match serde_path_to_error::deserialize(&object) {
            Ok(host) => Ok(Box::new(host)),
            Err(error) => Err(Undecodable {
                metadata: ObjectMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?,
                why: error.to_string(),
            }),
        }))
    }
}

impl Resource for Guarded {
    type DynamicType = ();
    type Scope = <NixOSHost as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        NixOSHost::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        NixOSHost::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        NixOSHost::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        NixOSHost::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|undecodable| &undecodable.metadata, |object| &object.metadata)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|undecodable| &mut undecodable.metadata, |object| &mut object.metadata)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_is_read_or_its_first_wrong_field_is_named() {
        let read = |port: serde_json::Value| -> Guarded {
            let connection = json!({"addresses": ["h"], "sshKeyRef": {"name": "k"}, "port": port});
            let object = json!({
                "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": {"name": "web", "generation": 3},
                "spec": {"flake": {"url": "github:a/b"}, "connection": connection},
            });
            serde_json::from_value(object).unwrap()
        };
        assert_eq!(read(json!(22)).0.unwrap().spec.connection.port, Some(22));
        let wrong = read(json!(100_000));
        assert_eq!((wrong.meta().name.as_deref(), wrong.meta().generation), (Some("web"), Some(3)));
        assert_eq!(wrong.0.unwrap_err().why, "spec.connection.port: invalid value: integer `100000`, expected u16");
    }
}
