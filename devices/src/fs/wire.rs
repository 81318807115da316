//! The FUSE messages as they lie in memory (Linux `include/uapi/linux/fuse.h`, protocol 7.38).
//!
//! Every structure is what the kernel says, field by field and without hidden padding; the sizes are
//! checked below. Names, and what a message carries beside its structure, follow it as bytes.

use vm_memory::ByteValued;

/// The protocol's major version.
pub(super) const MAJOR: u32 = 7;
/// The minor version that is spoken here.
pub(super) const MINOR: u32 = 38;
/// The first minor version whose replies have the sizes below (Linux 3.15).
pub(super) const MINOR_MIN: u32 = 23;
/// The node id of the share's directory (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;

/// Request codes (`enum fuse_opcode`).
#[allow(missing_docs, reason = "they are the kernel's names")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
}

/// What is agreed on in `INIT` (`FUSE_*`).
pub(super) mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const POSIX_LOCKS: u32 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const FLOCK_LOCKS: u32 = 1 << 10;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Which fields of a `SETATTR` count (`FATTR_*`).
pub(super) mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FOPEN_DIRECT_IO`: the guest keeps no pages of this file.
pub(super) const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// `FOPEN_KEEP_CACHE`: what the guest has of this file stays valid.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `FOPEN_CACHE_DIR`: the guest may keep this directory's entries.
pub(super) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// `FUSE_WRITE_CACHE`: pages of a mapping, by whichever handle the guest's kernel found first.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: the file's set-user-id bits are to go.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`: the same when it is emptied.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_RELEASE_FLOCK_UNLOCK`: the owner's `flock` ends with the handle.
pub(super) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `FUSE_LK_FLOCK`: the lock is one of `flock(2)`.
pub(super) const LK_FLOCK: u32 = 1 << 0;
/// `FUSE_FSYNC_FDATASYNC`
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident $size:literal { $($field:ident: $kind:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Default, PartialEq)]
            #[allow(missing_docs, reason = "the fields are the kernel's")]
            pub struct $name { $(pub $field: $kind),* }

            const _: () = assert!(size_of::<$name>() == $size);
            // Nothing but the fields: no padding whose bytes nobody has written.
            const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$kind>())*);

            // SAFETY: plain numbers, C layout, and (asserted above) no padding.
            unsafe impl ByteValued for $name {}
        )*
    };
}

messages! {
    /// `fuse_in_header`: every request begins with it.
    InHeader 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64,
        uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// `fuse_out_header`: every reply begins with it. `error` is 0 or a negative errno.
    OutHeader 16 { len: u32, error: i32, unique: u64 }
    /// `fuse_attr`
    Attr 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// `fuse_entry_out`
    EntryOut 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// `fuse_attr_out`
    AttrOut 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `fuse_forget_in`
    ForgetIn 8 { nlookup: u64 }
    /// `fuse_batch_forget_in`, followed by as many [`ForgetOne`].
    BatchForgetIn 8 { count: u32, dummy: u32 }
    /// `fuse_forget_one`
    ForgetOne 16 { nodeid: u64, nlookup: u64 }
    /// `fuse_setattr_in`
    SetattrIn 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `fuse_mknod_in`, followed by a name.
    MknodIn 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`, followed by a name.
    MkdirIn 8 { mode: u32, umask: u32 }
    /// `fuse_rename_in`, followed by two names.
    RenameIn 8 { newdir: u64 }
    /// `fuse_rename2_in`, followed by two names.
    Rename2In 16 { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_link_in`, followed by a name.
    LinkIn 8 { oldnodeid: u64 }
    /// `fuse_open_in`
    OpenIn 8 { flags: u32, open_flags: u32 }
    /// `fuse_create_in`, followed by a name.
    CreateIn 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_open_out`
    OpenOut 16 { fh: u64, open_flags: u32, padding: u32 }
    /// The reply to `CREATE` and `TMPFILE`: a `fuse_entry_out` and a `fuse_open_out`.
    CreateOut 144 { entry: EntryOut, open: OpenOut }
    /// `fuse_release_in`
    ReleaseIn 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_flush_in`
    FlushIn 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `fuse_read_in`
    ReadIn 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `fuse_write_in`, followed by the data.
    WriteIn 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `fuse_write_out`
    WriteOut 8 { size: u32, padding: u32 }
    /// `fuse_kstatfs`
    StatfsOut 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// `fuse_fsync_in`
    FsyncIn 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// The first part of `fuse_setxattr_in`, followed by a name and the value
    /// (`FUSE_COMPAT_SETXATTR_IN_SIZE`: the rest is there only when `FUSE_SETXATTR_EXT` is agreed on).
    SetxattrIn 8 { size: u32, flags: u32 }
    /// `fuse_getxattr_in`, followed by a name in `GETXATTR`.
    GetxattrIn 8 { size: u32, padding: u32 }
    /// `fuse_getxattr_out`
    GetxattrOut 8 { size: u32, padding: u32 }
    /// `fuse_file_lock`
    FileLock 24 { start: u64, end: u64, kind: u32, pid: u32 }
    /// `fuse_lk_in`
    LkIn 48 { fh: u64, owner: u64, lock: FileLock, lk_flags: u32, padding: u32 }
    /// `fuse_access_in`
    AccessIn 8 { mask: u32, padding: u32 }
    /// The first part of `fuse_init_in`, which older kernels end with.
    InitIn 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// `fuse_init_out`
    InitOut 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32,
        max_background: u16, congestion_threshold: u16, max_write: u32, time_gran: u32,
        max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    /// `fuse_interrupt_in`
    InterruptIn 8 { unique: u64 }
    /// `fuse_fallocate_in`
    FallocateIn 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// The fixed part of `fuse_dirent`, followed by the name, filled up to 8 bytes.
    Dirent 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// `fuse_lseek_in`
    LseekIn 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `fuse_lseek_out`
    LseekOut 8 { offset: u64 }
    /// `fuse_copy_file_range_in`
    CopyIn 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
}

/// Bytes that the reply to a request needs at least, without its header.
pub(super) fn reply_len(opcode: u32) -> usize {
    match opcode {
        op::LOOKUP | op::MKNOD | op::MKDIR | op::SYMLINK | op::LINK => size_of::<EntryOut>(),
        op::GETATTR | op::SETATTR => size_of::<AttrOut>(),
        op::OPEN | op::OPENDIR => size_of::<OpenOut>(),
        op::CREATE | op::TMPFILE => size_of::<CreateOut>(),
        op::WRITE | op::COPY_FILE_RANGE => size_of::<WriteOut>(),
        op::STATFS => size_of::<StatfsOut>(),
        op::GETLK => size_of::<FileLock>(),
        op::LSEEK => size_of::<LseekOut>(),
        op::INIT => size_of::<InitOut>(),
        _ => 0,
    }
}

/// `fuse_direntplus` before the name.
#[cfg(test)]
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DirentPlus {
    pub entry: EntryOut,
    pub dirent: Dirent,
}

#[cfg(test)]
// SAFETY: two structures of plain numbers, of 8 bytes' alignment and without padding.
unsafe impl ByteValued for DirentPlus {}
