//! Disks hold what a guest wrote to them: after a power-off, after husk was killed, and nothing that
//! they must not hold. What the host cannot do the guest is told as an I/O error, and husk goes on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::tools::{fsck, host, mkfs, read_from, sha256, try_host};
use guest::{Lab, skipped, soak_rounds};

#[test]
fn what_a_guest_wrote_and_synced_is_what_the_host_finds() {
    let Some(lab) = Lab::open() else { return };
    let image = lab.hole("data.img", 160 << 20);
    mkfs(&image);
    // Noise is dear in a guest under two emulators: a little of it, and every 4 MiB a number.
    let script = r#"
set -e
mount -t ext4 -o discard /dev/vda /mnt
dd if=/dev/urandom of=/noise bs=1M count=4 2>/dev/null
for n in $(seq 16); do echo $n; cat /noise; done >/mnt/data
sync
echo "hash=$(sha256sum /mnt/data | cut -d' ' -f1)"
for n in $(seq 8); do cat /noise; done >/mnt/gone
sync
echo WRITTEN
read line
rm /mnt/gone
sync
read line
umount /mnt
# Each engine, past the guest's own memory.
for d in vdb vdc; do
    dd if=/noise of=/dev/$d bs=64k conv=notrunc,fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    echo "$d=$(dd if=/dev/$d bs=64k count=64 2>/dev/null | sha256sum | cut -d' ' -f1)"
done
"#;
    let [by_uring, by_threads] = ["uring.img", "threads.img"].map(|name| lab.hole(name, 5 << 20));
    let guest = lab.guest().args("--cpus 2").disk(&image, "");
    let guest = guest.disk(&by_uring, "engine=io_uring").disk(&by_threads, "engine=threads");
    let mut guest = guest.script(script).start();
    guest.wait_for("WRITTEN");
    assert!(has_ring(guest.pid()), "no disk has a ring");
    let bytes = || fs::metadata(&image).unwrap().blocks() * 512;
    let before = bytes();
    guest.type_line("go on");
    // ext4 discards what was removed a little later: then the image holds its 32 MiB no more.
    let deadline = Instant::now() + Duration::from_secs(20);
    while bytes() + (30 << 20) > before {
        let now = bytes();
        assert!(Instant::now() < deadline, "{before} bytes before the removal, {now} after");
        sleep(Duration::from_millis(50));
    }
    guest.type_line("go on");
    let done = guest.finish();
    done.expect_clean();
    fsck(&image);
    let data = read_from(&image, "/data");
    assert!(data.len() > 64 << 20, "{} bytes", data.len());
    done.expect_fact("hash", &sha256(&data));
    for (name, image) in [("vdb", &by_uring), ("vdc", &by_threads)] {
        let image = fs::read(image).unwrap();
        let (written, rest) = image.split_at(4 << 20);
        assert!(written.iter().any(|b| *b != 0) && rest.iter().all(|b| *b == 0));
        done.expect_fact(name, &sha256(written));
    }
}

/// Whether a process has an io_uring open.
fn has_ring(pid: u32) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.into_iter().any(|link| link.to_str() == Some("anon_inode:[io_uring]"))
}

#[test]
fn what_was_synced_survives_a_kill_of_husk() {
    let Some(lab) = Lab::open() else { return };
    // Each file is filled with its own number and said to be there only after its fsync returned.
    // Unsynced writes go on beside it all the time.
    let script = r#"
mount -t ext4 /dev/vda /mnt
(while :; do dd if=/dev/zero of=/mnt/noise bs=64k count=64 2>/dev/null; done) &
n=0
while [ $n -lt 2000 ]; do
    n=$((n + 1))
    yes $n | dd of=/mnt/file$n bs=4k count=5 conv=fsync iflag=fullblock 2>/dev/null &&
        echo "SYNCED $n."
done
"#;
    for round in 0..soak_rounds(1, 25) {
        let image = lab.path("data.img");
        let _ = fs::remove_file(&image);
        mkfs(&lab.hole("data.img", 128 << 20));
        let mut guest = lab.guest().args("--cpus 2").disk(&image, "").script(script).start();
        guest.wait_for(&format!("SYNCED {}.", 10 + round % 7));
        guest.signal(libc::SIGKILL);
        let done = guest.finish();
        done.expect_status(1009);
        let said = done.console.lines().filter_map(|line| line.strip_prefix("SYNCED "));
        let synced: usize = said.filter_map(|n| n.strip_suffix('.')?.parse().ok()).max().unwrap();
        // 0 and 1: without a fault after its journal was replayed.
        let (status, said) = try_host("fsck.ext4", [OsStr::new("-p"), image.as_os_str()]);
        assert!(status <= 1, "fsck.ext4: {status}: {said}");
        fsck(&image);
        for n in 1..=synced {
            let found = read_from(&image, &format!("/file{n}"));
            let wanted = format!("{n}\n").repeat(20480);
            let same = found == wanted.as_bytes()[..20480];
            assert!(same, "round {round}: file{n} of {synced} has {} bytes or others", found.len());
        }
    }
}

