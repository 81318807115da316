//! What is asked of a shared directory.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::drive(Kind::Fs, input));
