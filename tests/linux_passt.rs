//! A guest without a TAP reaches the host through passt, by IPv4 and by IPv6, and is reached at its published
//! ports; and passt ends with its VM.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use guest::network::{enter_namespace, fetch, ip};
use guest::tools::{host, sha256};
use guest::{Lab, PATIENCE, skipped};

/// Somebody who is nobody in particular.
const USER: u32 = 4321;

/// Answers every connection to a port of the host's loopback with a web page.
fn serve(address: &str, page: &'static str) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The request is known; whoever goes away early will not miss the answer.
            let _ = stream.read(&mut [0; 1024]);
            let length = page.len();
            let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{page}");
        }
    });
    port
}

/// The passt processes whose parent is `pid`.
fn passts(pid: u32) -> Vec<u32> {
    let is_child = |stat: &str| {
        let (name, rest) = stat.rsplit_once(')')?;
        let parent: u32 = rest.split_whitespace().nth(1)?.parse().ok()?;
        (name.contains("(passt") && parent == pid).then_some(())
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| is_child(&stat).is_some())
        })
        .collect()
}

fn wait_gone(pid: u32) {
    let deadline = Instant::now() + PATIENCE;
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_guest_without_a_tap_reaches_the_host_and_is_reached_at_its_published_port() {
    let Some(lab) = Lab::open() else { return };
    enter_namespace();
    // passt has IPv6 when an interface has, beside the loopback.
    ip("link add uplink type veth peer name peer");
    ip("link set uplink up");
    ip("link set peer up");
    let deadline = Instant::now() + PATIENCE;
    while !host("ip", ["-6", "addr", "show", "dev", "uplink"]).contains("scope link") {
        assert!(Instant::now() < deadline, "no link-local address");
        std::thread::sleep(Duration::from_millis(20));
    }
    let port = serve("127.0.0.1:0", "a page of the host");
    let port6 = serve("[::1]:0", "a page by IPv6");
    let script = format!(
        r#"
cat >/dhcp <<'EOF'
#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig $interface $ip netmask $subnet up
route add default gw $router
echo "address=$ip/$subnet via $router"
EOF
chmod +x /dhcp
ifconfig eth0 up
udhcpc -i eth0 -n -q -f -s /dhcp >/dhcp.log 2>&1
grep address= /dhcp.log || cat /dhcp.log
echo "mtu=$(cat /sys/class/net/eth0/mtu)"
echo "page=$(wget -q -O - http://10.0.2.2:{port}/)"
until ip -6 addr show dev eth0 scope global | grep -v tentative | grep -q inet6; do usleep 100000; done
echo "address6=$(ip -6 addr show dev eth0 scope global | sed -n 's/.*inet6 \([^ ]*\) .*/\1/p' | head -n 1)"
echo "page6=$(wget -q -O - 'http://[fd68:7573:6b::2]:{port6}/')"
mkdir /served
dd if=/dev/urandom of=/served/data bs=1M count=16 2>/dev/null
echo "hash=$(sha256sum /served/data | cut -d' ' -f1)"
httpd -p 80 -h /served
echo SERVING
read line
echo "carrier=$(cat /sys/class/net/eth0/carrier)"
echo KILL-IT
read line
while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do usleep 100000; done
echo "after=$(cat /sys/class/net/eth0/carrier)"
"#
    );
    let guest =
        lab.guest().args("--net user --publish 127.0.0.1:18080:80 --publish [::1]:18081:80");
    let mut guest = guest.script(&script).start();
    guest.wait_for("SERVING");
    let data = fetch("127.0.0.1:18080", "/data");
    let data6 = fetch("[::1]:18081", "/data");
    let [passt] = passts(guest.pid())[..] else { panic!("there is not one passt") };
    guest.type_line("go on");
    // A passt that is killed is a cable that is pulled, and husk says so.
    guest.wait_for("KILL-IT");
    host("kill", ["-9", &passt.to_string()]);
    guest.type_line("go on");
    let done = guest.finish();
    done.expect_status(0).expect("HUSK-EXIT 0").expect_stderr("passt");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    done.expect_fact("address", "10.0.2.15/255.255.255.0 via 10.0.2.2");
    done.expect_fact("mtu", "65520");
    done.expect_fact("page", "a page of the host");
    done.expect_fact("carrier", "1").expect_fact("after", "0");
    for data in [data, data6] {
        let body = data.len() - (16 << 20);
        assert_eq!(sha256(&data[body..]), done.fact("hash"), "{} bytes came", data.len());
    }
    done.expect_fact("page6", "a page by IPv6");
    let prefix = done.fact("address6");
    assert!(prefix.starts_with("fd68:7573:6b"), "{prefix}");
    wait_gone(passt);

    // All of that needs no root. Nor does it stay when husk is killed.
    let kvm = std::fs::metadata("/dev/kvm").unwrap();
    let script = format!(
        r#"
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
echo "page=$(wget -q -O - http://10.0.2.2:{port}/)"
echo UP
read line
"#
    );
    let guest = lab.guest().args("--net user").script(&script);
    let others = kvm.mode() & 0o60 == 0o60;
    let mut guest = match others {
        true => guest.user(USER, kvm.gid()).start(),
        false => {
            skipped("its last part is another user's, who is not let near /dev/kvm");
            guest.start()
        }
    };
    guest.wait_for("UP");
    let [passt] = passts(guest.pid())[..] else { panic!("there is not one passt") };
    for pid in [guest.pid(), passt].into_iter().filter(|_| others) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}");
        assert!(status.contains(&uid), "{status}");
    }
    guest.signal(libc::SIGKILL);
    let console = guest.console();
    assert!(console.contains("page=a page of the host"), "{console}");
    drop(guest);
    wait_gone(passt);
}
