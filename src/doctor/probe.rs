//! Does this KVM execute guest kernel code on the CPU, or does it interpret it?
//!
//! Some clouds offer a KVM on CPUs without VMX or SVM. There the guest's user space runs natively,
//! but its ring 0 is interpreted by the host's kernel, some thousand times slower and without a few
//! instructions Linux cannot do without (KVM_EXIT_INTERNAL_ERROR, suberror 1, "emulation"). Here a
//! tiny VM runs a loop and those instructions in ring 0. A VM that does not come back is stopped
//! after [`PATIENCE`].

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Check, Report, Speed, payload};
use crate::hypervisor::{Cause, Exit, Hypervisor, HypervisorError, KvmVcpu};
use crate::vcpu::gate::{Gate, Inside, Pass};

/// Rounds of the loop: microseconds on a CPU, tens of milliseconds interpreted.
const ITERATIONS: u32 = 20_000;
/// How often the loop is timed; the best counts.
const ATTEMPTS: usize = 5;
/// How long one VM may take for all it does. Interpreted it needs a fifth of a second.
const PATIENCE: Duration = Duration::from_secs(3);

const ELSEWHERE: &str = "run husk on bare metal, or on a cloud machine with nested virtualisation \
                         (for work on husk itself: `cargo xtask testbed`)";

/// Why a payload did not do its work.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("no VM could be made: {0}")]
    Setup(HypervisorError),
    #[error("no VM could be made: {0}")]
    Memory(String),
    #[error("this KVM cannot emulate it (KVM_EXIT_INTERNAL_ERROR, suberror 1)")]
    NotEmulated,
    #[error("the guest ended otherwise: {0}")]
    Exit(String),
    #[error("the guest did not come back within {} s", PATIENCE.as_secs())]
    TimedOut,
}

impl From<HypervisorError> for Trouble {
    fn from(e: HypervisorError) -> Self {
        Self::Setup(e)
    }
}

/// Adds what running kernel code shows.
pub fn examine(report: &mut Report, hypervisor: &Hypervisor) {
    const NAME: &str = "kernel code runs natively";
    const WORKS: &str = "works";
    match measure(hypervisor) {
        Ok(speed) => {
            report.speed = Some(speed);
            report.native = Some(speed.is_native());
            report.checks.push(verdict(NAME, &speed));
        }
        Err(trouble) => {
            // An instruction as plain as the loop's that is emulated at all is not native.
            report.native = matches!(trouble, Trouble::NotEmulated).then_some(false);
            report.checks.push(Check::fail(NAME, trouble.to_string(), remedy(&trouble)));
        }
    }
    instruction(report, hypervisor, "INT3 in ring 0", &payload::INT3, WORKS);
    if host_has_cmpxchg16b() {
        instruction(report, hypervisor, "CMPXCHG16B in ring 0", &payload::CMPXCHG16B, WORKS);
    }
    instruction(
        report,
        hypervisor,
        "XRSTOR in ring 0",
        &payload::XRSTOR,
        "works, or CPUID does not offer it",
    );
}

fn verdict(name: &str, speed: &Speed) -> Check {
    let times = format!(
        "{} rounds of a loop: {:.1} µs in the guest, {:.1} µs outside",
        speed.iterations,
        speed.guest_ns as f64 / 1e3,
        speed.host_ns as f64 / 1e3,
    );
    if speed.is_native() {
        return Check::ok(name, times);
    }
    let detail = format!("no, it is interpreted, {:.0} times slower ({times})", speed.ratio());
    Check::fail(name, detail, ELSEWHERE)
}

fn instruction(report: &mut Report, hypervisor: &Hypervisor, name: &str, code: &[u8], works: &str) {
    report.checks.push(match attempt(hypervisor, code, &[0]) {
        Ok(_) => Check::ok(name, works),
        Err(trouble) => Check::fail(name, trouble.to_string(), remedy(&trouble)),
    });
}

