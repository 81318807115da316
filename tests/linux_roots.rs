//! Roots of every kind, and where what is written above them is kept.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use guest::command::{cli, finish};
use guest::terminal::Terminal;
use guest::tools::host;
use guest::user::User;
use guest::{Lab, skipped};

/// What a user who is not root has in the host's own root; then more than the memory of a guest that has 128 MiB,
/// and what has no place in memory or is not this user's to make.
const SCRIPT: &str = r#"set -e
id -u; pwd
echo mine >made && mkdir directory && stat -c %u:%g made directory
{ read -r line <secret; } 2>/dev/null && echo "TOLD $line"
echo x >/etc/husk-was-here && echo above the root
cd /var/tmp
head -c 8M /dev/urandom >some
many() { for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do cat some; done; }
many >big
many | cmp - big
test "$(stat -c %s big)" -gt "$(($(sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) << 10))"
rm big
touch owned && chown 1234:5678 owned && mknod null c 1 3
stat -c '%u:%g %F' owned null
echo lost >null && test ! -s null
mv /etc/passwd /etc/moved && test ! -e /etc/passwd && test -s /etc/moved
rm /mnt/cow/file && mkdir /mnt/cow/file && head -c 8M /dev/zero >/mnt/cow/file/zeros
echo "of $(($(stat -f -c '%b * %S' /var/tmp) >> 20)) MiB"
exit 5
"#;

