//! Shared directories with Linux's own driver, as root and as another user.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use guest::{Lab, skipped};

/// Loads what is not loaded at the start.
const LOAD: &str = "while read -r module; do insmod /lib/$module; done </lib/modules.more";

/// A directory of the lab's with a volume's option for it.
fn volume(lab: &Lab, tag: &str, more: &str) -> (PathBuf, String) {
    let path = lab.path(tag);
    fs::create_dir(&path).unwrap();
    let option = format!("--volume {}:{tag}{more}", path.display());
    (path, option)
}

/// Everything that can be seen of a tree.
fn tree(path: &Path) -> Vec<(PathBuf, u32, u64, i64, i64)> {
    let mut seen = Vec::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        seen.push((path, meta.mode(), meta.size(), meta.ctime(), meta.ctime_nsec()));
    }
    seen
}

#[test]
fn a_guest_works_in_a_shared_directory_as_in_one_of_its_own() {
    let Some(lab) = Lab::open() else { return };
    let (work, work_option) = volume(&lab, "work", "");
    let (given, given_option) = volume(&lab, "given", ":ro");
    let (never, never_option) = volume(&lab, "never", ",cache=never");
    fs::write(given.join("f"), "given\n").unwrap();
    fs::write(given.join("goes"), "").unwrap();
    fs::create_dir(given.join("d")).unwrap();
    fs::write(given.join("d/deep"), "deep\n").unwrap();
    symlink("d/deep", given.join("l")).unwrap();
    let before = tree(&given);
    fs::write(work.join("from-host"), "one\n").unwrap();
    let kept = work.join("kept");
    fs::create_dir(&kept).unwrap();
    ["a", "b", "c"].into_iter().for_each(|name| fs::write(kept.join(name), "").unwrap());
    let made = fs::metadata(&kept).unwrap().modified().unwrap();
    fs::write(work.join("lock"), "").unwrap();
    let lock = File::open(work.join("lock")).unwrap();
    // SAFETY: no memory is passed.
    let flock = |how| unsafe { libc::flock(lock.as_raw_fd(), how | libc::LOCK_NB) };
    assert_eq!(flock(libc::LOCK_EX), 0);
    let script = r#"
mkdir /work /given /never /merged /ram
mount -t virtiofs work /work || exit 1
mount -t virtiofs given /given || exit 1
mount -t virtiofs never /never || exit 1
mount -t virtiofs nothing /mnt 2>/dev/null || echo NO-SUCH-TAG
mkdir /work/check
files check /work/check
files exercise /work/exercised 7 200 || exit 1
dd if=/dev/urandom of=/never/data bs=64k count=6 2>/dev/null
cmp /never/data /never/data && cp /never/data /work/data && cmp /never/data /work/data && echo SAME
echo "hash=$(sha256sum </work/data | cut -d' ' -f1)"

for change in 'touch /given/new' 'echo x >/given/f' 'rm /given/f' 'mkdir /given/n' 'mv /given/f /given/g' \
    'chmod 600 /given/f' 'ln /given/f /given/g' 'ln -s x /given/s' 'rmdir /given/d' 'truncate -s 0 /given/f' \
    'touch -d 2001-01-01 /given/f' 'mount -o remount,rw /given && touch /given/f'; do
    sh -c "$change" 2>/dev/null && echo "CHANGED by $change"
done
cat /given/l
mount -t tmpfs none /ram
mkdir /ram/upper /ram/work
mount -t overlay -o lowerdir=/given,upperdir=/ram/upper,workdir=/ram/work none /merged || exit 1
echo above >>/merged/f
rm /merged/goes
mv /merged/d /merged/e 2>/dev/null
echo "merged=$(tr '\n' , </merged/f)$(ls /merged | grep -c goes)"
umount /merged

cat /work/from-host
echo SEEN-ONE
while ! grep -q two /work/from-host; do usleep 50000; done
[ -e /work/new-from-host ] && echo SEEN-TWO

# Its entries are kept, and used by who has asked for each of them since they were forgotten.
list() { usleep 1100000; ls -l /work/kept/a /work/kept/b /work/kept/c >/dev/null; ls /work/kept | tr -d '\n'; }
echo "kept=$(list)$(list)"
while [ "$(list)" != abcd ]; do :; done
echo SEEN-KEPT

files lock /work/lock </dev/null &
pid=$!
while ! grep -q '^73 ' /proc/$pid/syscall; do usleep 20000; done # flock
echo WAITS-FOR-LOCK
ls -l /work
echo OTHERS-GO-ON
wait $pid && echo LOCK-DONE

umount /work /given /never
for device in /sys/bus/virtio/drivers/virtiofs/virtio*; do
    device=${device##*/}
    echo $device >/sys/bus/virtio/drivers/virtiofs/unbind
    echo $device >/sys/bus/virtio/drivers/virtiofs/bind
done
mount -t virtiofs work /work && cmp /work/data /work/data && echo AGAIN
"#;
    let script = format!("{LOAD}\n{script}");
    let options = [work_option, given_option, never_option].join(" ");
    let mut guest = lab.guest().args(&options).args("--cpus 2").script(&script).start();
    guest.wait_for("SEEN-ONE");
    // Another file, and then one that was there: it is seen when its second is over.
    fs::write(work.join("new-from-host"), "").unwrap();
    fs::write(work.join("from-host"), "two\n").unwrap();
    guest.wait_for("SEEN-TWO");
    guest.wait_for("kept=");
    // The time that a guest's kernel looks at by itself is the same afterwards.
    fs::write(kept.join("d"), "").unwrap();
    File::open(&kept).unwrap().set_modified(made).unwrap();
    guest.wait_for("SEEN-KEPT");
    guest.wait_for("WAITS-FOR-LOCK");
    guest.wait_for("OTHERS-GO-ON");
    assert!(!guest.console().contains("LOCKED"), "a lock of the host's was not respected");
    assert_eq!(flock(libc::LOCK_UN), 0);
    let done = guest.finish();
    done.expect_clean();
    for text in ["NO-SUCH-TAG", "SAME", "one\n", "deep\n", "LOCKED\nLOCK-DONE", "AGAIN"] {
        done.expect(text);
    }
    done.expect_fact("merged", "given,above,0");
    done.expect_fact("kept", "abcabc");
    done.expect_fact("promises", "25");
    done.expect_fact("broken", "0");
    // Memory of the host's keeps attributes of root's at least.
    assert_eq!(done.count("NO-ATTRIBUTES"), 0, "{}", done.console);
    assert_eq!(done.count("CHANGED"), 0, "{}", done.console);
    let data = fs::read(work.join("data")).unwrap();
    assert_eq!(data.len(), 6 << 16);
    done.expect_fact("hash", &guest::tools::sha256(&data));
    assert_eq!(data, fs::read(never.join("data")).unwrap());
    assert_eq!(fs::read(work.join("exercised")).unwrap().len() as u64, done.number("exercised"));
    assert_eq!(tree(&given), before, "a directory that is only read has changed");
}

#[test]
fn another_users_husk_shares_what_is_that_users() {
    const USER: u32 = 65533;
    let Some(lab) = Lab::open() else { return };
    let Ok(kvm) = fs::metadata("/dev/kvm") else { return skipped("there is no /dev/kvm") };
    // SAFETY: it cannot fail.
    if unsafe { libc::geteuid() } != 0 || kvm.mode() & 0o60 != 0o60 {
        return skipped("it becomes another user, who must be let near /dev/kvm");
    }
    let (work, option) = volume(&lab, "work", "");
    fs::write(work.join("secret"), "of root's\n").unwrap();
    fs::set_permissions(work.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(work.join("public"), "of root's, for all\n").unwrap();
    chown(&work, Some(USER), Some(USER)).unwrap();
    let script = r#"
mount -t virtiofs work /mnt || exit 1
mkdir /mnt/check
files check /mnt/check
cat /mnt/public
cat /mnt/secret 2>/dev/null && echo TOLD
echo x >>/mnt/public 2>/dev/null && echo WRITTEN
mknod /mnt/device b 8 0 2>/dev/null && echo DEVICE
echo mine >/mnt/mine
chown 0:0 /mnt/mine && echo KEPT
chown 1000 /mnt/mine 2>/dev/null && echo GIVEN-AWAY
echo "owner=$(stat -c %u:%g /mnt/mine)"
exit 0
"#;
    let guest = lab.guest().user(USER, kvm.gid()).args(&option);
    let done = guest.script(&format!("{LOAD}\n{script}")).run();
    done.expect_clean().expect("of root's, for all").expect("KEPT");
    done.expect_fact("broken", "0");
    done.expect_fact("owner", "0:0");
    for text in ["TOLD", "WRITTEN", "DEVICE", "GIVEN-AWAY"] {
        assert_eq!(done.count(text), 0, "{text}: {}", done.console);
    }
    let meta = fs::metadata(work.join("mine")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (USER, 0o644));
}
