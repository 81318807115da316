//! Files, directories and pipes.

use core::ffi::CStr;

use super::{Errno, Fd, Result, call, pointer, retry};

pub const READ: i32 = 0;
pub const WRITE: i32 = 1;
pub const READ_WRITE: i32 = 2;
pub const CREATE: i32 = 0o100;
pub const EXCLUSIVE: i32 = 0o200;
pub const NO_TTY: i32 = 0o400;
pub const NONBLOCK: i32 = 0o4000;
pub const DIRECTORY: i32 = 0o200_000;
pub const CLOEXEC: i32 = 0o2_000_000;

/// open(2)
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    // SAFETY: a string that outlives the call.
    let fd = retry(|| unsafe { call(2, [pointer(path), flags as usize, mode as usize, 0, 0, 0]) });
    fd.map(|fd| Fd(fd as i32))
}

/// read(2)
pub fn read(fd: Fd, bytes: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes there.
    retry(|| unsafe { call(0, [fd.raw(), bytes.as_mut_ptr().addr(), bytes.len(), 0, 0, 0]) })
}

/// write(2)
pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `len` bytes there.
    retry(|| unsafe { call(1, [fd.raw(), bytes.as_ptr().addr(), bytes.len(), 0, 0, 0]) })
}

/// Writes all of it.
pub fn write_all(fd: Fd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes)? {
            0 => return Err(Errno::IO),
            count => bytes = bytes.get(count..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Writes all of it to where it lies in the file, by pwrite64(2).
pub fn write_all_at(fd: Fd, mut at: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most `len` bytes there.
        let written = retry(|| unsafe {
            call(18, [fd.raw(), bytes.as_ptr().addr(), bytes.len(), at as usize, 0, 0])
        });
        match written? {
            0 => return Err(Errno::IO),
            count => {
                bytes = bytes.get(count..).unwrap_or_default();
                at += count as u64;
            }
        }
    }
    Ok(())
}

/// ftruncate(2), which also makes it longer.
pub fn set_len(fd: Fd, len: u64) -> Result<()> {
    // SAFETY: ftruncate takes no pointers.
    retry(|| unsafe { call(77, [fd.raw(), len as usize, 0, 0, 0, 0]) }).map(drop)
}

/// Fills `bytes`; false at an end before the first of them.
pub fn read_exact(fd: Fd, bytes: &mut [u8]) -> Result<bool> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read(fd, rest)? {
            0 if done == 0 => return Ok(false),
            0 => return Err(Errno::PROTO),
            count => done += count,
        }
    }
    Ok(true)
}

/// 0, 1 and 2 are open from now on, if only on nothing: no pipe shall get these numbers.
pub fn have_streams() {
    while let Ok(mut fd) = open(c"/dev/null", READ_WRITE, 0) {
        if fd.0 > 2 {
            fd.close();
            return;
        }
    }
}

/// Reads a file as far as `bytes` has room.
pub fn read_file<'a>(path: &CStr, bytes: &'a mut [u8]) -> Result<&'a [u8]> {
    let mut fd = open(path, READ | CLOEXEC, 0)?;
    let mut done = 0;
    let result = loop {
        let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) else {
            break Ok(());
        };
        match read(fd, rest) {
            Ok(0) => break Ok(()),
            Ok(count) => done += count,
            Err(e) => break Err(e),
        }
    };
    fd.close();
    result.map(|()| bytes.get(..done).unwrap_or_default())
}

/// Writes to a file that is there.
pub fn write_file(path: &CStr, bytes: &[u8]) -> Result<()> {
    let mut fd = open(path, WRITE | CLOEXEC, 0)?;
    let result = write_all(fd, bytes);
    fd.close();
    result
}

/// pipe2(2), closed at an exec: what is read from and what is written to.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    // SAFETY: the kernel writes two descriptors there.
    unsafe { call(293, [ends.as_mut_ptr().addr(), CLOEXEC as usize, 0, 0, 0, 0]) }?;
    let [from, to] = ends;
    Ok((Fd(from), Fd(to)))
}

/// Does not block from now on.
pub fn set_nonblocking(fd: Fd) -> Result<()> {
    const F_SETFL: usize = 4;
    // SAFETY: this fcntl takes no pointers.
    unsafe { call(72, [fd.raw(), F_SETFL, NONBLOCK as usize, 0, 0, 0]) }.map(drop)
}

/// dup2(2); what comes out stays open at an exec, also when both are the same.
pub fn place_at(fd: Fd, number: i32) -> Result<()> {
    const F_SETFD: usize = 2;
    // SAFETY: neither call takes pointers.
    unsafe {
        if fd.0 == number {
            return call(72, [fd.raw(), F_SETFD, 0, 0, 0, 0]).map(drop);
        }
        call(33, [fd.raw(), number as usize, 0, 0, 0, 0]).map(drop)
    }
}

