//! What goes wrong in husk itself, on a real KVM: none of it may leave a VM standing still.

use std::time::{Duration, Instant};

use husk_devices::bus::{BusBuilder, BusDevice};

use super::*;
use crate::boot::synth::{BASE, Spec};
use crate::config::{ConsoleConfig, MemoryConfig, Size};
use crate::guest::error::ExecError;
use crate::skipped::skipped;
use crate::vm::running::Verdict;

/// Far above what anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// A port at which the machine has nothing.
const PORT: u8 = 0xe0;

/// A kernel that writes to [`PORT`] and halts: `out PORT, al; cli; hlt; jmp` to the `cli`.
const WRITES_TO_PORT: [u8; 6] = [0xe6, PORT, 0xfa, 0xf4, 0xeb, 0xfc];

/// A KVM; without one the calling test is skipped.
fn kvm() -> Option<Hypervisor> {
    Hypervisor::open().map_err(skipped).ok()
}

/// A kernel of `code`, entered by PVH, in a directory of its own; and a machine for it.
fn machine_for(code: &[u8]) -> (tempfile::TempDir, VmConfig) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kernel");
    let kernel = Spec {
        pvh: Some((BASE as u32).to_le_bytes().to_vec()),
        segments: vec![(BASE, code.to_vec(), 0x1000)],
        ..Spec::default()
    };
    std::fs::write(&path, kernel.build()).unwrap();
    let mut config = VmConfig::new(path);
    config.memory = MemoryConfig { size: Size::mib(32), ..MemoryConfig::default() };
    config.console = ConsoleConfig::None;
    (directory, config)
}

fn make(kvm: Hypervisor, config: &VmConfig) -> Result<Vm, VmError> {
    Vm::on(kvm, &Cache::off(), config.clone(), None, Arc::default())
}

/// Waits for the end of `vm`, which must be a failure of husk's, and returns what is said about it.
fn failure(vm: &RunningVm) -> String {
    match vm.wait_timeout(LIMIT) {
        Some(Outcome::Failed { why }) => why,
        other => panic!("{other:?}"),
    }
}

/// A device with a bug.
struct Panicking;

impl BusDevice for Panicking {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, _: u64, _: &[u8]) {
        panic!("written to");
    }
}

#[test]
fn a_vcpu_thread_that_panics_ends_the_vm_with_its_message() {
    let Some(kvm) = kvm() else { return };
    let (_directory, mut config) = machine_for(&WRITES_TO_PORT);
    config.cpus = 2;
    let mut vm = make(kvm, &config).unwrap();
    let mut pio = BusBuilder::default();
    pio.add("panicking", PORT.into(), 1, Arc::new(Panicking)).unwrap();
    vm.controller.devices.buses.pio = Arc::new(pio.build());
    let vm = vm.start().unwrap();
    let why = failure(&vm);
    assert!(why.contains("the thread of vCPU 0 panicked") && why.ends_with("written to"), "{why}");
    assert_eq!(vm.kill(), Err(Ended));
}

#[test]
fn a_vcpu_that_cannot_go_on_holds_up_no_pause_and_no_end() {
    /// `ud2`, with nobody to handle it.
    const FAULTS: [u8; 2] = [0x0f, 0x0b];
    let Some(kvm) = kvm() else { return };
    let (_directory, mut config) = machine_for(&FAULTS);
    config.cpus = 2;
    let Vm { kernel, controller, .. } = make(kvm, &config).unwrap();
    let machine = controller.boot(kernel).unwrap();
    machine.run();
    // A pause that was asked for before the fault comes to the controller before the word of it.
    let said = controller.mailbox.next(Some(Instant::now() + LIMIT));
    assert!(matches!(said, Some(Message::Crash(_))));
    let (done, all_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        machine.hold();
        machine.run();
        machine.hold();
        drop(machine);
        done.send(())
    });
    all_done.recv_timeout(LIMIT).expect("it waits for the vCPU");
}

#[test]
fn a_controller_that_panics_has_given_its_verdict_and_answers_nobody() {
    let Some(kvm) = kvm() else { return };
    let (_directory, config) = machine_for(&WRITES_TO_PORT);
    let vm = make(kvm, &config).unwrap();
    let (controller, verdict) = (vm.controller, Arc::new(Verdict::default()));
    let running = RunningVm {
        mailbox: controller.mailbox.clone(),
        verdict: verdict.clone(),
        timeline: Arc::default(),
        console: controller.devices.uart.output().clone(),
        tty: None,
        balloon: None,
        agent: None,
        config: controller.config.clone(),
        paused: controller.paused.clone(),
        disks: Disks::default(),
        metrics: metrics::Collector::new(&controller.devices),
        console_path: None,
        controller: None,
    };
    let asked = Instant::now();
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| running.pause());
        scope.spawn(|| {
            verdict.give(|| {
                // As in `Controller::run`, which owns it.
                let controller = controller;
                // The question has come, and it will not be answered.
                let question = controller.mailbox.next(Some(asked + LIMIT));
                assert!(question.is_none(), "asked something");
                Outcome::PowerOff
            });
        });
        asking.join().unwrap()
    });
    assert_eq!(answer, Err(Ended));
    let why = failure(&running);
    assert!(why.contains("the controller of the VM panicked") && why.contains("asked"), "{why}");
    assert_eq!(running.kill(), Err(Ended));
}

#[test]
fn memory_that_physical_addresses_do_not_reach_is_refused_with_what_would_do() {
    let with_bits = |eax| {
        let leaf =
            kvm_bindings::kvm_cpuid_entry2 { function: 0x8000_0008, eax, ..Default::default() };
        check_reach(Size::mib(64 << 10), &CpuId::from_entries(&[leaf]).unwrap())
    };
    with_bits(40).unwrap();
    with_bits(37).unwrap();
    let error = with_bits(36).unwrap_err().to_string();
    assert!(error.starts_with("--memory 64G: a guest has at most 63G"), "{error}");
    assert!(error.contains("36 bits"), "{error}");
}

#[test]
fn more_vcpus_than_this_kvm_allows_are_refused_though_husk_allows_them() {
    let Some(kvm) = kvm() else { return };
    let (_directory, mut config) = machine_for(&WRITES_TO_PORT);
    config.cpus = 4;
    let Err(error) = make(kvm.with_max_vcpus(3), &config) else { panic!("it was made") };
    assert!(matches!(error, VmError::TooManyCpus { wanted: 4, max: 3 }), "{error}");
    assert_eq!(error.to_string(), "--cpus 4: this host's KVM has at most 3 vCPUs for a VM");
    config.cpus = 3;
    make(Hypervisor::open().unwrap().with_max_vcpus(3), &config).unwrap();
}

#[test]
fn an_agent_that_no_init_starts_is_waited_for_and_then_missed_by_what_has_to_start_it() {
    let Some(kvm) = kvm() else { return };
    let (_directory, mut config) = machine_for(&WRITES_TO_PORT);
    config.agent = true;
    let vm = make(kvm, &config).unwrap().start().unwrap();
    let error = vm.wait_ready(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ExecError::NoService(_)), "{error}");
    assert!(error.to_string().contains("`husk agent`"), "{error}");
    vm.kill().unwrap();
    let error = vm.wait_ready(LIMIT).unwrap_err();
    assert!(matches!(error, ExecError::Ended(_)), "{error}");
}
