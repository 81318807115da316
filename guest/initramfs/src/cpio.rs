//! An archive in the "newc" cpio format, which the kernel unpacks as an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`): uncompressed, and the same bytes for the
//! same content. Making one needs no root, device nodes included. Nothing here knows what the files mean.

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
    /// Adds a directory (0755).
    pub fn directory(&mut self, name: &str) {
        self.entry(name, S_IFDIR | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file with permissions `mode`.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, S_IFREG | (mode & 0o7777), (0, 0), data);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with permissions `mode`.
    pub fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, S_IFCHR | (mode & 0o7777), (major, minor), &[]);
    }

    /// Ends the archive, padded so that another can follow it: the kernel unpacks them in order, and a
    /// later file replaces an earlier one.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // Nothing that is put in is that long; what were would be cut off, not wrapped.
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, filesize, device, special device, namesize, check
        let (major, minor) = device;
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data.get(..size as usize).unwrap_or(data));
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_entry_is_a_110_byte_header_a_padded_name_and_padded_data() {
        let mut cpio = Cpio::default();
        cpio.file("a", 0o644, b"hello");
        cpio.device("n", 0o600, 1, 3);
        let bytes = cpio.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081A4");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..117], b"a\0hello");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(&bytes[134..142], b"00002180");
        assert_eq!(&bytes[120 + 78..120 + 94], b"0000000100000003");
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn the_cpio_command_lists_what_was_put_in() {
        let mut cpio = Cpio::default();
        cpio.directory("bin");
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
