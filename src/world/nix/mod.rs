//! Driving the Nix command line.
