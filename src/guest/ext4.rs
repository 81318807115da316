//! An empty ext4 file system in a file that is all holes: what the guest writes above its root is kept in it, where
//! it is not to be kept in memory. The guest's init is too small to make one.
//!
//! ```text
//! group 0: │ superblock │ group descriptors │ block bitmap │ inode bitmap │ inodes │ / │ /lost+found │ free …
//! others:  │ block bitmap │ inode bitmap │ inodes │ free …                    (128 MiB each, the last one shorter)
//! ```
//!
//! It has no journal: it is thrown away with its VM. Of a group that nothing is in nothing is written, for its
//! descriptor says so (`uninit_bg`): a file of 64 GiB takes some 40 KiB, and one of 8 TiB the 2 MiB of its
//! descriptors. The structures are those of Linux `Documentation/filesystems/ext4/` and `fs/ext4/ext4.h`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;
/// As many as a bitmap of one block has bits for.
const GROUP: u64 = 8 * BLOCK;
const DESCRIPTOR: u64 = 32;
const INODE: u64 = 256;
/// One for each 8 KiB: the overlay of a build has many small files.
const INODES: u64 = 16384;
/// Blocks of a group's inodes.
const TABLE: u64 = INODES * INODE / BLOCK;
/// Blocks that every group has for itself: two bitmaps, and its inodes.
const OWN: u64 = 2 + TABLE;
/// The inodes of the root and of lost+found, and how many are not free.
const ROOT: u32 = 2;
const LOST: u32 = 11;
const USED_INODES: u64 = 11;
/// Group 0 has two directories, a block each.
const DIRECTORIES: u64 = 2;

/// The shortest and the longest file system, in bytes.
pub const SIZES: std::ops::RangeInclusive<u64> = 16 << 20..=8 << 40;

/// `EXT4_BG_INODE_UNINIT`, `EXT4_BG_BLOCK_UNINIT`, `EXT4_BG_INODE_ZEROED`
const INODES_UNUSED: u16 = 1;
const BLOCKS_UNUSED: u16 = 2;
const ZEROED: u16 = 4;

/// What the checksums are made with, and directories are hashed with; nobody looks for it.
const UUID: [u8; 16] = *b"husk overlay\0\0\0\0";

/// Makes an empty file system of `size` bytes, one of [`SIZES`], in `file`, which is empty.
///
/// # Errors
/// The host's.
pub fn make(file: &File, size: u64) -> io::Result<()> {
    let layout = Layout::of(size);
    file.set_len(layout.blocks * BLOCK)?;
    let mut descriptors = Vec::new();
    for group in 0..layout.groups {
        let flags = layout.flags(group);
        descriptors.extend(layout.descriptor(group, flags));
        if flags & BLOCKS_UNUSED == 0 {
            let bits = ones([0..layout.used(group), layout.len(group)..GROUP]);
            file.write_all_at(&bits, layout.own(group) * BLOCK)?;
        }
    }
    file.write_all_at(&descriptors, BLOCK)?;
    let own = layout.own(0);
    file.write_all_at(&ones([0..USED_INODES, INODES..GROUP]), (own + 1) * BLOCK)?;
    let (root, lost) = (own + OWN, own + OWN + 1);
    for (number, bytes) in [(ROOT, inode(0o755, 3, root)), (LOST, inode(0o700, 2, lost))] {
        file.write_all_at(&bytes, (own + 2) * BLOCK + u64::from(number - 1) * INODE)?;
    }
    let names: [(u32, &[u8]); 3] = [(ROOT, b"."), (ROOT, b".."), (LOST, b"lost+found")];
    file.write_all_at(&directory(&names), root * BLOCK)?;
    file.write_all_at(&directory(&[(LOST, b"."), (ROOT, b"..")]), lost * BLOCK)?;
    file.write_all_at(&layout.superblock(), 1024)
}

/// Which block is whose.
struct Layout {
    blocks: u64,
    groups: u64,
    /// Blocks of group descriptors.
    descriptors: u64,
}

impl Layout {
    fn of(size: u64) -> Layout {
        let mut blocks = size / BLOCK;
        let rest = blocks % GROUP;
        // A last group in which there is hardly anything but its own blocks is left out.
        if blocks > GROUP && rest < 2 * OWN {
            blocks -= rest;
        }
        let groups = blocks.div_ceil(GROUP);
        Layout { blocks, groups, descriptors: (groups * DESCRIPTOR).div_ceil(BLOCK) }
    }

    /// Where the group's own blocks begin.
    fn own(&self, group: u64) -> u64 {
        group * GROUP + if group == 0 { 1 + self.descriptors } else { 0 }
    }

