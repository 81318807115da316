//! The options of `husk run` that are about devices, with the binary.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use iced_x86::code_asm::dword_ptr;

use crate::fixture::husk::{Running, Sandbox, refuses_run};
use crate::fixture::pty::open_terminal;
use crate::fixture::{self, Emit, LIMIT};
use crate::needs_kvm;

/// `com1`'s bytes from the guest, in the metrics at `metrics` in the sandbox.
fn console_bytes(sandbox: &Sandbox) -> Option<u64> {
    let text = std::fs::read_to_string(sandbox.path().join("metrics")).unwrap();
    let metrics: husk::Metrics = serde_json::from_str(&text).ok()?;
    Some(metrics.devices["com1"].counts.bytes_from_guest)
}

#[test]
fn metrics_are_written_at_the_start_when_asked_for_and_at_the_end() {
    needs_kvm!();
    let sandbox = Sandbox::new();
    sandbox.file(
        "kernel",
        fixture::kernel::image(32, |a| {
            a.say("waiting")?;
            a.typed()?;
            a.say("bye")?;
            a.power_off()
        }),
    );
    let mut command = sandbox.husk(&["run", "--kernel", "kernel", "--metrics", "metrics"]);
    let mut running = Running::start(command.stdin(std::process::Stdio::piped()));
    let deadline = Instant::now() + LIMIT;
    let mut last = None;
    while last != Some(7) {
        assert!(Instant::now() < deadline, "{last:?}");
        std::thread::sleep(Duration::from_millis(20));
        if sandbox.path().join("metrics").exists() {
            last = console_bytes(&sandbox);
        }
        // It is there with something in it: SIGUSR1 is waited for.
        if last.is_some() {
            running.signal(libc::SIGUSR1);
        }
    }
    use std::io::Write;
    running.child.stdin.take().unwrap().write_all(b"x").unwrap();
    let finished = running.finish();
    assert_eq!((finished.status, &finished.stdout[..]), (0, "waitingbye"), "{finished:?}");
    assert_eq!(console_bytes(&sandbox), Some(10));
    assert_eq!(sandbox.contents().len(), 2, "{:?}", sandbox.contents());
}

#[test]
fn metrics_that_cannot_be_written_are_refused_before_the_vm_starts() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    refuses_run(
        &sandbox,
        &["--kernel", "kernel", "--metrics", "no/such/place"],
        &["--metrics no/such/place", "No such file"],
    );
}

#[test]
fn a_disk_that_is_not_what_it_should_be_is_refused_before_the_vm_starts() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    sandbox.file("disk", [b"QFI\xfb\0\0\0\x03", &[0; 1016][..]].concat());
    for (disk, words) in [
        ("path=disk", &["disk disk looks like a qcow2 image", "format=raw"][..]),
        ("path=disk,format=qcow2", &["disk disk: the qcow2 image is damaged", "qemu-img check"]),
        ("path=kernel,format=qcow2", &["disk kernel: it is no qcow2 image"]),
        ("path=disk,format=raw,overlay,overlay_dir=no/such", &["no/such", "overlay_dir=DIR"]),
        ("path=disk,overlay,ro", &["leave one of them out"]),
    ] {
        refuses_run(&sandbox, &["--kernel", "kernel", "--disk", disk], words);
    }
}

#[test]
fn metrics_replace_no_file_that_is_not_metrics() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    sandbox.file("letter", "Dear husk,\n");
    refuses_run(
        &sandbox,
        &["--kernel", "kernel", "--metrics", "letter"],
        &["--metrics letter", "something else than metrics", "would be lost"],
    );
    assert_eq!(std::fs::read(sandbox.path().join("letter")).unwrap(), b"Dear husk,\n");
    // Those of the last time are.
    for _ in 0..2 {
        let ended = sandbox.run(&["run", "--kernel", "kernel", "--metrics", "metrics"]);
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{ended:?}");
    }
}

