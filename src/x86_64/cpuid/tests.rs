use super::*;

fn entry(function: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, ..Default::default() }
}

fn leaf(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    *leaves.iter().find(|e| e.function == function && e.index == index).unwrap()
}

fn machine(cpus: u32) -> Vec<kvm_cpuid_entry2> {
    let mut host = [entry(1), entry(4), entry(0xa), entry(0xb), entry(KVM_SIGNATURE)];
    host[0].ebx = 0x37ff_0800;
    host[1].eax = 0xffff_c063; // level 3, shared by the whole host
    host[2].eax = 0x0730_0402;
    host[3].edx = 0x37;
    host[4].eax = 0x4000_0001;
    let supported = CpuId::from_entries(&host).unwrap();
    for_machine(&supported, Machine { cpus, tsc_khz: 2_100_000, tsc_deadline: true })
}

#[test]
fn a_vcpu_sees_its_own_apic_id_everywhere_and_not_the_hosts() {
    let mut leaves = machine(3);
    for_vcpu(&mut leaves, 2);
    assert_eq!(leaf(&leaves, 1, 0).ebx, 2 << 24 | 4 << 16 | 0x0800);
    for index in 0..3 {
        assert_eq!(leaf(&leaves, 0xb, index).edx, 2);
    }
}

#[test]
fn the_topology_is_one_thread_a_core_in_one_package() {
    let leaves = machine(3);
    let (smt, core, end) = (leaf(&leaves, 0xb, 0), leaf(&leaves, 0xb, 1), leaf(&leaves, 0xb, 2));
    assert_eq!((smt.eax, smt.ebx, smt.ecx), (0, 1, 0x100));
    assert_eq!((core.eax, core.ebx, core.ecx), (2, 3, 0x201));
    assert_eq!((end.ebx, end.ecx), (0, 2));
    let cache = leaf(&leaves, 4, 0).eax;
    assert_eq!((cache >> 14 & 0xfff, cache >> 26), (2, 3));
}

#[test]
fn a_single_vcpu_is_not_hyperthreaded() {
    assert_eq!(leaf(&machine(1), 1, 0).edx & HTT, 0);
    assert_ne!(leaf(&machine(2), 1, 0).edx & HTT, 0);
}

#[test]
fn frequencies_are_told_so_that_the_guest_need_not_measure() {
    let leaves = machine(1);
    assert_eq!(leaf(&leaves, KVM_SIGNATURE, 0).eax, HYPERVISOR_TIMING);
    let timing = leaf(&leaves, HYPERVISOR_TIMING, 0);
    assert_eq!((timing.eax, timing.ebx), (2_100_000, 1_000_000));
    assert_ne!(leaf(&leaves, 1, 0).ecx & TSC_DEADLINE, 0);
}

#[test]
fn physical_addresses_are_as_wide_as_kvm_says_and_36_bits_where_it_does_not() {
    let bits = |leaves: &[kvm_cpuid_entry2]| physical_bits(&CpuId::from_entries(leaves).unwrap());
    let with = |eax| bits(&[kvm_cpuid_entry2 { eax, ..entry(0x8000_0008) }]);
    assert_eq!(bits(&[entry(0), entry(1)]), 36);
    assert_eq!((with(0x3028), with(0x30_3934), with(0x30_3928)), (40, 48, 40));
}

/// What `vendor`'s guest is told, with leaves 0 to `last` and the host's own frequencies.
fn frequencies_told(vendor: &[u8; 4], last: u32, tsc_khz: u32) -> Vec<kvm_cpuid_entry2> {
    let mut host = [entry(0), entry(1), entry(TSC_RATIO), entry(FREQUENCIES)];
    host[0].eax = last;
    host[0].ecx = u32::from_le_bytes(*vendor);
    host[2].ecx = 25_000_000;
    let machine = Machine { cpus: 1, tsc_khz, tsc_deadline: true };
    let mut leaves = for_machine(&CpuId::from_entries(&host).unwrap(), machine);
    leaves.retain(|e| matches!(e.function, TSC_RATIO | FREQUENCIES));
    leaves
}

#[test]
fn intels_frequency_leaves_give_linux_the_tscs_and_the_local_apics_frequency() {
    // A round one, real ones, those of the slowest and of the fastest processors.
    for khz in [2_100_000, 2_599_998, 2_893_202, 1_996_249, 3_700_113, 500_000, 6_200_000] {
        let told = frequencies_told(b"ntel", 0x1f, khz);
        let [ratio, mhz] = told.as_slice() else { panic!("{told:?}") };
        // As native_calibrate_tsc() reckons, in 32 bits.
        let crystal_khz = ratio.ecx / 1000;
        let linux = crystal_khz.checked_mul(ratio.ebx).unwrap() / ratio.eax;
        assert_eq!(crystal_khz, 1_000_000, "a tick of KVM's local APIC timer is a nanosecond");
        assert!(linux.abs_diff(khz) <= 1 + khz / 1_000_000, "{khz}: {linux}");
        assert_eq!((mhz.eax, mhz.eax), (mhz.ebx, (khz + 500) / 1000));
    }
    assert_eq!(frequencies_told(b"ntel", 0x1f, 2_100_000)[0].ebx % 21, 0, "exact where it can be");
}

#[test]
fn frequency_leaves_are_only_told_where_the_processor_has_them_and_they_are_known() {
    assert_eq!(frequencies_told(b"ntel", 0x15, 2_100_000).len(), 1);
    assert!(frequencies_told(b"ntel", 0x14, 2_100_000).is_empty());
    assert!(frequencies_told(b"ntel", 0x1f, 0).is_empty());
    // Another vendor's are left alone.
    let amd = frequencies_told(b"cAMD", 0x1f, 2_100_000);
    assert_eq!((amd.len(), amd[0].ecx, amd[0].eax), (2, 25_000_000, 0));
}

#[test]
fn amds_leaves_are_amds_alone_and_no_counters_are_promised() {
    let mut host = [entry(0), entry(1), entry(4), entry(0x8000_0001), entry(0x8000_0008)];
    host[1].ecx = PDCM;
    host[3].ecx = PERF_CTR_EXT_CORE | CMP_LEGACY;
    host[4].ecx = 0x4007;
    let machine = Machine { cpus: 1, tsc_khz: 0, tsc_deadline: false };
    let intel = for_machine(&CpuId::from_entries(&host).unwrap(), machine);
    assert_eq!(leaf(&intel, 0x8000_0008, 0).ecx, 0x4007);
    assert_eq!(leaf(&intel, 4, 0).eax, 0, "the end of the list stays its end");
    assert_eq!(leaf(&intel, 1, 0).ecx & PDCM, 0);
    host[0].ecx = u32::from_le_bytes(*b"cAMD");
    let amd = for_machine(&CpuId::from_entries(&host).unwrap(), machine);
    assert_eq!(leaf(&amd, 0x8000_0008, 0).ecx, 0);
    assert_eq!(leaf(&amd, 0x8000_0001, 0).ecx, 0);
}
