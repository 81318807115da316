//! A card's frames over a stream, as passt has them.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::drive(Kind::NetStream, input));
