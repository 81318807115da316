//! What a kernel is handed at its entry: `boot_params` for the 64-bit Linux boot protocol,
//! `hvm_start_info` for PVH. Both say the same in two layouts, and both are made here of one
//! [`BootInfo`] and written where the caller wants them.
//!
//! ```text
//!   boot_params ("zero page", 4096)         start_info (at most 4096)
//!     0x070  ACPI RSDP                        0x00  hvm_start_info, version 1   56
//!     0x0c0  high halves of initrd, cmdline   0x38  memory map                  24 each
//!     0x1e8  number of e820 entries             …   the one module: the initrd  32
//!     0x1f1  setup header
//!     0x2d0  e820 entries, 20 each
//! ```
//! Sources: `Documentation/arch/x86/zero-page.rst` and `boot.rst`;
//! `xen/include/public/arch-x86/hvm/start_info.h`.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bzimage::{HEADER_AT, SetupHeader};
use super::kernel::{LINUX_CMDLINE_MAX, LINUX_INITRD_MAX};
use crate::access::AccessError;

/// The size of `boot_params`, in bytes, and the most [`write_start_info`] writes.
pub const PARAMS_SIZE: usize = 4096;
/// `E820_MAX_ENTRIES_ZEROPAGE`.
pub const MAX_E820: usize = 128;

/// Kinds of memory in both memory maps (ACPI 6.5 §15, "Address Range Types").
pub const E820_RAM: u32 = 1;
/// Not to be used by the guest.
pub const E820_RESERVED: u32 = 2;

/// `hvm_start_info.magic`: "xEn3" with the high bit of the E set.
const START_MAGIC: u32 = 0x336e_c578;
const START_INFO_SIZE: usize = 56;
const MEMMAP_ENTRY_SIZE: usize = 24;

/// An extent of guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    /// Its first address.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A line of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// [`E820_RAM`], [`E820_RESERVED`] or another number of ACPI's.
    pub kind: u32,
}

/// What every kernel is told, whatever the protocol.
#[derive(Debug, Clone, Copy)]
pub struct BootInfo<'a> {
    /// The memory map, in order of address.
    pub e820: &'a [E820Entry],
    /// The command line, which has a NUL behind it.
    pub cmdline: GuestRange,
    /// The initrd.
    pub initrd: Option<GuestRange>,
    /// The address of ACPI's RSDP.
    pub rsdp: Option<u64>,
}

/// Why the parameters cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// The memory map is too long.
    #[error("the memory map has {0} entries; a kernel takes {MAX_E820}")]
    TooManyEntries(usize),
    /// There is no guest memory where they are to go.
    #[error("boot parameters cannot be written to guest memory at {address:#x}: {source}")]
    Write {
        /// The guest-physical address.
        address: u64,
        /// What is wrong with it.
        r#source: AccessError,
    },
}

