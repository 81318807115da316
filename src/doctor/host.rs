//! What else of the host matters: its CPU and kernel, networking, memory, a kernel to boot.
//!
//! Nothing here decides whether Linux can boot; a line is `ok` or a warning.

use std::fs::{self, OpenOptions};
use std::io;

use super::{Check, Report};
use crate::kernels;
use crate::memory::Meminfo;

/// CAP_NET_ADMIN of `include/uapi/linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
/// CAP_SYS_PTRACE, likewise.
const CAP_SYS_PTRACE: u32 = 19;

/// Adds all of it.
pub fn examine(report: &mut Report) {
    let checks = &mut report.checks;
    checks.push(cpu(cpu_flag()));
    checks.push(kernel(&report.host_kernel));
    checks.push(guest_kernel());
    let open = |path| OpenOptions::new().read(true).write(true).open(path).map(drop);
    checks.push(tap(open("/dev/net/tun"), has_capability(CAP_NET_ADMIN)));
    checks.push(vhost_net(open("/dev/vhost-net")));
    checks.push(huge_pages(&Meminfo::read()));
    let sysctl = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").ok();
    checks.push(userfaultfd(
        open("/dev/userfaultfd").is_ok() || has_capability(CAP_SYS_PTRACE),
        sysctl.as_deref(),
    ));
}

/// The host's kernel release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// The CPU's virtualisation flag: `vmx` (Intel) or `svm` (AMD).
pub fn cpu_flag() -> Option<&'static str> {
    flag_in(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn flag_in(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let mut words = flags.split_whitespace();
    words.find_map(|word| ["vmx", "svm"].into_iter().find(|flag| *flag == word))
}

fn cpu(flag: Option<&str>) -> Check {
    const NAME: &str = "CPU virtualisation";
    match flag {
        Some("vmx") => Check::ok(NAME, "vmx (Intel VT-x)"),
        Some(_) => Check::ok(NAME, "svm (AMD-V)"),
        None => Check::warn(
            NAME,
            "neither vmx nor svm in /proc/cpuinfo",
            "enable virtualisation in the firmware or, if this is a VM, nested virtualisation on \
             its host",
        ),
    }
}

fn kernel(release: &str) -> Check {
    const NAME: &str = "host kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (4, 12) => Check::warn(
            NAME,
            format!("Linux {release}"),
            "boot this host with Linux 4.12 or newer, better 5.10",
        ),
        (Some(Ok(_)), Some(Ok(_))) => Check::ok(NAME, format!("Linux {release}")),
        _ => Check::warn(NAME, "/proc does not tell", "mount /proc"),
    }
}

fn guest_kernel() -> Check {
    const NAME: &str = "a kernel to boot";
    match kernels::default_kernel() {
        Ok(path) if path.exists() => Check::ok(NAME, path.display().to_string()),
        Ok(path) => Check::warn(
            NAME,
            format!("$HUSK_KERNEL is {}, which does not exist", path.display()),
            "correct $HUSK_KERNEL, or unset it",
        ),
        Err(_) => Check::warn(NAME, "none", "run `husk kernel fetch`, or give one with --kernel"),
    }
}

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|caps| caps >> number & 1 == 1)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(caps.trim(), 16).ok()
}

fn tap(device: io::Result<()>, admin: bool) -> Check {
    const NAME: &str = "TAP networking";
    match device {
        Ok(()) if admin => Check::ok(NAME, "husk may create TAP devices (CAP_NET_ADMIN)"),
        Ok(()) => Check::warn(
            NAME,
            "husk may not create TAP devices, only use one made for this user",
            "make one with `sudo ip tuntap add tap0 mode tap user $USER`, then --net tap=tap0",
        ),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Check::warn(
            NAME,
            "no permission to open /dev/net/tun",
            "`sudo chmod 666 /dev/net/tun`, which is its usual mode",
        ),
        Err(e) => Check::warn(
            NAME,
            format!("/dev/net/tun cannot be opened: {e}"),
            "load it with `sudo modprobe tun`; in a container, pass --device /dev/net/tun",
        ),
    }
}

fn vhost_net(device: io::Result<()>) -> Check {
    const NAME: &str = "vhost-net";
    match device {
        Ok(()) => Check::ok(NAME, "the host's kernel can move a TAP's frames"),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Check::warn(
            NAME,
            "no permission to open /dev/vhost-net: husk moves a TAP's frames itself",
            "join the group that owns it (`sudo usermod -aG kvm $USER`), then log in again",
        ),
        Err(e) => Check::warn(
            NAME,
            format!("/dev/vhost-net cannot be opened ({e}): husk moves a TAP's frames itself"),
            "load it with `sudo modprobe vhost_net`; in a container, pass --device /dev/vhost-net",
        ),
    }
}