/// Sets the size of the window of the terminal behind `line`.
fn set_size(line: &impl AsRawFd, columns: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: an open terminal and a valid size behind the pointer.
    assert_eq!(unsafe { libc::ioctl(line.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
}

#[test]
fn a_virtio_console_has_the_size_of_husk_s_terminal_also_when_it_changes() {
    needs_kvm!();
    // What the guest waits for in the first device's config space: columns and rows.
    const SIZE: u32 = 0xd000_0100;
    let sandbox = Sandbox::new();
    sandbox.file(
        "kernel",
        fixture::kernel::image(32, |a| {
            for (columns, rows, words) in [(100, 40, "first."), (300, 50, "second.")] {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.cmp(dword_ptr(SIZE), rows << 16 | columns)?;
                a.jne(again)?;
                a.say(words)?;
            }
            a.power_off()
        }),
    );
    let (main, line) = open_terminal();
    set_size(&line, 100, 40);
    let args = ["run", "--kernel", "kernel", "--rng", "off", "--console-device", "virtio"];
    let mut command = sandbox.husk(&args);
    let said = sandbox.path().join("said");
    let output = std::fs::File::create(&said).unwrap();
    command.stdin(line.try_clone().unwrap()).stdout(output);
    let running = Running::start(&mut command);
    fixture::husk::wait_for_text(&said, "first.");
    set_size(&line, 300, 50);
    running.signal(libc::SIGWINCH);
    let finished = running.finish();
    assert_eq!(finished.status, 0, "{finished:?}");
    assert_eq!(std::fs::read_to_string(said).unwrap(), "first.second.");
    drop((main, line));
}

#[test]
fn ports_that_cannot_be_had_are_refused_by_name() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    sandbox.file("precious", "a disk of one kind or another");
    let run = |port: &str, words: &[&str]| {
        refuses_run(&sandbox, &["--kernel", "kernel", "--port", port], words);
    };
    run("name=a", &["port `a`", "socket=PATH"]);
    run("name=a,socket=no/such/place", &["port socket no/such/place", "No such file"]);
    run("name=a,socket=precious", &["port socket precious", "something else"]);
    run("name=a,file=kernel", &["port: cannot write to kernel", "the VM needs it as kernel"]);
    run("name=a/b,file=x", &["`a/b` is no name for a port"]);
    assert_eq!(std::fs::read(sandbox.path().join("precious")).unwrap().len(), 29);
}

#[test]
fn volumes_that_cannot_be_shared_are_refused_by_name() {
    needs_kvm!();
    let sandbox = Sandbox::with_kernel();
    std::fs::create_dir(sandbox.path().join("dir")).unwrap();
    let run = |volume: &str, words: &[&str]| {
        refuses_run(&sandbox, &["--kernel", "kernel", "--volume", volume], words);
    };
    run("dir", &["--volume", "PATH:TAG"]);
    run("no/such:t", &["volume t", "no/such", "No such file"]);
    run("kernel:t:ro", &["volume t", "kernel", "Not a directory"]);
    run("/proc/self:t", &["volume t", "/proc/self", "the host's processes"]);
    run("dir:a/b", &["`a/b` is no tag"]);
    run("dir:t,cache=some", &["cache=some", "auto"]);
    run("dir:t:rx", &["`rx` is no mode", "cow"]);
    run("dir:/mnt:RO,cache=auto", &["`RO` is no mode"]);
    let finished =
        sandbox.run(&["run", "--kernel", "kernel", "--volume", "dir:t", "--print-config"]);
    assert!(finished.stdout.contains(r#""tag": "t""#), "{finished:?}");
    // A colon in the path is one where a mode follows.
    let config = ["run", "--kernel", "kernel", "--volume", "d:ir:t:rw", "--print-config"];
    let finished = sandbox.run(&config);
    assert!(finished.stdout.contains(r#""path": "d:ir""#), "{finished:?}");
}

#[test]
fn a_guest_that_writes_to_the_debug_exit_port_gives_husk_its_status() {
    needs_kvm!();
    for (value, status) in [(0, 1), (0x10, 0x21), (0xff, 0xff)] {
        let sandbox = Sandbox::new();
        let code = |a: &mut fixture::Code| {
            a.say("tested")?;
            a.out8(0xf4, value)?;
            a.halt()
        };
        sandbox.file("kernel", fixture::kernel::image(32, code));
        let finished = sandbox.run(&["run", "--kernel", "kernel"]);
        assert_eq!((finished.status, &finished.stdout[..]), (status, "tested"), "{finished:?}");
        assert_eq!(finished.stderr, "");
    }
}
