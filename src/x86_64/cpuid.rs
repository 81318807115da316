//! CPUID: what KVM supports, made consistent for one vCPU of one machine.
//!
//! KVM answers KVM_GET_SUPPORTED_CPUID from the host CPU the call runs on, so APIC ids, topology
//! and cache sharing are the host's; a guest that believes them builds wrong scheduling domains.
//! Leaves are those of the SDM vol. 2A, "CPUID", and `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1 ECX bit 24.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit 31: "a hypervisor is present".
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX bit 28: leaf 1 EBX[23:16] is valid.
const HTT: u32 = 1 << 28;
/// Leaf 1 ECX bit 15: the performance capabilities MSR.
const PDCM: u32 = 1 << 15;
/// Leaf 0x8000_0001 ECX bit 23: AMD's extended performance counters.
const PERF_CTR_EXT_CORE: u32 = 1 << 23;
/// Leaf 0x8000_0001 ECX bit 1: the threads counted in leaf 1 are cores (AMD).
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 4 EAX[4:0]: zero ends the list.
const CACHE_TYPE: u32 = 0x1f;
const KVM_SIGNATURE: u32 = 0x4000_0000;
/// The timing leaf hypervisors share: TSC and bus frequency in kHz, for guests that would calibrate.
/// (Linux on KVM takes the frequency from kvmclock.)
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// The frequency of KVM's local APIC timer: a tick a nanosecond.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Intel: the ratio of the TSC's frequency to the core crystal's, and that (SDM vol. 2A, "CPUID").
const TSC_RATIO: u32 = 0x15;
/// Intel: processor and bus frequencies in MHz.
const FREQUENCIES: u32 = 0x16;

/// The bits of a guest-physical address: of the processor, or of what KVM can map for its guests
/// where that is less (leaf 0x8000_0008 EAX[7:0], EAX[23:16]).
pub fn physical_bits(supported: &CpuId) -> u32 {
    /// Of a processor without the leaf (SDM vol. 3 §4.1.4).
    const WITHOUT_LEAF: u32 = 36;
    let leaf = supported.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
    let Some(leaf) = leaf else { return WITHOUT_LEAF };
    match (leaf.eax & 0xff, leaf.eax >> 16 & 0xff) {
        (0, _) => WITHOUT_LEAF,
        (bits, 0) => bits,
        (bits, mappable) => bits.min(mappable),
    }
}

/// What the leaves are made for.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// vCPUs of the machine: one socket, one thread a core.
    pub cpus: u32,
    /// TSC frequency in kHz; zero when KVM does not know it.
    pub tsc_khz: u32,
    /// Whether KVM has KVM_CAP_TSC_DEADLINE_TIMER.
    pub tsc_deadline: bool,
}

