//! A session: one connection of the host's, for one command, one file or one directory.
//!
//! It is a process of its own, so nothing in it can be in another's way. The host is believed, but what
//! it says is bounded: a request by its length, a stream by the credit it was given.

mod command;
mod copy;
mod launch;
mod memory;
mod pump;
mod request;
mod sparse;
mod transfer;
mod tree_in;
mod tree_out;

use husk_guest_protocol::{Action, Begin, Frame, REQUEST_MAX, Stage, VERSION};

use crate::sys::{Errno, Fd, Result, process};
use crate::wire::Wire;

/// Why a session cannot do what it should.
pub type Cannot = (Stage, Errno);

/// Serves the session at `fd` to its end, and gives the process' exit status.
pub fn serve(fd: Fd) -> i32 {
    process::ignore_broken_pipes();
    let mut wire = Wire::new(fd);
    match begin(&mut wire) {
        Ok(()) => 0,
        Err((stage, Errno(number))) => {
            // If the host has gone there is nobody to be told.
            let _ = wire.send(Frame::Cannot(stage, number as u32));
            1
        }
    }
}

fn begin(wire: &mut Wire) -> core::result::Result<(), Cannot> {
    let agent = |e| (Stage::Agent, e);
    let begin = match wire.receive() {
        Ok(Some(Frame::Begin(begin))) => begin,
        _ => return Err(agent(Errno::PROTO)),
    };
    if begin.version != VERSION {
        return Err(agent(Errno::PROTO));
    }
    let request = request(wire, begin).map_err(agent)?;
    match begin.action {
        Action::Exec => command::run(wire, begin, request),
        Action::Put => copy::put(wire, begin, request),
        Action::Get => copy::get(wire, request),
    }
}

/// The request, which comes in parts.
fn request(wire: &mut Wire, begin: Begin) -> Result<&'static [u8]> {
    if begin.len > REQUEST_MAX {
        return Err(Errno::TOOBIG);
    }
    let request = process::memory(begin.len as usize)?;
    let mut done = 0;
    while done < request.len() {
        let Some(Frame::Part(part)) = wire.receive()? else { return Err(Errno::PROTO) };
        let end = done + part.len();
        request.get_mut(done..end).ok_or(Errno::PROTO)?.copy_from_slice(part);
        done = end;
    }
    Ok(request)
}