#[test]
fn disks_have_their_order_their_names_and_their_limits() {
    let Some(lab) = Lab::open() else { return };
    let root = lab.hole("root.img", 8 << 20);
    // 300 bytes more than two pages, none of them zero.
    let odd = lab.path("odd.img");
    fs::write(&odd, [b'o'; 8192 + 300]).unwrap();
    let frozen = lab.hole("frozen.img", 8 << 20);
    mkfs(&frozen);
    let frozen_before = fs::read(&frozen).unwrap();
    let device = Loop::of(&lab.hole("loop.img", 4 << 20));
    OpenOptions::new().write(true).open(&root).unwrap().write_all_at(&[b'd'; 1 << 20], 0).unwrap();

    let script = r#"
for d in vda vdb vdc vdd; do
    echo "$d=$(cat /sys/block/$d/serial) $(blockdev --getsize64 /dev/$d) $(blockdev --getro /dev/$d)"
done
ls /sys/block/vde 2>/dev/null

tail -c 512 /dev/vdb >/tail
echo "tail=$(tr -d '\0' </tail | wc -c) of $(wc -c </tail)"
dd if=/dev/zero of=/dev/vdb bs=512 seek=1 count=1 conv=notrunc,fsync 2>/dev/null; echo "inside=$?"
dd if=/dev/zero of=/dev/vdb bs=512 seek=16 count=1 conv=notrunc,fsync 2>/dev/null; echo "beyond=$?"

dd if=/dev/zero of=/dev/vdc bs=512 count=1 conv=notrunc,fsync 2>/dev/null; echo "frozen=$?"
# busybox mounts read-only what cannot be mounted otherwise.
mount -t ext4 -o rw /dev/vdc /mnt 2>/dev/null; echo "mount=$?"
touch /mnt/x 2>/dev/null; echo "touch=$?"
umount /mnt

echo written to a block device | dd of=/dev/vdd bs=512 seek=100 conv=notrunc,fsync 2>/dev/null

blkdiscard /dev/vda && echo "zeros=$(head -c 1048576 /dev/vda | tr -d '\0' | wc -c)"
exit 0
"#;
    let done = lab
        .guest()
        .disk(&root, "id=root")
        .disk(&odd, "id=odd-one.2")
        .disk(&frozen, "ro,id=exactly-twenty-chars")
        .disk(device.path(), "")
        .script(script)
        .run();
    done.expect_status(0).expect("HUSK-EXIT 0");
    done.expect_fact("vda", "root 8388608 0");
    done.expect_fact("vdb", "odd-one.2 8704 0");
    done.expect_fact("vdc", "exactly-twenty-chars 8388608 1");
    done.expect_fact("vdd", "disk3 4194304 0");
    assert!(!done.console.contains("vde"), "{}", done.console);

    // The last sector has 300 bytes of the file and 212 zeros; it can be read but not written.
    done.expect_fact("tail", "300 of 512");
    done.expect_fact("inside", "0").expect_fact("beyond", "1");
    let odd = fs::read(&odd).unwrap();
    assert_eq!(odd.len(), 8192 + 300);
    assert!(odd[512..1024].iter().all(|b| *b == 0) && odd[1024..].iter().all(|b| *b == b'o'));
    done.expect_stderr("odd-one.2");

    done.expect_fact("frozen", "1").expect_fact("mount", "0").expect_fact("touch", "1");
    assert!(fs::read(&frozen).unwrap() == frozen_before, "the read-only disk has changed");

    let mut text = [0; 25];
    File::open(lab.path("loop.img")).unwrap().read_exact_at(&mut text, 51_200).unwrap();
    assert_eq!(&text, b"written to a block device");

    done.expect_fact("zeros", "0");
    let blocks = fs::metadata(&root).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "the discarded disk still has {blocks} blocks");
}

