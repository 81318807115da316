//! `vsock`, a program of the guest initramfs images: busybox has nothing that speaks AF_VSOCK
//! (`man 7 vsock`). It is built as one static executable, by rustc alone, and so uses only std.
//!
//! ```text
//! vsock connect CID PORT         standard input to the socket, the socket to standard output
//! vsock serve PORT COMMAND…      runs COMMAND for each connection, which is its input and output
//! vsock echo PORT                sends back what comes, on any number of connections
//! ```

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, ExitCode};
use std::thread;

const AF_VSOCK: u16 = 40;
const SOCK_STREAM: c_int = 1;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const SHUT_WR: c_int = 1;
const VMADDR_CID_ANY: u32 = u32::MAX;
/// Bytes of stack of a connection's thread.
const STACK: usize = 64 << 10;

/// `struct sockaddr_vm`, linux/vm_sockets.h.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: u32,
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const c_void, len: u32) -> c_int;
    fn connect(fd: c_int, address: *const c_void, len: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept4(fd: c_int, address: *mut c_void, len: *mut u32, flags: c_int) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["connect", cid, port] => number(cid).and_then(|cid| pipe(cid, number(port)?)),
        ["echo", port] => number(port).and_then(|port| serve(port, echo)),
        ["serve", port, program, args @ ..] => {
            let (program, args) = ((*program).to_owned(), args.iter().map(|a| (*a).to_owned()));
            let args: Vec<String> = args.collect();
            number(port).and_then(|port| serve(port, move |socket| run(&program, &args, socket)))
        }
        _ => Err(io::Error::other("usage: vsock connect CID PORT | serve PORT CMD… | echo PORT")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vsock: {e}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(|_| io::Error::other(format!("`{text}` is no number")))
}

fn check(done: c_int) -> io::Result<c_int> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn stream() -> io::Result<File> {
    // SAFETY: socket takes no pointers.
    let fd = check(unsafe { socket(AF_VSOCK.into(), SOCK_STREAM | SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was made just now and is nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Calls `bind` or `connect`.
fn with_address(
    call: unsafe extern "C" fn(c_int, *const c_void, u32) -> c_int,
    socket: &File,
    cid: u32,
    port: u32,
) -> io::Result<()> {
    let address = Address { family: AF_VSOCK, reserved: 0, port, cid, rest: 0 };
    let len = size_of::<Address>() as u32;
    // SAFETY: both read `len` bytes at `address`.
    check(unsafe { call(socket.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// Passes everything on, each way, until both have ended.
fn pipe(cid: u32, port: u32) -> io::Result<()> {
    let socket = stream()?;
    with_address(connect, &socket, cid, port)?;
    let mut sending = socket.try_clone()?;
    let sender = thread::spawn(move || -> io::Result<()> {
        io::copy(&mut io::stdin(), &mut sending)?;
        // SAFETY: shutdown takes no pointers.
        check(unsafe { shutdown(sending.as_raw_fd(), SHUT_WR) }).map(drop)
    });
    io::copy(&mut &socket, &mut io::stdout())?;
    match sender.join() {
        Ok(sent) => sent,
        Err(_) => Err(io::Error::other("the sending thread panicked")),
    }
}

/// Does `work` for each connection, all at the same time, for ever.
fn serve(
    port: u32,
    work: impl Fn(File) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    let listening = stream()?;
    with_address(bind, &listening, VMADDR_CID_ANY, port)?;
    // SAFETY: listen takes no pointers.
    check(unsafe { listen(listening.as_raw_fd(), 1024) })?;
    println!("VSOCK-SERVES {port}");
    loop {
        let none = std::ptr::null_mut::<u32>();
        // SAFETY: without an address accept4 writes nothing.
        let fd = unsafe { accept4(listening.as_raw_fd(), none.cast(), none, SOCK_CLOEXEC) };
        let fd = check(fd)?;
        // SAFETY: the descriptor was made just now and is nobody else's.
        let socket = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let work = work.clone();
        thread::Builder::new().stack_size(STACK).spawn(move || {
            if let Err(e) = work(socket) {
                eprintln!("vsock: port {port}: {e}");
            }
        })?;
    }
}

fn echo(mut socket: File) -> io::Result<()> {
    let mut bytes = [0; 16 << 10];
    loop {
        let count = socket.read(&mut bytes)?;
        match bytes.get(..count) {
            None | Some([]) => return Ok(()),
            Some(some) => socket.write_all(some)?,
        }
    }
}

fn run(program: &str, args: &[String], socket: File) -> io::Result<()> {
    Command::new(program).args(args).stdin(socket.try_clone()?).stdout(socket).status().map(drop)
}