/// Writes `boot_params` to `address`, with the setup header of the kernel's `bzImage` if it came in
/// one.
///
/// # Errors
/// When the memory map is too long, or there is no guest memory.
pub fn write_boot_params(
    memory: &GuestMemoryMmap,
    address: u64,
    info: &BootInfo<'_>,
    header: Option<&SetupHeader>,
) -> Result<(), ParamsError> {
    let mut page = Page::new(info)?;
    page.put(0x070, &info.rsdp.unwrap_or(0).to_le_bytes());
    if let Some(header) = header {
        page.put(HEADER_AT, &header.raw);
    } else {
        page.put(0x1fe, &0xaa55u16.to_le_bytes());
        page.put(0x202, b"HdrS");
        page.put(0x206, &0x020fu16.to_le_bytes());
        page.put(0x211, &[1]); // loadflags: LOADED_HIGH
        page.put(0x22c, &(LINUX_INITRD_MAX as u32).to_le_bytes());
        page.put(0x230, &(2u32 << 20).to_le_bytes()); // kernel_alignment
        page.put(0x238, &(LINUX_CMDLINE_MAX as u32).to_le_bytes());
    }
    page.put(0x210, &[0xff]); // type_of_loader: none with a number of its own
    let (low, high) = halves(info.cmdline.addr);
    page.put(0x228, &low);
    page.put(0x0c8, &high);
    let initrd = info.initrd.unwrap_or(GuestRange { addr: 0, len: 0 });
    for (value, at_low, at_high) in [(initrd.addr, 0x218, 0x0c0), (initrd.len, 0x21c, 0x0c4)] {
        let (low, high) = halves(value);
        page.put(at_low, &low);
        page.put(at_high, &high);
    }
    page.put(0x250, &[0; 8]); // setup_data: none, whatever the file says
    page.put(0x1e8, &[info.e820.len() as u8]);
    for (index, entry) in info.e820.iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        page.put(at, &entry.start.to_le_bytes());
        page.put(at + 8, &entry.len.to_le_bytes());
        page.put(at + 16, &entry.kind.to_le_bytes());
    }
    page.write(memory, address, PARAMS_SIZE)
}

/// Writes `hvm_start_info` to `address`, and behind it the memory map and the module list: at most
/// [`PARAMS_SIZE`] bytes in all.
///
/// # Errors
/// When the memory map is too long, or there is no guest memory.
pub fn write_start_info(
    memory: &GuestMemoryMmap,
    address: u64,
    info: &BootInfo<'_>,
) -> Result<(), ParamsError> {
    let mut page = Page::new(info)?;
    let modules_at = START_INFO_SIZE + MEMMAP_ENTRY_SIZE * info.e820.len();
    let mut len = modules_at;
    page.put(0, &START_MAGIC.to_le_bytes());
    page.put(4, &1u32.to_le_bytes()); // version: there is a memory map
    if let Some(initrd) = info.initrd {
        page.put(12, &1u32.to_le_bytes());
        page.put(16, &address.saturating_add(modules_at as u64).to_le_bytes());
        page.put(modules_at, &initrd.addr.to_le_bytes());
        page.put(modules_at + 8, &initrd.len.to_le_bytes());
        len += 32;
    }
    page.put(24, &info.cmdline.addr.to_le_bytes());
    page.put(32, &info.rsdp.unwrap_or(0).to_le_bytes());
    page.put(40, &address.saturating_add(START_INFO_SIZE as u64).to_le_bytes());
    page.put(48, &(info.e820.len() as u32).to_le_bytes());
    for (index, entry) in info.e820.iter().enumerate() {
        let at = START_INFO_SIZE + MEMMAP_ENTRY_SIZE * index;
        page.put(at, &entry.start.to_le_bytes());
        page.put(at + 8, &entry.len.to_le_bytes());
        page.put(at + 16, &entry.kind.to_le_bytes());
    }
    page.write(memory, address, len)
}

fn halves(value: u64) -> ([u8; 4], [u8; 4]) {
    ((value as u32).to_le_bytes(), ((value >> 32) as u32).to_le_bytes())
}

/// The bytes being made.
struct Page([u8; PARAMS_SIZE]);

impl Page {
    fn new(info: &BootInfo<'_>) -> Result<Page, ParamsError> {
        match info.e820.len() {
            0..=MAX_E820 => Ok(Page([0; PARAMS_SIZE])),
            count => Err(ParamsError::TooManyEntries(count)),
        }
    }

    /// Every offset above is inside: 0x2d0 + 128 * 20 and 56 + 128 * 24 + 32 are below 4096, and a
    /// raw header ends by 0x290.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(target) = self.0.get_mut(at..at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
    }

    fn write(&self, memory: &GuestMemoryMmap, address: u64, len: usize) -> Result<(), ParamsError> {
        let bytes = self.0.get(..len).unwrap_or(&self.0);
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|e| ParamsError::Write { address, source: e.into() })
    }
}

#[cfg(test)]
mod tests;