fn remedy(trouble: &Trouble) -> &'static str {
    match trouble {
        Trouble::Setup(HypervisorError::Call { source, .. })
            if source.raw_os_error() == Some(libc::EBUSY) =>
        {
            "another hypervisor has the CPU (VirtualBox, VMware): end its VMs or unload its modules"
        }
        Trouble::Setup(_) | Trouble::Memory(_) => {
            "see the kernel's log (`sudo dmesg | grep -i kvm`) and the limits of this user (`ulimit -a`)"
        }
        Trouble::NotEmulated | Trouble::Exit(_) | Trouble::TimedOut => ELSEWHERE,
    }
}

/// Times the loop in a guest and here. One round more or less costs nothing, but carries the same
/// way into the guest and out of it, which is then subtracted.
fn measure(hypervisor: &Hypervisor) -> Result<Speed, Trouble> {
    let times = attempt(hypervisor, &payload::LOOP, &[1, ITERATIONS].repeat(ATTEMPTS))?;
    let best = |skip| times.iter().skip(skip).step_by(2).min().copied().unwrap_or_default();
    let guest = best(1).saturating_sub(best(0));
    let host = (0..ATTEMPTS).map(|_| time_here()).min().unwrap_or_default();
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Ok(Speed { iterations: ITERATIONS, guest_ns: ns(guest), host_ns: ns(host) })
}

/// The time of the same loop in this process.
fn time_here() -> Duration {
    let start = Instant::now();
    // SAFETY: counts a register down; touches neither memory nor stack.
    unsafe {
        std::arch::asm!(
            "2: dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) ITERATIONS => _,
            options(nomem, nostack),
        );
    }
    start.elapsed()
}

/// Whether the CPU has CMPXCHG16B at all (SDM vol. 2A, CPUID leaf 1 ECX bit 13).
fn host_has_cmpxchg16b() -> bool {
    std::arch::x86_64::__cpuid(1).ecx & 1 << 13 != 0
}

/// Runs `code` in a VM of its own once for every element of `rounds`, and returns how long each
/// took from entering the guest to the exit that says "done".
fn attempt(hypervisor: &Hypervisor, code: &[u8], rounds: &[u32]) -> Result<Vec<Duration>, Trouble> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), payload::MEMORY)])
        .map_err(|e| Trouble::Memory(e.to_string()))?;
    let mut vcpu = machine(hypervisor, &memory, code)?;
    let gate = Gate::new().map_err(|e| Trouble::Memory(e.to_string()))?;
    gate.open();
    let (sender, times) = mpsc::channel();
    std::thread::scope(|scope| {
        let (memory, gate) = (&memory, &gate);
        std::thread::Builder::new()
            .name("husk-doctor".to_owned())
            .spawn_scoped(scope, move || run(&mut vcpu, memory, gate, rounds, &sender))
            .map_err(|e| Trouble::Memory(e.to_string()))?;
        let outcome = collect(&times, rounds.len());
        gate.stop();
        outcome
    })
}

/// The vCPU of a VM with `code` in `memory`, ready to run.
fn machine(
    hypervisor: &Hypervisor,
    memory: &GuestMemoryMmap,
    code: &[u8],
) -> Result<KvmVcpu, Trouble> {
    let vm = Arc::new(hypervisor.create_vm(memory)?);
    vm.add_interrupt_controllers()?;
    let vcpu = KvmVcpu::create(&vm, 0)?;
    vcpu.set_cpuid(hypervisor.supported_cpuid()?.as_slice())?;
    vcpu.begin_with(|reset| {
        payload::install(memory, code, reset).map_err(|e| Trouble::Memory(e.to_string()))
    })?;
    Ok(vcpu)
}

