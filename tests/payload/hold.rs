//! The embedder's hand on a running guest: pause, resume, kill, stop, drop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use husk::timeline::Timeline;
use husk::{ConsoleStreams, Ended, Outcome, RunningVm, Vm};
use iced_x86::code_asm::*;

use crate::fixture::assembly::{COM1, LOW_WORD, RESULTS};
use crate::fixture::guest::config;
use crate::fixture::{Code, Console, Emit, Guest, Kernel, run};
use crate::needs_kvm;

/// How long a command to a guest that does not listen may take on a busy host; a kick that is lost
/// is lost for ever.
const PROMPT: Duration = Duration::from_secs(5);

/// Says "up", then spins without interrupts.
fn spinning() -> Kernel {
    Kernel::pvh(|a| {
        a.say("up")?;
        a.spin()
    })
}

/// Says "up", then writes dots for ever.
fn chattering() -> Kernel {
    Kernel::pvh(|a| {
        let mut again = a.create_label();
        a.say("up")?;
        a.set_label(&mut again)?;
        a.mov(edx, COM1)?;
        a.mov(al, u32::from(b'.'))?;
        a.out(dx, al)?;
        a.jmp(again)
    })
}

/// Starts `kernel` and waits until it is up.
fn up(kernel: &Kernel) -> Guest {
    let guest = Guest::start(kernel);
    guest.console.wait_for("up", 1);
    guest
}

/// Does `what` and fails when it was not prompt.
fn promptly<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    let took = start.elapsed();
    assert!(took < PROMPT, "{what} took {took:?}");
    result
}

#[test]
fn a_guest_that_spins_without_interrupts_is_paused_resumed_and_killed_promptly() {
    needs_kvm!();
    let guest = up(&spinning());
    promptly("pause", || guest.vm.pause()).unwrap();
    promptly("resume", || guest.vm.resume()).unwrap();
    promptly("kill", || guest.vm.kill()).unwrap();
    let (outcome, _) = promptly("the end", || guest.end());
    assert!(matches!(outcome, Outcome::Killed), "{outcome:?}");
}

#[test]
fn a_guest_that_ignores_the_power_button_is_turned_off_after_the_grace() {
    needs_kvm!();
    let guest = up(&spinning());
    let start = Instant::now();
    let grace = Duration::from_millis(200);
    let outcome = guest.vm.stop(grace);
    assert!(matches!(outcome, Outcome::Killed), "{outcome:?}");
    let took = start.elapsed();
    assert!((grace..grace + PROMPT).contains(&took), "{took:?}");
}

#[test]
fn a_guest_that_turns_itself_off_in_the_grace_is_not_killed() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("up")?;
        a.typed()?;
        a.power_off()
    });
    let mut guest = up(&kernel);
    let outcome = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| guest.vm.stop(Duration::from_secs(20)));
        guest.console.type_in(b"q");
        stopping.join().unwrap()
    });
    assert!(matches!(outcome, Outcome::PowerOff), "{outcome:?}");
}

#[test]
fn the_power_button_interrupts_the_guest() {
    needs_kvm!();
    let kernel = crate::fixture::interrupts::counting_input(5, |a| {
        a.say("up")?;
        a.hlt()
    });
    let guest = up(&kernel);
    std::thread::sleep(Duration::from_millis(50));
    guest.vm.press_power_button().unwrap();
    assert_eq!(guest.powered_off(), b"up\x01");
}

#[test]
fn a_paused_guest_does_nothing_until_it_is_resumed() {
    needs_kvm!();
    let guest = up(&chattering());
    for _ in 0..3 {
        guest.vm.pause().unwrap();
        // What it had said before must arrive first.
        std::thread::sleep(Duration::from_millis(100));
        let before = guest.console.so_far().len();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(guest.console.so_far().len(), before, "it spoke while it was paused");
        guest.vm.resume().unwrap();
        let more = |said: &[u8]| said.len() > before + 100;
        assert!(guest.console.wait_until(crate::fixture::LIMIT, more), "it did not go on");
    }
}