/// `permitted`: also to handle faults within the kernel; `sysctl` is what `vm.unprivileged_userfaultfd` says.
fn userfaultfd(permitted: bool, sysctl: Option<&str>) -> Check {
    const NAME: &str = "userfaultfd";
    match (permitted, sysctl.map(str::trim)) {
        (_, None) => Check::warn(
            NAME,
            "this host's kernel has none, or /proc does not tell",
            "nothing need be done, husk does not use it yet; a kernel with CONFIG_USERFAULTFD has it",
        ),
        (true, _) | (_, Some("1")) => Check::ok(NAME, "there; husk does not use it yet"),
        _ => Check::warn(
            NAME,
            "only root may have page faults told; husk does not use it yet",
            "`sudo sysctl vm.unprivileged_userfaultfd=1`, or permission to open /dev/userfaultfd",
        ),
    }
}

fn huge_pages(host: &Meminfo) -> Check {
    const NAME: &str = "huge pages";
    let (total, free) = (host.field("HugePages_Total"), host.field("HugePages_Free"));
    let mib = host.field("Hugepagesize").unwrap_or(2048) / 1024;
    match (total, free) {
        (Some(total), Some(free)) if free > 0 => {
            Check::ok(NAME, format!("{free} of {total} pages of {mib} MiB are free"))
        }
        (Some(total), _) => Check::warn(
            NAME,
            format!("none of {total} is free; only --memory …,hugepages needs them"),
            "reserve 1 GiB with `sudo sysctl vm.nr_hugepages=512`",
        ),
        (None, _) => Check::warn(
            NAME,
            "this host's kernel has none",
            "do without --memory …,hugepages, or run a kernel with CONFIG_HUGETLBFS",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn the_virtualisation_flag_is_a_word_of_its_own() {
        assert_eq!(flag_in("flags\t: fpu vme svm nx\n"), Some("svm"));
        assert_eq!(flag_in("flags\t\t: fpu avx_vnni vmx_ept\nvmx flags\t: vmx\n"), None);
        assert_eq!(flag_in(""), None);
    }

    #[test]
    fn tap_says_how_to_get_one() {
        let error = |kind: io::ErrorKind| Err(kind.into());
        assert_eq!(tap(Ok(()), true).status, Status::Ok);
        assert!(tap(Ok(()), false).remedy.unwrap().contains("ip tuntap"));
        assert!(tap(error(io::ErrorKind::NotFound), true).remedy.unwrap().contains("modprobe"));
        let denied = tap(error(io::ErrorKind::PermissionDenied), false);
        assert!(denied.remedy.unwrap().contains("chmod"));
    }

    #[test]
    fn vhost_net_says_what_is_done_without_it_and_how_to_get_it() {
        assert_eq!(vhost_net(Ok(())).status, Status::Ok);
        let without = |kind: io::ErrorKind| vhost_net(Err(kind.into()));
        for (kind, remedy) in [
            (io::ErrorKind::NotFound, "modprobe vhost_net"),
            (io::ErrorKind::PermissionDenied, "group"),
        ] {
            let check = without(kind);
            assert_eq!(check.status, Status::Warn);
            assert!(check.detail.contains("husk moves") && check.remedy.unwrap().contains(remedy));
        }
    }

    #[test]
    fn userfaultfd_is_there_for_who_is_permitted_or_everybody() {
        let status = |permitted, sysctl| userfaultfd(permitted, sysctl).status;
        assert_eq!(
            (status(true, Some("0\n")), status(false, Some("1\n"))),
            (Status::Ok, Status::Ok)
        );
        assert_eq!((status(false, Some("0\n")), status(true, None)), (Status::Warn, Status::Warn));
        assert!(userfaultfd(false, Some("0")).remedy.unwrap().contains("sysctl"));
    }

    #[test]
    fn every_line_is_there() {
        let mut report = crate::doctor::examine();
        report.checks.retain(|check| !check.name.contains("KVM"));
        let names: Vec<_> = report.checks.iter().map(|check| check.name.as_str()).collect();
        for name in [
            "CPU virtualisation",
            "host kernel",
            "a kernel to boot",
            "TAP networking",
            "vhost-net",
            "huge pages",
            "userfaultfd",
        ] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "CapPrm:\t0000000000001000\nCapEff:\t0000000000000001\n";
        assert_eq!(effective_capabilities(status), Some(1));
        assert_eq!(effective_capabilities("CapEff:\tx"), None);
    }

    #[test]
    fn huge_pages_are_counted_free_of_total() {
        let meminfo = "HugePages_Total:      64\nHugePages_Free:       10\nHugepagesize:   2048 kB";
        let huge_pages = |text: &str| huge_pages(&Meminfo(text.to_owned()));
        let check = huge_pages(meminfo);
        assert_eq!(
            (check.status, check.detail.as_str()),
            (Status::Ok, "10 of 64 pages of 2 MiB are free")
        );
        assert_eq!(huge_pages("HugePages_Total: 0\nHugePages_Free: 0").status, Status::Warn);
        assert_eq!(huge_pages("").status, Status::Warn);
    }

    #[test]
    fn an_old_or_unknown_host_kernel_is_a_warning() {
        assert_eq!(kernel("6.1.0-32-amd64").status, Status::Ok);
        assert_eq!(kernel("4.12.0").status, Status::Ok);
        assert_eq!(kernel("3.10.0-1160.el7").status, Status::Warn);
        assert_eq!(kernel("").status, Status::Warn);
    }
}
