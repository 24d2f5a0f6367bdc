#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nixos_host_controller::fuzz::run("host_build", data));
