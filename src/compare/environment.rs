//! Where it was measured: what a reader must know to believe a figure, or to doubt it.

use std::arch::x86_64::__cpuid;
use std::fs;
use std::time::SystemTime;

use super::proc;
use crate::doctor::Report;

/// What sort of KVM the VMs ran on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// The processor's own, on the machine itself.
    Native,
    /// In a virtual machine, by the hypervisor of this name: exits cost far more.
    Nested(String),
    /// The machine, its virtualisation included, is emulated in software (QEMU's TCG).
    Emulated,
    /// Interprets guest kernel code.
    Interpreted,
    /// There is none that can be used.
    Absent,
}

impl Kvm {
    /// The kind in a word, for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Kvm::Native => "native",
            Kvm::Nested(_) => "nested",
            Kvm::Emulated => "emulated",
            Kvm::Interpreted => "interpreted",
            Kvm::Absent => "absent",
        }
    }

    /// Of the examined host, whose processor names `hypervisor` as what it runs under.
    fn of(report: &Report, hypervisor: Option<&str>) -> Self {
        match (report.native, hypervisor) {
            (None, _) => Kvm::Absent,
            (Some(false), _) => Kvm::Interpreted,
            (Some(true), None) => Kvm::Native,
            (Some(true), Some("TCGTCGTCGTCG")) => Kvm::Emulated,
            (Some(true), Some(name)) => Kvm::Nested(name.to_owned()),
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// The processor's name.
    pub cpu: String,
    /// How many of them this process may use.
    pub cpus: usize,
    /// Its memory, in bytes.
    pub memory: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The kind of KVM.
    pub kvm: Kvm,
    /// Why Linux does not boot in a VM here, if it does not.
    pub no_linux: Option<String>,
    /// Mitigations of the processor's faults, as the kernel names them.
    pub mitigations: Vec<(String, String)>,
    /// When it was measured (UTC).
    pub date: String,
}

impl Environment {
    /// Of this machine, which has been examined.
    pub fn of(report: &Report) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let failed = report.checks.iter().find(|c| c.status == crate::doctor::Status::Fail);
        let why = failed.map(|check| format!("{}: {}", check.name, check.detail));
        Self {
            cpu: cpu_name(&info),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: proc::meminfo("MemTotal:").unwrap_or(0),
            kernel: report.host_kernel.clone(),
            kvm: Kvm::of(report, hypervisor().as_deref()),
            no_linux: why.filter(|_| !report.linux_boots),
            mitigations: mitigations(),
            date: date(SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs())),
        }
    }

    /// What must be said beside every figure, if something must.
    pub fn caveat(&self) -> Option<String> {
        match &self.kvm {
            Kvm::Emulated => Some(
                "this machine and its KVM are themselves emulated (QEMU TCG): no figure is one of \
                 real hardware; compare ratios only, and those with care"
                    .to_owned(),
            ),
            Kvm::Nested(by) => Some(format!(
                "this machine is itself a VM (of {by}): its KVM is nested, which makes VMs slower \
                 than on hardware and processes hardly"
            )),
            _ => None,
        }
    }

    /// What is known, as (name, value).
    pub fn facts(&self) -> Vec<(String, String)> {
        let kvm = match &self.kvm {
            Kvm::Nested(by) => format!("nested, under {by}"),
            other => other.word().to_owned(),
        };
        let mut facts = vec![
            ("measured".to_owned(), self.date.clone()),
            ("processor".to_owned(), format!("{} × {}", self.cpus, self.cpu)),
            ("memory".to_owned(), format!("{} MiB", self.memory >> 20)),
            ("host kernel".to_owned(), self.kernel.clone()),
            ("KVM".to_owned(), kvm),
        ];
        let mitigations = self.mitigations.iter();
        facts.extend(mitigations.map(|(name, how)| (format!("mitigation {name}"), how.clone())));
        facts
    }
}

fn cpu_name(info: &str) -> String {
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':'])).trim().to_owned()
}

/// What this machine runs under (SDM vol. 2A, CPUID leaf 1 ECX bit 31; leaf 0x4000_0000 is the
/// hypervisor's own).
fn hypervisor() -> Option<String> {
    if __cpuid(1).ecx & 1 << 31 == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
    let name = String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
    Some(if name.is_empty() { "an unnamed hypervisor".to_owned() } else { name })
}

fn mitigations() -> Vec<(String, String)> {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let mut found: Vec<(String, String)> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let how = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), how.trim().to_owned()))
        })
        .filter(|(_, how)| how != "Not affected")
        .collect();
    found.sort();
    found
}

/// Seconds since 1970 as `2026-01-31 12:00 UTC`.
fn date(seconds: u64) -> String {
    let time = libc::time_t::try_from(seconds).unwrap_or(0);
    // SAFETY: all zeros is a valid tm; gmtime_r reads a time and writes a tm, both ours.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&time, &mut tm);
        tm
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", tm.tm_mday, tm.tm_hour, tm.tm_min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(native: Option<bool>) -> Report {
        Report {
            linux_boots: native == Some(true),
            native,
            kvm_api_version: None,
            max_vcpus: None,
            speed: None,
            host_kernel: "6.1".to_owned(),
            checks: Vec::new(),
        }
    }

    #[test]
    fn the_kind_of_kvm_is_what_the_probe_and_the_processor_say() {
        assert_eq!(Kvm::of(&report(None), None), Kvm::Absent);
        assert_eq!(Kvm::of(&report(Some(false)), Some("KVMKVMKVM")), Kvm::Interpreted);
        assert_eq!(Kvm::of(&report(Some(true)), None), Kvm::Native);
        assert_eq!(Kvm::of(&report(Some(true)), Some("TCGTCGTCGTCG")), Kvm::Emulated);
        assert_eq!(Kvm::of(&report(Some(true)), Some("Xen")), Kvm::Nested("Xen".to_owned()));
    }

    #[test]
    fn what_is_not_hardware_is_said() {
        let mut here = Environment::of(&report(Some(true)));
        here.kvm = Kvm::Emulated;
        assert!(here.caveat().unwrap().contains("emulated"));
        here.kvm = Kvm::Nested("Xen".to_owned());
        assert!(here.caveat().unwrap().contains("nested"));
        here.kvm = Kvm::Native;
        assert_eq!(here.caveat(), None);
    }

    #[test]
    fn the_processor_and_the_date_are_read() {
        assert_eq!(cpu_name("a\t: b\nmodel name\t: A CPU @ 2 GHz\n"), "A CPU @ 2 GHz");
        assert_eq!(cpu_name(""), "unknown");
        assert_eq!(date(1_767_225_600), "2026-01-01 00:00 UTC");
    }
}
