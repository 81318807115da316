//! Shared directories under suites that others have made to try file systems, for `cargo xtask soak` alone:
//! pjdfstest for what POSIX promises of names, owners and permissions, fsx and fio for data, stress-ng for
//! everything at once, with each cache policy, as root and as another user.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use guest::{FSX, Lab, MODULES_CLOUD, PJDFSTEST, TOOLS, VMLINUZ_CLOUD, skipped, soak_rounds};

/// The user whose husk is not root's.
const USER: u32 = 65533;
/// One guest has so long for all of its work.
const LIMIT: Duration = Duration::from_secs(3000);

/// What pjdfstest shall do. Two users of any Debian's, and no longer breaks than the steps of a host's clock.
const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.03
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// All that fsx can do but flushing a mapping away (MS_INVALIDATE), which asks nothing of a file system; how
/// often it maps the file follows.
const FSX_CONFIG: &str = "
flen = 400000
[opsize]
max = 70000
[weights]
close_open = 2
read = 10
write = 10
truncate = 10
fsync = 2
fdatasync = 2
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 2
copy_file_range = 5
";

/// Runs everything in /m; what fails says so.
const SUITES: &str = r#"
cd /m && mkdir names data stress || exit 1
/t/pjdfstest -c /t/pjdfstest.toml -p names >/tmp/names 2>&1
sed -n 's/^\(.*[^ ]\)  *FAILED$/NOT-POSIX \1/p' /tmp/names
echo "names=$(grep -o '[0-9][0-9]* failed, .*' /tmp/names | tr -d ' ')"

for seed in $SEEDS; do
    /t/fsx -f /t/fsx.toml -N 2000 -S $seed data/fsx-$seed >/tmp/fsx 2>&1 && continue
    echo "FSX-FAILED $seed"
    tail -n 20 /tmp/fsx
done
cat >/tmp/fio <<'EOF'
[global]
directory=data
verify=crc32c
verify_fatal=1
verify_state_save=0
size=4m
[buffered]
rw=randwrite
ioengine=psync
bs=4k
[direct]
rw=randwrite
ioengine=libaio
iodepth=8
direct=1
bsrange=4k-64k
blockalign=4k
[mixed]
rw=randrw
ioengine=psync
bsrange=512-32k
fsync=16
EOF
[ $MAPPED = 0 ] || printf '[mapped]\nrw=randwrite\nioengine=mmap\nbs=4k\n' >>/tmp/fio
fio /tmp/fio >/tmp/said 2>&1 || { echo FIO-FAILED; tail -n 20 /tmp/said; }

# lockf waits for no lock: it kills a process that waits for one which its parent keeps, and a guest's
# driver cannot take a request back.
for kind in access chmod dentry dir dirdeep fallocate filename flock getdent hdd link locka lockf \
    lockofd open readahead rename seek symlink touch utime xattr; do
    stress-ng --temp-path /m/stress --verify --timeout 2 --fallocate-bytes 16m --hdd-bytes 16m \
        --readahead-bytes 16m --seek-size 16m --lockf-nonblock --$kind 2 >/tmp/said 2>&1 && continue
    # 3: there is nothing that it could try; 4: the machine is too small.
    status=$?
    [ $status = 3 ] || [ $status = 4 ] && { echo "no-stress-$kind"; continue; }
    echo "STRESS-FAILED $kind $status"
    tail -n 5 /tmp/said
done
dmesg | grep -E 'WARNING|BUG:'
rm -rf names data stress
find /m -mindepth 1 -ls
echo "left=$(find /m -mindepth 1 | wc -l)"
echo SUITES-DONE
"#;

/// Devices are made by nobody, only 0:0, which is none: these tests of pjdfstest make one.
const DEVICES: &[&str] =
    &["::block", "mknod::device_files::char", "mknod::changed_times_success::char"];

/// What cannot be as POSIX has it when husk is not root: the user's files are root's in the guest, which
/// cannot give them away, and whatever its users make is root's.
const NEEDS_ROOT: &[&str] = &[
    "open::uid_gid_eq_euid_egid",
    "mknod::uid_gid_eq_euid_egid",
    "mkfifo::uid_gid_eq_euid_egid",
    "mkdir::uid_gid_eq_euid_egid",
    "link::share_metadata::",
    "chmod::clear_isgid_bit",
];

