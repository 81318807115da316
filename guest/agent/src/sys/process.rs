//! Processes, signals and memory.

use super::{Errno, Fd, Result, call};

/// Signals by their numbers on x86-64.
pub const SIGHUP: u8 = 1;
pub const SIGKILL: u8 = 9;
pub const SIGPIPE: u8 = 13;
pub const SIGCHLD: u8 = 17;

const DEFAULT: usize = 0;
const IGNORED: usize = 1;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

/// getpid(2)
pub fn id() -> i32 {
    // SAFETY: getpid has no arguments.
    unsafe { call(39, [0; 6]) }.map_or(0, |id| id as i32)
}

/// fork(2): 0 in the child. There is one thread, so the child may do whatever its parent may.
pub fn fork() -> Result<i32> {
    // SAFETY: the child has a copy of all memory and of the only thread.
    unsafe { call(57, [0; 6]) }.map(|id| id as i32)
}

/// exit_group(2)
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: it does not come back.
        let _ = unsafe { call(231, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// execve(2). Comes back only with an error.
///
/// # Safety
/// `path` is a string with a zero; `arguments` and `environment` point to pointers to such, with a
/// null behind the last.
pub unsafe fn execute(
    path: *const u8,
    arguments: *const *const u8,
    environment: *const *const u8,
) -> Errno {
    let pointers = [path.addr(), arguments.addr(), environment.addr(), 0, 0, 0];
    // SAFETY: as the caller says.
    unsafe { call(59, pointers) }.err().unwrap_or(Errno::INVAL)
}

/// Lets a program begin with so many bytes of arguments and variables, with their pointers. Linux gives them a
/// quarter of the stack's limit, and never more than 6 MiB (fs/exec.c, `bprm_stack_limits`): of who has more than
/// that quarter the limit is raised, as far as it may be, and nobody else's.
///
/// # Errors
/// The kernel's.
pub fn make_room_for(bytes: usize) -> Result<()> {
    const PRLIMIT: usize = 302;
    const STACK: usize = 3;
    // A struct rlimit64: what is, and what it may be raised to.
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes two numbers there.
    unsafe { call(PRLIMIT, [0, STACK, 0, (&raw mut limit).addr(), 0, 0]) }?;
    let [now, most] = limit;
    match stack_for(bytes as u64, now, most) {
        Some(wanted) => {
            let limit = [wanted, most];
            // SAFETY: the kernel reads two numbers there.
            unsafe { call(PRLIMIT, [0, STACK, (&raw const limit).addr(), 0, 0, 0]) }.map(drop)
        }
        None => Ok(()),
    }
}

/// The stack's limit that so many bytes take, if it is more than it is `now`; at most `most`.
fn stack_for(bytes: u64, now: u64, most: u64) -> Option<u64> {
    /// The program's name, and what the kernel itself tells it.
    const MORE: u64 = 128 << 10;
    let wanted = (bytes + MORE).saturating_mul(4);
    (wanted > now).then(|| wanted.next_multiple_of(1 << 20).min(most)).filter(|new| *new > now)
}

/// wait4(2) for `child`, or -1 for any, without waiting.
pub fn reap(child: i32) -> Option<(i32, End)> {
    const WNOHANG: usize = 1;
    let mut status = 0i32;
    let place = (&raw mut status).addr();
    // SAFETY: the kernel writes a status there.
    let id = unsafe { call(61, [child as usize, place, WNOHANG, 0, 0, 0]) }.ok()?;
    let end = match status & 0x7f {
        0 => End::Exited((status >> 8) as u8),
        signal => End::Signaled(signal as u8),
    };
    (id != 0).then_some((id as i32, end))
}

/// kill(2): a negative `id` is a process group, -1 everybody but the first process.
pub fn kill(id: i32, signal: u8) -> Result<()> {
    // SAFETY: kill takes no pointers.
    unsafe { call(62, [id as usize, signal.into(), 0, 0, 0, 0]) }.map(drop)
}

/// setsid(2)
pub fn new_session() -> Result<()> {
    // SAFETY: setsid has no arguments.
    unsafe { call(112, [0; 6]) }.map(drop)
}

fn act(signal: u8, action: usize) {
    // A struct sigaction of the kernel's: handler, flags, restorer, mask.
    let action = [action, 0, 0, 0];
    // SAFETY: the kernel reads that structure; with neither action code of ours runs.
    let _ = unsafe { call(13, [signal.into(), action.as_ptr().addr(), 0, 8, 0, 0]) };
}

/// Lets a write to a pipe without a reader fail instead of ending this process.
pub fn ignore_broken_pipes() {
    act(SIGPIPE, IGNORED);
}

/// Gives all signals the effect that a new program expects, and lets them in.
pub fn default_signals() {
    (1..=64).for_each(|signal| act(signal, DEFAULT));
    mask(0);
}

fn mask(set: u64) {
    const SETMASK: usize = 2;
    // SAFETY: the kernel reads a set of 8 bytes.
    let _ = unsafe { call(14, [SETMASK, (&raw const set).addr(), 0, 8, 0, 0]) };
}

/// Ends of children as something to be read; the signal has no other effect any more.
pub fn children() -> Result<Fd> {
    let set = 1u64 << (SIGCHLD - 1);
    mask(set);
    let flags = (super::file::CLOEXEC | super::file::NONBLOCK) as usize;
    // SAFETY: the kernel reads a set of 8 bytes.
    let fd = unsafe { call(289, [usize::MAX, (&raw const set).addr(), 8, flags, 0, 0]) }?;
    Ok(Fd(fd as i32))
}

/// Reads from [`children`] that some have ended: once for any number of them.
pub fn forget(children: Fd) {
    let mut told = [0; 128];
    while super::file::read(children, &mut told).is_ok() {}
}

/// setgroups(2), setgid(2), setuid(2): this user in these groups, of which the first is the own one, and in no
/// other.
pub fn become_user(user: u32, groups: &[u32]) -> Result<()> {
    let own = *groups.first().ok_or(Errno::INVAL)?;
    // SAFETY: the kernel reads so many numbers at `groups`; the others take no pointers.
    unsafe {
        call(116, [groups.len(), groups.as_ptr().addr(), 0, 0, 0, 0])?;
        call(106, [own as usize, 0, 0, 0, 0, 0])?;
        call(105, [user as usize, 0, 0, 0, 0, 0]).map(drop)
    }
}

/// So many bytes of memory of this process' own, zero, for ever.
pub fn memory(len: usize) -> Result<&'static mut [u8]> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: a new mapping, which overlaps nothing.
    let at = unsafe { call(9, [0, len, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) }?;
    // SAFETY: `len` bytes that are mapped, initialised, nobody else's, and never unmapped.
    Ok(unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) })
}

/// sleep, roughly.
pub fn sleep_millis(millis: u32) {
    let _ = super::file::poll(&mut [], Some(millis));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_larger_only_for_who_has_more_than_its_quarter() {
        const USUAL: u64 = 8 << 20;
        assert_eq!(stack_for(1000, USUAL, u64::MAX), None);
        assert_eq!(stack_for(1_900_000, USUAL, u64::MAX), None);
        assert_eq!(stack_for(2 << 20, USUAL, u64::MAX), Some(9 << 20));
        assert_eq!(stack_for(16 << 20, USUAL, 20 << 20), Some(20 << 20));
        assert_eq!(stack_for(16 << 20, USUAL, USUAL), None);
        assert_eq!(stack_for(16 << 20, u64::MAX, u64::MAX), None);
    }
}
