//! The end of a VM's devices, in a thread of its own: closing a file can hang in the host, and so can
//! whatever works on it. Who waits for the VM waits for that for a while, and then goes on without.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use husk_devices::panics::caught;
use husk_devices::worker;

use super::STACK;

/// More than devices wait for a worker that hangs, so that they can say which, and than a vCPU waits for
/// a device.
pub(super) const LIMIT: Duration = worker::PATIENCE.saturating_add(Duration::from_secs(5));

/// Does `close`, and waits for it at most for `limit`. What is left then goes on by itself, and holds
/// what it holds, until the host answers or the process ends.
///
/// # Errors
/// In words, when it panics.
pub(super) fn within(limit: Duration, close: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let (tell, told) = sync_channel(1);
    let thread = std::thread::Builder::new().name("husk-end".to_owned()).stack_size(STACK);
    let thread = thread.spawn(move || {
        // Nobody listens any more when it was late.
        let _ = tell.send(caught("the end of the VM", close));
    });
    let thread = match thread {
        Ok(thread) => thread,
        // What `close` owned is dropped by now, which closes it too.
        Err(e) => {
            log::debug!("no thread for the end of the VM: {e}");
            return Ok(());
        }
    };
    match told.recv_timeout(limit) {
        Ok(closed) => {
            let _ = thread.join();
            closed
        }
        Err(RecvTimeoutError::Disconnected) => Ok(()),
        Err(RecvTimeoutError::Timeout) => {
            log::error!(
                "a device of the VM hangs in the host, and is not waited for any longer than {limit:?}"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    #[test]
    fn an_end_that_hangs_is_waited_for_as_long_as_the_limit_and_goes_on_by_itself() {
        let (go_on, goes_on) = channel::<()>();
        let (tell, told) = channel();
        let begin = Instant::now();
        let hangs = move || {
            let _ = goes_on.recv();
            tell.send(()).unwrap();
        };
        within(Duration::from_millis(50), hangs).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(50));
        assert!(told.try_recv().is_err());
        drop(go_on);
        told.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn an_end_is_over_when_everything_is_closed_and_a_panic_in_it_is_told() {
        let (tell, told) = channel();
        within(LIMIT, move || tell.send(()).unwrap()).unwrap();
        told.try_recv().unwrap();
        let why = within(LIMIT, || panic!("not closed")).unwrap_err();
        assert!(why.contains("not closed"), "{why}");
    }
}