#[test]
fn pausing_twice_and_resuming_twice_is_like_doing_it_once() {
    needs_kvm!();
    let guest = up(&chattering());
    guest.vm.resume().unwrap();
    guest.vm.pause().unwrap();
    guest.vm.pause().unwrap();
    guest.vm.resume().unwrap();
    let before = guest.console.so_far().len();
    let more = |said: &[u8]| said.len() > before + 100;
    assert!(guest.console.wait_until(crate::fixture::LIMIT, more), "it did not go on");
    guest.vm.resume().unwrap();
}

#[test]
fn a_paused_guest_can_be_killed_stopped_and_dropped() {
    needs_kvm!();
    let kernel = spinning();
    let guest = up(&kernel);
    guest.vm.pause().unwrap();
    promptly("kill", || guest.vm.kill()).unwrap();
    assert!(matches!(guest.vm.wait(), Outcome::Killed));

    let guest = up(&kernel);
    guest.vm.pause().unwrap();
    let outcome = promptly("stop", || guest.vm.stop(Duration::from_millis(10)));
    assert!(matches!(outcome, Outcome::Killed), "{outcome:?}");

    let guest = up(&kernel);
    guest.vm.pause().unwrap();
    promptly("drop", || drop(guest.vm));
}

/// Pauses and resumes `guest` at many different moments.
fn race(guest: &Guest, rounds: u64) {
    for round in 0..rounds {
        promptly("pause", || guest.vm.pause()).unwrap();
        // From no time at all to half a millisecond, so that every moment of the way into and out
        // of KVM_RUN is hit some time.
        std::thread::sleep(Duration::from_micros(round % 3 * 50));
        promptly("resume", || guest.vm.resume()).unwrap();
        std::thread::sleep(Duration::from_micros(round * 7 % 500));
    }
}

#[test]
fn a_hundred_pauses_and_resumes_of_a_spinning_guest_lose_no_kick() {
    needs_kvm!();
    race(&up(&spinning()), 100);
}

#[test]
fn a_hundred_pauses_and_resumes_of_a_guest_at_its_devices_lose_no_kick_and_no_byte() {
    needs_kvm!();
    // Counts on the console: what is lost or doubled between an exit and its end shows.
    let kernel = Kernel::pvh(|a| {
        let mut again = a.create_label();
        a.mov(edx, COM1)?;
        a.say("up")?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.out(dx, al)?;
        a.inc(eax)?;
        a.jmp(again)
    });
    let guest = up(&kernel);
    race(&guest, 100);
    // On a slow or busy host the guest hardly runs between two pauses: on until its count has gone round.
    let begin = Instant::now();
    while guest.console.so_far().len() < 2 + 0x100 {
        assert!(
            begin.elapsed() < crate::fixture::LIMIT,
            "it counts no further: {:?}",
            guest.console.so_far()
        );
        race(&guest, 20);
    }
    guest.vm.kill().unwrap();
    let (_, said) = guest.end();
    let counted = &said[2..];
    let wrong = counted.iter().enumerate().find(|(n, byte)| *n as u8 != **byte);
    assert_eq!(wrong, None, "of {} bytes", counted.len());
}

#[test]
fn pauses_reach_all_of_four_cpus_running_halted_or_not_started() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        // One of the others spins, the rest halts; the first counts on the console.
        crate::fixture::interrupts::start_others(a, |ap| {
            let mut not_first = ap.create_label();
            ap.mov(ax, 1)?;
            ap.lock().xadd(word_ptr(LOW_WORD), ax)?;
            ap.test(ax, ax)?;
            ap.jnz(not_first)?;
            ap.spin()?;
            ap.set_label(&mut not_first)?;
            ap.halt()
        })?;
        chatter_when_up(a)
    });
    let guest = Guest::start_with(&kernel, |config| config.cpus = 4);
    guest.console.wait_for("up", 1);
    race(&guest, 50);

    // And three that wait for a start-up that never comes.
    let guest = Guest::start_with(&chattering(), |config| config.cpus = 4);
    guest.console.wait_for("up", 1);
    race(&guest, 50);
}

