//! `files`, a program of the guest initramfs images: asks of a directory what a build asks of a file
//! system. It is built as one static executable, by rustc alone, and so uses only std.
//!
//! ```text
//! files check DIR                     one line for each promise that is not kept
//! files exercise FILE SEED ROUNDS     random writes, truncations, holes and mappings against a copy
//! files lock FILE                     waits for the lock, says so, and keeps it until its input ends
//! ```

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_long, c_uint, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn flock(fd: c_int, operation: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, lock: *mut Lock) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
    fn mmap(
        at: *mut c_void,
        n: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        off: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn setxattr(
        path: *const c_char,
        name: *const c_char,
        value: *const c_void,
        n: usize,
        f: c_int,
    ) -> c_int;
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, len: usize) -> isize;
    fn linkat(d: c_int, from: *const c_char, e: c_int, to: *const c_char, flags: c_int) -> c_int;
    fn mkfifo(path: *const c_char, mode: c_uint) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

const AT_FDCWD: c_int = -100;
const AT_SYMLINK_FOLLOW: c_int = 0x400;
const O_TMPFILE: c_int = 0o20_200_000;
const O_DIRECT: c_int = 0o40_000;
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;
const LOCK_EX: c_int = 2;
const LOCK_NB: c_int = 4;
const LOCK_UN: c_int = 8;
const F_SETLK: c_int = 6;
const F_OFD_SETLK: c_int = 37;
/// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`
const PUNCH: c_int = 3;
/// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`
const NOREPLACE: c_uint = 1;
const EXCHANGE: c_uint = 2;
const SYS_GETDENTS64: c_long = 217;
const SYS_RENAMEAT2: c_long = 316;
const SYS_COPY_FILE_RANGE: c_long = 326;

