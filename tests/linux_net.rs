//! Networks carry what is sent, both ways, through TAPs of every origin; in a network namespace of
//! the test's own, so that the host's stays as it is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use guest::tools::{host, sha256, try_host};
use guest::{Lab, PATIENCE};

/// What is sent through TCP, each way.
const AMOUNT: usize = 100 << 20;

/// Puts this thread, and what it starts, into a network namespace of its own.
fn enter_namespace() {
    // SAFETY: unshare takes no pointers; it changes this thread only.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "a network namespace: {}", std::io::Error::last_os_error());
    ip("link set lo up");
}

#[track_caller]
fn ip(words: &str) {
    host("ip", words.split_whitespace());
}

/// Whether there is an interface of that name in the namespace.
fn exists(name: &str) -> bool {
    try_host("ip", ["-o", "link", "show", "dev", name]).0 == 0
}

/// A TAP as a descriptor, its interface called `name`; it goes when the descriptor does.
fn open_tap(name: &str) -> OwnedFd {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // struct ifreq: 16 bytes of name, 2 of flags, 22 of others.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes an ifreq, which is 40 bytes long.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(done, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file.into()
}

/// Noise, and every 4 MiB a number.
fn noise() -> Vec<u8> {
    let mut noise = vec![0; 4 << 20];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let mut all = Vec::with_capacity(AMOUNT + noise.len());
    for n in 0u64.. {
        all.extend_from_slice(&n.to_le_bytes());
        all.extend_from_slice(&noise);
        if all.len() >= AMOUNT {
            break;
        }
    }
    all.truncate(AMOUNT);
    all
}

#[test]
fn taps_by_name_by_descriptor_and_made_by_husk_carry_pings_and_tcp() {
    let Some(lab) = Lab::open() else { return };
    enter_namespace();
    ip("tuntap add dev byname mode tap");
    ip("address add 10.0.0.1/24 dev byname");
    ip("link set byname up");
    let inherited = open_tap("byfd");
    ip("address add 10.0.1.1/24 dev byfd");
    ip("link set byfd up");
    let script = r#"
for n in 0 1 2; do
    ifconfig eth$n 10.0.$n.2 netmask 255.255.255.0 up
    echo "mac$n=$(cat /sys/class/net/eth$n/address)"
    echo "features$n=$(cat /sys/class/net/eth$n/device/features)"
done
echo "cards=$(ls /sys/class/net | grep -c eth)"
mkdir /served
nc -l -p 5001 </dev/null >/served/data &
nc=$!
httpd -p 5002 -h /served
echo CARDS-UP
read line
for n in 0 1 2; do
    ping -c 3 -W 10 10.0.$n.1 >/dev/null; echo "ping$n=$?"
done
ping -c 2 -s 1400 10.0.0.1 >/dev/null; echo "large=$?"
echo PINGED
wait $nc
echo "rx=$(cat /sys/class/net/eth0/statistics/rx_packets)"
echo "hash=$(sha256sum /served/data | cut -d' ' -f1)"
echo RECEIVED
read line
echo "tx=$(cat /sys/class/net/eth0/statistics/tx_packets)"
exit 0
"#;
    let mut guest = lab
        .guest()
        .args("--cpus 2 --memory 768M")
        .args("--net tap=byname")
        .arg("--net")
        .arg(format!("fd={},id=given", inherited.as_raw_fd()))
        .args("--net tap=husksown,mac=52:54:00:12:34:56")
        .inherit(inherited.as_raw_fd())
        .script(script)
        .start();
    guest.wait_for("CARDS-UP");
    assert!(exists("husksown"), "husk made no TAP");
    ip("address add 10.0.2.1/24 dev husksown");
    ip("link set husksown up");
    guest.type_line("go on");
    guest.wait_for("PINGED");
    for n in 0..3 {
        let to = format!("10.0.{n}.2");
        let (status, said) = try_host("busybox", ["ping", "-c", "3", "-W", "10", &to]);
        assert_eq!(status, 0, "{said}");
    }

    let sent = noise();
    let hash = sha256(&sent);
    let began = Instant::now();
    let mut stream = TcpStream::connect("10.0.0.2:5001").unwrap();
    stream.write_all(&sent).unwrap();
    drop(stream);
    guest.wait_for("rx=");
    let to_guest = began.elapsed();
    guest.wait_for("RECEIVED");
    // A web server sends a file in large pieces, whatever the guest's speed: what it may save in
    // frames is then the network card's doing. (`nc` writes 1 KiB at a time.)
    let began = Instant::now();
    let mut stream = TcpStream::connect("10.0.0.2:5002").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /data HTTP/1.0\r\n\r\n").unwrap();
    let mut back = Vec::with_capacity(AMOUNT + 1024);
    stream.read_to_end(&mut back).unwrap();
    drop(stream);
    let from_guest = began.elapsed();
    guest.type_line("that is all");
    let done = guest.finish();
    done.expect_clean();
    done.expect_fact("hash", &hash);
    assert!(back.ends_with(&sent), "{} bytes came back, or others", back.len());
    let rate = |took: Duration| (AMOUNT >> 20) as f64 / took.as_secs_f64();
    eprintln!("{:.0} MiB/s to the guest, {:.0} from it", rate(to_guest), rate(from_guest));

    for name in ["ping0", "ping1", "ping2", "large"] {
        done.expect_fact(name, "0");
    }
    done.expect_fact("cards", "3");
    // Segments travel whole: without the offloads a frame has at most 1448 bytes, so that there could
    // not be fewer frames than this.
    let frames = (AMOUNT / 1448) as u64;
    for way in ["rx", "tx"] {
        let packets = done.number(way);
        assert!(packets < frames, "{way}: {packets} packets of at least {frames}");
    }
    for n in 0..3 {
        let features = done.fact(&format!("features{n}"));
        // CSUM, GUEST_CSUM, MAC, GUEST_TSO4 and 6, HOST_TSO4 and 6, MRG_RXBUF, EVENT_IDX, VERSION_1
        for bit in [0, 1, 5, 7, 8, 11, 12, 15, 29, 32] {
            assert_eq!(&features[bit..=bit], "1", "feature {bit} of eth{n}: {features}");
        }
    }

    // An address of its own for each, unicast and locally administered, and one as wanted.
    let (first, second) = (done.fact("mac0"), done.fact("mac1"));
    assert_ne!(first, second);
    for mac in [first, second] {
        let start = u8::from_str_radix(&mac[..2], 16).unwrap();
        assert_eq!(start & 3, 2, "{mac}");
    }
    done.expect_fact("mac2", "52:54:00:12:34:56");

    assert!(!exists("husksown"), "husk's own TAP is still there");
    assert!(exists("byname") && exists("byfd"), "a TAP that is not husk's has gone");

    // The same id has the same address on another TAP, in another VM.
    let script = r#"echo "mac=$(cat /sys/class/net/eth0/address)""#;
    let again = lab.guest().args("--net tap=another,id=given").script(script).run();
    again.expect_clean().expect_fact("mac", second);
    assert!(!exists("another"));
}