/// Says "up" once three others are, then writes dots for ever.
fn chatter_when_up(a: &mut Code) -> crate::fixture::assembly::Assembled {
    let mut again = a.create_label();
    a.await_count(LOW_WORD, 3)?;
    a.dump(LOW_WORD, 1)?;
    a.say("up")?;
    a.set_label(&mut again)?;
    a.mov(al, u32::from(b'.'))?;
    a.out(dx, al)?;
    a.jmp(again)
}

#[test]
fn two_threads_that_pause_and_resume_do_not_block_each_other() {
    needs_kvm!();
    let guest = up(&spinning());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| race(&guest, 50));
        }
    });
    guest.vm.resume().unwrap();
    promptly("kill", || guest.vm.kill()).unwrap();
}

#[test]
fn a_cpu_that_faults_holds_up_no_command() {
    needs_kvm!();
    // The second of two CPUs faults when the first has read a byte: at another moment of the pauses
    // and resumes each time.
    let kernel = Kernel::pvh(|a| {
        crate::fixture::interrupts::start_others(a, |ap| {
            let mut again = ap.create_label();
            ap.set_label(&mut again)?;
            ap.cmp(word_ptr(LOW_WORD), 0)?;
            ap.je(again)?;
            // No table of handlers to look in.
            ap.lidt(fword_ptr(crate::fixture::interrupts::TRAMPOLINE + 0x800))?;
            ap.ud2()
        })?;
        a.say("up")?;
        a.typed()?;
        a.mov(word_ptr(LOW_WORD), 1)?;
        a.spin()
    });
    for round in 0..20 {
        let mut guest = Guest::start_with(&kernel, |config| config.cpus = 2);
        guest.console.wait_for("up", 1);
        guest.console.type_in(b"q");
        std::thread::sleep(Duration::from_micros(round * 50));
        let end = Instant::now() + crate::fixture::LIMIT;
        while promptly("pause", || guest.vm.pause()).is_ok()
            && promptly("resume", || guest.vm.resume()).is_ok()
        {
            assert!(Instant::now() < end, "the second CPU does not fault");
        }
        let (outcome, _) = guest.end();
        let Outcome::Crash { report, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(report.cpu, 1, "{report}");
    }
}

#[test]
fn a_guest_that_panicked_can_be_paused_while_it_has_its_last_words() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.out8(crate::fixture::assembly::PVPANIC, 1)?;
        a.say("up")?;
        a.spin()
    });
    let guest = up(&kernel);
    promptly("pause", || guest.vm.pause()).unwrap();
    let outcome = guest.vm.wait_timeout(crate::fixture::LIMIT);
    assert!(matches!(outcome, Some(Outcome::Panic { .. })), "{outcome:?}");
}

#[test]
fn waiting_with_a_limit_ends_at_the_limit_or_with_the_guest() {
    needs_kvm!();
    let guest = up(&spinning());
    let start = Instant::now();
    assert!(guest.vm.wait_timeout(Duration::from_millis(100)).is_none());
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert!(guest.vm.wait_timeout(Duration::ZERO).is_none());
    guest.vm.kill().unwrap();
    for limit in [Duration::MAX, Duration::ZERO] {
        let outcome = guest.vm.wait_timeout(limit);
        assert!(matches!(outcome, Some(Outcome::Killed)), "{limit:?}: {outcome:?}");
    }
}

#[test]
fn an_ended_vm_says_so_and_keeps_its_outcome() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| a.power_off());
    let guest = Guest::start(&kernel);
    for _ in 0..2 {
        assert!(matches!(guest.vm.wait(), Outcome::PowerOff));
    }
    assert_eq!(guest.vm.pause(), Err(Ended));
    assert_eq!(guest.vm.resume(), Err(Ended));
    assert_eq!(guest.vm.kill(), Err(Ended));
    assert_eq!(guest.vm.press_power_button(), Err(Ended));
    let outcome = promptly("stop", || guest.vm.stop(Duration::from_secs(20)));
    assert!(matches!(outcome, Outcome::PowerOff), "{outcome:?}");
}

