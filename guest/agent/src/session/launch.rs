//! A command's start: its streams, its user, its directory, and whether it could be executed.

use core::ffi::CStr;

use husk_guest_protocol::Stage;

use super::Cannot;
use super::request::Request;
use crate::sys::{Errno, Fd, file, process, terminal};
use crate::text::Path;
use crate::users;

/// Where commands are looked for without a PATH.
const SEARCH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs, and our ends of its streams, which do not block.
pub struct Running {
    pub id: i32,
    pub stdin: Fd,
    pub stdout: Fd,
    /// None with a terminal.
    pub stderr: Fd,
}

/// A descriptor for each stream.
struct Streams {
    stdin: Fd,
    stdout: Fd,
    stderr: Fd,
}

/// Starts it, with a terminal of that window or with pipes.
///
/// # Errors
/// At what it failed. Then nothing is left of it.
pub fn launch(
    request: &Request,
    window: Option<(u16, u16)>,
) -> core::result::Result<Running, Cannot> {
    let agent = |e| (Stage::Agent, e);
    if request.command.is_empty() {
        return Err((Stage::Command, Errno::NOENT));
    }
    let (ours, mut theirs) = match window {
        Some((columns, rows)) => {
            let (master, slave) = terminal::open().map_err(agent)?;
            if columns > 0 && rows > 0 {
                terminal::resize(master, columns, rows).map_err(agent)?;
            }
            let ours = Streams { stdin: master, stdout: master, stderr: Fd::NONE };
            (ours, Streams { stdin: slave, stdout: slave, stderr: slave })
        }
        None => {
            let (stdin, to_stdin) = file::pipe().map_err(agent)?;
            let (from_stdout, stdout) = file::pipe().map_err(agent)?;
            let (from_stderr, stderr) = file::pipe().map_err(agent)?;
            let ours = Streams { stdin: to_stdin, stdout: from_stdout, stderr: from_stderr };
            (ours, Streams { stdin, stdout, stderr })
        }
    };
    for fd in [ours.stdin, ours.stdout, ours.stderr] {
        if fd.is_open() {
            file::set_nonblocking(fd).map_err(agent)?;
        }
    }
    let (mut heard, mut told) = file::pipe().map_err(agent)?;
    let id = process::fork().map_err(agent)?;
    if id == 0 {
        let (stage, Errno(number)) = become_it(request, &theirs, window.is_some());
        let [a, b, c, d] = number.to_le_bytes();
        let _ = file::write_all(told, &[code(stage), a, b, c, d]);
        process::exit(127);
    }
    told.close();
    theirs.stdin.close();
    if window.is_none() {
        theirs.stdout.close();
        theirs.stderr.close();
    }
    // It ends without a byte when an exec closes it.
    let mut why = [0; 5];
    let failed = file::read_exact(heard, &mut why).map_err(agent)?;
    heard.close();
    if failed {
        let [stage, a, b, c, d] = why;
        return Err((stage_of(stage), Errno(i32::from_le_bytes([a, b, c, d]))));
    }
    Ok(Running { id, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr })
}

fn code(stage: Stage) -> u8 {
    match stage {
        Stage::Command => 1,
        Stage::Directory => 2,
        Stage::User => 3,
        _ => 0,
    }
}

fn stage_of(code: u8) -> Stage {
    match code {
        1 => Stage::Command,
        2 => Stage::Directory,
        3 => Stage::User,
        _ => Stage::Agent,
    }
}

/// In the child: becomes the command. Comes back only when that fails.
fn become_it(request: &Request, streams: &Streams, has_terminal: bool) -> Cannot {
    let prepared = (|| {
        let agent = |e| (Stage::Agent, e);
        process::new_session().map_err(agent)?;
        if has_terminal {
            terminal::control(streams.stdin).map_err(agent)?;
        }
        file::place_at(streams.stdin, 0).map_err(agent)?;
        file::place_at(streams.stdout, 1).map_err(agent)?;
        file::place_at(streams.stderr, 2).map_err(agent)?;
        // Where that cannot be had the exec itself says what is too much.
        let _ = process::make_room_for(request.len);
        // The agent is spared when memory runs out; its commands are not.
        let _ = file::write_file(c"/proc/self/oom_score_adj", b"0");
        if let Some(user) = request.user {
            let user = users::find(user).map_err(|e| (Stage::User, e))?;
            process::become_user(user.user, user.groups()).map_err(|e| (Stage::User, e))?;
        }
        if let Some(directory) = request.directory {
            file::change_directory(directory).map_err(|e| (Stage::Directory, e))?;
        }
        process::default_signals();
        Ok(())
    })();
    match prepared {
        Ok(()) => (Stage::Command, execute(request)),
        Err(cannot) => cannot,
    }
}

/// As execvp(3), but that a file which is no program is not given to a shell.
fn execute(request: &Request) -> Errno {
    let name = request.command.to_bytes();
    if name.contains(&b'/') {
        return execute_at(request.command, request);
    }
    let mut denied = None;
    for directory in request.search.unwrap_or(SEARCH).split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let Ok(path) = Path::of(&[directory, b"/", name]) else { continue };
        match execute_at(path.as_c_str(), request) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCES => denied = Some(Errno::ACCES),
            other => return other,
        }
    }
    denied.unwrap_or(Errno::NOENT)
}

fn execute_at(path: &CStr, request: &Request) -> Errno {
    let (arguments, environment) = (request.arguments.as_ptr(), request.environment.as_ptr());
    // SAFETY: a string, and pointers to strings of the request with a null behind the last.
    unsafe { process::execute(path.as_ptr().cast(), arguments, environment) }
}
