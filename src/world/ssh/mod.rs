//! SSH in process.
