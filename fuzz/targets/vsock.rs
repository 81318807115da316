//! The packets of a guest's sockets, of any bytes and of those that mean something.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| match input.split_first() {
    Some((0..=0xbf, script)) => husk_fuzz::sockets::converse(script),
    Some((_, script)) => husk_fuzz::drive(Kind::Vsock, script),
    None => {}
});
