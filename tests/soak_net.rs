//! Streams and datagrams through a TAP, for `cargo xtask soak` alone: each way, with frames of both common
//! sizes, with and without offloads, moved by husk and by the host's kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::process::{Child, Command, Stdio};

use guest::network::{enter_namespace, ip};
use guest::{Lab, SOAK, TOOLS, VMLINUZ_CLOUD, skipped};

/// What must come, in bytes: of 16 MiB, at whose end iperf3 does not wait for what is on its way, and of
/// datagrams, as many as such a machine can make in two seconds.
const LEAST: [(&str, f64); 2] = [("STREAM", 8e6), ("DATAGRAMS", 1e5)];

/// The guest's part: says `STREAM` or `DATAGRAMS`, how, and what the receiver has counted.
const SCRIPT: &str = r#"
while read -r module; do insmod /lib/$module; done </lib/modules.more
mount -t ext4 -o ro /dev/vda /mnt || exit 1
for d in dev proc sys; do mount -o bind /$d /mnt/$d || exit 1; done
mount -t tmpfs none /mnt/tmp
ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up
echo "mtu=$(cat /sys/class/net/eth0/mtu)"
tool() { chroot /mnt "$@"; }
measure() {
    # The server may have yet to listen, or to be done with the one before.
    tries=0
    until said=$(tool iperf3 -J -c 10.0.0.1 "$@" 2>&1); do
        tries=$((tries + 1)); [ $tries -lt 100 ] || { echo "FAILED $*: $said"; break; }
        usleep 100000
    done
}
for offloads in on off; do
    tool ethtool -K eth0 rx $offloads tx $offloads sg $offloads tso $offloads gso $offloads gro $offloads || echo "FAILED ethtool"
    echo "csum-$offloads=$(tool ethtool -k eth0 | sed -n 's/^tx-checksumming: //p')"
    for way in "" -R; do
        measure -n 16M $way
        echo "STREAM $offloads ${way:-to} $(echo "$said" | grep -A6 '"sum_received"' | sed -n 's/.*"bytes":[^0-9]*\([0-9]*\).*/\1/p')"
        # All but a few bytes of each frame; at a rate that an emulator of an emulator has.
        measure -u -b 16M -t 2 -l $(($(cat /sys/class/net/eth0/mtu) - 100)) $way
        echo "DATAGRAMS $offloads ${way:-to} $(echo "$said" | sed '1,/"end":.*{/d' | grep -A10 '"sum":' | sed -n 's/.*"\(bytes\|lost_packets\|packets\)":[^0-9]*\([0-9]*\).*/\2/p' | tr '\n' ' ')"
    done
done
exit 0
"#;

/// A server on the host, for as long as it is held.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn streams_and_datagrams_come_through_a_tap() {
    each_way("off");
}

#[test]
fn streams_and_datagrams_come_through_the_hosts_kernel() {
    if !std::path::Path::new("/dev/vhost-net").exists() {
        return skipped("no vhost-net");
    }
    each_way("on");
}

fn each_way(vhost: &str) {
    let Some(lab) = Lab::open() else { return };
    if !lab.asset(TOOLS).exists() {
        return skipped("it is for `cargo xtask soak`");
    }
    enter_namespace();
    for mtu in [1500, 9000] {
        let tap = format!("tap{mtu}");
        ip(&format!("tuntap add {tap} mode tap"));
        ip(&format!("link set {tap} mtu {mtu} up"));
        ip(&format!("address add 10.0.0.1/24 dev {tap}"));
        let mut server = Command::new("iperf3");
        let server = Server(server.arg("-s").stdout(Stdio::null()).spawn().unwrap());
        let guest = lab.kernel(VMLINUZ_CLOUD).initrd(SOAK).disk(&lab.asset(TOOLS), "ro,id=tools");
        let guest = guest.args(&format!("--cpus 2 --memory 512M --net tap={tap},vhost={vhost}"));
        let done = guest.script(SCRIPT).run();
        drop(server);
        ip(&format!("link del {tap}"));
        done.expect_status(0).expect("HUSK-EXIT 0");
        assert!(!done.console.contains("FAILED"), "{}", done.console);
        done.expect_fact("mtu", &mtu.to_string());
        done.expect_fact("csum-on", "on").expect_fact("csum-off", "off");
        for (kind, least) in LEAST {
            for how in ["on to", "on -R", "off to", "off -R"] {
                let start = format!("{kind} {how} ");
                let line = done.console.lines().find_map(|line| line.trim().strip_prefix(&start));
                let line = line.unwrap_or_else(|| panic!("{start}: {}", done.console));
                let numbers: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
                assert!(numbers[0] >= least, "{start}, MTU {mtu}: {line}");
                // Of datagrams also how many were lost, of how many.
                let lost = numbers.get(1).zip(numbers.get(2)).map(|(lost, of)| lost / of);
                assert_eq!(lost.is_some(), kind == "DATAGRAMS", "{start}, MTU {mtu}: {line}");
                assert!(lost.is_none_or(|lost| lost < 0.5), "{start}, MTU {mtu}: {line}");
            }
        }
        let lines = done.console.lines().map(str::trim);
        for line in lines.filter(|l| LEAST.iter().any(|(kind, _)| l.starts_with(kind))) {
            eprintln!("vhost={vhost}, MTU {mtu}: {line}");
        }
    }
}
