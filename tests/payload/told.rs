//! What a test is told of a guest that dies, hangs or ends, and of a host that is full.

use std::sync::mpsc::channel;
use std::time::Duration;

use husk::config::Size;
use husk::error::ExecError;
use husk::fixture::Phase;
use husk::{Budget, Outcome, TestError, Vm, VmBuilder};

use crate::fixture::{Emit, Kernel, LIMIT};
use crate::needs_kvm;

/// More than a host that is busy with all other tests takes for any of this. Nothing waits for it to pass.
const AT_MOST: Duration = LIMIT.saturating_mul(4);

fn builder(kernel: &Kernel) -> VmBuilder {
    Vm::builder().kernel(kernel.path()).memory("32M").budget(Budget::unlimited()).timeout(AT_MOST)
}

/// What a command in such a guest comes to.
fn told(kernel: &Kernel) -> TestError {
    builder(kernel).start().unwrap().exec(["true"]).unwrap_err()
}

#[test]
fn a_guest_that_dies_is_told_by_how_it_did_and_what_it_said() {
    needs_kvm!();
    let fault = Kernel::pvh(|a| {
        a.say("going down\n")?;
        a.ud2()
    });
    match told(&fault) {
        TestError::TripleFault { log, .. } => assert_eq!(log, "going down"),
        other => panic!("{other}"),
    }
    let panic = Kernel::pvh(|a| {
        a.say("[ 1.0] Kernel panic - not syncing: a test\n")?;
        a.ud2()
    });
    match told(&panic) {
        TestError::KernelPanic { log } => assert!(log.contains("a test"), "{log}"),
        other => panic!("{other}"),
    }
    let starved = Kernel::pvh(|a| {
        a.say("[ 1.0] Kernel panic - not syncing: System is deadlocked on memory\n")?;
        a.ud2()
    });
    match told(&starved) {
        TestError::GuestOom { log } => assert!(log.contains("deadlocked"), "{log}"),
        other => panic!("{other}"),
    }
    match told(&Kernel::pvh(|a| a.power_off())) {
        TestError::Ended { outcome, .. } => assert!(matches!(*outcome, Outcome::PowerOff)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_guest_that_hangs_with_interrupts_off_is_ended_in_time_with_what_it_said() {
    needs_kvm!();
    let hang = Kernel::pvh(|a| {
        a.cli()?;
        a.say("not much\n")?;
        a.spin()
    });
    let mut limit = Duration::from_secs(1);
    // A busy host may let it say nothing in so short a time.
    let vm = loop {
        let vm = builder(&hang).timeout(limit).start().unwrap();
        match vm.exec(["true"]).unwrap_err() {
            TestError::Timeout { phase: Phase::Start, limit: told, log } => {
                assert_eq!(told, limit);
                if log == "not much" {
                    break vm;
                }
            }
            other => panic!("{other}"),
        }
        limit *= 2;
        assert!(limit < AT_MOST, "it never said anything");
    };
    assert!(matches!(vm.running().wait(), Outcome::Killed));
    let after = vm.explain(ExecError::Protocol);
    assert!(matches!(after, TestError::Command(_)), "{after}");
}

#[test]
fn a_vm_waits_for_its_share_of_the_host_and_gives_it_back_at_its_end() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| a.spin());
    let budget = Budget::of(1, Size::mib(64)).file(kernel.directory().join("budget"));
    let first = builder(&kernel).budget(budget.clone()).start().unwrap();
    let (tell, told) = channel();
    let second = builder(&kernel).budget(budget.clone());
    let waiting = std::thread::spawn(move || {
        let vm = second.start().unwrap();
        tell.send(()).unwrap();
        drop(vm);
    });
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err(), "it did not wait");
    // Another thread has no share yet, and no patience.
    let third = builder(&kernel).budget(budget.patience(Duration::from_millis(50)));
    let error = std::thread::spawn(move || third.start().err().unwrap()).join().unwrap();
    assert!(matches!(error, TestError::Budget(_)), "{error}");
    drop(first);
    told.recv_timeout(AT_MOST).unwrap();
    waiting.join().unwrap();
}
