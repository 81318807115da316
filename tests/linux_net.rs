//! Networks carry what is sent, both ways: through TAPs of every origin and between two guests; in a
//! network namespace of the test's own, so that the host's stays as it is.

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

use guest::network::{enter_namespace, fetch, ip};
use guest::tools::{host, sha256, try_host};
use guest::{Lab, PATIENCE};

/// What is sent through TCP, each way.
const AMOUNT: usize = 100 << 20;

/// Whether there is an interface of that name in the namespace.
fn exists(name: &str) -> bool {
    try_host("ip", ["-o", "link", "show", "dev", name]).0 == 0
}

/// A TAP made by the line in the README, but for its name and address.
fn make_tap_as_the_readme_says(name: &str, address: &str) {
    let readme = include_str!("../README.md");
    let line =
        readme.lines().map(str::trim).find(|line| line.starts_with("ip tuntap add")).unwrap();
    let words = line.replace("tap0", name).replace("172.31.0.1/30", address);
    assert!(words.contains(name) && words.contains(address), "{words}");
    host("sh", ["-ec", &format!("USER=root; {words}")]);
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
    make_tap_as_the_readme_says("byname", "10.0.0.1/24");
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
        .args("--net tap=byname,vhost=off")
        .arg("--net")
        .arg(format!("fd={},id=given,vhost=off", inherited.as_raw_fd()))
        .args("--net tap=husksown,mac=52:54:00:12:34:56,vhost=off")
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
    let mut stream = connect("10.0.0.2:5001");
    stream.write_all(&sent).unwrap();
    drop(stream);
    guest.wait_for("rx=");
    let to_guest = began.elapsed();
    guest.wait_for("RECEIVED");
    // A web server sends a file in large pieces, whatever the guest's speed: what it may save in
    // frames is then the network card's doing. (`nc` writes 1 KiB at a time.)
    let began = Instant::now();
    let mut stream = connect("10.0.0.2:5002");
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
        expect_offloads(done.fact(&format!("features{n}")), &format!("eth{n}"));
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

/// Ends the test unless a card has CSUM, GUEST_CSUM, MAC, GUEST_TSO4 and 6, HOST_TSO4 and 6, MRG_RXBUF,
/// EVENT_IDX, VERSION_1.
#[track_caller]
fn expect_offloads(features: &str, card: &str) {
    for bit in [0, 1, 5, 7, 8, 11, 12, 15, 29, 32] {
        assert_eq!(&features[bit..=bit], "1", "feature {bit} of {card}: {features}");
    }
}

/// Connects to a program of the guest's that was started in the background, and may not listen yet.
fn connect(address: &str) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                assert!(Instant::now() < deadline, "nobody listens at {address}");
                std::thread::sleep(Duration::from_millis(20));
            }
            connected => return connected.unwrap(),
        }
    }
}

