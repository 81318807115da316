//! What husk runs inside a guest: the first process of a machine made to run commands, and the agent
//! that runs them, in one static program without a C library. Where another init is the first process,
//! it is the agent alone.
//!
//! ```text
//! init ─▶ setup (mounts, modules, root) ─┬▶ serve ─▶ session, a process for each ─▶ command
//! another init ─▶ service ───────────────┘
//! ```
//!
//! husk's `build/agent.rs` compiles this crate as that program (`--cfg husk_guest`); cargo compiles it as a
//! library, for its checks and tests. It allocates nothing and believes its host.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(husk_guest, no_main)]
#![cfg_attr(
    not(husk_guest),
    allow(dead_code, reason = "the program's start is not in the library")
)]

mod init;
mod modules;
mod mounts;
mod root;
mod say;
mod serve;
mod service;
mod session;
#[cfg(husk_guest)]
mod start;
mod sys;
mod text;
mod users;
mod wire;

use core::ffi::CStr;

/// The program. `husk-agent --session FD` serves one session on a socket that is there already. Without
/// arguments it is started by its machine's init, unless it is the machine's first process itself.
pub fn main(arguments: &[&CStr]) -> i32 {
    match arguments {
        [_, option, number] if option.to_bytes() == b"--session" => {
            match text::number(number.to_bytes()) {
                Some(number) => session::serve(sys::Fd(number as i32)),
                None => 2,
            }
        }
        _ if sys::process::id() == 1 => init::main(),
        [] | [_] => service::main(),
        _ => {
            say::line(&[
                b"started by a guest's init it takes no arguments; otherwise --session FD",
            ]);
            2
        }
    }
}
