//! Files in the guest's address space, above its RAM.
//!
//! ```text
//! RAM …│   │ file 0 │   │ file 1 │      each from a multiple of 128 MiB on
//! ```
//!
//! A file the guest may write is mapped shared. One it may only read is a read-only slot of KVM's, and
//! mapped privately: its pages are the page cache's, the same for all guests, and a device that the
//! guest points there (a disk that reads into it) changes husk's own copy of that page, and not the file
//! nor another guest.

use std::sync::Arc;

use husk_devices::virtio::pmem::{PmemError, PmemFile};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::error::VmError;
use crate::config::PmemConfig;
use crate::memory;
use crate::x86_64::layout;

/// A section of Linux's memory map: two kinds of memory in one make it harder for older kernels.
const SECTION: u64 = 128 << 20;
/// As far as every processor's addresses reach that husk was thought for.
const ADDRESSES_END: u64 = 1 << 45;

/// A file at its place.
pub(super) struct PmemRegion {
    pub file: Arc<PmemFile>,
    pub region: Arc<GuestRegionMmap>,
}

/// Opens and maps the files, above all of `ram`.
pub(super) fn open(
    configs: &[PmemConfig],
    ram: &GuestMemoryMmap,
) -> Result<Vec<PmemRegion>, VmError> {
    let mut next = ram
        .iter()
        .map(|region| region.start_addr().0.saturating_add(region.len()))
        .fold(layout::MMIO_HOLE_END, u64::max);
    let mut regions = Vec::with_capacity(configs.len());
    for config in configs {
        let file = PmemFile::open(&config.path, config.readonly)?;
        let refused = |source| PmemError::Host { path: config.path.clone(), what: "map", source };
        let start = next.next_multiple_of(SECTION);
        next = start.saturating_add(file.size());
        if next > ADDRESSES_END {
            let why = std::io::Error::other("it is larger than a guest has room for");
            return Err(refused(why).into());
        }
        let mapping =
            memory::map_file(file.file(), file.size(), file.read_only()).map_err(refused)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| refused(std::io::ErrorKind::InvalidInput.into()))?;
        regions.push(PmemRegion { file: Arc::new(file), region: Arc::new(region) });
    }
    Ok(regions)
}

/// What devices may reach: the RAM, and the files in the guest's address space, to which it may point
/// a disk or a network card as to any memory. RAM comes first, by which a device knows what is a file: its
/// pages may be lost, and husk touches them by system calls alone.
pub(super) fn reachable(
    ram: &GuestMemoryMmap,
    files: &[PmemRegion],
) -> Result<GuestMemoryMmap, VmError> {
    let mut all = ram.clone();
    for file in files {
        all = all.insert_region(file.region.clone()).map_err(|e| PmemError::Host {
            path: file.file.path().to_owned(),
            what: "place",
            source: std::io::Error::other(e),
        })?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), bytes, 0).unwrap();
        file
    }

    #[test]
    fn files_lie_above_ram_and_only_a_writable_one_takes_what_devices_write() {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let files = [file(b"first"), file(b"second")];
        let configs: Vec<_> = files
            .iter()
            .zip([false, true])
            .map(|(file, readonly)| PmemConfig {
                id: String::new(),
                path: file.path().to_owned(),
                readonly,
            })
            .collect();
        let regions = open(&configs, &ram).unwrap();
        let starts: Vec<_> = regions.iter().map(|file| file.region.start_addr().0).collect();
        assert_eq!(starts, [4 << 30, (4 << 30) + (128 << 20)]);
        for region in &regions {
            assert_eq!(region.region.as_ptr() as usize % (2 << 20), 0);
        }
        let all = reachable(&ram, &regions).unwrap();
        assert_eq!((ram.num_regions(), all.num_regions()), (1, 3));
        let mut read = [0; 6];
        all.read_slice(&mut read, GuestAddress(starts[1])).unwrap();
        assert_eq!(&read, b"second");
        for start in starts {
            all.write_slice(b"CHANGED", GuestAddress(start)).unwrap();
        }
        let begin = |n: usize| std::fs::read(files[n].path()).unwrap()[..7].to_vec();
        assert_eq!((begin(0), begin(1)), (b"CHANGED".to_vec(), b"second\0".to_vec()));
    }
}
