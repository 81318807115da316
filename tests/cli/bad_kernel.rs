//! Files that are no kernel, or a damaged or lying one, given to the husk command: exit status 125, an
//! error that names the file, nothing on stdout, nothing left behind.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::fixture::husk::{Finished, Running, Sandbox, refuses, refuses_run};
use crate::fixture::kernel::{PAYLOAD_AT, bzimage, image, linux_without_initramfs};
use crate::fixture::{Code, Emit};
use crate::needs_kvm;

/// `husk run` with `args` must refuse its kernel, which is damaged or none, with `words`, and keep nothing of it.
#[track_caller]
fn refuses_kernel(sandbox: &Sandbox, args: &[&str], words: &[&str]) -> Finished {
    let before = sandbox.cached();
    let finished = refuses_run(sandbox, args, words);
    assert_eq!(sandbox.cached(), before, "it is kept in the cache, or was there and is not");
    finished
}

#[test]
fn a_kernel_that_is_none_is_named_and_said_to_be_what_it_is() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("directory")).unwrap();
    sandbox.file("empty", "");
    sandbox.file("text", "Dear kernel,\n");
    sandbox.file("noise", [0xfe, 0x01, 0x80].repeat(1000));
    for (name, words) in [
        ("missing", "No such file"),
        ("empty", "an empty file"),
        ("directory", "a directory"),
        ("text", "a text file"),
        ("noise", "vmlinux"),
        ("/dev/null", "a device"),
    ] {
        refuses_kernel(&sandbox, &["--kernel", name], &["kernel", name, words]);
    }
}

#[test]
fn a_kernel_that_may_not_be_read_is_named() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let kernel = sandbox.path().join("kernel");
    std::fs::set_permissions(kernel, PermissionsExt::from_mode(0o000)).unwrap();
    let mut command = sandbox.husk(&["run", "--kernel", "kernel"]);
    // SAFETY: prctl is a bare system call; nothing is allocated between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // Root could read it all the same (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH); a user has
            // nothing to drop, and may not.
            for capability in [1, 2] {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            Ok(())
        });
    }
    let finished = Running::start(&mut command).finish();
    assert_eq!((finished.status, finished.stdout.as_str()), (125, ""), "{finished:?}");
    let stderr = &finished.stderr;
    assert!(stderr.contains("kernel") && stderr.contains("Permission denied"), "{stderr}");
}

#[test]
fn a_kernel_cut_off_anywhere_is_refused() {
    needs_kvm!();
    let whole = image(32, |a| {
        a.power_off()?;
        a.db(&[0x90; 20_000])
    });
    let sandbox = Sandbox::with_kernel();
    for sixteenth in 0..16 {
        let name = format!("cut{sixteenth}");
        sandbox.file(&name, &whole[..whole.len() * sixteenth / 16]);
        let words: &[&str] = if sixteenth == 0 { &["empty"] } else { &["truncated"] };
        refuses_kernel(&sandbox, &["--kernel", &name], &[&[name.as_str()], words].concat());
    }
    // And within the headers.
    for len in [1, 3, 4, 16, 63, 64, 100, 176, 190] {
        let name = format!("head{len}");
        sandbox.file(&name, &whole[..len]);
        refuses_kernel(&sandbox, &["--kernel", &name], &[&name]);
    }
}

/// A bzImage that powers off, of some 60 KiB: what fills it does not get much shorter by packing.
fn packed_kernel() -> Vec<u8> {
    let mut seed = 1u32;
    let noise = std::iter::from_fn(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((seed >> 24) as u8)
    });
    let noise: Vec<u8> = noise.take(60_000).collect();
    bzimage(&image(32, |a| {
        a.power_off()?;
        a.db(&noise)
    }))
}

