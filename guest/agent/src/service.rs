//! The agent in a guest that has an init of its own, which starts it as one of its services: the machine is
//! as that init made it, and husk only runs commands in it.
//!
//! A husk that was not told to expect it is given up after some seconds; a connection that ends is made anew.
//! What husk sets up in guests of its own, mounts and addresses, is not done here.

use core::ffi::CStr;

use husk_guest_protocol::{Frame, GUEST_PORT, HOST_PORT, VERSION};

use crate::modules::Later;
use crate::say;
use crate::serve::{self, Over};
use crate::sys::{Errno, Fd, Result, file, process, socket};
use crate::text::Digits;
use crate::wire::Wire;

/// How often a host that does not want an agent is asked.
const TRIES: u32 = 5;
/// Milliseconds between these.
const PAUSE: u32 = 1000;
/// Exit status: nobody wants an agent here, and starting it again does not help.
const UNWANTED: i32 = 3;

/// Serves until nobody wants it.
pub fn main() -> i32 {
    file::have_streams();
    // An init that starts it in the foreground is the session's leader, and that is as well.
    let _ = process::new_session();
    let _ = file::change_directory(c"/");
    // Whatever a command does to the machine's memory, who could tell of it lives on.
    let _ = file::write_file(c"/proc/self/oom_score_adj", b"-1000");
    let mut tries = 1;
    loop {
        match attend() {
            Ok(()) => tries = 1,
            Err(error) if tries == TRIES => return give_up(error),
            Err(_) => tries += 1,
        }
        process::sleep_millis(PAUSE);
    }
}

fn give_up(error: Errno) -> i32 {
    let why: &[u8] = match error {
        Errno::AFNOSUPPORT | Errno::NODEV => {
            b"this machine has no vsock: `husk run --agent` gives it one, and \
              `modprobe vmw_vsock_virtio_transport` the driver"
        }
        Errno::ADDRINUSE => b"another agent runs already",
        _ => b"husk expects no agent: start the VM with `husk run --agent`",
    };
    say::line(&[why, b" (errno ", Digits::of(error.0 as u64).bytes(), b")"]);
    UNWANTED
}

/// Serves one host until it has gone.
///
/// # Errors
/// When there is none, or it wants no agent.
fn attend() -> Result<()> {
    let mut listening = socket::listen(GUEST_PORT)?;
    let done = socket::connect_to_host(HOST_PORT).and_then(|fd| {
        let mut host = Wire::new(fd);
        let done = converse(&mut host, listening);
        host.fd.close();
        done
    });
    listening.close();
    done
}

fn converse(host: &mut Wire, listening: Fd) -> Result<()> {
    host.send(Frame::Hello(VERSION))?;
    match host.receive()? {
        Some(Frame::Setup(_)) => {}
        Some(_) => return Err(Errno::PROTO),
        None => return Err(Errno::PIPE),
    }
    host.send(Frame::Ready)?;
    while serve::serve(host, listening, Later::none()) == Over::Asked {
        turn_off();
    }
    Ok(())
}

/// Has the machine's init turn it off, in its own good order.
fn turn_off() {
    const PROGRAMS: [&CStr; 4] =
        [c"/sbin/poweroff", c"/usr/sbin/poweroff", c"/bin/poweroff", c"/usr/bin/poweroff"];
    const PATH: &CStr = c"PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    if process::fork() != Ok(0) {
        return;
    }
    process::default_signals();
    let environment = [PATH.as_ptr().cast(), core::ptr::null()];
    for program in PROGRAMS {
        let arguments = [program.as_ptr().cast(), core::ptr::null()];
        // SAFETY: strings that stay, and pointers to them with a null behind the last.
        let _ = unsafe {
            process::execute(program.as_ptr().cast(), arguments.as_ptr(), environment.as_ptr())
        };
    }
    say::line(&[b"there is no poweroff"]);
    process::exit(127);
}
