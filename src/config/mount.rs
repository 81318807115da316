//! Where in a guest that runs commands something can be mounted: a volume, or a directory in memory. The agent
//! makes the place and what leads to it, so that a path must say by itself where it ends.

/// The longest directory that something is mounted at, in bytes: all of them fit into one message for the agent.
const MOUNT_MAX: usize = 255;
/// What the init of a guest that runs commands mounts itself (`guest/agent/src/mounts.rs`), and they rely on.
pub const OWN_MOUNTS: [&str; 7] =
    ["/dev", "/dev/pts", "/dev/shm", "/proc", "/run", "/sys", "/sys/fs/cgroup"];
/// File systems that the kernel makes up: there are no directories in them but its own.
const MADE_UP: [&str; 2] = ["proc", "sys"];

/// Whether something can be mounted at `mount` in a guest that runs commands.
///
/// # Errors
/// Why not, in words that follow the path.
pub fn check_mount(mount: &str) -> Result<(), &'static str> {
    let names: Vec<&str> = mount.split('/').filter(|name| !name.is_empty()).collect();
    let is = |own: &&str| own.split('/').skip(1).eq(names.iter().copied());
    match () {
        () if mount.contains('\0') => Err("there is a NUL byte in it"),
        () if mount.len() > MOUNT_MAX => Err("it is longer than 255 bytes"),
        () if !mount.starts_with('/') => Err("it does not begin with `/`"),
        () if names.iter().any(|name| matches!(*name, "." | "..")) => {
            Err("there is a `.` or `..` in it: name the directory itself")
        }
        () if names.is_empty() => Err("that is the guest's root, not a directory in it"),
        () if OWN_MOUNTS.iter().any(is) => Err("the guest has a file system of its own there"),
        () if names.first().is_some_and(|first| MADE_UP.contains(first)) => {
            Err("what is there is the guest's kernel's, and no directory can be made in it")
        }
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_mounted_over_what_the_guest_has_itself_or_where_a_path_leads_elsewhere() {
        for (mount, why) in [
            ("", "begin with"),
            ("tmp", "begin with"),
            ("../etc", "begin with"),
            ("/", "root"),
            ("//", "root"),
            ("/.", "`..`"),
            ("/a/../proc", "`..`"),
            ("/..", "`..`"),
            ("/a\0b", "NUL"),
            ("/proc", "of its own"),
            ("//proc/", "of its own"),
            ("/dev", "of its own"),
            ("/dev/shm", "of its own"),
            ("/run", "of its own"),
            ("/sys/fs/cgroup/", "of its own"),
            ("/proc/sys", "no directory"),
            ("/sys/mine", "no directory"),
            (&format!("/{}", "x".repeat(255)), "255"),
        ] {
            let refused = check_mount(mount).unwrap_err();
            assert!(refused.contains(why), "{mount:?}: {refused}");
        }
        for mount in
            ["/tmp", "/srv/a b", "/run/mine", "/dev/hugepages", "/process", "/a..b/...", "/x/"]
        {
            assert_eq!(check_mount(mount), Ok(()), "{mount}");
        }
    }
}
