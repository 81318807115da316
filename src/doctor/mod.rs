//! Can Linux boot here, and what is missing? The examination behind `husk doctor`.
//!
//! [`examine`] looks at the host's KVM, runs a few dozen bytes of machine code in it to learn
//! whether it executes kernel code natively, and looks at what networking and memory options need.
//! It changes nothing on the host, takes a fraction of a second (a few at worst) and always
//! answers: what cannot be found out is a line of the report.

mod host;
mod kvm;
mod payload;
mod probe;

use serde::{Deserialize, Serialize};

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something optional is missing.
    Warn,
    /// Linux cannot boot because of this.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at: a device, a capability, an ability.
    pub name: String,
    /// What was found.
    pub status: Status,
    /// What was found, in words.
    pub detail: String,
    /// What to do about it, in a sentence. Every check that is not `ok` has one.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { name: name.into(), status: Status::Warn, detail: detail.into(), remedy }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, detail, remedy) }
    }
}

/// How fast guest kernel code runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Rounds of the loop that was timed.
    pub iterations: u32,
    /// Nanoseconds they took in the guest's ring 0, the way in and out not counted.
    pub guest_ns: u64,
    /// Nanoseconds the same loop took in this process.
    pub host_ns: u64,
}

impl Speed {
    /// Guest time over host time: about 1 where the CPU itself executes the guest.
    pub fn ratio(&self) -> f64 {
        self.guest_ns as f64 / self.host_ns.max(1) as f64
    }

    /// Whether the CPU itself executes the guest.
    ///
    /// Natively the ratio is about 1, also when everything is emulated alike (the testbed). An
    /// interpreter that takes some 600 ns for an instruction makes it more than a thousand. The
    /// limit lies far from both, so that a host busy with other work decides nothing.
    pub fn is_native(&self) -> bool {
        const LIMIT: f64 = 50.0;
        self.ratio() < LIMIT
    }
}

/// What [`examine`] found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether husk can boot Linux on this host: no check has failed.
    pub linux_boots: bool,
    /// Whether this KVM runs guest kernel code on the CPU itself; `None` if it could not be tried.
    pub native: Option<bool>,
    /// KVM's API version, if /dev/kvm could be opened.
    pub kvm_api_version: Option<i32>,
    /// The most vCPUs a VM can have, if /dev/kvm could be opened.
    pub max_vcpus: Option<u32>,
    /// What `native` was concluded from.
    pub speed: Option<Speed>,
    /// The host's kernel release.
    pub host_kernel: String,
    /// All that was looked at, in the order in which it matters.
    pub checks: Vec<Check>,
}

/// Examines this host.
pub fn examine() -> Report {
    let mut report = Report {
        linux_boots: false,
        native: None,
        kvm_api_version: None,
        max_vcpus: None,
        speed: None,
        host_kernel: host::kernel_release(),
        checks: Vec::new(),
    };
    if let Some(hypervisor) = kvm::examine(&mut report) {
        probe::examine(&mut report, &hypervisor);
    }
    host::examine(&mut report);
    report.linux_boots = report.checks.iter().all(|check| check.status != Status::Fail);
    report
}

#[cfg(test)]
mod tests;
