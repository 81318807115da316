//! The packets of a guest's sockets.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::drive(Kind::Vsock, input));
