//! VMs leave nothing behind in the process that ran them.
//!
//! The only test of its process, so that nobody else's threads and descriptors are counted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

mod fixture;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fixture::assembly::RESET;
use fixture::guest::config;
use fixture::{Console, Emit, Guest, Kernel};
use husk::config::{
    DiskConfig, DiskEngine, GuestConfig, NetConfig, VolumeCache, VolumeConfig, VsockConfig,
};
use husk::{Outcome, Vm};

/// What a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Possessions {
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

impl Possessions {
    fn now() -> Self {
        let entries = |path| std::fs::read_dir(path).unwrap().count();
        Self {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            mappings: std::fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
        }
    }

    /// Whether `self` is no more than `before`. The allocator takes and gives back a few mappings
    /// as threads come and go.
    fn no_more_than(self, before: Self) -> bool {
        const ALLOCATORS_MAPPINGS: usize = 16;
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.mappings <= before.mappings + ALLOCATORS_MAPPINGS
    }
}

/// Does `act` a few times, then `rounds` times, and fails when the process has more after that.
fn leaves_nothing(what: &str, rounds: usize, mut act: impl FnMut(usize)) {
    (0..10).for_each(&mut act);
    let before = Possessions::now();
    (0..rounds).for_each(&mut act);
    // A thread that was joined is still listed for a moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut after = Possessions::now();
    while !after.no_more_than(before) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        after = Possessions::now();
    }
    assert!(after.no_more_than(before), "{rounds} times {what}: {before:?}, then {after:?}");
}

#[test]
fn two_hundred_vms_and_a_hundred_reboots_leak_no_descriptor_thread_or_mapping() {
    needs_kvm!();
    let spinning = Kernel::pvh(|a| {
        a.say("up")?;
        a.spin()
    });
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("v.sock");
    let disk = directory.path().join("disk.img");
    std::fs::write(&disk, [0; 4096]).unwrap();
    leaves_nothing("start and drop", 200, |round| {
        let guest = Guest::start_with(&spinning, |config| {
            config.cpus = 1 + round as u32 % 3;
            config.memory.shared = round % 2 == 1;
            config.rng = true;
            let engine = [DiskEngine::Auto, DiskEngine::Threads][round % 2];
            config.disks = vec![DiskConfig {
                path: disk.clone(),
                engine,
                overlay: round % 3 == 0,
                ..DiskConfig::default()
            }];
            let link = format!("leaks-{}", std::process::id());
            config.nets = vec![NetConfig { link: Some(link), ..NetConfig::default() }];
            config.vsock = Some(VsockConfig { cid: 3, socket: socket.clone() });
            config.volumes.push(VolumeConfig {
                id: "fs0".to_owned(),
                mount: None,
                tag: "shared".to_owned(),
                path: directory.path().to_owned(),
                readonly: false,
                overlay: false,
                cache: VolumeCache::Auto,
            });
            // One that husk waits for in vain.
            config.guest = (round % 3 == 0).then(GuestConfig::default);
        });
        if round % 4 == 0 {
            guest.console.wait_for("up", 1);
        }
        if round % 8 == 0 {
            guest.vm.pause().unwrap();
        }
        drop(guest.vm);
        guest.console.all();
        assert!(!socket.exists());
    });

    leaves_nothing("create and drop", 50, |_| {
        let (console, streams) = Console::new();
        drop(Vm::with(config(&spinning), Some(streams), Arc::default()).unwrap());
        console.all();
    });

    let off = Kernel::pvh(|a| a.power_off());
    leaves_nothing("power off", 50, |_| {
        let (outcome, _) = fixture::run(&off);
        assert!(matches!(outcome, Outcome::PowerOff), "{outcome:?}");
    });

    let text = Kernel::of(b"no kernel");
    leaves_nothing("fail to create", 50, |_| {
        assert!(Vm::new(config(&text)).is_err());
    });

    let rebooting = Kernel::pvh(|a| {
        a.say("boot\n")?;
        a.typed()?;
        a.out8(RESET, 1)?;
        a.halt()
    });
    let mut guest = Guest::start_with(&rebooting, |config| config.cpus = 2);
    let mut boots = 0;
    leaves_nothing("reboot", 100, |_| {
        boots += 1;
        guest.console.wait_for("boot\n", boots);
        guest.console.type_in(b"r");
        guest.console.wait_for("boot\n", boots + 1);
    });
}