#[test]
fn a_disk_has_many_readers_or_one_writer() {
    let Some(lab) = Lab::open() else { return };
    let shared = lab.hole("shared.img", 1 << 20);
    let own = lab.hole("own.img", 1 << 20);
    OpenOptions::new().write(true).open(&shared).unwrap().write_all_at(b"to share", 0).unwrap();
    let script = r#"echo "read=$(head -c 8 /dev/vda)"; read line"#;
    let mut first = lab.guest().disk(&shared, "ro").disk(&own, "").script(script).start();
    let mut second = lab.guest().disk(&shared, "ro").script(script).start();
    first.wait_for("read=to share");
    second.wait_for("read=to share");
    for (disk, more) in [(&own, ""), (&own, "ro"), (&shared, "")] {
        let done = lab.guest().disk(disk, more).script(script).run();
        done.expect_status(125).expect_stderr(disk.to_str().unwrap());
        assert!(done.console.is_empty(), "{}", done.console);
        assert!(done.took < Duration::from_secs(10), "{:?}", done.took);
    }
    // None of that disturbed those who have them.
    for mut guest in [first, second] {
        guest.type_line("go on");
        guest.finish().expect_clean();
    }
    // The writer has gone, and its lock with it.
    let done = lab.guest().disk(&own, "").arg("--timeout").arg("0.1").run();
    done.expect_status(124);
}

#[test]
fn a_disk_that_fails_is_an_io_error_in_the_guest_and_husk_goes_on() {
    let Some(lab) = Lab::open() else { return };
    // One file has no room to grow, one is cut off, one is a block device that shrinks.
    let small = Tmpfs::mount(&lab.path("small"), "1m");
    let full = small.0.join("full.img");
    File::create(&full).unwrap().set_len(64 << 20).unwrap();
    let cut = lab.path("cut.img");
    fs::write(&cut, vec![b'c'; 4 << 20]).unwrap();
    let beneath = lab.path("beneath.img");
    fs::write(&beneath, vec![b'l'; 4 << 20]).unwrap();
    let device = Loop::of(&beneath);
    let sound = lab.hole("sound.img", 4 << 20);
    let script = r#"
dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=notrunc,fsync 2>/dev/null; echo "full=$?"
dd if=/dev/vdb of=/dev/null bs=4k count=1 2>/dev/null; echo "before=$?"
echo NOW
read line
for d in vdb vdc; do
    dd if=/dev/$d of=/dev/null bs=4k skip=512 count=16 2>/dev/null; echo "read-$d=$?"
    dd if=/dev/zero of=/dev/$d bs=4k seek=512 count=16 conv=notrunc,fsync 2>/dev/null
    echo "write-$d=$?"
done
echo "errors=$(dmesg | grep -c 'I/O error, dev vd')"
echo sound | dd of=/dev/vdd conv=notrunc,fsync 2>/dev/null; echo "sound=$?"
exit 0
"#;
    let mut guest = lab
        .guest()
        .args("--cpus 2")
        .disk(&full, "id=full")
        .disk(&cut, "id=cut")
        .disk(device.path(), "id=shrunk")
        .disk(&sound, "id=sound")
        .script(script)
        .start();
    guest.wait_for("NOW");
    OpenOptions::new().write(true).open(&cut).unwrap().set_len(0).unwrap();
    OpenOptions::new().write(true).open(&beneath).unwrap().set_len(4096).unwrap();
    host("losetup", [OsStr::new("-c"), device.path().as_os_str()]);
    guest.type_line("go on");
    let done = guest.finish();
    done.expect_status(0).expect("HUSK-EXIT 0");
    done.expect_fact("full", "1").expect_fact("before", "0");
    done.expect_fact("read-vdb", "1").expect_fact("write-vdb", "1");
    done.expect_fact("read-vdc", "1").expect_fact("write-vdc", "1");
    assert!(done.number("errors") >= 4, "{}", done.console);
    done.expect_fact("sound", "0");
    for id in ["full", "cut", "shrunk"] {
        done.expect_stderr(id);
    }
    assert!(!done.stderr.contains("sound"), "{}", done.stderr);
    // Not a line for every request.
    assert!(done.stderr.lines().count() < 40, "{}", done.stderr);
}