#[test]
fn two_guests_talk_over_a_link_and_either_may_come_back() {
    let Some(lab) = Lab::open() else { return };
    let script = |own: u8, other: u8| {
        format!(
            r#"
ifconfig eth0 10.0.9.{own} netmask 255.255.255.0 up
mkdir /host
while read -r module; do insmod /lib/$module; done </lib/modules.more
mount -t virtiofs host /host
mount -t tmpfs none /host/tmp
at_host() {{ PATH=$PATH:/usr/bin chroot /host "$@"; }}
echo UP
read line
while ! ping -c 1 -W 2 10.0.9.{other} >/dev/null; do :; done
echo "mtu=$(cat /sys/class/net/eth0/mtu)"
echo PINGED
read line
if [ "$line" = serve ]; then
    mkdir /served
    dd if=/dev/urandom of=/served/data bs=1M count=8 2>/dev/null
    echo "hash=$(sha256sum /served/data | cut -d' ' -f1)"
    httpd -p 80 -h /served
    at_host iperf3 -s >/dev/null &
fi
if [ "$line" = fetch ]; then
    wget -q -O /data http://10.0.9.{other}/data
    echo "fetched=$? $(sha256sum /data | cut -d' ' -f1)"
    echo "features=$(cat /sys/class/net/eth0/device/features)"
    # Each way. The server may have yet to listen.
    for way in tx rx; do
        reverse=; [ $way = rx ] && reverse=-R
        while
            packets=$(cat /sys/class/net/eth0/statistics/${{way}}_packets)
            bytes=$(cat /sys/class/net/eth0/statistics/${{way}}_bytes)
            said=$(at_host iperf3 -c 10.0.9.{other} -n 4M -M 1400 -f m $reverse 2>&1)
            [ $? != 0 ]
        do usleep 100000; done
        echo "$way=$(($(cat /sys/class/net/eth0/statistics/${{way}}_packets) - packets))"
        echo "bytes-$way=$(($(cat /sys/class/net/eth0/statistics/${{way}}_bytes) - bytes))"
        echo "speed-$way=$(echo "$said" | grep receiver | sed 's/.*Bytes *//; s/ *receiver//')"
    done
fi
echo SETTLED
read line
echo "carrier=$(cat /sys/class/net/eth0/carrier)"
while ! ping -c 1 -W 2 10.0.9.{other} >/dev/null; do :; done
echo AGAIN
read line
exit 0
"#
        )
    };
    let net = format!("--net link=test-{},mtu=9000", std::process::id());
    // iperf3 is the host's.
    let start = |own, other| {
        lab.guest().args(&net).args("--volume /:host:ro").script(&script(own, other)).start()
    };
    let (mut a, mut b) = (start(1, 2), start(2, 1));
    for guest in [&mut a, &mut b] {
        guest.wait_for("UP");
        guest.type_line("ping");
        guest.wait_for("PINGED");
    }
    a.type_line("serve");
    a.wait_for("SETTLED");
    b.type_line("fetch");
    b.wait_for("SETTLED");
    let third = lab.guest().args(&net).script("exit 0").run();
    third.expect_status(125).expect_stderr("two VMs already");

    // The one that listened leaves, without a farewell, and another takes its place.
    a.signal(libc::SIGKILL);
    let left = a.finish();
    let mut a = start(1, 2);
    a.wait_for("UP");
    for guest in [&mut a, &mut b] {
        guest.type_line("ping");
    }
    a.wait_for("PINGED");
    b.wait_for("AGAIN");
    a.signal(libc::SIGKILL);
    b.type_line("that is all");
    let done = b.finish();
    done.expect_clean();
    done.expect_fact("mtu", "9000");
    done.expect_fact("fetched", &format!("0 {}", left.fact("hash")));
    // Checksums and segmentation are left to the other guest: else no frame carried more than 1400 bytes,
    // and its headers. However slow the machine, Linux then sends two segments at once
    // (`tcp_min_tso_segs`); what it sends again, one at a time, cannot make them smaller than that.
    expect_offloads(done.fact("features"), "eth0");
    for way in ["tx", "rx"] {
        let packets = done.number(way);
        let bytes = done.number(&format!("bytes-{way}"));
        // The last ones sent may have yet to be counted.
        assert!(bytes > 2 << 20, "{way}: {bytes} bytes for 4 MiB");
        assert!(bytes > packets * 1500, "{way}: {packets} frames for {bytes} bytes");
        eprintln!("{way}: {packets} frames, {}", done.fact(&format!("speed-{way}")));
    }
}

#[test]
fn a_card_has_the_queues_and_the_mtu_of_its_tap() {
    let Some(lab) = Lab::open() else { return };
    enter_namespace();
    ip("tuntap add dev many mode tap multi_queue");
    ip("link set many mtu 1400");
    ip("address add 10.0.0.1/24 dev many");
    ip("link set many up");
    ip("tuntap add dev single mode tap");
    let script = r#"
for n in 0 1 2; do
    echo "queues$n=$(ls /sys/class/net/eth$n/queues | tr '\n' ' ')"
    echo "mtu$n=$(cat /sys/class/net/eth$n/mtu)"
done
ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up
mkdir /served
dd if=/dev/urandom of=/served/data bs=1M count=4 2>/dev/null
echo "hash=$(sha256sum /served/data | cut -d' ' -f1)"
httpd -p 80 -h /served
echo SERVING
read line
while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do usleep 100000; done
echo "carrier=$(cat /sys/class/net/eth0/carrier)"
exit 0
"#;
    let mut guest = lab
        .guest()
        .args("--cpus 2 --memory 768M")
        .args("--net tap=many,vhost=off --net tap=single,vhost=off")
        .args("--net tap=own,queues=3,mtu=2000,vhost=off")
        .script(script)
        .start();
    guest.wait_for("SERVING");
    // Several connections, which the host spreads over the queues.
    let fetchers: Vec<_> =
        (0..6).map(|_| std::thread::spawn(|| sha256_of_page("10.0.0.2:80"))).collect();
    let hashes: Vec<_> = fetchers.into_iter().map(|f| f.join().unwrap()).collect();
    // Deleted under the guest, a TAP is a cable that is pulled, and husk says so once for all its queues.
    ip("link delete many");
    guest.type_line("that is all");
    let done = guest.finish();
    done.expect_status(0).expect("HUSK-EXIT 0").expect_stderr("TAP many is gone");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    done.expect_fact("carrier", "0");
    for hash in hashes {
        done.expect_fact("hash", &hash);
    }
    done.expect_fact("queues0", "rx-0 rx-1 tx-0 tx-1").expect_fact("mtu0", "1400");
    done.expect_fact("queues1", "rx-0 tx-0").expect_fact("mtu1", "1500");
    // Linux uses no more pairs than it has processors.
    done.expect_fact("mtu2", "2000");
    assert!(done.fact("queues2").contains("rx-1"), "{}", done.fact("queues2"));
    let refused = lab.guest().args("--net tap=single,queues=2").script("exit 0").run();
    refused.expect_status(125).expect_stderr("multi_queue");
}

