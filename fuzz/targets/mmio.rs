//! The virtio core behind its MMIO registers, of every device.
#![no_main]

use husk_fuzz::{KINDS, Script, registers};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let kind = KINDS[usize::from(script.byte()) % KINDS.len()];
    registers(kind, &mut script);
});