/// What poll(2) is asked about one descriptor.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    fd: i32,
    events: i16,
    pub happened: i16,
}

impl Poll {
    pub const IN: i16 = 1;
    pub const OUT: i16 = 4;

    /// Passed over without events.
    pub fn new(fd: Fd, events: i16) -> Poll {
        Poll { fd: if events == 0 { -1 } else { fd.0 }, events, happened: 0 }
    }
}

/// poll(2) without an end, or for at most so many milliseconds.
pub fn poll(polls: &mut [Poll], millis: Option<u32>) -> Result<usize> {
    let millis = millis.map_or(usize::MAX, |millis| millis as usize);
    // SAFETY: so many structures, which the kernel reads and writes.
    unsafe { call(7, [polls.as_mut_ptr().addr(), polls.len(), millis, 0, 0, 0]) }
}

/// mkdir(2); one that is there is as good.
pub fn make_directory(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: a string that outlives the call.
    match unsafe { call(83, [pointer(path), mode as usize, 0, 0, 0, 0]) } {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// chdir(2)
pub fn change_directory(path: &CStr) -> Result<()> {
    // SAFETY: a string that outlives the call.
    unsafe { call(80, [pointer(path), 0, 0, 0, 0, 0]) }.map(drop)
}

/// rmdir(2)
pub fn remove_directory(path: &CStr) -> Result<()> {
    // SAFETY: a string that outlives the call.
    unsafe { call(84, [pointer(path), 0, 0, 0, 0, 0]) }.map(drop)
}

/// setxattr(2)
pub fn set_attribute(path: &CStr, name: &CStr, value: &[u8]) -> Result<()> {
    let value = [value.as_ptr().addr(), value.len()];
    // SAFETY: strings that outlive the call, and the kernel reads `len` bytes of the value.
    unsafe { call(188, [pointer(path), pointer(name), value[0], value[1], 0, 0]) }.map(drop)
}

/// symlink(2)
pub fn symlink(target: &CStr, path: &CStr) -> Result<()> {
    // SAFETY: strings that outlive the call.
    unsafe { call(88, [pointer(target), pointer(path), 0, 0, 0, 0]) }.map(drop)
}

/// rename(2)
pub fn rename(from: &CStr, to: &CStr) -> Result<()> {
    // SAFETY: strings that outlive the call.
    unsafe { call(82, [pointer(from), pointer(to), 0, 0, 0, 0]) }.map(drop)
}

/// unlink(2)
pub fn unlink(path: &CStr) -> Result<()> {
    // SAFETY: a string that outlives the call.
    unsafe { call(87, [pointer(path), 0, 0, 0, 0, 0]) }.map(drop)
}

/// fchmod(2): the umask has no say.
pub fn set_mode(fd: Fd, mode: u32) -> Result<()> {
    // SAFETY: fchmod takes no pointers.
    unsafe { call(91, [fd.raw(), mode as usize, 0, 0, 0, 0]) }.map(drop)
}

/// A `struct stat` of x86-64 (asm/stat.h), to be filled by the kernel.
pub struct Stat([u8; Stat::LEN]);

impl Default for Stat {
    fn default() -> Stat {
        Stat([0; Stat::LEN])
    }
}

impl Stat {
    /// Its bytes, and where `st_mode` is among them.
    const LEN: usize = 144;
    const MODE: usize = 24;

    /// Where it is.
    pub fn place(&mut self) -> usize {
        self.0.as_mut_ptr().addr()
    }

    /// The device it lies on.
    fn device(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().unwrap_or(&[0; 8]))
    }

    /// Type and permissions.
    pub fn mode(&self) -> u32 {
        let bytes = self.0.get(Stat::MODE..).and_then(|rest| rest.first_chunk());
        u32::from_le_bytes(*bytes.unwrap_or(&[0; 4]))
    }
}

/// Type and permissions of an open file, by fstat(2).
pub fn mode(fd: Fd) -> Result<u32> {
    let mut stat = Stat::default();
    // SAFETY: the kernel writes a `struct stat` there.
    unsafe { call(5, [fd.raw(), stat.place(), 0, 0, 0, 0]) }?;
    Ok(stat.mode())
}

/// The minor number of the device that `path` lies on, by stat(2).
pub fn device_minor(path: &CStr) -> Result<u32> {
    let mut stat = Stat::default();
    // SAFETY: a string that outlives the call, and room for a `struct stat`.
    unsafe { call(4, [pointer(path), stat.place(), 0, 0, 0, 0]) }?;
    let device = stat.device();
    // Linux `new_encode_dev`: the minor number around 12 bits of the major one.
    Ok((device & 0xff | device >> 12 & 0xffff_ff00) as u32)
}
