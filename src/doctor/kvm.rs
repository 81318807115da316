//! The device /dev/kvm and what its KVM can do.

use super::{Check, Report, host};
use crate::hypervisor::{Hypervisor, HypervisorError, REQUIRED, USED};

/// The first Linux with all of [`REQUIRED`] (KVM_CAP_IMMEDIATE_EXIT came last).
const OLDEST_LINUX: &str = "4.12";

/// Examines /dev/kvm; returns it if it can be used.
pub fn examine(report: &mut Report) -> Option<Hypervisor> {
    let hypervisor = match Hypervisor::open_unchecked() {
        Ok(hypervisor) => hypervisor,
        Err(e) => {
            report.checks.push(unusable(&e, host::cpu_flag()));
            return None;
        }
    };
    report.checks.push(Check::ok("/dev/kvm", "can be read and written"));

    const API_VERSION: &str = "KVM API version";
    match hypervisor.check_api_version() {
        Ok(version) => {
            report.kvm_api_version = Some(version);
            report.checks.push(Check::ok(API_VERSION, version.to_string()));
        }
        Err(e) => {
            if let HypervisorError::ApiVersion(version) = e {
                report.kvm_api_version = Some(version);
            }
            let remedy = format!("run a kernel with Linux' own KVM, {OLDEST_LINUX} or newer");
            report.checks.push(Check::fail(API_VERSION, e.to_string(), remedy));
            return None;
        }
    }

    let mut complete = true;
    for capability in REQUIRED {
        let (there, name) = (hypervisor.has(capability), capability.name);
        complete &= there;
        report.checks.push(if there {
            Check::ok(name, "there; husk needs it")
        } else {
            let remedy = format!("boot this host with Linux {OLDEST_LINUX} or newer");
            Check::fail(name, "missing, and husk needs it", remedy)
        });
    }
    for (capability, purpose) in USED {
        let name = capability.name;
        report.checks.push(if hypervisor.has(capability) {
            Check::ok(name, format!("there, for {purpose}"))
        } else {
            Check::warn(
                name,
                format!("missing: no {purpose}"),
                "nothing need be done; a newer host kernel or CPU may have it",
            )
        });
    }

    let (usable, most) = (hypervisor.max_vcpus(), hypervisor.kvm_max_vcpus());
    report.max_vcpus = Some(usable);
    let vcpus = format!("up to {usable} a VM (KVM allows {most})");
    report.checks.push(Check::ok("vCPUs", vcpus));
    complete.then_some(hypervisor)
}

/// The line for a /dev/kvm that cannot be opened; `flag` is the CPU's virtualisation flag.
fn unusable(error: &HypervisorError, flag: Option<&str>) -> Check {
    const NAME: &str = "/dev/kvm";
    match error {
        HypervisorError::Absent => {
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
        HypervisorError::Permission => Check::fail(
            NAME,
            "no permission to read and write it",
            "join the group that owns it (`sudo usermod -aG kvm $USER`), then log in again",
        ),
        other => Check::fail(
            NAME,
            match other {
                HypervisorError::Open(source) => format!("cannot be opened: {source}"),
                other => other.to_string(),
            },
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
        let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
        for (error, flag, word) in [
            (HypervisorError::Absent, Some("vmx"), "kvm_intel"),
            (HypervisorError::Absent, Some("svm"), "kvm_amd"),
            (HypervisorError::Absent, None, "nested"),
            (HypervisorError::Permission, None, "usermod"),
            (HypervisorError::Open(busy), None, "dmesg"),
        ] {
            let check = unusable(&error, flag);
            assert_eq!(check.status, Status::Fail);
            assert!(check.remedy.unwrap().contains(word), "{error}");
        }
    }
}