#[test]
fn suites_find_nothing_in_a_share_that_is_believed_for_a_second() {
    suites("auto", None);
}

#[test]
fn suites_find_nothing_in_a_share_that_is_believed_for_good() {
    suites("always", None);
}

#[test]
fn suites_find_nothing_in_a_share_that_is_never_believed() {
    suites("never", None);
}

#[test]
fn suites_find_nothing_in_another_users_share_believed_for_a_second_but_what_takes_root() {
    suites("auto", Some(USER));
}

#[test]
fn suites_find_nothing_in_another_users_share_believed_for_good_but_what_takes_root() {
    suites("always", Some(USER));
}

#[test]
fn suites_find_nothing_in_another_users_share_never_believed_but_what_takes_root() {
    suites("never", Some(USER));
}

fn suites(cache: &str, user: Option<u32>) {
    let Some(lab) = Lab::open() else { return };
    if !lab.asset(PJDFSTEST).exists() {
        return skipped("it is for `cargo xtask soak`");
    }
    let Ok(kvm) = fs::metadata("/dev/kvm") else { return skipped("there is no /dev/kvm") };
    // SAFETY: it cannot fail.
    if user.is_some() && (unsafe { libc::geteuid() } != 0 || kvm.mode() & 0o60 != 0o60) {
        return skipped("it becomes another user, who must be let near /dev/kvm");
    }
    let (work, programs) = (lab.path("work"), lab.path("programs"));
    for dir in [&work, &programs] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in [FSX, PJDFSTEST] {
        fs::copy(lab.asset(name), programs.join(name)).unwrap();
        fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(programs.join("pjdfstest.toml"), PJDFSTEST_CONFIG).unwrap();
    // Linux before 6.6 maps no file shared of which it may keep nothing (docs/devices/fs.md).
    let mapped = if cache == "never" { 0 } else { 10 };
    let fsx = format!("{FSX_CONFIG}mapread = {mapped}\nmapwrite = {mapped}\n");
    fs::write(programs.join("fsx.toml"), fsx).unwrap();
    let mut husk = lab.kernel(VMLINUZ_CLOUD).args("--cpus 2 --memory 768M");
    if let Some(user) = user {
        chown(&work, Some(user), Some(user)).unwrap();
        husk = husk.user(user, kvm.gid());
    }
    let modules = lab.asset(MODULES_CLOUD);
    if modules.is_dir() {
        husk = husk.arg("--modules").arg(modules);
    }
    let seeds: Vec<String> = (1..=soak_rounds(1, 6)).map(|seed| seed.to_string()).collect();
    let done = husk
        .arg("--root")
        .arg(lab.asset(TOOLS))
        .args(&format!("--volume {}:/m,cache={cache}", work.display()))
        .args(&format!("--volume {}:/t:ro", programs.display()))
        .args("-- bash -c")
        .arg(format!("SEEDS='{}' MAPPED={mapped}\n{SUITES}", seeds.join(" ")))
        .start()
        .finish_within(LIMIT);
    let shown = format!("cache={cache}, user {user:?}: {}", done.console);
    done.expect_status(0).expect("SUITES-DONE");
    for word in ["FSX-FAILED", "FIO-FAILED", "STRESS-FAILED", "WARNING", "BUG:"] {
        assert_eq!(done.count(word), 0, "{word}: {shown}");
    }
    let is_of = |names: &[&str], name: &str| names.iter().any(|part| name.contains(part));
    let excused = |name: &str| is_of(DEVICES, name) || (user.is_some() && is_of(NEEDS_ROOT, name));
    let failed = done.console.lines().filter_map(|line| line.strip_prefix("NOT-POSIX "));
    let failed: Vec<&str> = failed.filter(|name| !excused(name)).collect();
    assert!(failed.is_empty(), "{failed:?}: {shown}");
    // Of nearly 400, of which some 20 are for other systems; a suite that did not run has found nothing either.
    let names = done.fact("names");
    let passed = names.split(',').find_map(|part| part.strip_suffix("passed"));
    let passed: u32 = passed.and_then(|count| count.parse().ok()).unwrap_or(0);
    assert!(passed >= 300, "{names}: {shown}");
    done.expect_fact("left", "0");
    eprintln!("cache={cache}, user {user:?}: {names}, {:?}", done.took);
}
