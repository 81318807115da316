//! Disks under load and under the knife, for `cargo xtask soak` alone: every engine with every cache mode
//! and number of queues reads what it wrote, also while the disk grows, and no kill of husk loses what the
//! guest has synced.

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
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::tools::{fsck, host, mkfs, sha256, try_host};
use guest::{Builder, Done, Lab, PATIENCE, SOAK, TOOLS, VMLINUZ_CLOUD, skipped, soak_rounds};

/// The lab, where `cargo xtask soak` has made its assets.
fn open() -> Option<Lab> {
    let lab = Lab::open()?;
    if lab.asset(TOOLS).exists() {
        return Some(lab);
    }
    skipped("it is for `cargo xtask soak`");
    None
}

/// A guest with the tools' disk, its first one.
fn guest<'a>(lab: &'a Lab, script: &str) -> Builder<'a> {
    let script = format!("{TOOLS_AT_MNT}{script}");
    let guest = lab.kernel(VMLINUZ_CLOUD).initrd(SOAK).args("--cpus 4 --memory 768M");
    guest.disk(&lab.asset(TOOLS), "ro,id=tools").script(&script)
}

const TOOLS_AT_MNT: &str = r#"
while read -r module; do insmod /lib/$module; done </lib/modules.more
mount -t ext4 -o ro /dev/vda /mnt || exit 1
for d in dev proc sys; do mount -o bind /$d /mnt/$d || exit 1; done
mount -t tmpfs none /mnt/tmp
"#;

/// What the guest works on, of each disk.
const WORKED_ON: u64 = 14 << 20;
/// Far more than it takes.
const WORK: Duration = Duration::from_secs(1800);
/// Each disk begins with that size and ends with at most that one.
const SIZES: (u64, u64) = (16 << 20, 40 << 20);

