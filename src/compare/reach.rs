//! Which system calls a filter leaves to a process: its programs are read from the kernel, as they are in
//! force, and every number is tried on them. So it is the same fact for whoever made the filter, and no
//! profile is believed.
//!
//! Reading them takes CAP_SYS_ADMIN, and stops the thread for a moment (`ptrace(2)`,
//! PTRACE_SECCOMP_GET_FILTER).

mod bpf;

use std::collections::BTreeSet;
use std::fs;
use std::io;

use bpf::Instruction;

/// `linux/ptrace.h`, of Linux 4.4 on.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// A thread has room for 32768 instructions, with 4 more for each program (Linux `kernel/seccomp.c`), so for fewer
/// programs; and no program has more instructions (`BPF_MAXINSNS`, `linux/bpf_common.h`).
const MOST: (usize, usize) = (8192, 4096);
/// The numbers of x86-64 that are, or were, a system call's up to Linux 6.17: from 336 to 423 there are none
/// (`arch/x86/entry/syscalls/syscall_64.tbl`).
const NUMBERS: [std::ops::RangeInclusive<u32>; 2] = [0..=335, 424..=469];

/// What a filter leaves of the host's system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All of them: there is no filter, or one that refuses nothing.
    All,
    /// So many of x86-64's, be it with some arguments only. Those of 32-bit programs are not counted.
    Some(usize),
    /// There is one, which was not to be read.
    Unread,
}

/// What these processes can reach: a call that one thread of them can make, all can.
pub fn reach(pids: &[u32]) -> Reach {
    let (mut passed, mut seen) = (BTreeSet::new(), false);
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let tid = task.file_name().to_str().and_then(|name| name.parse().ok());
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            let (true, Some(tid)) = (super::proc::has_filter(&status), tid) else {
                return Reach::All;
            };
            match programs(tid) {
                Ok(programs) => {
                    seen = true;
                    passed.extend(bpf::passed(&programs, numbers()));
                }
                // It has ended.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(_) => return Reach::Unread,
            }
        }
    }
    match passed.len() {
        // Nobody was left to ask.
        _ if !seen => Reach::Unread,
        // A filter that refuses nothing is none.
        n if n == numbers().count() => Reach::All,
        n => Reach::Some(n),
    }
}

fn numbers() -> impl Iterator<Item = u32> {
    NUMBERS.into_iter().flatten()
}

/// A thread that stands still, until this is dropped; and the signal that it goes on with, or 0.
struct Stopped(libc::pid_t, libc::c_int);

impl Stopped {
    fn stop(tid: libc::pid_t) -> io::Result<Self> {
        // SAFETY: SEIZE reads no memory of ours; nothing is given that it could write to.
        checked(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) })?;
        let mut stopped = Self(tid, 0);
        // SAFETY: as before; it is seized, and by this thread.
        checked(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) })?;
        loop {
            let mut status = 0;
            // SAFETY: a number, and an integer that is alive through the call.
            let waited = unsafe { libc::waitpid(tid, &mut status, libc::__WALL) };
            if waited == tid && libc::WIFSTOPPED(status) {
                // Stopped as it was told to, or on the way to a signal, which it is not to lose.
                let told = status >> 16 == libc::PTRACE_EVENT_STOP;
                stopped.1 = if told { 0 } else { libc::WSTOPSIG(status) };
                return Ok(stopped);
            }
            let e = io::Error::last_os_error();
            if waited == tid {
                // It ended instead, and whoever waits for it may no more: only those that idle are looked at.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            } else if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: touches no memory. It fails only when the thread is gone.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, libc::c_long::from(self.1)) };
    }
}

fn checked(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The programs of a thread, all of which a system call has to pass.
fn programs(tid: libc::pid_t) -> io::Result<Vec<Vec<Instruction>>> {
    let stopped = Stopped::stop(tid)?;
    let get = |nth: usize, to: *mut libc::sock_filter| {
        // SAFETY: the kernel writes as many instructions as it said there are, or none to NULL; they do not
        // change meanwhile, for programs never do, and their order only when one is added, by a thread
        // that stands still.
        checked(unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, stopped.0, nth, to) })
    };
    let mut programs = Vec::new();
    while programs.len() < MOST.0 {
        let length = match get(programs.len(), std::ptr::null_mut()) {
            Ok(length) => length.min(MOST.1),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
            Err(e) => return Err(e),
        };
        let none = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
        // One more than the longest, so that no length is too short for what is written.
        let mut program = vec![none; MOST.1 + 1];
        get(programs.len(), program.as_mut_ptr())?;
        program.truncate(length);
        programs.push(program.iter().map(Instruction::from).collect());
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }

    #[test]
    fn what_a_filter_leaves_is_read_from_the_process_that_has_it() {
        // Two programs, each of which refuses one call (by EPERM, SECCOMP_RET_ERRNO | 1).
        let refuse = |call: libc::c_long| {
            [
                instruction(0x20, 0, 0, 0),
                instruction(0x15, 0, 1, call as u32),
                instruction(0x06, 0, 0, 0x0005_0001),
                instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
            ]
        };
        let mut filters = [refuse(libc::SYS_swapon), refuse(libc::SYS_swapoff)];
        let install = move || {
            for filter in &mut filters {
                let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
                // SAFETY: plain numbers, and a program that is alive through the call.
                let failed = unsafe {
                    libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                        || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
                            != 0
                };
                if failed {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut without = command.spawn().unwrap();
        // SAFETY: it makes system calls and allocates nothing.
        unsafe { command.pre_exec(install) };
        let mut with = command.spawn().unwrap();
        let reached = [&[with.id()][..], &[without.id()], &[with.id(), without.id()]].map(reach);
        // It goes on afterwards.
        let (ended, state) =
            (with.try_wait().unwrap(), fs::read_to_string(format!("/proc/{}/stat", with.id())));
        for process in [&mut with, &mut without] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert_eq!(ended, None);
        assert!(!state.unwrap().contains(" t "), "it still stands");
        assert_eq!(reach(&[]), Reach::Unread);
        // This process may have a filter of its own, which all have inherited.
        let outside = fs::read_to_string("/proc/self/status").unwrap();
        if super::super::proc::has_filter(&outside) {
            return crate::skipped::skipped("this process is under a filter itself");
        }
        assert_eq!(reached[1..], [Reach::All, Reach::All]);
        let all = numbers().count();
        match reached[0] {
            Reach::Unread => crate::skipped::skipped("filters are read by root alone"),
            other => assert_eq!(other, Reach::Some(all - 2)),
        }
    }
}