#[test]
fn dropping_a_running_vm_ends_it() {
    needs_kvm!();
    let guest = up(&chattering());
    promptly("drop", || drop(guest.vm));
    // The console's other end is gone with it.
    guest.console.all();
}

#[test]
fn a_vm_that_was_never_started_is_dropped_without_a_trace() {
    needs_kvm!();
    let kernel = spinning();
    let (console, streams) = Console::new();
    drop(Vm::with(config(&kernel), Some(streams), Arc::default()).unwrap());
    assert_eq!(console.all(), b"");
}

#[test]
fn two_vms_in_one_process_do_not_know_of_each_other() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.typed()?;
        a.mov(dword_ptr(RESULTS), eax)?;
        a.say("up")?;
        a.typed()?;
        a.dump(RESULTS, 1)?;
        a.power_off()
    });
    let (mut one, mut two) = (Guest::start(&kernel), Guest::start(&kernel));
    one.console.type_in(b"1");
    two.console.type_in(b"2");
    one.console.wait_for("up", 1);
    two.console.wait_for("up", 1);
    one.vm.pause().unwrap();
    two.console.type_in(b"\n");
    assert_eq!(two.powered_off(), b"up2");
    one.still_runs_for(Duration::from_millis(50));
    one.vm.resume().unwrap();
    one.console.type_in(b"\n");
    assert_eq!(one.powered_off(), b"up1");
}

#[test]
fn typed_bytes_reach_the_guest_all_and_in_order() {
    needs_kvm!();
    // Echoes until a newline; more than the FIFO of 64 bytes takes at once.
    let kernel = Kernel::pvh(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.typed()?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.cmp(al, u32::from(b'\n'))?;
        a.jne(again)?;
        a.power_off()
    });
    let mut guest = Guest::start(&kernel);
    let mut text: Vec<u8> = (0..1000u32).map(|n| b'a' + (n % 26) as u8).collect();
    text.push(b'\n');
    guest.console.type_in(&text);
    guest.console.hang_up();
    assert!(guest.powered_off() == text);
}

/// Starts a VM whose console is a pipe of one page that nobody reads; the pipe's other end.
fn start_unread(kernel: &Kernel) -> (std::io::PipeReader, RunningVm) {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: resizes a pipe of our own; no pointer is involved.
    let size =
        unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    let streams = ConsoleStreams {
        output: Some(ConsoleStreams::private_output(writer.into()).unwrap()),
        ..Default::default()
    };
    let vm = Vm::with(config(kernel), Some(streams), Arc::new(Timeline::default())).unwrap();
    (reader, vm.start().unwrap())
}

#[test]
fn a_console_nobody_reads_does_not_stop_the_guest() {
    needs_kvm!();
    // More than the pipe takes, by a guest that does not look whether the transmitter is ready.
    let kernel = Kernel::pvh(|a| {
        a.address_of(|a| a.db(&[b'x'; 2048]))?;
        a.mov(ebx, eax)?;
        a.cld()?;
        a.mov(edx, COM1)?;
        for _ in 0..5 {
            a.mov(esi, ebx)?;
            a.mov(ecx, 2048)?;
            a.rep().outsb()?;
        }
        a.power_off()
    });
    let (reader, vm) = start_unread(&kernel);
    let outcome = vm.wait_timeout(crate::fixture::LIMIT);
    assert!(matches!(outcome, Some(Outcome::PowerOff)), "{outcome:?}");
    assert!(vm.console_tail(1).ends_with('x'), "the last lines are kept all the same");
    drop(reader);
}