#[test]
fn a_bzimage_cut_off_anywhere_is_refused() {
    needs_kvm!();
    let whole = packed_kernel();
    let sandbox = Sandbox::new();
    sandbox.file("whole", &whole);
    assert_eq!(sandbox.run(&["run", "--kernel", "whole", "--memory", "32M"]).status, 0);
    // What is kept of a good one, and is to stay as it is when others are refused.
    let kept = sandbox.cached();
    assert!(
        kept.iter().any(|(path, _)| path.extension().is_some_and(|it| it == "elf")),
        "{kept:?}"
    );
    for sixteenth in 0..16 {
        let name = format!("cut{sixteenth}");
        sandbox.file(&name, &whole[..whole.len() * sixteenth / 16]);
        let words = if sixteenth == 0 { "an empty file" } else { "it is truncated" };
        refuses_kernel(&sandbox, &["--kernel", &name], &["kernel", &name, words]);
    }
    // Within the boot sector, the header and the setup code, and by the last 16 bytes.
    for len in [1, 511, 512, 517, 519, 600, 618, 1023, 1024, 1536, 1537, whole.len() - 16] {
        let name = format!("head{len}");
        sandbox.file(&name, &whole[..len]);
        refuses_kernel(&sandbox, &["--kernel", &name], &["kernel", &name]);
    }
}

#[test]
fn a_file_that_is_missing_is_told_before_the_kernel_is_unpacked_or_found_to_be_none() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file("packed", packed_kernel());
    sandbox.file("text", "Dear kernel,\n");
    for kernel in ["packed", "text"] {
        for (option, value, words) in [
            ("--initrd", "lost", "initrd lost"),
            ("--disk", "path=lost", "disk lost"),
            ("--pmem", "path=lost", "lost"),
            ("--volume", "lost:tag", "lost"),
        ] {
            let args = ["--kernel", kernel, "--memory", "32M", option, value];
            refuses_run(&sandbox, &args, &[words, "No such file"]);
        }
    }
    assert_eq!(sandbox.cached(), [], "the kernel was unpacked");
}

#[test]
fn a_bzimage_that_lies_about_its_sizes_is_refused() {
    needs_kvm!();
    let whole = packed_kernel();
    let sandbox = Sandbox::new();
    let word = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().unwrap());
    let payload_len = word(0x24c);
    let claim_at = PAYLOAD_AT + payload_len as usize - 4;
    let code_len = (whole.len() - 1024) as u32;
    let lies = [
        ("the sectors of its setup code", 0x1f0, word(0x1f0) | 0xff00, "truncated"),
        ("code of no bytes", 0x1f4, 0, "0 bytes long"),
        ("too much code", 0x1f4, code_len / 16 + 1, "truncated"),
        ("code of 64 GiB", 0x1f4, u32::MAX, "truncated"),
        ("too little code", 0x1f4, code_len / 32, "not inside its code"),
        ("an address of 0", 0x214, 0, "load address"),
        ("a payload too far off", 0x248, code_len, "truncated"),
        ("a payload 4 GiB off", 0x248, u32::MAX, "truncated"),
        ("a payload elsewhere", 0x248, 0x408, "truncated"),
        ("a payload of no bytes", 0x24c, 0, "neither a Linux ELF"),
        ("a payload of a byte", 0x24c, 1, "neither a Linux ELF"),
        ("a payload of 7 bytes", 0x24c, 7, "payload"),
        ("a payload of 4 GiB", 0x24c, u32::MAX, "truncated"),
        ("half of its payload", 0x24c, payload_len / 2, "payload"),
        ("room for a page", 0x260, 4096, "at most 4096 are possible"),
        ("a first block of 4 GiB", PAYLOAD_AT + 4, u32::MAX, "does not unpack"),
        ("a first block too short", PAYLOAD_AT + 4, word(PAYLOAD_AT + 4) / 2, "does not unpack"),
        ("unpacked no bytes", claim_at, 0, "does not unpack"),
        ("unpacked a byte less", claim_at, word(claim_at) - 1, "longer"),
        ("unpacked a byte more", claim_at, word(claim_at) + 1, "1 bytes short"),
        ("unpacked 4 GiB", claim_at, u32::MAX, "are possible"),
    ];
    for (n, (lie, at, value, words)) in lies.into_iter().enumerate() {
        let mut kernel = whole.clone();
        kernel[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let name = sandbox.file(&format!("lie{n}"), kernel);
        let args = ["--kernel", &name, "--memory", "32M"];
        let finished = refuses_kernel(&sandbox, &args, &["kernel", &name]);
        assert!(finished.stderr.contains(words), "{lie}: {finished:?}");
    }
}

