//! A file that answers no read, no sync and no change of its size until it is told to: a host that hangs, by way of FUSE.
//!
//! The server speaks as much of the protocol as one file of a directory needs (Linux
//! `include/uapi/linux/fuse.h`). A request is a header of 40 bytes and its body; an answer is a
//! header of 16 bytes (length, error, the request's number) and its body.
//!
//! A test that is killed must not leave threads that wait for an answer for ever, with the pages they
//! wait for locked for the whole machine: nothing but the end of the server ends such a wait. So the
//! server has a table of descriptors of its own, with only the device in it, which goes with it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::skipped::skipped;

const SIZE: u64 = 2 << 20;

#[derive(Default)]
struct State {
    /// Requests to read, to sync or to resize that wait for an answer.
    waiting: usize,
    answers: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

pub struct HangingFile {
    directory: tempfile::TempDir,
    path: PathBuf,
    shared: Shared,
}

impl HangingFile {
    /// `None` where there is no FUSE, or we may not mount.
    pub fn mount() -> Option<HangingFile> {
        let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(e) => {
                skipped(format!("/dev/fuse: {e}"));
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        if let Err(e) = mount("fuse", directory.path(), &options) {
            skipped(format!("a FUSE cannot be mounted: {e}"));
            return None;
        }
        let shared = Shared::default();
        let (server, path) = (shared.clone(), directory.path().join("disk"));
        let (tell, apart) = channel();
        let number = device.as_raw_fd();
        std::thread::spawn(move || {
            keep_only(number);
            tell.send(()).unwrap();
            // SAFETY: the descriptor is in this thread's table, and nobody else knows of that.
            serve(unsafe { File::from_raw_fd(number) }, &server);
        });
        apart.recv().unwrap();
        drop(device);
        Some(HangingFile { directory, path, shared })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until somebody waits for the file.
    pub fn wait_for_a_reader(&self) {
        let (state, changed) = &*self.shared;
        let state = state.lock().unwrap();
        let limit = Duration::from_secs(10);
        let (state, _) = changed.wait_timeout_while(state, limit, |s| s.waiting == 0).unwrap();
        assert!(state.waiting > 0, "nobody reads the file");
    }

    /// Answers, now and from now on.
    pub fn answer(&self) {
        let (state, changed) = &*self.shared;
        state.lock().unwrap().answers = true;
        changed.notify_all();
    }
}

impl Drop for HangingFile {
    fn drop(&mut self) {
        self.answer();
        unmount(self.directory.path());
    }
}

/// Gives the calling thread, and those it will start, a table of descriptors with `fd` alone.
fn keep_only(fd: RawFd) {
    let fd = fd as libc::c_uint;
    // SAFETY: the table is this thread's own from the first call on, and nothing in it is used but `fd`.
    unsafe {
        let unshare = libc::CLOSE_RANGE_UNSHARE as libc::c_int;
        assert_eq!(libc::close_range(fd + 1, libc::c_uint::MAX, unshare), 0);
        assert_eq!(libc::close_range(0, fd - 1, 0), 0);
    }
}

fn serve(mut device: File, shared: &Shared) {
    let mut request = vec![0; 1 << 18];
    let mut size = SIZE;
    // An error: it was unmounted.
    while let Ok(len) = device.read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let number = request[8..16].to_vec();
        let node = u64::from_le_bytes(request[16..24].try_into().unwrap());
        assert!(len >= 40);
        let mut reply = Reply { device: device.try_clone().unwrap(), number };
        match word(4) {
            // LOOKUP: whatever the name, it is the file. Node, generation, how long that holds.
            1 => reply.say(0, &[&2u64.to_le_bytes()[..], &[0; 32], &attributes(2, size)].concat()),
            3 => reply.say(0, &[&[0; 16][..], &attributes(node, size)].concat()), // GETATTR
            17 => reply.say(0, &[0; 80]),                                         // STATFS
            14 | 27 => {
                // OPEN, OPENDIR: with FOPEN_KEEP_CACHE, or it waits for pages that are being read.
                let mut opened = [0; 16];
                opened[8] = 2;
                reply.say(0, &opened);
            }
            26 => {
                // INIT: version 7.31, reads and writes of at most 128 KiB.
                let mut init = [0; 64];
                init[..4].copy_from_slice(&7u32.to_le_bytes());
                init[4..8].copy_from_slice(&31u32.to_le_bytes());
                init[20..24].copy_from_slice(&(128u32 << 10).to_le_bytes());
                reply.say(0, &init);
            }
            kind @ (4 | 15 | 20) => {
                // SETATTR (its size alone), READ, FSYNC
                let body = match kind {
                    4 => {
                        size = u64::from(word(40 + 16)) | u64::from(word(40 + 20)) << 32;
                        [&[0; 16][..], &attributes(node, size)].concat()
                    }
                    15 => vec![b'h'; word(40 + 16) as usize],
                    _ => Vec::new(),
                };
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let (state, changed) = &*shared;
                    let mut state = state.lock().unwrap();
                    state.waiting += 1;
                    changed.notify_all();
                    while !state.answers {
                        state = changed.wait(state).unwrap();
                    }
                    state.waiting -= 1;
                    reply.say(0, &body);
                });
            }
            16 => reply.say(0, &[word(40 + 16).to_le_bytes(), [0; 4]].concat()), // WRITE: all of it
            2 | 36 | 42 => {} // FORGET, INTERRUPT, BATCH_FORGET: no answer
            18 | 25 | 29 => reply.say(0, &[]), // RELEASE, FLUSH, RELEASEDIR
            _ => reply.say(libc::ENOSYS, &[]),
        }
    }
}

struct Reply {
    device: File,
    number: Vec<u8>,
}

impl Reply {
    fn say(&mut self, error: i32, body: &[u8]) {
        let len = 16 + body.len() as u32;
        let header = [&len.to_le_bytes()[..], &(-error).to_le_bytes(), &self.number].concat();
        // Whoever asked may have given up.
        let _ = self.device.write(&[&header, body].concat());
    }
}

/// `fuse_attr`: node 1 is the directory, node 2 the file.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mut attributes = vec![0; 88];
    let (mode, size) =
        if node == 1 { (libc::S_IFDIR | 0o700, 0) } else { (libc::S_IFREG | 0o600, size) };
    attributes[..8].copy_from_slice(&node.to_le_bytes());
    attributes[8..16].copy_from_slice(&size.to_le_bytes());
    attributes[60..64].copy_from_slice(&mode.to_le_bytes());
    attributes[64..68].copy_from_slice(&1u32.to_le_bytes());
    attributes
}

pub fn mount(kind: &str, at: &Path, options: &str) -> io::Result<()> {
    let [kind, options] = [kind, options].map(|text| CString::new(text).unwrap());
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: four strings that live through the call.
    let done = unsafe {
        let (kind, options) = (kind.as_ptr(), options.as_ptr().cast());
        libc::mount(kind, at.as_ptr(), kind, 0, options)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// At once, even if somebody still uses it; a FUSE answers everything with an error then.
pub fn unmount(at: &Path) {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that lives through the call.
    unsafe {
        libc::umount2(at.as_ptr(), libc::MNT_FORCE);
        libc::umount2(at.as_ptr(), libc::MNT_DETACH)
    };
}
