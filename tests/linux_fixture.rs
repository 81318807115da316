//! The VM as a test's fixture, with Linux in it: commands, streams, ports and errors; tests whose bodies
//! run in a guest; and the examples, as they stand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guest;
#[path = "../examples/kernel_feature.rs"]
#[allow(dead_code, reason = "its main is for who runs it by itself")]
mod kernel_feature;
#[path = "../examples/link.rs"]
mod link;
#[path = "../examples/service.rs"]
mod service;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Duration;

use guest::{DEBIAN, FULL, Lab, PATIENCE, REDIS, VMLINUZ_CLOUD};
use husk::fixture::{Phase, in_guest, is_inside};
use husk::{GuestCommand, TestError, TestVm, Vm};

fn shell(script: &str) -> GuestCommand {
    GuestCommand::new(["/bin/busybox", "sh", "-c", script])
}

#[test]
fn a_test_has_commands_streams_and_ports_of_its_guest_and_is_told_what_becomes_of_it() {
    let Some(lab) = Lab::open() else { return };
    let vm = Vm::builder()
        .kernel(lab.asset(VMLINUZ_CLOUD))
        .initrd(lab.asset(FULL))
        .memory("192M")
        .cpus(2)
        .publish("80")
        .timeout(2 * PATIENCE)
        .start()
        .unwrap();
    let output = vm.exec(["/bin/busybox", "sh", "-c", "echo told; echo low >&2; exit 3"]).unwrap();
    assert_eq!(
        (output.status.code(), &*output.stdout, &*output.stderr),
        (3, &b"told\n"[..], &b"low\n"[..])
    );

    let mut cat = vm.spawn(&GuestCommand::new(["/bin/busybox", "cat"])).unwrap();
    cat.stdin.take().unwrap().write_all(b"there and back").unwrap();
    let mut back = String::new();
    cat.stdout.take().unwrap().read_to_string(&mut back).unwrap();
    assert_eq!((back.as_str(), cat.wait().unwrap().code()), ("there and back", 0));

    // By the init: destination and gateway in hexadecimal, as they lie in memory (`man 5 proc`).
    let routes = vm.exec(["/bin/busybox", "cat", "/proc/net/route"]).unwrap();
    let routes = String::from_utf8(routes.stdout).unwrap();
    assert!(routes.contains("eth0\t00000000\t0202000A\t"), "no way by 10.0.2.2: {routes}");
    a_published_port_leads_to_the_guest(&vm);
    a_vsock_port_is_a_stream(&vm);

    let endless = shell("while :; do /bin/busybox sleep 1; done").timeout(Duration::from_secs(1));
    match vm.output(&endless).unwrap_err() {
        TestError::Timeout { phase: Phase::Command(words), .. } => {
            assert!(words.starts_with("/bin/busybox sh"), "{words}");
        }
        other => panic!("{other}"),
    }
    let hungry = "echo 1 >/proc/sys/vm/overcommit_memory; \
                  exec /bin/busybox tail -c 1000m /dev/zero";
    match vm.output(&shell(hungry).timeout(PATIENCE)).unwrap_err() {
        TestError::GuestOom { log } => assert!(log.contains("Out of memory"), "{log}"),
        other => panic!("{other}"),
    }

    // An agent that is held, and then has no way to the host any more.
    let lost = "mkdir /sys/fs/cgroup/held && echo 1 >/sys/fs/cgroup/held/cgroup.procs && \
                echo 1 >/sys/fs/cgroup/held/cgroup.freeze && \
                cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport && echo virtio* >unbind";
    match vm.output(&shell(&format!("export PATH=/bin; busybox --install -s /bin; {lost}"))) {
        // Its kernel may have gone on writing.
        Err(TestError::AgentLost { log }) => {
            let now = vm.console_log();
            assert!(!log.is_empty() && now.contains(&log), "{log}\n---\n{now}");
        }
        other => panic!("{other:?}\n{}", vm.console_log()),
    }
}

fn a_published_port_leads_to_the_guest(vm: &TestVm) {
    let serve = "/bin/busybox mkdir /served; echo a page >/served/page; \
                 exec /bin/busybox httpd -f -v -p 80 -h /served";
    let server = vm.spawn(&shell(serve)).unwrap();
    assert!(matches!(vm.port(81), Err(TestError::NotPublished(81))));
    let begin = std::time::Instant::now();
    loop {
        let mut stream = TcpStream::connect(vm.port(80).unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut page = String::new();
        // Until it listens, the connection is ended.
        let asked = stream.write_all(b"GET /page HTTP/1.0\r\n\r\n");
        if asked.and_then(|()| stream.read_to_string(&mut page)).is_ok() && !page.is_empty() {
            assert!(page.ends_with("\r\n\r\na page\n"), "{page}");
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "nobody serves the page");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.kill();
}

fn a_vsock_port_is_a_stream(vm: &TestVm) {
    match vm.vsock(5000).unwrap_err() {
        TestError::Command(e) => assert!(e.to_string().contains("port 5000"), "{e}"),
        other => panic!("{other}"),
    }
    let mut echo = vm.spawn(&GuestCommand::new(["/bin/vsock", "echo", "5000"])).unwrap();
    let mut said = BufReader::new(echo.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("VSOCK-SERVES 5000")));
    let mut stream = vm.vsock(5000).unwrap();
    stream.write_all(b"an echo").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!(back, "an echo");
}

#[test]
fn a_test_that_fails_in_its_guest_fails_with_its_words() {
    let wanted = is_inside() || Lab::open().is_some();
    if !wanted {
        return;
    }
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let name = "a_test_that_fails_in_its_guest_fails_with_its_words";
        in_guest(
            module_path!(),
            name,
            || true,
            |builder| builder.memory("192M"),
            || {
                println!("said before");
                // The host's programs, with the loader and the libraries that they need.
                let started = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).status();
                assert_eq!(started.expect("the host's shell").code(), Some(7));
                assert_eq!(std::process::id(), 1, "this is not the first process");
            },
        );
    }));
    let words = failed.unwrap_err();
    if is_inside() {
        resume_unwind(words);
    }
    let words = words.downcast_ref::<String>().unwrap();
    for part in
        ["failed in the guest", "said before", "this is not the first process", "linux_fixture.rs"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
}

/// The kernel that is named.
fn named() -> PathBuf {
    PathBuf::from(std::env::var_os("HUSK_ASSETS").unwrap()).join(VMLINUZ_CLOUD)
}

/// Whether there is one. The one that is taken where none is named is none any more, and so this is for a process
/// that has no other tests.
fn is_named() -> bool {
    let wanted = std::env::var_os("HUSK_ASSETS").is_some()
        && std::env::args().any(|argument| argument == "--exact");
    if wanted {
        // SAFETY: nobody in this process reads the environment but std, which locks it.
        unsafe { std::env::set_var("HUSK_KERNEL", "/there/is/none") };
    }
    wanted
}

#[husk::test(kernel = named(), memory = "192M", when = is_named())]
fn a_test_runs_under_the_kernel_and_in_the_memory_that_stand_before_it() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(release.contains("cloud"), "{release}");
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = memory.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    assert!((100 << 10..192 << 10).contains(&total), "{memory}");
}

#[test]
fn the_example_of_a_service_is_true() {
    let Some(lab) = Lab::open() else { return };
    service::run(&lab.asset(REDIS)).unwrap();
}

#[test]
fn the_example_of_two_machines_on_a_wire_is_true() {
    let Some(lab) = Lab::open() else { return };
    link::run(&lab.asset(DEBIAN)).unwrap();
}