/// Requests of a sector, of a page, of many sizes, large ones, and pages with flushes and discards between
/// them, all at once, each in a place of its own. Everything is read again and compared.
const FIO: &str = r#"
cat >/mnt/tmp/fio <<'EOF'
[global]
ioengine=libaio
direct=1
verify=crc32c
verify_fatal=1
[sectors]
rw=randwrite
bs=${SECTOR}
offset=0
size=256k
iodepth=4
[pages]
rw=randwrite
bs=4k
offset=1m
size=2m
iodepth=32
verify_backlog=128
[mixed]
rw=randrw
bsrange=4k-128k
blockalign=4k
offset=3m
size=4m
iodepth=8
[large]
rw=write
bs=1m
offset=7m
size=4m
iodepth=4
[flushed]
rw=randwrite
bs=8k
offset=11m
size=1m
iodepth=2
fsync=8
[buffered]
rw=randwrite
direct=0
ioengine=psync
bs=8k
offset=12m
size=1m
fdatasync=16
EOF
echo GO
for d in /sys/block/vd?; do
    name=${d##*/}
    [ $name = vda ] && continue
    queues=$(ls $d/mq | wc -l)
    export SECTOR=$(cat $d/queue/logical_block_size)
    said=$(chroot /mnt fio --filename=/dev/$name --randseed=$RANDOM /tmp/fio 2>&1) || {
        echo "$said" | tail -n 20
        echo "FIO-FAILED $name $(cat $d/serial)"
    }
    # The last MiB is discarded, and zero from then on.
    blkdiscard -o 13631488 -l 1048576 /dev/$name || echo "FIO-FAILED $name discard"
    last=$(chroot /mnt dd if=/dev/$name bs=1M skip=13 count=1 iflag=direct 2>/dev/null | tr -d '\0' | wc -c)
    [ $last = 0 ] || echo "FIO-FAILED $name: $last bytes after the discard"
    hash=$(chroot /mnt dd if=/dev/$name bs=1M count=14 iflag=direct 2>/dev/null | chroot /mnt sha256sum | cut -d' ' -f1)
    echo "$name=$queues $hash"
    echo "DONE $name"
done
dmesg | grep -E 'I/O error|WARNING|BUG:' | head
for d in /sys/block/vd?; do echo "size-${d##*/}=$(($(cat $d/size) * 512))"; done
exit 0
"#;

#[test]
fn io_uring_reads_what_it_wrote_with_every_cache_and_number_of_queues_while_the_disk_grows() {
    fio_matrix("io_uring");
}

#[test]
fn threads_read_what_they_wrote_with_every_cache_and_number_of_queues_while_the_disk_grows() {
    fio_matrix("threads");
}

#[test]
fn calls_at_once_read_what_they_wrote_with_every_cache_and_number_of_queues_while_the_disk_grows() {
    fio_matrix("sync");
}

fn fio_matrix(engine: &str) {
    let Some(lab) = open() else { return };
    let images = OnDisk::mount(&lab);
    let mut disks = Vec::new();
    for cache in ["writeback", "direct", "unsafe"] {
        for queues in [1, 4] {
            let path = images.dir.join(format!("{cache}-{queues}"));
            disks.push((path, format!("engine={engine},cache={cache},queues={queues}"), queues));
        }
    }
    for round in 0..soak_rounds(1, 1) {
        let mut guest = guest(&lab, FIO);
        for (path, how, _) in &disks {
            File::create(path).unwrap().set_len(SIZES.0).unwrap();
            guest = guest.disk(path, how);
        }
        let mut guest = guest.start();
        guest.wait_for("GO");
        let (mut size, mut times) = (SIZES.0, 0);
        let deadline = Instant::now() + WORK;
        while guest.is_up() {
            assert!(Instant::now() < deadline, "{}", guest.console());
            // The space of the file system bounds the sizes, the guest's work how often they change.
            size = if size < SIZES.1 { size + (1 << 20) } else { SIZES.0 + (4 << 20) };
            for (path, ..) in &disks {
                OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
            }
            guest.signal(libc::SIGUSR2);
            times += 1;
            sleep(Duration::from_millis(200));
        }
        let done = guest.finish();
        done.expect_status(0).expect("HUSK-EXIT 0");
        assert!(!done.console.contains("FIO-FAILED"), "round {round}: {}", done.console);
        // How often depends on how long the work takes; that it was at all, and that the guest saw it, is
        // what has to be, or the round has shown nothing about disks that grow.
        assert!(times > 0, "the work was done before the disks changed their size");
        for (name, (path, how, queues)) in ('b'..).zip(&disks) {
            let image = fs::read(path).unwrap();
            let hash = sha256(&image[..WORKED_ON as usize]);
            assert_eq!(done.fact(&format!("vd{name}")), format!("{queues} {hash}"), "{how}");
            let size = done.number(&format!("size-vd{name}"));
            assert!(size > SIZES.0, "{how} has {size} bytes");
        }
        eprintln!(
            "{engine}, round {round}: {} disks, {times} changes of size, {:?}",
            disks.len(),
            done.took
        );
    }
}

/// Has the guest work on `disks`, of which each is a path, the other words of `--disk`, and how many queues it has.
fn fio_on(lab: &Lab, disks: &[(PathBuf, String, u16)]) -> Done {
    let mut guest = guest(lab, FIO);
    for (path, how, _) in disks {
        guest = guest.disk(path, how);
    }
    let done = guest.start().finish_within(WORK);
    done.expect_status(0).expect("HUSK-EXIT 0");
    assert!(!done.console.contains("FIO-FAILED"), "{}", done.console);
    for (name, (_, how, queues)) in ('b'..).zip(disks) {
        let fact = done.fact(&format!("vd{name}"));
        assert!(fact.starts_with(&format!("{queues} ")), "{how}: {fact}");
    }
    done
}

/// Every cache mode with 1 and 4 queues, beside `how` for each of which `path` is made.
fn variants(how: &str, path: impl Fn(&str) -> PathBuf) -> Vec<(PathBuf, String, u16)> {
    let mut disks = Vec::new();
    for cache in ["writeback", "direct", "unsafe"] {
        for queues in [1, 4] {
            let path = path(&format!("{cache}-{queues}"));
            disks.push((path, format!("{how},cache={cache},queues={queues}"), queues));
        }
    }
    disks
}

#[test]
fn overlays_of_one_image_read_what_was_written_to_them_with_every_engine_cache_and_number_of_queues()
 {
    let Some(lab) = open() else { return };
    let images = OnDisk::mount(&lab);
    let image = images.dir.join("image");
    // Whoever sees through an overlay where it should not sees no zeroes.
    fs::write(&image, vec![0xa5; SIZES.0 as usize]).unwrap();
    let before = sha256(&fs::read(&image).unwrap());
    for engine in ["io_uring", "threads", "sync"] {
        let how = format!("overlay,overlay_dir={},engine={engine}", images.dir.display());
        let done = fio_on(&lab, &variants(&how, |_| image.clone()));
        assert_eq!(sha256(&fs::read(&image).unwrap()), before, "the image has changed");
        eprintln!("overlays, {engine}: {:?}", done.took);
    }
}

#[test]
fn qcow2_images_hold_what_was_written_to_them_with_every_cache_and_number_of_queues() {
    let Some(lab) = open() else { return };
    if !Path::new("/usr/bin/qemu-img").exists() {
        return skipped("no qemu-img");
    }
    let images = OnDisk::mount(&lab);
    let size = SIZES.0.to_string();
    let qemu_img = |words: &[&str], paths: &[&Path]| {
        let paths = paths.iter().map(|path| path.as_os_str());
        host("qemu-img", words.iter().map(OsStr::new).chain(paths))
    };
    let make = |name: &str| {
        let path = images.dir.join(name);
        host("qemu-img", ["create", "-q", "-f", "qcow2", path.to_str().unwrap(), &size]);
        path
    };
    let mut disks = variants("format=qcow2", make);
    // And one that nobody writes to, under an overlay.
    let base = make("base");
    let before = sha256(&fs::read(&base).unwrap());
    let how = format!("format=qcow2,overlay,overlay_dir={},queues=4", images.dir.display());
    disks.push((base.clone(), how, 4));
    let done = fio_on(&lab, &disks);
    assert_eq!(sha256(&fs::read(&base).unwrap()), before, "the image has changed");
    for (name, (path, how, queues)) in ('b'..).zip(disks.iter().filter(|(path, ..)| *path != base))
    {
        qemu_img(&["check", "-q"], &[path]);
        let raw = images.dir.join("raw");
        qemu_img(&["convert", "-O", "raw"], &[path, &raw]);
        let hash = sha256(&fs::read(&raw).unwrap()[..WORKED_ON as usize]);
        assert_eq!(done.fact(&format!("vd{name}")), format!("{queues} {hash}"), "{how}");
    }
    eprintln!("qcow2: {:?}", done.took);
}

#[test]
fn no_kill_loses_what_was_synced_on_ext4_and_xfs_through_io_uring() {
    kills("io_uring");
}

#[test]
fn no_kill_loses_what_was_synced_on_ext4_and_xfs_through_threads() {
    kills("threads");
}

#[test]
fn no_kill_loses_what_was_synced_on_ext4_and_xfs_through_calls_at_once() {
    kills("sync");
}

fn kills(engine: &str) {
    let Some(lab) = open() else { return };
    let images = OnDisk::mount(&lab);
    let [ext4, xfs] = ["ext4", "xfs"].map(|name| images.dir.join(name));
    File::create(&ext4).unwrap().set_len(128 << 20).unwrap();
    // Less is no XFS.
    File::create(&xfs).unwrap().set_len(320 << 20).unwrap();
    mkfs(&ext4);
    let rounds = soak_rounds(1, 10);
    let mut synced = [0, 0];
    let mut all = 0;
    for round in 0..=rounds {
        let (cache, queues) = (["writeback", "direct"][round % 2], [1, 4][round / 2 % 2]);
        let how = format!("engine={engine},cache={cache},queues={queues}");
        let script = kill_script(round, synced, round == rounds);
        let mut guest = guest(&lab, &script).disk(&ext4, &how).disk(&xfs, &how).start();
        if round == rounds {
            let done = guest.finish();
            done.expect_clean().expect_fact("repair", "0");
            assert_eq!(done.count("LOST"), 0, "{}", done.console);
            break;
        }
        let deadline = Instant::now() + PATIENCE;
        while ["ext4", "xfs"].iter().any(|fs| last_synced(&guest.console(), fs) < 5 + round % 7) {
            assert!(guest.is_up() && Instant::now() < deadline, "{}", guest.console());
            sleep(Duration::from_millis(20));
        }
        sleep(Duration::from_millis(round as u64 * 13 % 101));
        guest.signal(libc::SIGKILL);
        let done = guest.finish();
        done.expect_status(1009);
        assert_eq!(done.count("LOST"), 0, "round {round}, {how}: {}", done.console);
        synced = ["ext4", "xfs"].map(|fs| last_synced(&done.console, fs));
        all += synced.iter().sum::<usize>();
    }
    fsck(&ext4);
    eprintln!("{engine}: {rounds} kills, {all} files synced before them, all there");
}

/// Mounts both, which replays their journals, looks for every file that was synced before the last kill,
/// and writes new ones; beside them unsynced writes go on all the time.
fn kill_script(round: usize, [ext4, xfs]: [usize; 2], last: bool) -> String {
    let make = if round == 0 { "chroot /mnt mkfs.xfs -q /dev/vdc || exit 1" } else { "" };
    let end = match last {
        true => {
            "umount /ext4 /xfs; chroot /mnt xfs_repair -n /dev/vdc >/dev/null 2>&1; echo \"repair=$?\"; exit 0"
        }
        false => "write ext4 & write xfs & wait",
    };
    let before = round.wrapping_sub(1);
    format!(
        r#"
{make}
mkdir /ext4 /xfs
mount -t ext4 /dev/vdb /ext4 || echo LOST ext4
mount -t xfs /dev/vdc /xfs || echo LOST xfs
content() {{ yes "$1 $2 $3" | head -c 20480; }}
check() {{
    n=0
    while [ $n -lt $2 ]; do
        n=$((n + 1))
        content $1 {before} $n | cmp -s - /$1/{before}.$n || echo "LOST $1 {before}.$n"
    done
    rm -f /$1/[0-9]* /$1/noise
}}
write() {{
    (while :; do dd if=/dev/zero of=/$1/noise bs=64k count=64 2>/dev/null; done) &
    n=0
    while :; do
        n=$((n + 1))
        content $1 {round} $n | dd of=/$1/{round}.$n bs=4k iflag=fullblock conv=fsync 2>/dev/null &&
            echo "SYNCED $1 $n."
    done
}}
check ext4 {ext4}
check xfs {xfs}
{end}
"#
    )
}

/// The number of the last file that was said to be synced, 0 if none was.
fn last_synced(console: &str, fs: &str) -> usize {
    let start = format!("SYNCED {fs} ");
    let numbers = console.split(&start).skip(1).filter_map(|rest| rest.split_once('.'));
    numbers.filter_map(|(n, _)| n.parse().ok()).max().unwrap_or_default()
}

/// A file system for images that can be opened past the page cache, which one in RAM may not allow;
/// unmounted when dropped.
struct OnDisk {
    dir: PathBuf,
}

impl OnDisk {
    fn mount(lab: &Lab) -> OnDisk {
        let (below, dir) = (lab.hole("below.img", 2 << 30), lab.path("images"));
        mkfs(&below);
        fs::create_dir(&dir).unwrap();
        host("mount", [OsStr::new("-o"), OsStr::new("loop"), below.as_os_str(), dir.as_os_str()]);
        OnDisk { dir }
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        // Lazily: a husk that is being killed may still hold a file in it.
        let dir: &Path = &self.dir;
        let _ = try_host("umount", [OsStr::new("-l"), dir.as_os_str()]);
    }
}
