//! The floor of a start: a program that makes only the KVM calls a machine needs and enters it.
//!
//! `kvm-floor vmlinux MIB map|read [irqchip-first]`: one vCPU, MIB MiB of memory, the in-kernel irqchip,
//! the ELF's segments mapped copy-on-write from the file or read into memory, PVH entry. It describes no
//! machine and emulates no device, so the guest dies early: only the way to KVM_RUN is measured.
//! `irqchip-first` is the order most programs have, in which KVM makes the memory wait for a grace period.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::Kvm;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(mib), Some(how)) = (args.next(), args.next(), args.next()) else {
        bail!("usage: kvm-floor VMLINUX MIB map|read [irqchip-first]");
    };
    let irqchip_first = args.next().is_some();
    let size = mib.parse::<usize>()? << 20;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_identity_map_address(0xfeff_c000)?;
    vm.set_tss_address(0xfeff_d000)?;
    if irqchip_first {
        vm.create_irq_chip()?;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping placed by the kernel.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        bail!("mmap: {}", std::io::Error::last_os_error());
    }
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size as u64,
        userspace_addr: memory as u64,
    };
    // SAFETY: the memory stays mapped until the process ends.
    unsafe { vm.set_user_memory_region(slot)? };
    if !irqchip_first {
        vm.create_irq_chip()?;
    }

    let entry = load(&File::open(&path)?, memory.cast(), size, how == "map")?;

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment {
        limit: !0,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        type_: 3,
        selector: 0x18,
        ..Default::default()
    };
    sregs.cs = kvm_segment { type_: 0xb, selector: 0x10, ..flat };
    (sregs.ds, sregs.es, sregs.ss) = (flat, flat, flat);
    sregs.cr0 = 1;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (entry, 2);
    vcpu.set_regs(&regs)?;
    let exit = vcpu.run()?;
    bail!("the guest went on to {exit:?}")
}

/// Loads the segments and returns the PVH entry, else the ELF's own.
fn load(file: &File, memory: *mut u8, size: usize, map: bool) -> Result<u64> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let field = |bytes: &[u8], at: usize, len: usize| -> u64 {
        bytes.iter().skip(at).take(len).rev().fold(0, |n, b| n << 8 | u64::from(*b))
    };
    let mut entry = field(&header, 24, 8);
    for n in 0..field(&header, 56, 2) {
        let mut ph = [0; 56];
        file.read_exact_at(&mut ph, field(&header, 32, 8) + n * 56)?;
        let (kind, offset, paddr, filesz) =
            (field(&ph, 0, 4), field(&ph, 8, 8), field(&ph, 24, 8), field(&ph, 32, 8));
        if kind == 4 {
            let mut notes = vec![0; filesz as usize];
            file.read_exact_at(&mut notes, offset)?;
            let pvh = notes
                .windows(12)
                .position(|w| w == b"\x12\0\0\0Xen\0\0\0\0\0")
                .or_else(|| notes.windows(8).position(|w| w == b"\x12\0\0\0Xen\0"));
            entry = pvh.map_or(entry, |at| field(&notes, at + 8, 4));
        }
        if kind != 1 || filesz == 0 {
            continue;
        }
        let (start, len) = (paddr as usize, filesz as usize);
        if start.checked_add(len).is_none_or(|end| end > size) {
            bail!("the kernel does not fit");
        }
        let target = memory.wrapping_add(start);
        let whole = len & !4095;
        if map && offset.wrapping_sub(paddr) % 4096 == 0 && paddr % 4096 == 0 {
            // SAFETY: inside the mapping of guest memory, which nobody refers to yet.
            let done = unsafe {
                libc::mmap(
                    target.cast(),
                    whole,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    offset as libc::off_t,
                )
            };
            if done == libc::MAP_FAILED {
                bail!("mmap of the kernel: {}", std::io::Error::last_os_error());
            }
            read(file, target.wrapping_add(whole), len - whole, offset + whole as u64)?;
        } else {
            read(file, target, len, offset)?;
        }
    }
    Ok(entry)
}

fn read(file: &File, target: *mut u8, len: usize, offset: u64) -> Result<()> {
    // SAFETY: inside the mapping of guest memory, which nobody else refers to yet.
    let bytes = unsafe { std::slice::from_raw_parts_mut(target, len) };
    file.read_exact_at(bytes, offset).context("reading the kernel")
}
