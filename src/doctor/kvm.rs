//! The device /dev/kvm and what its KVM can do.

use std::io;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};

use super::{Check, Report, host};
use crate::hypervisor::REQUIRED;
use crate::x86_64::layout;

/// Capabilities husk uses where they are there, and what for.
const USED: [(Cap, &str, &str); 3] = [
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER", "cheap guest timers"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ", "a guest that need not calibrate its clock"),
    (Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL", "a pause without alarms in the guest"),
];

/// The first Linux with all of [`REQUIRED`] (KVM_CAP_IMMEDIATE_EXIT came last).
const OLDEST_LINUX: &str = "4.12";

/// Examines /dev/kvm; says whether it can be used.
pub fn examine(report: &mut Report) -> bool {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => {
            report.checks.push(unusable(e.errno(), host::cpu_flag()));
            return false;
        }
    };
    report.checks.push(Check::ok("/dev/kvm", "can be read and written"));

    let version = kvm.get_api_version();
    report.kvm_api_version = Some(version);
    let version_fits = i64::from(version) == i64::from(KVM_API_VERSION);
    report.checks.push(if version_fits {
        Check::ok("KVM API version", version.to_string())
    } else {
        Check::fail(
            "KVM API version",
            format!("{version}, not {KVM_API_VERSION}"),
            format!("run a kernel with Linux' own KVM, {OLDEST_LINUX} or newer"),
        )
    });
    if !version_fits {
        return false;
    }

    let mut complete = true;
    for (cap, name) in REQUIRED {
        let there = kvm.check_extension(cap);
        complete &= there;
        report.checks.push(if there {
            Check::ok(name, "there; husk needs it")
        } else {
            let remedy = format!("boot this host with Linux {OLDEST_LINUX} or newer");
            Check::fail(name, "missing, and husk needs it", remedy)
        });
    }
    for (cap, name, purpose) in USED {
        report.checks.push(if kvm.check_extension(cap) {
            Check::ok(name, format!("there, for {purpose}"))
        } else {
            Check::warn(
                name,
                format!("missing: no {purpose}"),
                "nothing need be done; a newer host kernel or CPU may have it",
            )
        });
    }

    let most = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
    let usable = most.min(layout::VCPUS_MAX);
    report.max_vcpus = Some(usable);
    report.checks.push(Check::ok(
        "vCPUs",
        format!(
            "up to {usable} a VM (KVM allows {most}, and advises at most {})",
            kvm.get_nr_vcpus()
        ),
    ));
    complete
}

/// The line for a /dev/kvm that cannot be opened; `flag` is the CPU's virtualisation flag.
fn unusable(errno: i32, flag: Option<&str>) -> Check {
    const NAME: &str = "/dev/kvm";
    match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => {
            let module = match flag {
                Some("vmx") => {
                    "load KVM (`sudo modprobe kvm_intel`), or enable VT-x in the firmware"
                }
                Some(_) => "load KVM (`sudo modprobe kvm_amd`), or enable SVM in the firmware",
                None => {
                    "enable virtualisation in the firmware or, if this is a VM, nested \
                     virtualisation on its host; in a container, pass --device /dev/kvm"
                }
            };
            Check::fail(NAME, "does not exist", module)
        }
        libc::EACCES | libc::EPERM => Check::fail(
            NAME,
            "no permission to read and write it",
            "join the group that owns it (`sudo usermod -aG kvm $USER`), then log in again",
        ),
        errno => Check::fail(
            NAME,
            format!("cannot be opened: {}", io::Error::from_raw_os_error(errno)),
            "see `ls -l /dev/kvm` and the kernel's log (`sudo dmesg | grep -i kvm`)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn an_unusable_device_fails_with_the_remedy_for_its_reason() {
        for (errno, flag, word) in [
            (libc::ENOENT, Some("vmx"), "kvm_intel"),
            (libc::ENOENT, Some("svm"), "kvm_amd"),
            (libc::ENODEV, None, "nested"),
            (libc::EACCES, None, "usermod"),
            (libc::EBUSY, None, "dmesg"),
        ] {
            let check = unusable(errno, flag);
            assert_eq!(check.status, Status::Fail);
            assert!(check.remedy.unwrap().contains(word), "{errno}");
        }
    }
}
