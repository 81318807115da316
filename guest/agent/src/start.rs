//! Where the kernel enters the program, and what a compiler expects of a C library.

use core::ffi::{CStr, c_char};

use crate::{say, sys};

// The kernel leaves the number of arguments at the stack's top, and pointers to them above
// (System V ABI, AMD64 supplement, §3.4.1).
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

/// The most arguments that are looked at.
const ARGUMENTS: usize = 8;

unsafe extern "C" fn begin(stack: *const usize) -> ! {
    let mut arguments = [c""; ARGUMENTS];
    let mut count = 0;
    // SAFETY: the kernel put a number there, and so many pointers to strings that stay.
    unsafe {
        let given = *stack;
        while count < given.min(ARGUMENTS) {
            let pointer = *stack.add(1 + count) as *const c_char;
            if let Some(place) = arguments.get_mut(count) {
                *place = CStr::from_ptr(pointer);
            }
            count += 1;
        }
    }
    sys::process::exit(crate::main(arguments.get(..count).unwrap_or_default()))
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, core::panic::Location::line);
    let file = info.location().map_or("", core::panic::Location::file);
    say::line(&[b"a bug: ", file.as_bytes(), b":", crate::text::Digits::of(line.into()).bytes()]);
    if sys::process::id() == 1 {
        sys::machine::power_off();
    }
    sys::process::exit(101)
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's ranges; `rep movsb` touches nothing else.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _,
            inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: copied upwards nothing is overwritten before it was read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's ranges, from their ends downwards; the direction flag is cleared again.
    unsafe {
        core::arch::asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's range; `rep stosb` touches nothing else.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _,
            in("al") byte as u8, options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at < len {
        // SAFETY: within the caller's ranges.
        let (a, b) = unsafe { (*one.add(at), *other.add(at)) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: as ours.
    unsafe { memcmp(one, other, len) }
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's string has a zero.
    while unsafe { *text.add(len) } != 0 {
        len += 1;
    }
    len
}

/// `core` comes compiled for programs that unwind and names this; ours aborts, so nobody calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