#[test]
fn an_image_an_overlay_and_a_disk_that_grows_hold_what_they_should() {
    let Some(lab) = Lab::open() else { return };
    let (base, growing, image) =
        (lab.hole("base.img", 16 << 20), lab.hole("growing.img", 4 << 20), lab.path("image.qcow2"));
    mkfs(&base);
    let before = fs::read(&base).unwrap();
    if std::process::Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("no qemu-img");
    }
    let name = image.to_str().unwrap();
    host("qemu-img", ["create", "-q", "-f", "qcow2", name, "8M"]);
    // Unallocated clusters, allocated ones, discarded ones.
    let script = r#"
set -e
dd if=/dev/urandom of=/noise bs=64k count=8 2>/dev/null
for n in 1 2 3 4; do cat /noise; done | dd of=/dev/vda bs=64k seek=16 iflag=fullblock conv=notrunc,fsync 2>/dev/null
blkdiscard -o 2097152 -l 524288 /dev/vda
dd if=/noise of=/dev/vda bs=512 seek=3 count=9 conv=notrunc,fsync 2>/dev/null
echo "hash=$(sha256sum </dev/vda | cut -d' ' -f1)"
mount -t ext4 /dev/vdb /mnt
cp /noise /mnt/mine
sync
umount /mnt
mount -t ext4 /dev/vdb /mnt
cmp /noise /mnt/mine
umount /mnt
echo "before=$(blockdev --getsize64 /dev/vdc)"
echo WRITTEN
read line
until [ $(blockdev --getsize64 /dev/vdc) = 16777216 ]; do sleep 0.2; done
echo here | dd of=/dev/vdc bs=512 seek=32767 conv=notrunc,fsync 2>/dev/null
echo "told=$(dmesg | grep -c 'vdc.*new size')"
"#;
    let mut guest = lab
        .guest()
        .args("--cpus 2")
        .disk(&image, "format=qcow2")
        .disk(&base, "overlay")
        .disk(&growing, "")
        .script(script)
        .start();
    guest.wait_for("WRITTEN");
    // Meanwhile another guest has the same image, and its own layer above it.
    let other = "set -e; mount -t ext4 /dev/vda /mnt; [ ! -e /mnt/mine ]; echo x >/mnt/other; sync";
    lab.guest().disk(&base, "overlay").script(other).run().expect_clean();
    OpenOptions::new().write(true).open(&growing).unwrap().set_len(16 << 20).unwrap();
    guest.signal(libc::SIGUSR2);
    guest.type_line("go on");
    let done = guest.finish();
    done.expect_clean();
    done.expect_fact("before", "4194304").expect_fact("told", "1");
    let mut end = [0; 5];
    File::open(&growing).unwrap().read_exact_at(&mut end, 32767 * 512).unwrap();
    assert_eq!(&end, b"here\n");
    assert!(fs::read(&base).unwrap() == before, "the image below the overlays has changed");
    host("qemu-img", ["check", "-q", "-f", "qcow2", name]);
    let raw = lab.path("image.raw");
    host("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", name, raw.to_str().unwrap()]);
    done.expect_fact("hash", &sha256(&fs::read(raw).unwrap()));
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn of(file: &Path) -> Loop {
        let name = host("losetup", [OsStr::new("-f"), OsStr::new("--show"), file.as_os_str()]);
        Loop(name.trim().into())
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // While a test fails there may be a husk left that holds it; then it goes with that.
        let _ = try_host("losetup", [OsStr::new("-d"), self.0.as_os_str()]);
    }
}

/// A file system in RAM with a size, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Tmpfs {
        fs::create_dir(at).unwrap();
        let options = format!("size={size}");
        let words = ["-t", "tmpfs", "-o", &options, "small"].map(OsStr::new);
        host("mount", words.into_iter().chain([at.as_os_str()]));
        Tmpfs(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a husk that is being killed may still hold a file in it.
        let _ = try_host("umount", [OsStr::new("-l"), self.0.as_os_str()]);
    }
}