    /// Blocks of the group.
    fn len(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP).min(GROUP)
    }

    /// Those of them that are not free: its first ones.
    fn used(&self, group: u64) -> u64 {
        self.own(group) - group * GROUP + OWN + if group == 0 { DIRECTORIES } else { 0 }
    }

    fn flags(&self, group: u64) -> u16 {
        let inodes = if group == 0 { 0 } else { INODES_UNUSED };
        // The bitmap of a shorter group has to say what is behind its end.
        let is_empty = group != 0 && self.len(group) == GROUP;
        ZEROED | inodes | if is_empty { BLOCKS_UNUSED } else { 0 }
    }

    /// `struct ext4_group_desc`
    fn descriptor(&self, group: u64, flags: u16) -> Vec<u8> {
        let own = self.own(group);
        let free_inodes = INODES - if group == 0 { USED_INODES } else { 0 };
        let mut bytes = Bytes::of(DESCRIPTOR);
        for (at, place) in [(0, own), (4, own + 1), (8, own + 2)] {
            bytes.long(at, place);
        }
        bytes.short(0xc, self.len(group) - self.used(group));
        bytes.short(0xe, free_inodes);
        bytes.short(0x10, if group == 0 { DIRECTORIES } else { 0 });
        bytes.short(0x12, flags.into());
        // Those at the table's end that were never used.
        bytes.short(0x1c, free_inodes);
        let number = (group as u32).to_le_bytes();
        let told = bytes.0.get(..0x1e).unwrap_or_default();
        let checksum = [&UUID[..], &number, told].into_iter().fold(!0, crc16);
        bytes.short(0x1e, checksum.into());
        bytes.0
    }

    /// `struct ext4_super_block`
    fn superblock(&self) -> Vec<u8> {
        let free: u64 = (0..self.groups).map(|group| self.len(group) - self.used(group)).sum();
        let inodes = self.groups * INODES;
        let mut bytes = Bytes::of(1024);
        for (at, value) in [
            (0x0, inodes),
            (0x4, self.blocks),
            (0xc, free),
            (0x10, inodes - USED_INODES),
            // Blocks of 1024 << 2 bytes, and clusters of as many.
            (0x18, 2),
            (0x1c, 2),
            (0x20, GROUP),
            (0x24, GROUP),
            (0x28, INODES),
            // Dynamic inodes.
            (0x4c, 1),
            (0x54, USED_INODES),
            (0x5c, EXT_ATTR | DIR_INDEX | SPARSE_SUPER2),
            (0x60, FILETYPE | EXTENTS),
            (0x64, LARGE_FILE | HUGE_FILE | GDT_CSUM | DIR_NLINK | EXTRA_ISIZE),
            // Attributes of users, and ACLs.
            (0x100, 0xc),
            // Hashes of characters that have signs.
            (0x160, 1),
        ] {
            bytes.long(at, value);
        }
        for (at, value) in [
            // Never checked because it was mounted often.
            (0x36, 0xffff),
            (0x38, 0xef53),
            // It is whole; with an error it is only read from then on.
            (0x3a, 1),
            (0x3c, 2),
            (0x58, INODE),
            (0x15c, EXTRA),
            (0x15e, EXTRA),
        ] {
            bytes.short(at, value);
        }
        bytes.put(0x68, &UUID);
        bytes.put(0x78, b"husk-overlay");
        bytes.put(0xec, &UUID);
        // Directories are hashed by half MD4.
        bytes.put(0xfc, &[1]);
        bytes.0
    }
}

/// What the file system has (`EXT4_FEATURE_…`): what one may pass over that does not know it, …
const EXT_ATTR: u64 = 0x8;
const DIR_INDEX: u64 = 0x20;
/// No group but the first has a superblock: the two that could have are named nowhere.
const SPARSE_SUPER2: u64 = 0x200;
/// … what nobody may who does not know it, …
const FILETYPE: u64 = 0x2;
const EXTENTS: u64 = 0x40;
/// … and what one may who only reads.
const LARGE_FILE: u64 = 0x2;
const HUGE_FILE: u64 = 0x8;
const GDT_CSUM: u64 = 0x10;
const DIR_NLINK: u64 = 0x20;
const EXTRA_ISIZE: u64 = 0x40;
/// Bytes of an inode behind the 128 that ext2 had.
const EXTRA: u64 = 32;

/// `struct ext4_inode` of a directory in the block `first`.
fn inode(mode: u64, links: u64, first: u64) -> Vec<u8> {
    const DIRECTORY: u64 = 0o040_000;
    /// `EXT4_EXTENTS_FL`
    const BY_EXTENTS: u64 = 0x8_0000;
    let mut bytes = Bytes::of(INODE);
    bytes.short(0, DIRECTORY | mode);
    bytes.long(4, BLOCK);
    bytes.short(0x1a, links);
    // Sectors of 512 bytes.
    bytes.long(0x1c, BLOCK / 512);
    bytes.long(0x20, BY_EXTENTS);
    // `struct ext4_extent_header`, with one extent of the four that there is room for, and that one.
    bytes.short(0x28, 0xf30a);
    bytes.short(0x2a, 1);
    bytes.short(0x2c, 4);
    bytes.short(0x28 + 12 + 4, 1);
    bytes.long(0x28 + 12 + 8, first);
    bytes.short(0x80, EXTRA);
    bytes.0
}

