//! The virtio core behind its MMIO registers, of every device.
#![no_main]

use husk_devices::virtio::testing::subject::Kind;
use husk_fuzz::{Script, registers};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let kind = Kind::ALL[usize::from(script.byte()) % Kind::ALL.len()];
    registers(kind, &mut script);
});
