//! The assets' names in the directory of all of them. The tests that boot Linux take this file in.

/// Debian's cloud kernel, a bzImage (LZ4).
pub const VMLINUZ_CLOUD: &str = "vmlinuz-cloud";
/// Debian's standard kernel, a bzImage (XZ).
pub const VMLINUZ_STD: &str = "vmlinuz-std";
/// The cloud kernel's ELF image, with a PVH note.
pub const VMLINUX_CLOUD: &str = "vmlinux-cloud";
/// The directory of the cloud kernel's modules, beside copies of the assets; otherwise it is where the
/// kernel's link leads.
pub const MODULES_CLOUD: &str = "modules-cloud";
/// busybox and an init: for every kernel.
pub const TINY: &str = "initrd-tiny.cpio";
/// The same with the cloud kernel's modules.
pub const FULL: &str = "initrd-full.cpio";
/// The same with the standard kernel's modules.
pub const FULL_STD: &str = "initrd-full-std.cpio";
/// For soaks only: the same as the cloud kernel's, with xfs in `/lib/modules.more`.
pub const SOAK: &str = "initrd-soak.cpio";
/// For soaks only: a file system with erofs-utils, ethtool, fio, iperf3, stress-ng and xfsprogs.
pub const TOOLS: &str = "tools.ext4";
/// For soaks only: what tries a file's data at random, a static program.
pub const FSX: &str = "fsx";
/// For soaks only: what tries POSIX' promises about paths, a static program.
pub const PJDFSTEST: &str = "pjdfstest";
/// For soaks only: a directory with published crates and their tests, built: cargo's workspace.
pub const CRATES: &str = "crates";
/// For soaks only: a Debian root file system whose init is systemd.
pub const SYSTEMD: &str = "systemd.ext4";
/// For soaks only, and where apt has a network: a data directory with what `husk kernel fetch` brought.
pub const FETCHED: &str = "husk-fetched";
/// For soaks only, and where a kernel can be built: one with what `husk kernel build --variant fast` made.
pub const BUILT: &str = "husk-built";
/// The same of `--variant full`.
pub const BUILT_FULL: &str = "husk-built-full";
/// A Debian root file system.
pub const DEBIAN: &str = "debian.ext4";
/// A root file system with Redis and what it needs, and nothing else.
pub const REDIS: &str = "redis.ext4";
/// memtest86+, a bzImage that carries no Linux.
pub const MEMTEST: &str = "memtest86+x64.bin";
/// The same for processors without a 64-bit mode.
pub const MEMTEST_IA32: &str = "memtest86+ia32.bin";

/// Why a test skips itself that wants the asset `name`, which not every machine can make. Nothing else that
/// is missing excuses a test where everything is brought: xtask knows this one by its words.
pub fn absent(name: &str) -> String {
    format!("there is no {name}: xtask has said why")
}
