//! A card's frames and their headers, over a wire that keeps borders, as a TAP does.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::drive(Kind::Net, input));
