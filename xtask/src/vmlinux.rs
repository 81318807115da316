//! The ELF image inside a Linux bzImage, unpacked with this machine's own tools. (husk itself does
//! it in Rust; the tests want an image that was not made by what they test.)

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{apt, host};

/// How a payload begins, the command that unpacks it and the package that has it.
const FORMATS: &[(&[u8], &str, &str)] = &[
    (&[0x02, 0x21, 0x4c, 0x18], "lz4", "lz4"), // the legacy frame, which the kernel's build uses
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "xz-utils"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstd"),
    (&[0x1f, 0x8b], "gzip", "gzip"),
    (b"BZh", "bzip2", "bzip2"),
];

/// Unpacks the bzImage at `from` into the ELF file `to`.
pub fn unpack(from: &Path, to: &Path) -> Result<()> {
    let image = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let payload = payload(&image).with_context(|| {
        format!("{} is no bzImage whose header leads to a payload", from.display())
    })?;
    let Some((_, tool, package)) = FORMATS.iter().find(|(magic, _, _)| payload.starts_with(magic))
    else {
        bail!("{} is packed in a way not known here", from.display());
    };
    apt::need(&[(tool, package)])?;
    let out = File::create(to).with_context(|| format!("making {}", to.display()))?;
    let mut child = host::command(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {tool}"))?;
    if let Some(mut input) = child.stdin.take() {
        // The build appends the unpacked size; a tool that stops or complains there is done.
        let _ = input.write_all(payload);
    }
    child.wait().with_context(|| format!("waiting for {tool}"))?;
    let mut magic = [0; 4];
    let read = File::open(to).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut magic));
    if read.is_err() || &magic != b"\x7fELF" {
        bail!("{tool} made no ELF image of {}'s payload", from.display());
    }
    let unpacked = to.metadata().map(|m| m.len()).unwrap_or_default();
    let stated = payload.last_chunk().map(|n| u64::from(u32::from_le_bytes(*n)));
    if stated.is_some_and(|stated| stated != unpacked) {
        bail!("{tool} unpacked {unpacked} bytes of {}, not what it states", from.display());
    }
    Ok(())
}

/// The packed kernel: `payload_offset` and `payload_length` of the setup header, counted from the
/// protected-mode code (`Documentation/arch/x86/boot.rst`).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_setup_header_says() {
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x1f1] = 2;
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&3u32.to_le_bytes());
        image[1552..1555].copy_from_slice(b"abc");
        assert_eq!(payload(&image), Some(b"abc".as_slice()));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"text"), None);
    }
}
