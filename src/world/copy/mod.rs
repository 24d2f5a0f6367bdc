//! Copying closures to hosts, over the serve protocol.
