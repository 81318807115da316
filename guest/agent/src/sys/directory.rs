//! Directories and what is in them, by descriptors: no path is walked twice, and no link on the way is
//! followed.

use core::ffi::CStr;

use super::{Errno, Fd, Result, call, pointer, retry};

/// `O_NOFOLLOW`
pub const NO_FOLLOW: i32 = 0o400_000;
/// `O_PATH`: where it is, and nothing of what is in it.
pub const PATH_ONLY: i32 = 0o10_000_000;
/// `AT_FDCWD`: paths begin where the process is.
pub const HERE: Fd = Fd(-100);
/// `AT_SYMLINK_NOFOLLOW`
const NOT_FOLLOWED: usize = 0x100;
/// `AT_REMOVEDIR`
const DIRECTORIES: usize = 0x200;

/// The entries of an open directory, as linux_dirent64 structures; 0 at their end.
pub fn entries(fd: Fd, bytes: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes there.
    unsafe { call(217, [fd.raw(), bytes.as_mut_ptr().addr(), bytes.len(), 0, 0, 0]) }
}

/// The name of the first linux_dirent64 (`man 2 getdents64`), and what follows it.
pub fn entry(bytes: &[u8]) -> Option<(&CStr, &[u8])> {
    let &[a, b] = bytes.get(16..18)?.first_chunk()?;
    let (this, others) = bytes.split_at_checked(u16::from_le_bytes([a, b]).into())?;
    Some((CStr::from_bytes_until_nul(this.get(19..)?).ok()?, others))
}

/// openat(2)
pub fn open_at(directory: Fd, name: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    let arguments = [directory.raw(), pointer(name), flags as usize, mode as usize, 0, 0];
    // SAFETY: a string that outlives the call.
    retry(|| unsafe { call(257, arguments) }).map(|fd| Fd(fd as i32))
}

/// mkdirat(2)
pub fn make_at(directory: Fd, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: a string that outlives the call.
    unsafe { call(258, [directory.raw(), pointer(name), mode as usize, 0, 0, 0]) }.map(drop)
}

/// unlinkat(2), of what is no directory.
pub fn unlink_at(directory: Fd, name: &CStr) -> Result<()> {
    // SAFETY: a string that outlives the call.
    unsafe { call(263, [directory.raw(), pointer(name), 0, 0, 0, 0]) }.map(drop)
}

/// renameat(2), within a directory.
pub fn rename_at(directory: Fd, from: &CStr, to: &CStr) -> Result<()> {
    let arguments = [directory.raw(), pointer(from), directory.raw(), pointer(to), 0, 0];
    // SAFETY: strings that outlive the call.
    unsafe { call(264, arguments) }.map(drop)
}

/// symlinkat(2)
pub fn symlink_at(target: &CStr, directory: Fd, name: &CStr) -> Result<()> {
    // SAFETY: strings that outlive the call.
    unsafe { call(266, [pointer(target), directory.raw(), pointer(name), 0, 0, 0]) }.map(drop)
}

/// readlinkat(2): what the link leads to.
pub fn read_link_at<'a>(directory: Fd, name: &CStr, room: &'a mut [u8]) -> Result<&'a [u8]> {
    let place = [room.as_mut_ptr().addr(), room.len()];
    // SAFETY: a string that outlives the call, and the kernel writes at most `len` bytes there.
    let len = unsafe { call(267, [directory.raw(), pointer(name), place[0], place[1], 0, 0]) }?;
    room.get(..len).ok_or(Errno::NAMETOOLONG)
}

/// Type and permissions of what is there: of a link its own, or with `follow` of what it leads to.
pub fn mode_at(directory: Fd, name: &CStr, follow: bool) -> Result<u32> {
    let mut stat = super::file::Stat::default();
    let flags = if follow { 0 } else { NOT_FOLLOWED };
    // SAFETY: a string that outlives the call, and the kernel writes a `struct stat` there.
    unsafe { call(262, [directory.raw(), pointer(name), stat.place(), flags, 0, 0]) }?;
    Ok(stat.mode())
}

/// Removes the directory and all that is in it, as far as that goes; whether anything has gone.
pub fn remove_all(directory: Fd, name: &CStr) -> bool {
    let flags = super::file::DIRECTORY | super::file::CLOEXEC | NO_FOLLOW;
    let mut any = false;
    // What is removed while it is listed may hide others from the list. What stays is not tried again.
    for _ in 0..3 {
        let mut gone = false;
        if let Ok(mut fd) = open_at(directory, name, flags, 0) {
            let mut room = [0u8; 1024];
            while let Ok(len @ 1..) = entries(fd, &mut room) {
                let mut rest = room.get(..len).unwrap_or_default();
                while let Some((name, others)) = entry(rest) {
                    rest = others;
                    if is_self(name) {
                        continue;
                    }
                    gone |= match unlink_at(fd, name) {
                        Ok(()) => true,
                        // Linux says the one, POSIX the other.
                        Err(Errno::ISDIR | Errno::PERM) => remove_all(fd, name),
                        Err(_) => false,
                    };
                }
            }
            fd.close();
        }
        // SAFETY: a string that outlives the call.
        if unsafe { call(263, [directory.raw(), pointer(name), DIRECTORIES, 0, 0, 0]) }.is_ok() {
            return true;
        }
        if !gone {
            break;
        }
        any = true;
    }
    any
}

/// Whether the name is that of the directory or of the one above it.
pub fn is_self(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_directory_are_read_as_the_kernel_writes_them() {
        let mut bytes = Vec::new();
        for name in [&b"vda"[..], b"loop0"] {
            let len = (19 + name.len() + 1).next_multiple_of(8);
            let mut one = vec![0; 16];
            one.extend((len as u16).to_le_bytes());
            one.push(10);
            one.extend(name);
            one.resize(len, 0);
            bytes.extend(one);
        }
        let (first, rest) = entry(&bytes).expect("an entry");
        let (second, rest) = entry(rest).expect("an entry");
        assert_eq!((first, second, rest), (c"vda", c"loop0", &b""[..]));
        assert!(entry(rest).is_none());
        assert!(entry(&bytes[..20]).is_none(), "one that is cut off");
    }
}
