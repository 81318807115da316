use vm_memory::Bytes;

use super::*;
use crate::hugepages::HugePages;
use crate::skipped::skipped;

fn spec(size: u64, shared: bool) -> Spec {
    Spec { size: Size(size), shared, hugepages: false }
}

#[test]
fn memory_below_3_gib_is_one_region_and_more_continues_at_4_gib() {
    let memory = allocate(spec(128 << 20, false)).unwrap();
    assert_eq!((memory.num_regions(), low_end(&memory).0), (1, 128 << 20));
    // More than a small host has: mapped, and not touched.
    let memory = map_regions(spec(5 << 30, false)).unwrap();
    assert_eq!((memory.num_regions(), low_end(&memory).0), (2, 3 << 30));
    let above = memory.find_region(GuestAddress(4 << 30)).unwrap();
    assert_eq!(above.len(), 2 << 30);
    assert!(memory.find_region(GuestAddress(layout::MMIO_HOLE)).is_none());
}

#[test]
fn regions_are_aligned_so_that_huge_pages_fit() {
    // Another thread of this process may take the hole that was made; not again and again.
    let aligned = |_| {
        let memory = allocate(spec((128 << 20) + 4096, false)).unwrap();
        memory.iter().all(|region| region.as_ptr().align_offset(HUGE_PAGE) == 0)
    };
    assert!((0..10).any(aligned));
}

#[test]
fn discarded_memory_reads_as_zero_whatever_backs_it() {
    for shared in [false, true] {
        let memory = allocate(spec(64 << 20, shared)).unwrap();
        memory.write_obj(7u64, GuestAddress(0x1234)).unwrap();
        discard(&memory, spec(64 << 20, shared)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1234)).unwrap(), 0);
    }
}

#[test]
fn a_guest_of_64_gib_is_laid_out_around_the_hole() {
    // Past the host's own size: mapped, and not touched.
    for shared in [false, true] {
        let memory = map_regions(spec(64 << 30, shared)).unwrap();
        assert_eq!((memory.num_regions(), low_end(&memory).0), (2, 3 << 30));
        let above = memory.find_region(GuestAddress((65 << 30) - 1)).unwrap();
        assert_eq!((above.start_addr().0, above.len()), (4 << 30, 61 << 30));
    }
}

#[test]
fn the_hole_takes_a_gib_of_what_physical_addresses_reach() {
    assert_eq!((most(36), most(40)), (Size(63 << 30), Size(1023 << 30)));
    for bits in [33, 36, 39, 46, 52] {
        let [_, (start, len)] = parts(most(bits).0);
        assert_eq!(start + len, 1 << bits);
    }
}

#[test]
fn huge_pages_are_zero_after_a_reboot_and_still_the_guests_own() {
    let Some(_pool) = HugePages::more(8) else {
        return skipped("8 huge pages cannot be set aside here");
    };
    for shared in [false, true] {
        let spec = Spec { size: Size(16 << 20), shared, hugepages: true };
        let memory = allocate(spec).unwrap();
        let places = [0, 4096, (2 << 20) + 8, (16 << 20) - 8].map(GuestAddress);
        places.iter().for_each(|at| memory.write_obj(7u64, *at).unwrap());
        discard(&memory, spec).unwrap();
        for at in places {
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0, "{shared}: {at:?}");
        }
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        let mut resident = vec![0u8; (16 << 20) / 4096];
        // SAFETY: the range is the whole region, and there is a byte for each of its pages.
        let done = unsafe { libc::mincore(host.cast(), 16 << 20, resident.as_mut_ptr()) };
        assert_eq!(done, 0);
        assert!(resident.iter().all(|page| page & 1 == 1), "{shared}: a page was given back");
    }
}

#[test]
fn more_memory_than_the_host_has_is_refused_by_name() {
    let error = allocate(spec(1 << 44, false)).unwrap_err();
    assert!(matches!(error, MemoryError::MoreThanHost { .. }), "{error}");
}
