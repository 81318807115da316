//! A disk's requests.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::drive(Kind::Blk, input));
