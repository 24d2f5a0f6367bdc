//! The `NixOSHost` resource.
