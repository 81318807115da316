//! What a guest of the device benchmark does, and what is read off its console. The guest says when
//! each piece of work begins and how it ended:
//!
//! ```text
//! BENCH begin read-4k-d32
//! BENCH end read-4k-d32 53210 106420      the figure, and how many requests it took
//! BENCH end tcp-from-guest 941            no requests are counted
//! BENCH failed write-1m                   its tool says so
//! ```

/// Where the guest echoes TCP messages.
pub const ECHO_PORT: u16 = 5003;
/// Where the host takes what a guest sends by vsock, and where it sends.
pub const VSOCK_SINK: u16 = 6000;
pub const VSOCK_SOURCE: u16 = 6001;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Its name on the console, and in the table.
    pub name: &'static str,
    /// What its figure counts, the more the better.
    pub unit: &'static str,
}

/// Work on the disk: how fio is told, and the fields of its answer (`fio --minimal`, version 3,
/// counted from 1; the fifth is its error) that say requests a second, KiB a second, and KiB in all.
struct Disk {
    work: Work,
    rw: &'static str,
    block_kib: u32,
    depth: u32,
    fields: [u32; 3],
}

const READ: [u32; 3] = [8, 7, 6];
const WRITE: [u32; 3] = [49, 48, 47];

const fn disk(
    (name, unit): (&'static str, &'static str),
    rw: &'static str,
    (block_kib, depth): (u32, u32),
    fields: [u32; 3],
) -> Disk {
    Disk { work: Work { name, unit }, rw, block_kib, depth, fields }
}

const DISK: [Disk; 5] = [
    disk(("read-4k-d1", "1/s"), "randread", (4, 1), READ),
    disk(("read-4k-d32", "1/s"), "randread", (4, 32), READ),
    disk(("write-4k-d32", "1/s"), "randwrite", (4, 32), WRITE),
    disk(("read-1m", "KiB/s"), "read", (1024, 4), READ),
    disk(("write-1m", "KiB/s"), "write", (1024, 4), WRITE),
];

/// Work that the guest alone does, on the network.
const TCP: [(Work, &str); 2] = [
    (Work { name: "tcp-from-guest", unit: "Mbit/s" }, ""),
    (Work { name: "tcp-to-guest", unit: "Mbit/s" }, "-R"),
];

/// Work whose figure the host takes.
pub const PING_PONG: Work = Work { name: "tcp-ping-pong-64", unit: "1/s" };
pub const VSOCK_OUT: Work = Work { name: "vsock-from-guest", unit: "MiB/s" };
pub const VSOCK_IN: Work = Work { name: "vsock-to-guest", unit: "MiB/s" };

/// All of it, in the order in which it is done.
pub fn all() -> Vec<Work> {
    let disk = DISK.iter().map(|disk| disk.work);
    disk.chain(TCP.map(|(work, _)| work)).chain([PING_PONG, VSOCK_OUT, VSOCK_IN]).collect()
}

/// What goes through vsock, each way, in MiB.
pub fn vsock_mib(seconds: u32) -> u32 {
    seconds.saturating_mul(64)
}

