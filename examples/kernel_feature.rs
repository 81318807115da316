//! Tests of a feature of the kernel's, each in a microVM of its own: root there, and nobody's machine.
//!
//! ```text
//! HUSK_KERNEL=$PWD/vmlinuz cargo test --example kernel_feature
//! ```
//!
//! The functions run in the guest. A kernel under development is named in `HUSK_KERNEL`, or with
//! `#[husk::test(kernel = "…")]`.

/// Whoever names a kernel wants it tested.
#[cfg(test)]
fn wanted() -> bool {
    std::env::var_os("HUSK_KERNEL").is_some()
}

/// It returns its errors: `should_panic` is nothing for a test in a guest.
#[husk::test(memory = "256M", when = wanted())]
fn a_control_group_without_room_for_a_process_refuses_one() -> std::io::Result<()> {
    use std::fs;
    use std::process::Command;

    const GROUP: &str = "/sys/fs/cgroup/full";
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids")?;
    fs::create_dir(GROUP)?;
    fs::write(format!("{GROUP}/cgroup.procs"), std::process::id().to_string())?;
    // More can be in it already; none can be added.
    fs::write(format!("{GROUP}/pids.max"), "1")?;
    let error = Command::new("/bin/true").status().expect_err("a process was made");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
    fs::write(format!("{GROUP}/pids.max"), "max")?;
    assert!(Command::new("/bin/true").status()?.success());
    println!("pids.max holds on {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    Ok(())
}

fn main() {
    println!("HUSK_KERNEL=… cargo test --example kernel_feature");
}
