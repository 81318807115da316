//! A script put into an initramfs image: an archive that holds `/test.sh`, appended to the image.
//! The kernel unpacks one after the other (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::io::Write;
use std::path::Path;

/// Writes `image` and `/test.sh` to `to`.
pub fn with_script(image: &Path, script: &str, to: &Path) {
    std::fs::copy(image, to).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(to).unwrap();
    // Archives start on a boundary of four bytes; zeros between them are skipped.
    let len = file.metadata().unwrap().len();
    let padding = vec![0; (len.next_multiple_of(4) - len) as usize];
    let mut archive = padding;
    archive.extend(entry("test.sh", 0o100_755, script.as_bytes()));
    archive.extend(entry("TRAILER!!!", 0, b""));
    file.write_all(&archive).unwrap();
}

/// One file of a "newc" archive: a header of 13 numbers in hexadecimal, name and data, both
/// filled up to four bytes.
fn entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    let [size, name_size] = [data.len(), name.len() + 1].map(|n| u32::try_from(n).unwrap());
    // inode, mode, uid, gid, links, mtime, size, device, special device, name's size, checksum
    for number in [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        bytes.extend(format!("{number:08x}").bytes());
    }
    bytes.extend(name.bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
