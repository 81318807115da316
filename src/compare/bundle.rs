//! The OCI bundle of the containers: a config.json as `runc spec` writes it, with our root and
//! program. (`opencontainers/runtime-spec`, config.md and config-linux.md, version 1.0.)
//!
//! It differs from that of `runc spec` in four things: no terminal, no view of the control groups, the filter
//! of system calls that containers have by default, and, for a user who is not root, a user namespace with
//! this user as its root.

use serde_json::{Value, json};

/// The namespaces every container gets.
const NAMESPACES: [&str; 5] = ["pid", "network", "ipc", "uts", "mount"];

/// What root in a container may do, as `runc spec` has it.
pub const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// The config.json of a container that runs `args` in the files at `root`, under `filter`; `user` is the
/// (uid, gid) of a user who is not root.
pub fn config(
    root: &str,
    args: &[&str],
    user: Option<(u32, u32)>,
    filter: Option<&Value>,
) -> Value {
    let capabilities = CAPABILITIES;
    let mut namespaces: Vec<Value> =
        NAMESPACES.iter().map(|kind| json!({ "type": kind })).collect();
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let pts: &[&str] = match user {
        None => &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        // The group 5 is not mapped.
        Some(_) => &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    };
    let mounts = [
        mount("/proc", "proc", &[]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", pts),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    let mut linux = json!({
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
            "/proc/scsi",
        ],
        "readonlyPaths": [
            "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
        ],
    });
    if let Some(linux) = linux.as_object_mut() {
        match user {
            None => {
                let deny = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
                linux.insert("resources".to_owned(), deny);
            }
            Some((uid, gid)) => {
                namespaces.push(json!({ "type": "user" }));
                let map = |id| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
                linux.insert("uidMappings".to_owned(), map(uid));
                linux.insert("gidMappings".to_owned(), map(gid));
            }
        }
        linux.insert("namespaces".to_owned(), namespaces.into());
        if let Some(filter) = filter {
            linux.insert("seccomp".to_owned(), filter.clone());
        }
    }
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin", "TERM=dumb"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": root, "readonly": true },
        "hostname": "husk-compare",
        "mounts": mounts,
        "linux": linux,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_our_root_read_only_and_our_program() {
        let config = config("/r", &["/bin/busybox", "sh"], None, None);
        assert!(config["linux"].get("seccomp").is_none());
        assert_eq!(config["root"], json!({ "path": "/r", "readonly": true }));
        assert_eq!(config["process"]["args"], json!(["/bin/busybox", "sh"]));
        assert_eq!(config["process"]["terminal"], json!(false));
        assert_eq!(config["linux"]["namespaces"].as_array().unwrap().len(), NAMESPACES.len());
        assert!(config["linux"].get("uidMappings").is_none());
    }

    #[test]
    fn a_user_who_is_not_root_gets_a_user_namespace_no_control_groups_and_the_filter() {
        let filter = json!({ "defaultAction": "SCMP_ACT_ERRNO" });
        let config = config("/r", &["x"], Some((1000, 100)), Some(&filter));
        assert_eq!(config["linux"]["seccomp"], filter);
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], json!(1000));
        assert_eq!(config["linux"]["gidMappings"][0]["hostID"], json!(100));
        let namespaces = config["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!({ "type": "user" })));
        assert!(config["linux"].get("resources").is_none());
    }
}
