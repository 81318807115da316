//! An archive in the "newc" cpio format, the one the kernel unpacks as an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`). Kept here because it is sixty
//! lines, needs no root for device nodes, and gives the same bytes for the same content.

use std::path::Path;

use anyhow::{Context, Result};

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive being written. Directories must be added before what stands in them.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// An archive with the directories and device nodes every init of ours wants to find.
    pub fn with_skeleton() -> Self {
        let mut cpio = Self::default();
        for dir in ["bin", "dev", "etc", "lib", "mnt", "proc", "run", "sys", "tmp"] {
            cpio.dir(dir);
        }
        // The kernel opens /dev/console for init before any devtmpfs is mounted.
        cpio.char_device("dev/console", 5, 1);
        cpio.char_device("dev/null", 1, 3);
        cpio
    }

    /// Adds a directory (0755).
    pub fn dir(&mut self, name: &str) {
        self.entry(name, S_IFDIR | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file with permissions `mode`.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, S_IFREG | (mode & 0o7777), (0, 0), data);
    }

    /// Adds the file at `from` on this machine as the executable `name`.
    pub fn executable(&mut self, name: &str, from: &Path) -> Result<()> {
        let data = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(name, 0o755, &data);
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device node (0600).
    pub fn char_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, S_IFCHR | 0o600, (major, minor), &[]);
    }

    /// Ends the archive. The result is padded to 512 bytes, so archives can be appended to one
    /// another: the kernel unpacks them in order, a later file replacing an earlier one.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode = self.inode.wrapping_add(1);
        let nlink = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
        // rdevminor, namesize, check: eight hexadecimal digits each.
        let fields =
            [self.inode, mode, 0, 0, nlink, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn an_entry_is_a_110_byte_header_a_padded_name_and_padded_data() {
        let mut cpio = Cpio::default();
        cpio.file("a", 0o644, b"hello");
        let bytes = cpio.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081A4");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..117], b"hello");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn the_cpio_command_lists_what_was_put_in() {
        let mut cpio = Cpio::default();
        cpio.dir("bin");
        cpio.file("bin/x", 0o755, b"data");
        cpio.symlink("bin/y", "x");
        let Ok(mut child) = Command::new("cpio")
            .arg("-t")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            crate::skipped::skipped("no cpio command here");
            return;
        };
        child.stdin.take().unwrap().write_all(&cpio.finish()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "bin\nbin/x\nbin/y\n");
    }
}
