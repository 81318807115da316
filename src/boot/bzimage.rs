//! The setup header of a `bzImage` (`Documentation/arch/x86/boot.rst`), read and checked against
//! the length of the file. Every size in it is the file's claim; what a [`SetupHeader`] hands out
//! has been found to lie inside the file. It reads bytes only and loads nothing.
//!
//! ```text
//!   0        0x1f1          (setup_sects+1)*512                                  file end
//!   ├─ boot sector, header, real-mode code ─┼─ protected-mode code ──────────────┤
//!            └ SetupHeader::raw             │        └ payload ┘  └ signature, …
//!                                           └ payload_offset counts from here
//! ```

use super::{bytes_at, u16_at, u32_at, u64_at};

/// Bytes of a file's beginning that hold the longest setup header there can be: it starts at 0x1f1
/// and, its jump offset being a byte, ends before 0x202 + 0x100.
pub const HEAD_SIZE: usize = 0x302;
/// No `bzImage` is longer, in bytes (the largest carry their initramfs); nor is what it unpacks to.
pub const MAX_LEN: u64 = super::unpack::MAX_UNPACKED;
/// Where the header begins, in the file and in the zero page.
pub(super) const HEADER_AT: usize = 0x1f1;
/// Where the number of the root's device is.
const ROOT_DEV_AT: usize = 0x1fc;
/// Where the zero page has room for it to end (`edd_mbr_sig_buffer` follows).
const HEADER_END_MAX: usize = 0x290;
/// The 64-bit entry point, in bytes from the start of the protected-mode code.
pub(super) const ENTRY64: u64 = 0x200;

/// `xloadflags`: there is a 64-bit entry point; it and all data may be above 4 GiB.
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// `loadflags`: the protected-mode code goes to 1 MiB (a zImage's goes to 64 KiB).
const LOADED_HIGH: u8 = 1;

/// What is wrong with a setup header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// There is no setup header.
    #[error("it has no Linux setup header")]
    NoHeader,
    /// The header ends before what a field in it needs.
    #[error("its setup header is damaged: {0}")]
    Damaged(String),
    /// The boot protocol is too old for what husk needs.
    #[error(
        "it speaks boot protocol {}.{:02}; husk needs 2.08 (Linux 2.6.26) or newer",
        .0 >> 8, .0 & 0xff
    )]
    TooOld(u16),
    /// The file ends before what the header describes.
    #[error("its {what} would end at byte {end}, but the file has only {len}: it is truncated")]
    Truncated {
        /// What does not fit.
        what: &'static str,
        /// Where it would end, in bytes.
        end: u64,
        /// The length of the file, in bytes.
        len: u64,
    },
}

/// A range of bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// The facts of a `bzImage`'s setup header; fields of newer protocols have boot.rst's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    /// The protected-mode code, inside the file.
    pub code: FileRange,
    /// The compressed kernel, inside the file and the protected-mode code, if there is one.
    pub payload: Option<FileRange>,
    /// Where the protected-mode code wants to be, a guest-physical address.
    pub load_address: u64,
    /// Where the kernel runs if it is not relocated (2.10), or 0.
    pub pref_address: u64,
    /// Bytes of memory the kernel needs from where it runs until it knows the memory map.
    pub init_size: u32,
    /// What a relocatable kernel's address must be a multiple of, a power of two.
    pub kernel_alignment: u32,
    /// The highest address an initrd's last byte may have.
    pub initrd_addr_max: u32,
    /// The longest command line, in bytes without the NUL.
    pub cmdline_size: u32,
    /// `xloadflags` (2.12).
    pub xloadflags: u16,
    /// The header as it stands in the file from 0x1f1 on, for the zero page.
    pub(super) raw: Vec<u8>,
}

impl SetupHeader {
    /// Whether it names a device for the root, by number (`root_dev`, boot.rst).
    pub(super) fn has_root_device(&self) -> bool {
        u16_at(&self.raw, ROOT_DEV_AT - HEADER_AT).is_some_and(|device| device != 0)
    }

    /// Whether `head` carries a setup header at all.
    pub fn is_present(head: &[u8]) -> bool {
        bytes_at(head, 0x202) == Some(*b"HdrS") && u16_at(head, 0x1fe) == Some(0xaa55)
    }