#[test]
fn a_shell_of_another_user_has_the_hosts_files_and_writes_more_than_its_memory_holds() {
    let Some(lab) = Lab::open() else { return };
    let Some(user) = User::other(&lab) else { return };
    let [scratch, cow, work] =
        ["scratch", "cow", "work"].map(|name| user.directory(lab.path(name)));
    std::fs::write(cow.join("file"), "the host's\n").unwrap();
    std::fs::write(cow.join("script"), SCRIPT).unwrap();
    std::fs::write(work.join("secret"), "of root's\n").unwrap();
    std::fs::set_permissions(work.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let overlay = format!("disk,size=1G,dir={}", scratch.display());
    let volume = format!("{}:/mnt/cow:cow", cow.display());
    // Nothing to run, and somebody at a terminal.
    let args = ["--memory", "128M", "--overlay", &overlay, "--volume", &volume, "--cwd"];
    let mut husk = cli(&lab, &[&args[..], &["--rw", work.to_str().unwrap()]].concat());
    user.run(husk.current_dir(&work));
    let mut terminal = Terminal::start(husk, (25, 81));
    terminal.ask_until("echo on $(tty)\n", "on /dev/pts/");
    terminal.type_in("exec sh /mnt/cow/script\n");
    let (status, screen) = terminal.end();
    assert_eq!(status, 5, "{screen}");
    let place = work.canonicalize().unwrap();
    let said = format!(
        "0\r\n{}\r\n0:0\r\n0:0\r\nabove the root\r\n\
         1234:5678 regular empty file\r\n0:0 character special file\r\nof 9",
        place.display()
    );
    assert!(screen.contains(&said), "{screen}");
    for name in ["made", "directory"] {
        let meta = std::fs::metadata(work.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (user.uid, user.gid), "{name}");
    }
    assert!(!Path::new("/etc/husk-was-here").exists());
    assert_eq!(std::fs::read(cow.join("file")).unwrap(), b"the host's\n");
    assert_eq!(scratch.read_dir().unwrap().count(), 0);
}

#[test]
fn a_root_is_an_image_of_any_file_system_or_format_and_is_only_read() {
    let Some(lab) = Lab::open() else { return };
    for tool in ["mkfs.erofs", "mksquashfs", "qemu-img"] {
        if std::process::Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output()
            .is_ok_and(|o| !o.status.success())
        {
            return skipped(format!("no {tool}"));
        }
    }
    let files = lab.path("files");
    std::fs::create_dir_all(files.join("bin")).unwrap();
    let busybox = host("sh", ["-c", "command -v busybox"]);
    std::fs::copy(busybox.trim(), files.join("bin/busybox")).unwrap();
    std::fs::write(files.join("below"), "below\n").unwrap();
    let image = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let [erofs, squashfs, ext4] = ["erofs", "squashfs", "ext4"].map(image);
    let [qcow2, based] = ["qcow2", "based.qcow2"].map(image);
    let from = files.to_str().unwrap();
    host("mkfs.erofs", ["--quiet", &erofs, from]);
    host("mksquashfs", [from, &squashfs, "-quiet", "-no-progress"]);
    host("mkfs.ext4", ["-q", "-d", from, &ext4, "16M"]);
    host("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &ext4, &qcow2]);
    host("qemu-img", ["create", "-q", "-f", "qcow2", "-b", &qcow2, "-F", "qcow2", &based]);
    let overlay = format!("disk,size=64M,dir={}", lab.path(".").display());
    let script = "echo above >/new; echo more >>/below; cat /new /below; grep -o '^overlay / ' /proc/mounts; exit 3";
    for (root, image, options) in [
        // Larger than its root, and on a disk after its root's.
        (erofs.clone(), &erofs, &["--overlay", &overlay][..]),
        (squashfs.clone(), &squashfs, &[]),
        (format!("{based}:cow,format=qcow2,backing"), &based, &[]),
    ] {
        let before = std::fs::read(Path::new(image)).unwrap();
        let command = ["--", "/bin/busybox", "sh", "-c", script];
        let args = [&["--root", &root, "--memory", "128M"], options, &command].concat();
        let wanted = (3, "above\nbelow\nmore\noverlay / \n".to_owned(), String::new());
        assert_eq!(finish(cli(&lab, &args), b""), wanted, "{root}");
        assert!(std::fs::read(image).unwrap() == before, "{root} was written to");
    }
    // A disk of the host's that is full: programs that do not sync would never know.
    let full = lab.path("full");
    std::fs::create_dir(&full).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=20M", "none", full.to_str().unwrap()];
    if !std::process::Command::new("mount").args(mount).status().unwrap().success() {
        return skipped("a small disk: it cannot be mounted");
    }
    let overlay = format!("disk,size=64M,dir={}", full.display());
    let script = "yes | head -c 41943040 >/new; sync; exit 0";
    let command = ["--", "/bin/busybox", "sh", "-c", script];
    let args = [&["--root", &erofs, "--memory", "128M", "--overlay", &overlay][..], &command];
    let (status, _, stderr) = finish(cli(&lab, &args.concat()), b"");
    host("umount", [full.to_str().unwrap()]);
    assert_eq!(status, 125, "{stderr}");
    assert!(stderr.contains("is not all there") && stderr.contains("MiB left"), "{stderr}");
}

#[test]
fn a_directory_is_a_root_that_is_written_to_or_is_read_only() {
    let Some(lab) = Lab::open() else { return };
    let root = lab.path("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    // The one that the guests' initramfs images are made with: it needs no library.
    let busybox = host("sh", ["-c", "command -v busybox"]);
    std::fs::copy(busybox.trim(), root.join("bin/busybox")).unwrap();
    let run = |access: &str, more: &[&str], script: &str| {
        let root = format!("{}:{access}", root.display());
        let args = ["--root", &root];
        let command = ["--", "/bin/busybox", "sh", "-c", script];
        finish(cli(&lab, &[&args[..], more, &command].concat()), b"")
    };
    let script = "echo kept >/kept; /bin/busybox cat /proc/1/comm; exit 3";
    assert_eq!(run("rw", &[], script), (3, "init\n".to_owned(), String::new()));
    assert_eq!(std::fs::read(root.join("kept")).unwrap(), b"kept\n");

    let names = || {
        let names = root.read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    assert!(before.iter().eq(["bin", "dev", "kept", "proc", "run", "sys"]), "{before:?}");
    let script = "echo no >/kept; echo no >/new; cd /tmp && echo yes >here; cd /in/memory && echo yes >here; \
                  /bin/busybox cat /kept /tmp/here /in/memory/here; exit 4";
    let (status, stdout, stderr) = run("ro", &["--tmpfs", "/in/memory"], script);
    assert_eq!((status, stdout.as_str()), (4, "kept\nyes\nyes\n"), "{stderr}");
    assert_eq!(stderr.matches("Read-only file system").count(), 2, "{stderr}");
    assert_eq!(names(), before);
}
