//! The Linux ELF that a `bzImage` carries, found and unpacked: for booting it, and for writing it out.

use super::bzimage::SetupHeader;
use super::elf::Elf;
use super::unpack::{self, Compression, UnpackError};

/// Unpacks the `vmlinux` in `image`, a whole `bzImage` with this `header`. `None` if it carries
/// none, or nothing husk knows how to unpack.
///
/// # Errors
/// When what it carries is damaged, or is not as long as it says.
pub fn vmlinux(image: &[u8], header: &SetupHeader) -> Result<Option<Vec<u8>>, UnpackError> {
    let payload = header.payload.and_then(|range| {
        let start = usize::try_from(range.offset).ok()?;
        image.get(start..start.checked_add(usize::try_from(range.len).ok()?)?)
    });
    let Some(payload) = payload else { return Ok(None) };
    let Some(compression) = Compression::detect(payload) else { return Ok(None) };
    // A kernel unpacks itself within `init_size` (boot.rst); older ones do not say.
    let limit = match header.init_size {
        0 => unpack::MAX_UNPACKED,
        init_size => init_size.into(),
    };
    let vmlinux = unpack::unpack(payload, compression, limit)?;
    Ok(Some(vmlinux).filter(|vmlinux| Elf::is_elf(vmlinux)))
}
