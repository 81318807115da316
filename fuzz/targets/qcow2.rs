//! Opening a qcow2 image of any content, and a disk's requests upon it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::image(input));