/// How many descriptors of `path` a process has.
fn count_open(pid: u32, path: &str) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    links.filter(|link| link.to_str() == Some(path)).count()
}

#[test]
fn the_hosts_kernel_moves_the_frames_and_goes_on_after_a_reboot() {
    let Some(lab) = Lab::open() else { return };
    enter_namespace();
    let script = r#"
for n in 0 1; do ifconfig eth$n 10.0.$n.2 netmask 255.255.255.0 up; done
echo CARDS-UP
read line
ping -c 2 -W 10 10.0.1.1 >/dev/null; echo "ping$line=$?"
mkdir /served
dd if=/dev/urandom of=/served/data bs=1M count=4 2>/dev/null
echo "hash$line=$(sha256sum /served/data | cut -d' ' -f1)"
nc -l -p 5001 </dev/null >/data &
nc=$!
httpd -p 80 -h /served
echo SERVING
wait $nc
echo "got$line=$(sha256sum /data | cut -d' ' -f1)"
echo RECEIVED
read line
[ "$line" = reboot ] && reboot -f
while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do usleep 100000; done
echo "carriers=$(cat /sys/class/net/eth0/carrier /sys/class/net/eth1/carrier | tr '\n' ' ')"
echo "queues=$(ls /sys/class/net/eth0/queues | tr '\n' ' ')"
exit 0
"#;
    // An inherited one has one queue.
    let inherited = open_tap("given");
    ip("address add 10.0.1.1/24 dev given");
    ip("link set given up");
    let mut guest = lab
        .guest()
        .args("--cpus 2 --memory 768M --net tap=kernels,vhost=on")
        .arg("--net")
        .arg(format!("fd={},vhost=on", inherited.as_raw_fd()))
        .inherit(inherited.as_raw_fd())
        .script(script)
        .start();
    let sent = noise().split_off(AMOUNT - (16 << 20));
    let hash = sha256(&sent);
    let mut served = Vec::new();
    for round in 0..2 {
        guest.wait_for("CARDS-UP");
        assert_eq!(count_open(guest.pid(), "/dev/vhost-net"), 3);
        if round == 0 {
            ip("address add 10.0.0.1/24 dev kernels");
            ip("link set kernels up");
        }
        guest.type_line(&round.to_string());
        guest.wait_for("SERVING");
        let mut stream = connect("10.0.0.2:5001");
        stream.write_all(&sent).unwrap();
        drop(stream);
        let fetchers: Vec<_> =
            (0..4).map(|_| std::thread::spawn(|| sha256_of_page("10.0.0.2:80"))).collect();
        let hashes: Vec<_> = fetchers.into_iter().map(|f| f.join().unwrap()).collect();
        served.push(hashes);
        guest.wait_for("RECEIVED");
        if round < 1 {
            guest.type_line("reboot");
        }
    }
    // Nobody reads from a TAP that the kernel has; that it was deleted is noticed all the same.
    ip("link delete kernels");
    guest.type_line("that is all");
    let done = guest.finish();
    done.expect_status(0).expect("HUSK-EXIT 0").expect_stderr("TAP kernels is gone");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    done.expect_fact("carriers", "0 1");
    done.expect_fact("queues", "rx-0 rx-1 tx-0 tx-1");
    for (round, hashes) in served.iter().enumerate() {
        done.expect_fact(&format!("got{round}"), &hash);
        done.expect_fact(&format!("ping{round}"), "0");
        for served in hashes {
            done.expect_fact(&format!("hash{round}"), served);
        }
    }
}

fn sha256_of_page(address: &str) -> String {
    let answer = fetch(address, "/data");
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    sha256(&answer[body..])
}