/// The vCPU's thread: sends one time a round, or the trouble that ends it.
fn run(
    vcpu: &mut KvmVcpu,
    memory: &GuestMemoryMmap,
    gate: &Gate,
    rounds: &[u32],
    times: &Sender<Result<Duration, Trouble>>,
) {
    let page = vcpu.page().clone();
    gate.within(&page, |inside| {
        for count in rounds {
            let written = memory.write_obj(*count, payload::DATA);
            let outcome = match written.map_err(|e| Trouble::Memory(e.to_string())) {
                Ok(()) => round(vcpu, inside),
                Err(trouble) => Err(trouble),
            };
            // None: it was stopped, and whoever did so waits for no more.
            let Some(outcome) = outcome.transpose() else { return };
            let failed = outcome.is_err();
            if times.send(outcome).is_err() || failed {
                return;
            }
        }
    });
}

/// Lets the guest run until it is done, and returns how long that took; `None` when it was stopped.
fn round(vcpu: &mut KvmVcpu, inside: &Inside<'_>) -> Result<Option<Duration>, Trouble> {
    let start = Instant::now();
    loop {
        // Before every entry, so that a stop that came first is not lost.
        if inside.pass() == Pass::Stop {
            return Ok(None);
        }
        match vcpu.run() {
            Exit::PortWrite { port: payload::DONE, .. } => return Ok(Some(start.elapsed())),
            Exit::Interrupted | Exit::Again => {}
            Exit::Last(cause) => return Err(trouble_of(&cause)),
            other => return Err(Trouble::Exit(format!("{other:?}"))),
        }
    }
}

fn trouble_of(cause: &Cause) -> Trouble {
    match cause {
        cause if cause.is_emulation_failure() => Trouble::NotEmulated,
        Cause::RunFailed { errno } => {
            let source = std::io::Error::from_raw_os_error(*errno);
            Trouble::Setup(HypervisorError::Call { call: "KVM_RUN", source })
        }
        cause => Trouble::Exit(cause.to_string()),
    }
}

/// Takes `count` times, all within [`PATIENCE`].
fn collect(
    times: &Receiver<Result<Duration, Trouble>>,
    count: usize,
) -> Result<Vec<Duration>, Trouble> {
    let deadline = Instant::now() + PATIENCE;
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        match times.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(time) => taken.push(time?),
            Err(RecvTimeoutError::Timeout) => return Err(Trouble::TimedOut),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Trouble::Exit("its thread ended".to_owned()));
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    /// Jumps to itself.
    const FOREVER: [u8; 2] = [0xeb, 0xfe];

    /// A KVM; without one the calling test is skipped.
    fn kvm() -> Option<Hypervisor> {
        Hypervisor::open().map_err(crate::skipped::skipped).ok()
    }

    #[test]
    fn a_guest_that_never_comes_back_is_stopped() {
        let Some(hypervisor) = kvm() else { return };
        let start = Instant::now();
        let trouble = attempt(&hypervisor, &FOREVER, &[0]).unwrap_err();
        assert!(matches!(trouble, Trouble::TimedOut), "{trouble}");
        assert!(start.elapsed() < PATIENCE + Duration::from_secs(5));
    }

    #[test]
    fn the_loop_is_timed_where_there_is_a_kvm() {
        let Some(hypervisor) = kvm() else { return };
        let speed = measure(&hypervisor).unwrap();
        assert!(speed.host_ns > 0);
    }

    #[test]
    fn an_interpreted_kvm_fails_and_says_where_to_go() {
        let speed = Speed { iterations: ITERATIONS, guest_ns: 26_000_000, host_ns: 10_000 };
        let check = verdict("x", &speed);
        assert_eq!(check.status, Status::Fail);
        assert!(check.detail.contains("2600 times slower"), "{}", check.detail);
        assert!(check.remedy.unwrap().contains("bare metal"));
    }

    #[test]
    fn a_cpu_taken_by_another_hypervisor_is_named() {
        let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
        let trouble = Trouble::Setup(HypervisorError::Call { call: "KVM_CREATE_VM", source: busy });
        assert!(remedy(&trouble).contains("VirtualBox"));
    }
}