/// The leaves of all vCPUs, with `supported` (KVM_GET_SUPPORTED_CPUID) as their base.
///
/// Returns entries for vCPU 0; [`for_vcpu`] makes those of another.
pub fn for_machine(supported: &CpuId, machine: Machine) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = supported.as_slice().to_vec();
    // Rebuilt below for our topology, where KVM lists them at all.
    let had_extended_topology: Vec<u32> =
        [0xb, 0x1f].into_iter().filter(|l| leaves.iter().any(|e| e.function == *l)).collect();
    leaves.retain(|e| !matches!(e.function, 0xb | 0x1f | HYPERVISOR_TIMING));

    // The end of the vendor's name, "GenuineIntel" or "AuthenticAMD", and the last basic leaf.
    let (vendor, last) = leaves.iter().find(|e| e.function == 0).map_or((0, 0), |e| (e.ecx, e.eax));
    let amd = vendor == u32::from_le_bytes(*b"cAMD");
    if vendor == u32::from_le_bytes(*b"ntel") {
        leaves.retain(|e| !matches!(e.function, TSC_RATIO | FREQUENCIES));
        let told = frequencies(machine.tsc_khz).into_iter().flatten();
        leaves.extend(told.filter(|leaf| leaf.function <= last));
    }
    // Bits of an APIC id that number the vCPUs.
    let id_bits = machine.cpus.next_power_of_two().trailing_zeros();
    for leaf in &mut leaves {
        match leaf.function {
            1 => {
                leaf.ecx = leaf.ecx & !PDCM | HYPERVISOR;
                if machine.tsc_deadline {
                    leaf.ecx |= TSC_DEADLINE;
                }
                let ids = 1 << id_bits;
                leaf.ebx = leaf.ebx & 0x0000_ffff | ids << 16;
                leaf.edx = if machine.cpus > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            // Deterministic cache parameters: who shares a cache, how many cores in the package.
            4 | 0x8000_001d if leaf.eax & CACHE_TYPE != 0 => {
                let level = leaf.eax >> 5 & 7;
                let sharing = if level < 3 { 0 } else { machine.cpus - 1 };
                let cores = if leaf.function == 4 { (1 << id_bits) - 1 } else { 0 };
                leaf.eax = leaf.eax & 0x3fff | sharing << 14 | cores << 26;
            }
            // No performance counters: setting KVM's emulated ones up costs every start time, and few
            // guests count.
            0xa | 0x8000_0022 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            0x8000_0001 => {
                leaf.ecx &= !PERF_CTR_EXT_CORE;
                if machine.cpus == 1 {
                    leaf.ecx &= !CMP_LEGACY;
                }
            }
            KVM_SIGNATURE => leaf.eax = leaf.eax.max(HYPERVISOR_TIMING),
            // AMD: number of threads minus one, and the width of the core id.
            0x8000_0008 if amd => {
                leaf.ecx = leaf.ecx & !0xf0ff | id_bits << 12 | (machine.cpus - 1)
            }
            // AMD: extended APIC id, core and node ids: one node, one thread a core.
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (0, 0, 0),
            _ => {}
        }
    }
    for function in had_extended_topology {
        leaves.extend(topology(function, machine.cpus, id_bits));
    }
    if machine.tsc_khz != 0 {
        leaves.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: machine.tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    leaves
}

/// Leaves 0x15 and 0x16, for guests that know nothing of KVM: their clock needs no calibration. The
/// crystal is what the local APIC's timer counts (SDM vol. 3 §11.5.4), and Linux believes it, so it
/// is KVM's and not the host's. `None` when the TSC's frequency is not known.
fn frequencies(tsc_khz: u32) -> Option<[kvm_cpuid_entry2; 2]> {
    let (numerator, denominator) = tsc_ratio(tsc_khz)?;
    let mhz = (tsc_khz + 500) / 1000;
    Some([
        kvm_cpuid_entry2 {
            function: TSC_RATIO,
            eax: denominator,
            ebx: numerator,
            ecx: APIC_BUS_KHZ * 1000,
            ..Default::default()
        },
        kvm_cpuid_entry2 {
            function: FREQUENCIES,
            eax: mhz,
            ebx: mhz,
            ecx: APIC_BUS_KHZ / 1000,
            ..Default::default()
        },
    ])
}

/// The fraction of [`APIC_BUS_KHZ`] nearest to `tsc_khz`. Linux multiplies the crystal's kHz by the
/// numerator in 32 bits (`native_calibrate_tsc`), which bounds it: what is lost is less than one
/// part in a million.
fn tsc_ratio(tsc_khz: u32) -> Option<(u32, u32)> {
    const NUMERATOR_MAX: u64 = (u32::MAX / APIC_BUS_KHZ) as u64;
    let (khz, crystal) = (u64::from(tsc_khz), u64::from(APIC_BUS_KHZ));
    // With the denominator `d`: the numerator, and by how much it is off in units of 1 / (d * crystal).
    let nearest = |d: u64| {
        let numerator = (khz * d + crystal / 2) / crystal;
        (numerator, (numerator * crystal).abs_diff(khz * d))
    };
    let candidates = (1..=NUMERATOR_MAX).map(|d| (nearest(d), d));
    let usable = candidates.filter(|((numerator, _), _)| (1..=NUMERATOR_MAX).contains(numerator));
    // off / d is compared without dividing: both are far below 2^32.
    let best = usable.min_by(|((_, a), d), ((_, b), e)| (a * e).cmp(&(b * d)))?;
    let ((numerator, _), denominator) = best;
    Some((u32::try_from(numerator).ok()?, u32::try_from(denominator).ok()?))
}

/// Leaves 0xb and 0x1f: threads of a core (one), then cores of the package.
fn topology(function: u32, cpus: u32, id_bits: u32) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    let level = |index: u32, kind: u32, shift: u32, logical: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: index | kind << 8,
        ..Default::default()
    };
    [level(0, SMT, 0, 1), level(1, CORE, id_bits, cpus), level(2, 0, 0, 0)]
}

/// Writes the APIC id of vCPU `id` into the leaves that carry it.
pub fn for_vcpu(leaves: &mut [kvm_cpuid_entry2], id: u8) {
    for leaf in leaves {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | u32::from(id) << 24,
            0xb | 0x1f => leaf.edx = id.into(),
            0x8000_001e => {
                leaf.eax = id.into();
                leaf.ebx = id.into();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