    /// Reads the header from `head`, the first [`HEAD_SIZE`] bytes of a file of `file_len` bytes
    /// (fewer if the file is shorter).
    ///
    /// # Errors
    /// What in it is missing, too old, or not inside the file.
    pub fn parse(head: &[u8], file_len: u64) -> Result<SetupHeader, HeaderError> {
        if !Self::is_present(head) {
            return Err(HeaderError::NoHeader);
        }
        let cut = || HeaderError::Truncated {
            what: "setup header",
            end: HEADER_AT as u64 + 0x7b,
            len: file_len,
        };
        let (u8s, u16s, u32s) = (
            |at: usize| head.get(at).copied().ok_or_else(cut),
            |at| u16_at(head, at).ok_or_else(cut),
            |at| u32_at(head, at).ok_or_else(cut),
        );
        let version = u16s(0x206)?;
        if version < 0x0208 {
            return Err(HeaderError::TooOld(version));
        }
        if u8s(0x211)? & LOADED_HIGH == 0 {
            return Err(HeaderError::Damaged("it is a zImage, not a bzImage".into()));
        }
        let header_end = 0x202 + usize::from(u8s(0x201)?);
        let raw = head.get(HEADER_AT..header_end.min(HEADER_END_MAX)).ok_or_else(cut)?.to_vec();

        let setup_sects = match u8s(0x1f1)? {
            0 => 4, // boot.rst: "if the setup_sects field contains 0, the real value is 4"
            sects => u64::from(sects),
        };
        let code = code_range((setup_sects + 1) * 512, u32s(0x1f4)?, file_len)?;
        let payload = payload_range(u32s(0x248)?, u32s(0x24c)?, code, file_len)?;

        let relocatable = u8s(0x234)? != 0;
        let kernel_alignment = u32s(0x230)?;
        if relocatable && !kernel_alignment.is_power_of_two() {
            return Err(HeaderError::Damaged(format!(
                "its alignment is {kernel_alignment:#x}, not a power of two"
            )));
        }
        let since = |wanted: u16, value: u32| if version >= wanted { value } else { 0 };
        let init_size = since(0x020a, u32s(0x260)?);
        let pref_address =
            if version >= 0x020a { u64_at(head, 0x258).ok_or_else(cut)? } else { 0 };
        let load_address = match pref_address {
            wanted if relocatable && wanted != 0 => {
                super::align_up(wanted, u64::from(kernel_alignment))
            }
            _ => Some(u64::from(u32s(0x214)?)),
        };
        let load_address = load_address
            .filter(|at| (1 << 20..=1 << 40).contains(at) && pref_address <= 1 << 40)
            .ok_or_else(|| HeaderError::Damaged("its load address is out of bounds".into()))?;

        Ok(SetupHeader {
            code,
            payload,
            load_address,
            pref_address,
            init_size,
            kernel_alignment,
            initrd_addr_max: u32s(0x22c)?,
            cmdline_size: u32s(0x238)?,
            xloadflags: if version >= 0x020c { u16s(0x236)? } else { 0 },
            raw,
        })
    }

    /// Whether there is a 64-bit entry point.
    pub fn has_entry64(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }

    /// Whether an initrd, entered by the 64-bit boot protocol, may lie above 4 GiB.
    pub fn can_be_above_4g(&self) -> bool {
        self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }
}

/// The protected-mode code. `syssize` counts 16-byte paragraphs, rounded up, and does not count
/// what a signing tool appends.
fn code_range(offset: u64, syssize: u32, file_len: u64) -> Result<FileRange, HeaderError> {
    let truncated =
        |end| HeaderError::Truncated { what: "protected-mode code", end, len: file_len };
    let claimed = u64::from(syssize) * 16;
    let there = file_len.checked_sub(offset).filter(|len| *len > ENTRY64);
    let there = there.ok_or_else(|| truncated(offset + claimed.max(ENTRY64)))?;
    if claimed == 0 {
        return Err(HeaderError::Damaged("its code is 0 bytes long".into()));
    }
    if claimed > there + 15 {
        return Err(truncated(offset + claimed));
    }
    Ok(FileRange { offset, len: there.min(claimed) })
}

/// The payload, which begins `offset` bytes into `code`.
fn payload_range(
    offset: u32,
    len: u32,
    code: FileRange,
    file_len: u64,
) -> Result<Option<FileRange>, HeaderError> {
    if len == 0 {
        return Ok(None);
    }
    let (offset, len) = (u64::from(offset), u64::from(len));
    let start = code.offset + offset;
    if start + len > file_len {
        return Err(HeaderError::Truncated { what: "payload", end: start + len, len: file_len });
    }
    if offset + len > code.len {
        return Err(HeaderError::Damaged(format!(
            "a payload of {len} bytes at {offset} is not inside its code of {} bytes",
            code.len
        )));
    }
    Ok(Some(FileRange { offset: start, len }))
}

#[cfg(test)]
mod tests;