/// `struct flock` of x86-64.
#[repr(C)]
struct Lock {
    kind: i16,
    whence: i16,
    start: i64,
    len: i64,
    pid: c_int,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check", dir] => check(Path::new(dir)),
        ["exercise", file, seed, rounds] => exercise(Path::new(file), seed, rounds),
        ["lock", file] => lock(Path::new(file)),
        _ => Err("usage: files check DIR | exercise FILE SEED ROUNDS | lock FILE".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("files: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Fails with what is written there.
macro_rules! want {
    ($condition:expr) => {
        if !$condition {
            return Err(concat!("not so: ", stringify!($condition)).into());
        }
    };
}

fn text(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn done(returned: impl Into<i64>) -> io::Result<i64> {
    let returned = returned.into();
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn is<T>(result: io::Result<T>, errno: i32) -> bool {
    result.is_err_and(|e| e.raw_os_error() == Some(errno))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn rename2(from: &Path, to: &Path, flags: c_uint) -> Result<io::Result<i64>> {
    let (from, to) = (text(from)?, text(to)?);
    // SAFETY: two strings that a NUL ends.
    Ok(done(unsafe {
        syscall(SYS_RENAMEAT2, AT_FDCWD, from.as_ptr(), AT_FDCWD, to.as_ptr(), flags)
    }))
}

/// A promise: its name, and what keeps or breaks it in an empty directory.
type Promise = (&'static str, fn(&Path) -> Result<()>);

const PROMISES: &[Promise] = &[
    ("write and read", |dir| {
        fs::write(dir.join("f"), vec![b'x'; 3 << 20])?;
        want!(fs::read(dir.join("f"))? == vec![b'x'; 3 << 20]);
        want!(fs::metadata(dir.join("f"))?.uid() == 0);
        Ok(())
    }),
    ("append", |dir| {
        let path = dir.join("f");
        fs::write(&path, "one")?;
        OpenOptions::new().append(true).open(&path)?.write_all(b"two")?;
        want!(fs::read(&path)? == b"onetwo");
        Ok(())
    }),
    ("exclusive creation", |dir| {
        fs::write(dir.join("f"), "")?;
        want!(is(File::create_new(dir.join("f")), 17));
        Ok(())
    }),
    ("rename over", |dir| {
        fs::write(dir.join("a"), "A")?;
        fs::write(dir.join("b"), "B")?;
        let open = File::open(dir.join("b"))?;
        fs::rename(dir.join("a"), dir.join("b"))?;
        want!(fs::read(dir.join("b"))? == b"A" && io::read_to_string(&open)? == "B");
        want!(!dir.join("a").exists());
        Ok(())
    }),
    ("rename without replacing, and exchange", |dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        fs::write(&a, "A")?;
        fs::create_dir(&b)?;
        want!(is(rename2(&a, &b, NOREPLACE)?, 17));
        rename2(&a, &b, EXCHANGE)??;
        want!(a.is_dir() && fs::read(&b)? == b"A");
        Ok(())
    }),
    ("directories full and moved", |dir| {
        fs::create_dir_all(dir.join("a/b/c"))?;
        want!(is(fs::remove_dir(dir.join("a")), 39));
        fs::rename(dir.join("a/b"), dir.join("m"))?;
        want!(dir.join("m/c").is_dir());
        want!(is(fs::rename(dir.join("m"), dir.join("m/c/x")), 22));
        Ok(())
    }),
    ("hard links", |dir| {
        fs::write(dir.join("a"), "A")?;
        fs::hard_link(dir.join("a"), dir.join("b"))?;
        let (a, b) = (fs::metadata(dir.join("a"))?, fs::metadata(dir.join("b"))?);
        want!(a.ino() == b.ino() && b.nlink() == 2);
        fs::remove_file(dir.join("a"))?;
        want!(fs::read(dir.join("b"))? == b"A" && fs::metadata(dir.join("b"))?.nlink() == 1);
        Ok(())
    }),
    ("symbolic links", |dir| {
        fs::create_dir(dir.join("d"))?;
        fs::write(dir.join("d/f"), "F")?;
        symlink("d/f", dir.join("l"))?;
        symlink("/proc/version", dir.join("absolute"))?;
        want!(
            fs::read(dir.join("l"))? == b"F" && fs::read_link(dir.join("l"))? == Path::new("d/f")
        );
        // The guest's own, not the host's.
        want!(fs::read(dir.join("absolute"))? == fs::read("/proc/version")?);
        symlink("loop", dir.join("loop"))?;
        want!(is(fs::read(dir.join("loop")), 40));
        Ok(())
    }),
    ("extended attributes", |dir| {
        fs::write(dir.join("f"), "")?;
        // Where the host keeps its files in memory there may be those of root only, or none.
        let path = text(&dir.join("f"))?;
        let set = |name: &CStr| {
            // SAFETY: strings that a NUL ends, and a buffer with its length.
            let set = unsafe {
                setxattr(path.as_ptr(), name.as_ptr(), b"attribute".as_ptr().cast(), 9, 0)
            };
            done(set)
        };
        let name = match (set(c"user.test"), set(c"trusted.test")) {
            (Ok(_), _) => c"user.test",
            (Err(e), Ok(_)) if e.raw_os_error() == Some(95) => c"trusted.test",
            (Err(e), Err(_)) if e.raw_os_error() == Some(95) => {
                println!("NO-ATTRIBUTES");
                return Ok(());
            }
            (Err(e), _) => return Err(e.into()),
        };
        let mut value = [0u8; 9];
        // SAFETY: strings that a NUL ends, and buffers with their lengths.
        unsafe {
            let (to, len) = (value.as_mut_ptr().cast(), value.len());
            want!(done(getxattr(path.as_ptr(), name.as_ptr(), to, len) as i64)? == 9);
        }
        want!(&value == b"attribute");
        Ok(())
    }),
    ("nameless files", |dir| {
        let options = OpenOptions::new().read(true).write(true).custom_flags(O_TMPFILE).open(dir);
        let mut file = options?;
        file.write_all(b"ready")?;
        want!(fs::read_dir(dir)?.count() == 0);
        let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let to = text(&dir.join("named"))?;
        // SAFETY: two strings that a NUL ends.
        done(unsafe { linkat(AT_FDCWD, from.as_ptr(), AT_FDCWD, to.as_ptr(), AT_SYMLINK_FOLLOW) })?;
        want!(fs::read(dir.join("named"))? == b"ready");
        Ok(())
    }),
    ("sparse files", |dir| {
        let file = open(&dir.join("f"))?;
        file.write_all_at(b"end", 5 << 32)?;
        want!(file.metadata()?.len() == (5 << 32) + 3 && file.metadata()?.blocks() < 1000);
        // SAFETY: no memory is passed.
        let (data, hole) = unsafe {
            let fd = file.as_raw_fd();
            (done(lseek(fd, 0, SEEK_DATA))?, done(lseek(fd, 0, SEEK_HOLE))?)
        };
        want!(data > 4 << 32 && hole == 0);
        Ok(())
    }),
    ("holes and reserved space", |dir| {
        let file = open(&dir.join("f"))?;
        file.write_all_at(&[7; 65536], 0)?;
        // SAFETY: no memory is passed.
        unsafe {
            done(fallocate(file.as_raw_fd(), PUNCH, 4096, 8192))?;
            done(fallocate(file.as_raw_fd(), 0, 65536, 4096))?;
        }
        let mut bytes = [1; 12];
        file.read_exact_at(&mut bytes, 4092)?;
        want!(bytes == [7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0] && file.metadata()?.len() == 69632);
        Ok(())
    }),
    ("shared mappings", |dir| {
        let file = open(&dir.join("f"))?;
        file.set_len(8192)?;
        let mapped = Mapping::of(&file, 8192)?;
        mapped.write(4090, b"mapped over a page");
        drop(mapped);
        file.sync_all()?;
        let mut bytes = [0; 18];
        file.read_exact_at(&mut bytes, 4090)?;
        want!(&bytes == b"mapped over a page");
        Ok(())
    }),
    ("a mapping of a file that is open to append", |dir| {
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(dir.join("f"))?;
        file.write_all(&[1; 8192])?;
        let mapped = Mapping::of(&file, 8192)?;
        mapped.write(4090, b"in its place");
        drop(mapped);
        file.sync_all()?;
        file.write_all(b"at the end")?;
        let bytes = fs::read(dir.join("f"))?;
        want!(bytes.get(4090..4102) == Some(b"in its place"));
        want!(bytes.get(8192..) == Some(b"at the end"));
        Ok(())
    }),
    ("direct writes", |dir| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).custom_flags(O_DIRECT);
        let file = options.open(dir.join("f"))?;
        let mut buffer = vec![0u8; 8192];
        let start = buffer.as_ptr().align_offset(4096);
        let page = buffer.get_mut(start..start + 4096).ok_or("no aligned page")?;
        page.fill(9);
        file.write_all_at(page, 4096)?;
        want!(fs::read(dir.join("f"))?.get(4096..) == Some(&[9; 4096][..]));
        Ok(())
    }),
    ("copies on the host", |dir| {
        fs::write(dir.join("a"), vec![5; 100_000])?;
        let (from, to) = (File::open(dir.join("a"))?, open(&dir.join("b"))?);
        let (mut at, mut to_at) = (1000i64, 7i64);
        // SAFETY: two offsets that live through the call.
        let copied = done(unsafe {
            let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
            let (at, to_at): (*mut i64, *mut i64) = (&mut at, &mut to_at);
            syscall(SYS_COPY_FILE_RANGE, from, at, to, to_at, 50_000usize, 0 as c_uint)
        })?;
        want!(copied == 50_000 && fs::metadata(dir.join("b"))?.len() == 50_007);
        Ok(())
    }),
    ("modes, times and truncation", |dir| {
        let file = open(&dir.join("f"))?;
        file.set_permissions(fs::Permissions::from_mode(0o6751))?;
        want!(file.metadata()?.mode() & 0o7777 == 0o6751);
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
        file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))?;
        want!(fs::metadata(dir.join("f"))?.modified()? == time);
        fs::write(dir.join("f"), "0123456789")?;
        OpenOptions::new().write(true).open(dir.join("f"))?.set_len(4)?;
        want!(fs::read(dir.join("f"))? == b"0123");
        want!(file.metadata()?.ctime() > 1_500_000_000);
        Ok(())
    }),
    ("locks of flock", |dir| {
        let (a, b) = (open(&dir.join("f"))?, open(&dir.join("f"))?);
        // SAFETY: no memory is passed.
        unsafe {
            done(flock(a.as_raw_fd(), LOCK_EX))?;
            want!(is(done(flock(b.as_raw_fd(), LOCK_EX | LOCK_NB)), 11));
            done(flock(a.as_raw_fd(), LOCK_UN))?;
            done(flock(b.as_raw_fd(), LOCK_EX | LOCK_NB))?;
        }
        drop(b);
        // SAFETY: no memory is passed.
        done(unsafe { flock(a.as_raw_fd(), LOCK_EX | LOCK_NB) })?;
        Ok(())
    }),
    ("locks of ranges", |dir| {
        let file = open(&dir.join("f"))?;
        for start in [0, 100, 1 << 40] {
            let mut lock = Lock { kind: 1, whence: 0, start, len: 50, pid: 0 };
            // SAFETY: a lock that lives through the call.
            done(unsafe { fcntl(file.as_raw_fd(), F_SETLK, &mut lock) })?;
        }
        Ok(())
    }),
    ("locks of open files", |dir| {
        let (a, b) = (open(&dir.join("f"))?, open(&dir.join("f"))?);
        let lock = |file: &File| {
            let mut lock = Lock { kind: 1, whence: 0, start: 7, len: 1, pid: 0 };
            // SAFETY: a lock that lives through the call.
            done(unsafe { fcntl(file.as_raw_fd(), F_OFD_SETLK, &mut lock) })
        };
        lock(&a)?;
        want!(is(lock(&b), 11));
        drop(a);
        // Nobody waits for a file's last close.
        let until = Instant::now() + Duration::from_secs(30);
        while is(lock(&b), 11) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        lock(&b)?;
        Ok(())
    }),
    ("a removed file that is open", |dir| {
        let mut file = open(&dir.join("f"))?;
        file.write_all(b"gone")?;
        fs::remove_file(dir.join("f"))?;
        file.set_len(3)?;
        file.seek(SeekFrom::Start(0))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        want!(text == "gon" && file.metadata()?.nlink() == 0);
        Ok(())
    }),
    ("many entries", |dir| {
        for n in 0..90 {
            fs::write(dir.join(format!("a file with a name of some length {n}")), "")?;
        }
        want!(fs::read_dir(dir)?.count() == 90);
        for entry in fs::read_dir(dir)? {
            fs::remove_file(entry?.path())?;
        }
        want!(fs::read_dir(dir)?.count() == 0);
        Ok(())
    }),
    ("a directory that is emptied while it is read, by a program with little room", |dir| {
        (0..90).try_for_each(|n| fs::write(dir.join(format!("name {n}")), ""))?;
        let open = File::open(dir)?;
        let mut room = [0u8; 512];
        loop {
            let (fd, len) = (open.as_raw_fd(), room.len());
            // SAFETY: a buffer with its length.
            let len = done(unsafe { syscall(SYS_GETDENTS64, fd, room.as_mut_ptr(), len) })?;
            let mut rest = room.get(..len as usize).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            // `struct linux_dirent64`: 16 bytes, its length, a byte, and the name.
            while let Some(&[low, high]) = rest.get(16..18) {
                let (entry, more) = rest.split_at(u16::from_ne_bytes([low, high]).into());
                let name = CStr::from_bytes_until_nul(entry.get(19..).unwrap_or_default())?;
                if name.to_bytes().starts_with(b"name") {
                    fs::remove_file(dir.join(OsStr::from_bytes(name.to_bytes())))?;
                }
                rest = more;
            }
        }
        want!(fs::read_dir(dir)?.count() == 0);
        Ok(())
    }),
    ("FIFOs", |dir| {
        let path = dir.join("fifo");
        // SAFETY: a string that a NUL ends.
        done(unsafe { mkfifo(text(&path)?.as_ptr(), 0o600) })?;
        let fifo = open(&path)?;
        (&fifo).write_all(b"through")?;
        let mut bytes = [0; 7];
        (&fifo).read_exact(&mut bytes)?;
        want!(&bytes == b"through");
        Ok(())
    }),
    ("names", |dir| {
        want!(is(fs::write(dir.join("x".repeat(256)), ""), 36));
        fs::write(dir.join("x".repeat(255)), "")?;
        let odd = OsStr::from_bytes(b"\xff\x01 \n*");
        fs::write(dir.join(odd), "odd")?;
        want!(fs::read_dir(dir)?.flatten().any(|entry| entry.file_name() == odd));
        Ok(())
    }),
];

fn check(dir: &Path) -> Result<()> {
    let mut broken = 0;
    for (n, (name, keep)) in PROMISES.iter().enumerate() {
        let own = dir.join(format!("promise-{n}"));
        fs::create_dir(&own)?;
        if let Err(e) = keep(&own) {
            println!("BROKEN {name}: {e}");
            broken += 1;
        }
        if let Err(e) = fs::remove_dir_all(&own) {
            println!("BROKEN {name}: {}: {e}", own.display());
            broken += 1;
        }
    }
    println!("promises={}", PROMISES.len());
    println!("broken={broken}");
    Ok(())
}

/// A shared mapping of a file's first bytes.
struct Mapping(*mut u8, usize);

impl Mapping {
    fn of(file: &File, len: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh mapping of the kernel's choice, readable, writable and shared.
        let at = unsafe { mmap(std::ptr::null_mut(), len, 3, 1, file.as_raw_fd(), 0) };
        if at.addr() == usize::MAX {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping(at.cast(), len))
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1);
        // SAFETY: within the mapping, as was just asserted, and of no other thread's interest.
        unsafe { self.0.add(at).copy_from(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made in `of`, and never used again.
        unsafe { munmap(self.0.cast(), self.1) };
    }
}

/// Does at random what can be done with a file's data, and compares it with what it should be.
fn exercise(path: &Path, seed: &str, rounds: &str) -> Result<()> {
    const MAX: u64 = 300_000;
    let (mut state, rounds): (u64, u32) = (seed.parse()?, rounds.parse()?);
    let mut random = |below: u64| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    };
    let mut file = open(path)?;
    let mut model: Vec<u8> = Vec::new();
    for round in 0..rounds {
        let at = random(MAX);
        let len = random(20_000) + 1;
        let what = random(8);
        let end = (at + len) as usize;
        match what {
            0..=2 => {
                let bytes: Vec<u8> = (0..len).map(|n| (n + u64::from(round)) as u8).collect();
                file.write_all_at(&bytes, at)?;
                model.resize(model.len().max(end), 0);
                model.get_mut(at as usize..end).ok_or("model")?.copy_from_slice(&bytes);
            }
            3 => {
                file.set_len(at)?;
                model.resize(at as usize, 0);
            }
            4 => {
                // SAFETY: no memory is passed.
                done(unsafe { fallocate(file.as_raw_fd(), PUNCH, at as i64, len as i64) })?;
                let (from, to) = ((at as usize).min(model.len()), end.min(model.len()));
                model.get_mut(from..to).ok_or("model")?.fill(0);
            }
            5 if model.len() > 10 => {
                let place = random(model.len() as u64 - 8) as usize;
                let mapped = Mapping::of(&file, model.len())?;
                mapped.write(place, &round.to_le_bytes());
                model
                    .get_mut(place..place + 4)
                    .ok_or("model")?
                    .copy_from_slice(&round.to_le_bytes());
            }
            6 => {
                file.sync_all()?;
                file = open(path)?;
            }
            _ => {
                let mut bytes = vec![0; len as usize];
                let got = file.read_at(&mut bytes, at)?;
                let wanted = model.get(at as usize..end.min(model.len())).unwrap_or_default();
                if bytes.get(..got) != Some(wanted) {
                    return Err(format!("round {round}: {got} bytes at {at} are others").into());
                }
            }
        }
        if file.metadata()?.len() != model.len() as u64 {
            return Err(format!("round {round}, {what}: the length is not {}", model.len()).into());
        }
    }
    file.sync_all()?;
    drop(file);
    want!(fs::read(path)? == model);
    println!("exercised={}", model.len());
    Ok(())
}

fn lock(path: &Path) -> Result<()> {
    let file = open(path)?;
    // SAFETY: no memory is passed.
    done(unsafe { flock(file.as_raw_fd(), LOCK_EX) })?;
    println!("LOCKED");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
