//! Sockets between guest and host carry what is sent, both ways, many at once, and over the end of
//! one boot to the next.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guest::process::cpu_time;
use guest::tools::sha256;
use guest::{Lab, PATIENCE};

/// Connects to the device's socket, as soon as there is one, and says the line. Gives the stream
/// and the answer's line, or what there is of it.
fn dial(socket: &Path, port: u32) -> (UnixStream, String) {
    let begin = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            // Between bind(2) and listen(2) there is a name and nobody behind it.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                assert!(begin.elapsed() < PATIENCE, "there is no {}", socket.display());
                thread::yield_now();
            }
            Err(e) => panic!("{e}"),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    (stream, String::from_utf8(line).unwrap())
}

/// The same for a port of the guest's where somebody listens.
fn connect(socket: &Path, port: u32) -> UnixStream {
    let (stream, line) = dial(socket, port);
    assert!(line.starts_with("OK "), "{line:?}");
    stream
}

/// Bytes that differ with their place and with `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Sends `bytes` to who echoes them, and compares.
fn through_echo(stream: &UnixStream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    thread::scope(|scope| {
        let mut sending = stream;
        scope.spawn(move || sending.write_all(bytes).unwrap());
        let mut receiving = stream;
        receiving.read_exact(&mut back).unwrap();
    });
    assert!(back == bytes, "other bytes came back");
}

/// Writes until nothing has been taken for a while.
fn fill(mut stream: &UnixStream) {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while stream.write(&[0; 4096]).is_ok() {}
    stream.set_write_timeout(None).unwrap();
}

/// A connection has a descriptor here.
fn raise_descriptors(wanted: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes an rlimit, setrlimit reads one.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        assert!(limit.rlim_max >= wanted, "the limit of descriptors is {}", limit.rlim_max);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

#[test]
fn connections_of_both_sides_carry_every_byte_and_end_each_way_by_itself() {
    const AMOUNT: usize = 16 << 20;
    let Some(lab) = Lab::open() else { return };
    let socket = lab.path("v.sock");
    // The guest's program finds nobody, then somebody who sends everything back after its end.
    let script = r#"
vsock echo 5000 &
vsock serve 5001 sha256sum &
vsock serve 5002 cat /dev/zero &
vsock serve 5003 sleep 1000 &
vsock connect 2 6001 </dev/null; echo "nobody=$?"
head -c 3000000 /dev/urandom >/sent
echo "sent=$(sha256sum </sent | cut -d' ' -f1)"
vsock connect 2 6000 </sent >/back; echo "connected=$?"
echo "back=$(sha256sum </back | cut -d' ' -f1)"
read line
exit 0
"#;
    let listener = UnixListener::bind(lab.path("v.sock_6000")).unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
        all
    });
    let vsock = format!("cid=42,socket={}", socket.display());
    let mut guest = lab.guest().arg("--vsock").arg(vsock).script(script).start();
    let (_, line) = dial(&socket, 5000);
    assert_eq!(line, "ERROR the guest is not ready\n");
    for _ in 0..4 {
        guest.wait_for("VSOCK-SERVES");
    }
    let (_, line) = dial(&socket, 4999);
    assert_eq!(line, "ERROR the guest refuses port 4999\n");

    // Those whose bytes nobody takes are in nobody's way, and cost nothing.
    let mut unread = connect(&socket, 5002);
    let stuck = connect(&socket, 5003);
    fill(&stuck);
    // The guest's own hashing is done.
    guest.wait_for("back=");
    let before = cpu_time(guest.pid());
    thread::sleep(Duration::from_secs(2));
    let used = cpu_time(guest.pid()) - before;
    assert!(used < Duration::from_secs(1), "{used:?} of processor time in 2 s");
    let begin = Instant::now();
    through_echo(&connect(&socket, 5000), &noise(1, AMOUNT));
    let took = begin.elapsed().as_secs_f64();
    eprintln!("{:.0} MiB/s there and back", (AMOUNT >> 20) as f64 / took);
    let mut zeroes = vec![1; 1 << 20];
    unread.read_exact(&mut zeroes).unwrap();
    assert!(zeroes == vec![0; 1 << 20]);
    drop(unread);

    let mut hashed = connect(&socket, 5001);
    let bytes = noise(2, 3_000_000);
    hashed.write_all(&bytes).unwrap();
    hashed.shutdown(Shutdown::Write).unwrap();
    let mut hash = String::new();
    hashed.read_to_string(&mut hash).unwrap();
    assert_eq!(hash.split_whitespace().next(), Some(sha256(&bytes).as_str()));

    let received = echo.join().unwrap();
    guest.type_line("that is all");
    let done = guest.finish();
    done.expect_clean().expect_fact("nobody", "1").expect_fact("connected", "0");
    let hash = sha256(&received);
    done.expect_fact("sent", &hash).expect_fact("back", &hash);
    assert!(!socket.exists(), "husk left its socket behind");
}

#[test]
fn a_thousand_connections_at_once_are_a_thousand_echoes() {
    const COUNT: usize = 1000;
    raise_descriptors(COUNT as u64 + 100);
    let Some(lab) = Lab::open() else { return };
    let socket = lab.path("v.sock");
    let vsock = format!("socket={}", socket.display());
    let script = "ulimit -n 4096; vsock echo 5000 & read line; exit 0";
    let mut guest = lab.guest().arg("--vsock").arg(vsock).script(script).start();
    guest.wait_for("VSOCK-SERVES 5000");
    let streams: Vec<_> = (0..COUNT).map(|_| connect(&socket, 5000)).collect();
    for (mut stream, n) in streams.iter().zip(0..) {
        stream.write_all(&noise(n, 2000)).unwrap();
    }
    for (mut stream, n) in streams.iter().zip(0..) {
        let mut back = [0; 2000];
        stream.read_exact(&mut back).unwrap();
        assert!(back == *noise(n, 2000), "connection {n}");
    }
    drop(streams);
    through_echo(&connect(&socket, 5000), &noise(3, 100_000));
    guest.type_line("that is all");
    guest.finish().expect_clean();
}

#[test]
fn a_reboot_ends_the_connections_and_the_next_boot_has_its_own() {
    let Some(lab) = Lab::open() else { return };
    let socket = lab.path("v.sock");
    let vsock = format!("socket={}", socket.display());
    let script = "vsock echo 5000 & read line; exit 0";
    let guest = lab.guest().arg("--vsock").arg(vsock).args("--grace 0");
    let mut guest = guest.append("husk.end=reboot").script(script).start();
    for boot in 0..3 {
        guest.wait_for("VSOCK-SERVES 5000");
        let mut stream = connect(&socket, 5000);
        through_echo(&stream, &noise(boot, 10_000));
        guest.type_line("next");
        assert!(matches!(stream.read(&mut [0]), Ok(0)), "boot {boot}");
    }
    guest.wait_for("VSOCK-SERVES 5000");
    guest.signal(libc::SIGTERM);
    guest.finish().expect_status(128 + libc::SIGTERM);
    assert!(!socket.exists(), "husk left its socket behind");
}
