//! An agent's days: a process for each session that the host begins, and the end of those whose parents
//! have gone.

use husk_guest_protocol::Frame;

use crate::modules::Later;
use crate::session;
use crate::sys::file::{Poll, poll};
use crate::sys::machine::{READ_ONLY, REMOUNT, mount, power_off, sync};
use crate::sys::{Fd, process, socket};
use crate::wire::Wire;

/// After so long without anything to do modules are loaded that nothing has waited for.
const IDLE_MILLIS: u32 = 1000;

/// Why serving is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The host wants the machine's end.
    Asked,
    /// The host has gone.
    Gone,
}

/// Serves sessions at `listening` until `host` has gone or wants the machine's end.
pub fn serve(host: &mut Wire, listening: Fd, later: Later) -> Over {
    let Ok(mut children) = process::children() else { return Over::Gone };
    let over = serve_with(host, listening, children, later);
    children.close();
    over
}

fn serve_with(host: &mut Wire, listening: Fd, children: Fd, mut later: Later) -> Over {
    loop {
        let mut polls = [
            Poll::new(host.fd, Poll::IN),
            Poll::new(listening, Poll::IN),
            Poll::new(children, Poll::IN),
        ];
        let limit = (!later.is_empty()).then_some(IDLE_MILLIS);
        match poll(&mut polls, limit) {
            Ok(0) => later.load(),
            Ok(_) => {}
            Err(_) => continue,
        }
        let [said, knocked, ended] = polls.map(|poll| poll.happened != 0);
        if ended {
            process::forget(children);
            while process::reap(-1).is_some() {}
        }
        if knocked {
            admit(host, listening, children);
        }
        if said {
            match host.receive() {
                Ok(Some(Frame::Shutdown)) => return Over::Asked,
                Ok(None) | Err(_) => return Over::Gone,
                Ok(Some(_)) => {}
            }
        }
    }
}

/// Begins a session in a process of its own. Only the host's: a process of the guest's could become
/// root here.
fn admit(host: &mut Wire, mut listening: Fd, mut children: Fd) {
    let Ok((mut peer, is_host)) = socket::accept(listening) else { return };
    if is_host && process::fork() == Ok(0) {
        listening.close();
        children.close();
        host.fd.close();
        process::exit(session::serve(peer));
    }
    peer.close();
}

/// Ends all processes, writes everything to the disks, and turns the machine off.
pub fn shut_down() {
    let _ = process::kill(-1, process::SIGKILL);
    sync();
    // As soon as nobody has a file open for writing.
    for _ in 0..100 {
        while process::reap(-1).is_some() {}
        if mount(c"", c"/", c"", REMOUNT | READ_ONLY, c"").is_ok() {
            break;
        }
        process::sleep_millis(10);
    }
    power_off();
}