/// `struct ext4_dir_entry_2`, one for each of these, all of them directories.
fn directory(entries: &[(u32, &[u8])]) -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut bytes = Bytes::of(BLOCK);
    let mut at = 0usize;
    for (n, (inode, name)) in entries.iter().enumerate() {
        let is_last = n + 1 == entries.len();
        let len = if is_last { BLOCK as usize - at } else { (8 + name.len()).next_multiple_of(4) };
        bytes.long(at, (*inode).into());
        bytes.short(at + 4, len as u64);
        bytes.put(at + 6, &[name.len() as u8, DIRECTORY]);
        bytes.put(at + 8, name);
        at += len;
    }
    bytes.0
}

/// A bitmap of one block in which these bits are set.
fn ones(ranges: [std::ops::Range<u64>; 2]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    for bit in ranges.into_iter().flatten() {
        if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
            *byte |= 1 << (bit % 8);
        }
    }
    bytes
}

/// CRC-16 as Linux has it (`lib/crc16.c`): x¹⁶ + x¹⁵ + x² + 1, the lowest bit first.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte),
            |crc, _| {
                if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xa001 }
            },
        )
    })
}

/// A structure of little-endian numbers, all zero at first. The values are this page's own, and fit.
struct Bytes(Vec<u8>);

impl Bytes {
    fn of(len: u64) -> Bytes {
        Bytes(vec![0; len as usize])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn long(&mut self, at: usize, value: u64) {
        self.put(at, &(value as u32).to_le_bytes());
    }

    fn short(&mut self, at: usize, value: u64) {
        self.put(at, &(value as u16).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn tool(name: &str) -> Command {
        let mut command = Command::new(name);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command
    }

    fn made(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        make(file.as_file(), size).unwrap();
        file
    }

    /// Tells whether e2fsck is there, and fails when it finds a fault.
    fn is_checked(path: &Path, size: u64) -> bool {
        let Ok(checked) = tool("e2fsck").args(["-fn"]).arg(path).output() else {
            crate::skipped::skipped("there is no e2fsck");
            return false;
        };
        let said = String::from_utf8_lossy(&checked.stdout);
        assert_eq!(checked.status.code(), Some(0), "{size}: {said}");
        true
    }

    #[test]
    fn it_is_without_a_fault_whatever_its_size_and_takes_next_to_no_room() {
        const MIB: u64 = 1 << 20;
        for size in [
            *SIZES.start(),
            128 * MIB - 4096,
            128 * MIB,
            // The last group is left out, or is there.
            129 * MIB,
            128 * MIB + 2 * OWN * BLOCK,
            8 << 30,
            (100 << 30) + 12_345,
        ] {
            let file = made(size);
            let meta = file.as_file().metadata().unwrap();
            assert!(
                meta.len() <= size && meta.len() + 2 * OWN * BLOCK > size,
                "{size}: {}",
                meta.len()
            );
            assert!(meta.blocks() * 512 < 1 << 20, "{size}: {} KiB", meta.blocks() / 2);
            if !is_checked(file.path(), size) {
                return;
            }
        }
    }

    #[test]
    fn the_longest_has_descriptors_and_numbers_of_their_width() {
        let layout = Layout::of(*SIZES.end());
        assert!(layout.used(0) < GROUP && layout.descriptors * BLOCK >= layout.groups * DESCRIPTOR);
        assert!(u32::try_from(layout.blocks).is_ok());
        assert!(u32::try_from(layout.groups * INODES).is_ok());
        assert!(u16::try_from(GROUP).is_ok());
        let shortest = Layout::of(*SIZES.start());
        assert!(shortest.used(0) < shortest.len(0) / 2);
    }

    #[test]
    fn files_can_be_put_into_it() {
        let file = made(300 << 20);
        if !is_checked(file.path(), 0) {
            return;
        }
        let source = tempfile::NamedTempFile::new().unwrap();
        source.as_file().write_all_at(&[7; 3 << 20], 0).unwrap();
        let request = format!("write {} big", source.path().display());
        let status =
            tool("debugfs").args(["-w", "-R", &request]).arg(file.path()).output().unwrap();
        assert!(status.status.success(), "{status:?}");
        let found = tool("debugfs").args(["-R", "cat big"]).arg(file.path()).output().unwrap();
        assert_eq!(found.stdout, [7; 3 << 20]);
        is_checked(file.path(), 1);
    }

    #[test]
    fn checksums_are_those_of_linux() {
        // The check value of CRC-16/ARC, whose first value is 0.
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
