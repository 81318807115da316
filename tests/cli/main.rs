//! The husk command as a user runs it, each time in a directory of its own; its guests are a few
//! hundred bytes of machine code. One program of tests, so that husk is linked to it once; what has to
//! be alone in its process is a program of its own (`tests/leaks.rs`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

mod bad_host;
mod bad_input;
mod bad_kernel;
mod compare;
mod devices;
mod doctor;
mod exec;
#[path = "../fixture/mod.rs"]
mod fixture;
mod named;
mod run;
mod signals;
mod terminal;
mod vsock;
