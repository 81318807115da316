//! The time from exec to the first KVM_RUN of any VMM, without its help.
//!
//! The command runs under a seccomp filter that reports `ioctl(KVM_RUN)` to us and lets everything
//! else pass (`Documentation/userspace-api/seccomp_filter.rst`, "Userspace Notification"), so that
//! nothing but a filter's few instructions is added to what is measured, in any thread.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::page_faults;

const KVM_RUN: u32 = 0xae80;

/// What is measured of one start.
#[derive(Debug, Clone, Copy)]
pub struct FirstRun {
    /// From exec to the first KVM_RUN.
    pub elapsed: Duration,
    /// Page faults up to then (minor ones, of the process).
    pub faults: u64,
}

/// Runs `command` up to its first KVM_RUN, then kills it.
pub fn measure(command: &[String], limit: Duration) -> Result<FirstRun> {
    let name = command.first().context("no command")?;
    let argv: Vec<CString> =
        command.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (mut from_child, to_us) = io::pipe()?;
    let (for_child, mut to_child) = io::pipe()?;

    // SAFETY: the child only makes system calls on values prepared above, and never returns.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error()).context("fork");
    }
    if pid == 0 {
        let fds = (null.as_raw_fd(), for_child.as_raw_fd(), to_us.as_raw_fd());
        // SAFETY: `pointers` is a NULL-terminated array of C strings that lives until exec.
        unsafe { child(fds, pointers.as_ptr()) }
    }
    let child = Child(pid);
    drop((to_us, for_child));

    let mut number = [0; 4];
    from_child.read_exact(&mut number).context("seccomp filter")?;
    let listener = steal(pid, RawFd::from_ne_bytes(number)).context("pidfd_getfd")?;
    let start = Instant::now();
    to_child.write_all(&[1])?;

    let mut fds = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd that lives through the call.
    let ready = unsafe { libc::poll(&mut fds, 1, millis) };
    let elapsed = start.elapsed();
    if ready != 1 || fds.revents & libc::POLLIN == 0 {
        bail!("{name} never reached KVM_RUN (within {} s)", limit.as_secs());
    }
    let faults = page_faults(pid.unsigned_abs()).unwrap_or(0);
    drop(child);
    Ok(FirstRun { elapsed, faults })
}

/// Takes huge pages and gives them back, so that the next program finds some. Where this machine is a virtual one, what
/// has been free for seconds may belong to its host, who takes milliseconds to bring a huge page again.
pub fn take_memory_back() -> Result<()> {
    const LEN: usize = 256 << 20;
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a mapping of our own, written to within its bounds and unmapped again; the advice changes no contents.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), LEN, access, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        libc::madvise(memory, LEN, libc::MADV_HUGEPAGE);
        for page in (0..LEN).step_by(4096) {
            memory.cast::<u8>().add(page).write_volatile(1);
        }
        libc::munmap(memory, LEN);
    }
    Ok(())
}

/// Kills and reaps the command.
struct Child(libc::pid_t);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child is ours and has not been reaped.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// The forked child: installs the filter, says where its listener is, waits for the start, execs.
///
/// # Safety
/// `argv` is a NULL-terminated array of C strings; runs in a freshly forked process.
unsafe fn child((null, go, tell): (RawFd, RawFd, RawFd), argv: *const *const libc::c_char) -> ! {
    let stmt = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let unless = |k: u32, skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let load = |offset: u32| stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let answer = |action: u32| stmt(libc::BPF_RET | libc::BPF_K, action);
    // struct seccomp_data: the number at 0, the second argument's low half at 24.
    let mut program = [
        load(0),
        unless(libc::SYS_ioctl as u32, 3),
        load(24),
        unless(KVM_RUN, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: system calls on valid values in a process of our own; a failure ends it.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &filter,
        ) as i32;
        let mut byte = 0u8;
        if listener < 0
            || libc::write(tell, listener.to_ne_bytes().as_ptr().cast(), 4) != 4
            || libc::read(go, (&raw mut byte).cast(), 1) != 1
        {
            libc::_exit(125);
        }
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
        libc::execvp(*argv, argv);
        libc::_exit(127)
    }
}

/// A copy of descriptor `fd` of process `pid`.
fn steal(pid: libc::pid_t, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: both calls take plain numbers and return a new descriptor or fail.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as RawFd;
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) as RawFd;
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(copy))
    }
}
