#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nixos_host_controller::fuzz::run("evaluation_log", data));
