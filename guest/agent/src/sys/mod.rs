//! Linux' system calls, as far as they are needed: without a C library, and typed.
//!
//! All `unsafe` of the program is in this directory, but for its start. Numbers are those of x86-64
//! (`arch/x86/entry/syscalls/syscall_64.tbl`), constants those of `include/uapi`.

pub mod directory;
pub mod file;
pub mod interface;
pub mod machine;
pub mod process;
pub mod socket;
pub mod terminal;

use core::arch::asm;
use core::ffi::CStr;

/// What the kernel answers instead of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const PERM: Errno = Errno(1);
    pub const NOENT: Errno = Errno(2);
    pub const INTR: Errno = Errno(4);
    pub const IO: Errno = Errno(5);
    pub const TOOBIG: Errno = Errno(7);
    pub const AGAIN: Errno = Errno(11);
    pub const ACCES: Errno = Errno(13);
    pub const EXIST: Errno = Errno(17);
    pub const NODEV: Errno = Errno(19);
    pub const NOTDIR: Errno = Errno(20);
    pub const ISDIR: Errno = Errno(21);
    pub const INVAL: Errno = Errno(22);
    pub const FBIG: Errno = Errno(27);
    pub const PIPE: Errno = Errno(32);
    pub const NAMETOOLONG: Errno = Errno(36);
    pub const PROTO: Errno = Errno(71);
    pub const AFNOSUPPORT: Errno = Errno(97);
    pub const ADDRINUSE: Errno = Errno(98);
    pub const TIMEDOUT: Errno = Errno(110);
}

/// A result of the kernel's.
pub type Result<T> = core::result::Result<T, Errno>;

/// A descriptor. Closed when told to: what has been forked shares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fd(pub i32);

impl Fd {
    /// No descriptor: poll(2) passes it over.
    pub const NONE: Fd = Fd(-1);

    fn raw(self) -> usize {
        self.0 as usize
    }

    /// Whether there is one.
    pub fn is_open(self) -> bool {
        self.0 >= 0
    }

    /// Closes it, and forgets it.
    pub fn close(&mut self) {
        if self.is_open() {
            // SAFETY: close touches no memory.
            let _ = unsafe { call(3, [self.raw(), 0, 0, 0, 0, 0]) };
            *self = Fd::NONE;
        }
    }
}

/// Makes the system call `number`.
///
/// # Safety
/// What its arguments point to must be what the call expects, for as long as it expects it.
unsafe fn call(number: usize, a: [usize; 6]) -> Result<usize> {
    let [a0, a1, a2, a3, a4, a5] = a;
    let result: isize;
    // SAFETY: the kernel's convention: rcx and r11 are lost, everything else is kept; the memory it
    // reaches is what the caller answers for.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") a0, in("rsi") a1, in("rdx") a2, in("r10") a3, in("r8") a4, in("r9") a5,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    match result {
        -4095..=-1 => Err(Errno(-result as i32)),
        result => Ok(result as usize),
    }
}

fn pointer(text: &CStr) -> usize {
    text.as_ptr().addr()
}

/// Repeats what a signal interrupted.
pub fn retry<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match work() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
