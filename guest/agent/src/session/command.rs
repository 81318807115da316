//! A command: its streams and signals while it runs, and how it ended.

use husk_guest_protocol::{Begin, Frame, Stage, stream};

use super::Cannot;
use super::launch::{self, Running};
use super::memory;
use super::pump::{Forwarded, Input, Output};
use super::request::Request;
use crate::sys::file::{Poll, poll};
use crate::sys::process::{End, SIGHUP, SIGKILL};
use crate::sys::{Errno, Fd, Result, process, terminal};
use crate::wire::Wire;

/// Runs the command of `request` to its end.
///
/// # Errors
/// When it could not be started.
pub fn run(
    wire: &mut Wire,
    begin: Begin,
    request: &'static [u8],
) -> core::result::Result<(), Cannot> {
    let agent = |e| (Stage::Agent, e);
    let children = process::children().map_err(agent)?;
    let request = Request::parse(request).map_err(agent)?;
    let killed_before = memory::killed();
    let running = launch::launch(&request, begin.tty.then_some(begin.window))?;
    let mut command = Command {
        id: running.id,
        terminal: if begin.tty { running.stdin } else { Fd::NONE },
        input: Input::new(running.stdin, begin.tty).map_err(agent)?,
        outputs: outputs(&running),
        end: None,
    };
    // From here on an error means that the host has gone, or wants the end.
    let served = wire.send(Frame::Started).and_then(|()| command.serve(wire, children));
    let _ = match served {
        Ok(end) => {
            let killed = memory::killed().saturating_sub(killed_before);
            conclude(wire, &request, command.id, end, killed)
        }
        Err(_) => {
            let _ = process::kill(-command.id, SIGHUP);
            process::kill(-command.id, SIGKILL)
        }
    };
    Ok(())
}

/// Tells how the command ended, and first, who wants to hear of it, how many processes were `killed` for want
/// of memory meanwhile.
fn conclude(wire: &Wire, request: &Request, id: i32, end: End, killed: u32) -> Result<()> {
    if killed > 0 && request.hears_of_memory {
        wire.send(Frame::OutOfMemory(killed))?;
    }
    match end {
        End::Exited(status) => wire.send(Frame::Exited(status)),
        End::Signaled(signal) => {
            let memory = signal == SIGKILL && killed > 0 && memory::was_killed(id);
            wire.send(Frame::Signaled(signal, memory))
        }
    }
}

fn outputs(running: &Running) -> [Output; 2] {
    [Output::new(stream::STDOUT, running.stdout), Output::new(stream::STDERR, running.stderr)]
}

struct Command {
    /// Its process, and the process group it began with.
    id: i32,
    terminal: Fd,
    input: Input,
    outputs: [Output; 2],
    end: Option<End>,
}

impl Command {
    fn serve(&mut self, wire: &mut Wire, children: Fd) -> Result<End> {
        let mut room = [0; Frame::PIECE];
        loop {
            if let Some(end) = self.end
                && self.drain(wire, &mut room)?
            {
                return Ok(end);
            }
            let [out, err] = &self.outputs;
            // After its end nothing more is waited for but the host's credit.
            let alive = |fd: Fd| if self.end.is_none() { fd } else { Fd::NONE };
            let mut polls = [
                Poll::new(wire.fd, Poll::IN),
                Poll::new(alive(children), Poll::IN),
                Poll::new(alive(self.input.waits()), Poll::OUT),
                Poll::new(alive(out.waits()), Poll::IN),
                Poll::new(alive(err.waits()), Poll::IN),
            ];
            match poll(&mut polls, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
            let [said, ended, takes, out, err] = polls.map(|poll| poll.happened != 0);
            if said {
                self.hear(wire)?;
            }
            if takes {
                self.input.flush(wire)?;
            }
            for (output, ready) in self.outputs.iter_mut().zip([out, err]) {
                if ready {
                    output.forward(wire, &mut room)?;
                }
            }
            if ended {
                process::forget(children);
                while let Some((id, end)) = process::reap(-1) {
                    if id == self.id {
                        self.end = Some(end);
                    }
                }
            }
        }
    }

    /// Sends what the command has left in its streams; true when that was all. Others may have them
    /// still, and are not waited for.
    fn drain(&mut self, wire: &Wire, room: &mut [u8]) -> Result<bool> {
        let mut dry = true;
        for output in &mut self.outputs {
            while output.waits().is_open() {
                if output.forward(wire, room)? == Forwarded::Nothing {
                    output.from.close();
                }
            }
            dry &= !output.from.is_open();
        }
        Ok(dry)
    }

    fn hear(&mut self, wire: &mut Wire) -> Result<()> {
        match wire.receive()?.ok_or(Errno::PIPE)? {
            Frame::Input(bytes) => {
                self.input.push(bytes)?;
                self.input.flush(wire)
            }
            Frame::InputEnd => {
                self.input.end();
                self.input.flush(wire)
            }
            Frame::Signal(signal) if self.end.is_none() => {
                // It may have none left to receive it.
                let _ = process::kill(-self.id, signal);
                Ok(())
            }
            Frame::Resize(columns, rows) if self.terminal.is_open() => {
                // It may be nobody's any more.
                let _ = terminal::resize(self.terminal, columns, rows);
                Ok(())
            }
            Frame::Credit(name, bytes) => {
                if let Some(output) = self.output(name) {
                    output.grant(bytes);
                }
                Ok(())
            }
            Frame::Close(name) => {
                if let Some(output) = self.output(name) {
                    output.from.close();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn output(&mut self, name: u8) -> Option<&mut Output> {
        let [out, err] = &mut self.outputs;
        match name {
            stream::STDOUT => Some(out),
            stream::STDERR => Some(err),
            _ => None,
        }
    }
}