#[test]
fn what_a_bzimage_carries_is_checked_like_any_kernel() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    let vmlinux = image(32, |a| a.power_off());
    // Of the ELF header: the machine, the program headers' place and number. Of the first of
    // those: the place and length in the file, the address, the length in memory.
    for (at, bytes) in [
        (18, &183u16.to_le_bytes()[..]),
        (32, &u64::MAX.to_le_bytes()),
        (56, &u16::MAX.to_le_bytes()),
        (64 + 8, &(1u64 << 40).to_le_bytes()),
        (64 + 24, &(1u64 << 52).to_le_bytes()),
        (64 + 32, &u64::MAX.to_le_bytes()),
        (64 + 40, &(1u64 << 50).to_le_bytes()),
    ] {
        let mut vmlinux = vmlinux.clone();
        vmlinux[at..at + bytes.len()].copy_from_slice(bytes);
        let name = sandbox.file(&format!("carries{at}"), bzimage(&vmlinux));
        refuses_kernel(&sandbox, &["--kernel", &name, "--memory", "32M"], &["kernel", &name]);
    }
}

#[test]
fn a_kernel_for_another_machine_is_refused_with_its_name() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    for (machine, name) in [(183u16, "aarch64"), (243, "RISC-V"), (3, "32-bit x86")] {
        let mut kernel = image(32, |a| a.power_off());
        kernel[18..20].copy_from_slice(&machine.to_le_bytes());
        sandbox.file("other", kernel);
        refuses_kernel(&sandbox, &["--kernel", "other"], &["other", name]);
    }
}

#[test]
fn a_kernel_larger_than_memory_is_told_how_much_it_needs() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    let mut kernel = image(32, |a| a.power_off());
    // p_memsz of the first program header.
    kernel[64 + 40..64 + 48].copy_from_slice(&(64u64 << 20).to_le_bytes());
    sandbox.file("big", kernel);
    refuses_run(&sandbox, &["--kernel", "big", "--memory", "32M"], &["big", "65 MiB"]);
}

#[test]
fn a_kernel_is_not_built_of_a_directory_that_holds_no_linux() {
    let sandbox = Sandbox::new();
    let command = sandbox.husk(&["kernel", "build", "--source", "."]);
    refuses(&sandbox, command, &["holds no Linux sources"]);
    let command = sandbox.husk(&["kernel", "build", "--variant", "quick"]);
    refuses(&sandbox, command, &["quick", "fast", "full"]);
}

#[test]
fn a_linux_with_nothing_to_run_is_refused_before_it_is_started_and_one_with_something_is_not() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    let off = |a: &mut Code| {
        a.say("started")?;
        a.power_off()
    };
    sandbox.file("kernel", linux_without_initramfs(off));
    sandbox.file("file", vec![0; 2 << 20]);
    let nothing = ["--kernel", "kernel"];
    refuses_run(&sandbox, &nothing, &["kernel", "nothing for it to run", "--initrd", "-- CMD"]);
    let mine = ["--kernel", "kernel", "--cmdline", "console=ttyS0", "--disk", "path=file"];
    refuses_run(&sandbox, &mine, &["nothing for it to run"]);
    for args in [
        &["--initrd", "file"][..],
        &["--disk", "path=file"],
        &["--pmem", "path=file"],
        &["--append", "root=/dev/nfs"],
        &["--append", "nfsroot=10.0.0.1:/"],
    ] {
        let started = sandbox.run(&[&["run", "--kernel", "kernel"], args].concat());
        assert_eq!((started.status, &started.stdout[..]), (0, "started"), "{args:?}: {started:?}");
    }
}
