//! A card's frames and their headers over wires that keep borders, as a TAP and a link do, and its
//! control queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| husk_fuzz::drive_card(input));