/// The guest's script. Disks are told apart by their size, for VMMs do not agree on their order. fio
/// is not to read the TSC itself, whatever a VMM says of it.
pub fn script(disk_bytes: u64, seconds: u32, guest: &str, host: &str) -> String {
    let sectors = disk_bytes / 512;
    let mut script = format!(
        "for d in /sys/block/vd?; do\n\
         \x20   if [ $(cat $d/size) = {sectors} ]; then data=/dev/${{d##*/}}\n\
         \x20   else tools=/dev/${{d##*/}}; fi\n\
         done\n\
         mount -t ext4 -o ro $tools /mnt || exit 1\n\
         for d in dev proc sys; do mount -o bind /$d /mnt/$d || exit 1; done\n\
         mount -t tmpfs none /mnt/tmp\n\
         # fio gives up where a cache's line is told to be no power of two: 577, say, under Firecracker.\n\
         line=/mnt/sys/devices/system/cpu/cpu0/cache/index0/coherency_line_size\n\
         echo 64 >/mnt/tmp/line\n\
         [ ! -e $line ] || mount -o bind /mnt/tmp/line $line\n\
         # The tools come from a disk too: once, before anything is counted.\n\
         chroot /mnt fio --minimal --name=warm --filename=$data --direct=1 --ioengine=libaio \
         --rw=randread --bs=4k --size=1M >/dev/null\n\
         chroot /mnt iperf3 --version >/dev/null\n\
         ifconfig lo 127.0.0.1 up\n\
         ifconfig eth0 {guest} netmask 255.255.255.252 up\n"
    );
    for Disk { work, rw, block_kib, depth, fields: [iops, bandwidth, total] } in &DISK {
        let name = work.name;
        let figure = if work.unit == "1/s" { iops } else { bandwidth };
        script += &format!(
            "echo BENCH begin {name}\n\
             said=$(cd /; chroot /mnt fio --minimal --name={name} --filename=$data --direct=1 \
             --ioengine=libaio --clocksource=clock_gettime \
             --rw={rw} --bs={block_kib}k --iodepth={depth} --time_based \
             --runtime={seconds} | grep '^3;')\n\
             total=$(echo \"$said\" | cut -d';' -f{total})\n\
             if [ \"$(echo \"$said\" | cut -d';' -f5)\" = 0 ]; then\n\
             echo BENCH end {name} $(echo \"$said\" | cut -d';' -f{figure}) $((total / {block_kib}))\n\
             else echo BENCH failed {name}; fi\n"
        );
    }
    for (Work { name, .. }, more) in TCP {
        script += &format!(
            "echo BENCH begin {name}\n\
             said=$(chroot /mnt iperf3 -c {host} -t {seconds} -f m {more} | grep receiver)\n\
             [ -n \"$said\" ] || echo BENCH failed {name}\n\
             echo BENCH end {name} $(echo \"$said\" | sed 's/.*Bytes *//; s/ .*//')\n"
        );
    }
    script += &format!("echo BENCH begin {}\n/bin/echo-tcp {ECHO_PORT}\n", PING_PONG.name);
    let (out, back, amount) = (VSOCK_OUT.name, VSOCK_IN.name, vsock_mib(seconds));
    script += &format!(
        "if ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport | grep -q virtio; then\n\
         echo BENCH begin {out}\n\
         dd if=/dev/zero bs=1M count={amount} 2>/dev/null | vsock connect 2 {VSOCK_SINK}\n\
         echo BENCH begin {back}\n\
         vsock connect 2 {VSOCK_SOURCE} </dev/null >/dev/null\n\
         fi\n"
    );
    script + "echo BENCH over\n"
}

/// What a line of the console says.
#[derive(Debug, PartialEq)]
pub enum Said {
    Begin(Work),
    End { work: Work, figure: f64, requests: Option<f64> },
    Failed(Work),
    Over,
}

/// Reads a line; `None` if it says nothing of the kind.
pub fn read(line: &str) -> Option<Said> {
    let mut words = line.get(line.find("BENCH ")?..)?.split_whitespace().skip(1);
    let what = words.next()?;
    if what == "over" {
        return Some(Said::Over);
    }
    let name = words.next()?;
    let work = all().into_iter().find(|work| work.name == name)?;
    match what {
        "begin" => Some(Said::Begin(work)),
        "failed" => Some(Said::Failed(work)),
        "end" => {
            let figure = words.next()?.parse().ok()?;
            Some(Said::End { work, figure, requests: words.next().and_then(|n| n.parse().ok()) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_line_is_read_and_others_are_not() {
        let work = DISK[1].work;
        assert_eq!(read("BENCH begin read-4k-d32\r"), Some(Said::Begin(work)));
        assert_eq!(
            read("[ 1.5] noise BENCH end read-4k-d32 53210 106420\r"),
            Some(Said::End { work, figure: 53210.0, requests: Some(106420.0) })
        );
        let end = read("BENCH end tcp-to-guest 941");
        assert!(matches!(end, Some(Said::End { requests: None, figure: 941.0, .. })), "{end:?}");
        assert_eq!(read("BENCH failed read-4k-d32"), Some(Said::Failed(work)));
        assert_eq!(read("BENCH over"), Some(Said::Over));
        for other in ["", "BENCH", "BENCH end read-1m", "BENCH end read-1m x", "BENCH begin tea"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_shell_takes_the_script() {
        let script = script(64 << 20, 2, "172.31.0.2", "172.31.0.1");
        let mut sh = std::process::Command::new("sh");
        assert!(sh.args(["-n", "-c", &script]).status().unwrap().success(), "{script}");
        for work in all() {
            assert!(script.contains(&format!("BENCH begin {}\n", work.name)), "{}", work.name);
        }
    }
}
