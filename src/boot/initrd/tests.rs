use std::fs;

use vm_memory::{Bytes, GuestAddress};

use super::*;

fn with_file(len: usize, check: impl FnOnce(Initrd, &[u8])) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("the-initrd");
    let bytes = crate::boot::synth::noise(len, 3);
    fs::write(&path, &bytes).unwrap();
    check(Initrd::open(&path).unwrap(), &bytes);
}

#[test]
fn it_goes_as_high_as_it_may() {
    with_file(10_000, |initrd, bytes| {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let at = |low_ram_end, max| initrd.place(low_ram_end, max, 1 << 20).unwrap().addr;
        assert_eq!(at(8 << 20, 0x7fff_ffff), (8 << 20) - 3 * 4096);
        assert_eq!(at(8 << 20, u64::MAX), (8 << 20) - 3 * 4096);
        assert_eq!(at(8 << 20, (4 << 20) - 1), (4 << 20) - 3 * 4096);
        assert_eq!(at(8 << 20, (4 << 20) - 2), (4 << 20) - 3 * 4096);
        assert_eq!(at((8 << 20) + 100, u64::MAX), (8 << 20) - 3 * 4096);

        let range = initrd.load(&memory, 8 << 20, u64::MAX, 1 << 20).unwrap();
        let mut found = vec![0; bytes.len()];
        memory.read_slice(&mut found, GuestAddress(range.addr)).unwrap();
        assert!(found == bytes);
        assert_eq!(range.len, 10_000);
    });
}

#[test]
fn it_never_reaches_into_the_kernel() {
    with_file(10_000, |initrd, _| {
        let kernel_end = (8 << 20) - 3 * 4096;
        assert_eq!(initrd.place(8 << 20, u64::MAX, kernel_end).unwrap().addr, kernel_end);
        let error = initrd.place(8 << 20, u64::MAX, kernel_end + 1).unwrap_err().to_string();
        assert!(error.contains("the-initrd: it is 0.1 MiB"), "{error}");
        assert!(error.contains("room for 0.0 MiB"), "{error}");
        assert!(initrd.place(4096, u64::MAX, 0).is_err());
        assert!(initrd.place(8 << 20, u64::MAX, u64::MAX).is_err());
    });
}

#[test]
fn lengths_are_said_in_mib_and_room_never_too_large() {
    assert_eq!(tenths(535_814_144), "510.9");
    assert_eq!(tenths(512 << 20), "512.0");
    assert_eq!(tenths(u64::MAX), "17592186044415.9");
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    with_file(10_000, |initrd, _| {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert!(initrd.load(&memory, 8 << 20, u64::MAX, 0).is_err());
    });
}

#[test]
fn what_is_no_file_or_empty_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |path: &Path| Initrd::open(path).unwrap_err().to_string();
    let path = dir.path().join("the-initrd");
    assert!(refusal(&path).contains("the-initrd: No such file"));
    fs::write(&path, "").unwrap();
    assert!(refusal(&path).contains("an empty file"));
    assert!(refusal(dir.path()).contains("a directory"));
    assert!(refusal(Path::new("/dev/null")).contains("a device"));
}

#[test]
fn a_file_cut_short_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(10_000).unwrap();
    let initrd = Initrd::open(file.path()).unwrap();
    file.as_file().set_len(100).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
    assert!(initrd.load(&memory, 8 << 20, u64::MAX, 0).is_err());
}
