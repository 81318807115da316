//! What every VM of the command line's has in common, whatever is done in it: it is ended, spoken of at
//! its end, and attended to while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use husk::{Outcome, RunningVm};

use super::awaited::Awaited;
use super::escape::Escape;
use super::{CANNOT, metrics, terminal};

/// Exit status: the time given with --timeout ran out.
pub const TIMED_OUT: u8 = 124;
/// Exit status: kernel panic, triple fault, KVM internal error.
pub const GUEST_DIED: u8 = 134;

/// What is asked of husk on its terminal.
pub type Escapes = Receiver<Escape>;

/// Starts a thread that mostly sleeps: with a small stack, which no huge page backs.
pub fn watch(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    const STACK: usize = 128 << 10;
    std::thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

/// Does `act` whenever it is asked for, as long as there is what it is done with.
pub fn whenever<T: Send + Sync + 'static>(
    asked: Awaited,
    with: &Arc<T>,
    mut act: impl FnMut(&T) + Send + 'static,
) -> std::io::Result<()> {
    let with = Arc::downgrade(with);
    watch(move || {
        loop {
            asked.wait();
            let Some(with) = with.upgrade() else { return };
            act(&with);
        }
    })
}

/// Tells the guest the size of the terminal, now and whenever it changes, as long as there is a VM.
pub fn attend_window(resized: Awaited, vm: &Arc<RunningVm>) -> std::io::Result<()> {
    let tell = |vm: &RunningVm| {
        if let Some(size) = terminal::size() {
            vm.resize_console(size);
        }
    };
    tell(vm);
    whenever(resized, vm, tell)
}

/// Writes the metrics now and whenever it is asked for them, as long as there is a VM.
pub fn attend_metrics(
    file: metrics::File,
    asked: Awaited,
    vm: &Arc<RunningVm>,
) -> std::io::Result<()> {
    file.write(vm);
    whenever(asked, vm, move |vm| file.write(vm))
}

/// Looks at the sizes of all disks whenever it is asked to, as long as there is a VM.
pub fn attend_disks(asked: Awaited, vm: &Arc<RunningVm>) -> std::io::Result<()> {
    if vm.disks().is_empty() {
        return Ok(());
    }
    whenever(asked, vm, |vm| {
        for id in vm.disks() {
            match vm.resize_disk(id, None) {
                Ok(size) => log::info!("disk {id} has {size} bytes"),
                Err(e) => log::warn!("{e}"),
            }
        }
    })
}

/// Does what is asked of husk on its terminal. What it gives becomes true when that is the VM's end.
pub fn attend_escapes(escapes: Escapes, vm: Arc<RunningVm>) -> std::io::Result<Arc<AtomicBool>> {
    let is_end = Arc::new(AtomicBool::new(false));
    let ending = is_end.clone();
    watch(move || {
        for escape in escapes {
            match escape {
                Escape::Help => tell!(
                    "\nhusk: Ctrl-a x  end the VM\n      Ctrl-a h  this help\n      \
                     Ctrl-a a  send Ctrl-a\n"
                ),
                // A visitor's.
                Escape::Leave => {}
                Escape::End => {
                    ending.store(true, Ordering::Release);
                    end(&vm, 0);
                }
            }
        }
    })?;
    Ok(is_end)
}

/// Ends the VM at once. False when it has not ended after a while: something of it waits for the host,
/// a disk that does not answer, and only the end of the process can end it.
pub fn kill(vm: &Arc<RunningVm>) -> bool {
    const LIMIT: Duration = Duration::from_secs(6);
    let killer = vm.clone();
    // In a thread, for even the controller may be waiting. An error means that it has ended.
    let kill = move || {
        let _ = killer.kill();
    };
    if watch(kill).is_err() {
        return false;
    }
    let ended = vm.wait_timeout(LIMIT).is_some();
    if !ended {
        tell!("husk: the VM does not end, because the host does not answer it; husk ends anyway\n");
    }
    ended
}

/// Ends the VM at once, and, if it does not end, the process with `status`.
pub fn end(vm: &Arc<RunningVm>, status: i32) {
    if !kill(vm) {
        terminal::restore();
        std::process::exit(status);
    }
}

/// Says what has to be said about the end, and returns the exit status.
pub fn conclude(outcome: &Outcome, signal: Option<i32>) -> u8 {
    match (outcome, signal) {
        (Outcome::PowerOff | Outcome::Reboot, _) => 0,
        (Outcome::Exit(status), _) => *status,
        // By a signal after the grace, or by Ctrl-a x.
        (Outcome::Killed, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (Outcome::Killed, None) => 0,
        (Outcome::Panic { console }, _) => {
            tell!("husk: the guest's kernel panicked\n");
            report_console(console);
            GUEST_DIED
        }
        (Outcome::Crash { report, console }, _) => {
            tell!("husk: the guest died: {report}");
            report_console(console);
            GUEST_DIED
        }
        (Outcome::Failed { why }, _) => {
            tell!("husk: {why}\n");
            CANNOT
        }
    }
}

/// Shows the last lines of a console, if there are any.
pub fn report_console(console: &str) {
    if !console.is_empty() {
        tell!("husk: the last lines of its console:\n{}\n", husk::quote(console));
    }
}

/// What was asked for at the end: the metrics written, the timeline shown.
pub fn report(timeline: bool, metrics: Option<&metrics::File>, vm: &RunningVm) {
    if let Some(file) = metrics {
        file.write(vm);
    }
    if timeline {
        tell!("{}", vm.timeline());
    }
}