#[test]
fn a_guest_that_writes_without_end_to_a_console_nobody_reads_is_paused_and_stopped() {
    needs_kvm!();
    const BLOCK: u32 = 4096;
    const BLOCKS: u32 = 36;
    // More than is kept of one letter, then another one for ever, without looking whether the transmitter is ready.
    let kernel = Kernel::pvh(|a| {
        let (mut again, mut end) = (a.create_label(), a.create_label());
        a.address_of(|a| a.db(&[b'x'; BLOCK as usize]))?;
        a.mov(edi, eax)?;
        a.mov(ebx, BLOCKS)?;
        a.cld()?;
        a.mov(edx, COM1)?;
        a.set_label(&mut again)?;
        a.mov(esi, edi)?;
        a.mov(ecx, BLOCK)?;
        a.rep().outsb()?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.mov(al, u32::from(b'y'))?;
        a.set_label(&mut end)?;
        a.out(dx, al)?;
        a.jmp(end)
    });
    let (reader, vm) = start_unread(&kernel);
    let begun = Instant::now();
    while !vm.console_tail(1).ends_with('y') {
        assert!(begun.elapsed() < crate::fixture::LIMIT, "it does not come to its end");
        std::thread::sleep(Duration::from_millis(5));
    }
    promptly("pause", || vm.pause()).unwrap();
    vm.resume().unwrap();
    let outcome = promptly("stop", || vm.stop(Duration::from_millis(100)));
    assert!(matches!(outcome, Outcome::Killed), "{outcome:?}");
    drop(reader);
}

#[test]
fn a_console_whose_reader_has_gone_does_not_stop_the_guest() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        for _ in 0..20 {
            a.say("hello?\n")?;
        }
        a.power_off()
    });
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let streams = ConsoleStreams {
        output: Some(ConsoleStreams::private_output(writer.into()).unwrap()),
        ..Default::default()
    };
    let vm = Vm::with(config(&kernel), Some(streams), Arc::default()).unwrap().start().unwrap();
    let outcome = vm.wait_timeout(crate::fixture::LIMIT);
    assert!(matches!(outcome, Some(Outcome::PowerOff)), "{outcome:?}");
}

#[test]
fn a_worker_thread_that_panics_ends_the_vm_with_its_message() {
    needs_kvm!();
    // The embedder's own code is the one thing in a worker that can be made to panic from outside.
    let (mut console, mut streams) = Console::new();
    let handler = Box::new(|_| panic!("an embedder's bug"));
    streams.escapes = Some(husk::Escapes { keys: b"x", handler });
    let kernel = spinning();
    let vm = Vm::with(config(&kernel), Some(streams), Arc::default()).unwrap().start().unwrap();
    console.wait_for("up", 1);
    console.type_in(b"\x01x");
    let outcome = vm.wait_timeout(crate::fixture::LIMIT);
    let Some(Outcome::Failed { why }) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("worker") && why.ends_with("an embedder's bug"), "{why}");
    assert_eq!(vm.pause(), Err(Ended));
}

#[test]
fn vcpu_threads_have_names() {
    needs_kvm!();
    let guest = Guest::start_with(&spinning(), |config| config.cpus = 9);
    guest.console.wait_for("up", 1);
    // A thread gives itself its name, and only the first one has spoken. Threads of other tests that come
    // and go can make the kernel's list skip one (`fs/proc/base.c`, first_tid).
    let begin = std::time::Instant::now();
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names: Vec<_> = tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .collect();
        let missing: Vec<_> =
            (0..9).filter(|cpu| !names.contains(&format!("husk-vcpu{cpu}\n"))).collect();
        if missing.is_empty() {
            break;
        }
        assert!(begin.elapsed() < crate::fixture::LIMIT, "{missing:?}: {names:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_guest_without_a_console_runs() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("unheard")?;
        a.power_off()
    });
    let mut config = config(&kernel);
    config.console = husk::config::ConsoleConfig::None;
    let vm = Vm::new(config).unwrap().start().unwrap();
    assert!(matches!(vm.wait(), Outcome::PowerOff));
    assert_eq!(vm.console_tail(1), "unheard");
    let (outcome, said) = run(&kernel);
    assert!(matches!(outcome, Outcome::PowerOff), "{outcome:?}");
    assert_eq!(said, b"unheard");
}
