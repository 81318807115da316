//! Panics of husk's own threads, as sentences.
//!
//! A panic is a bug of husk's, and it ends a thread of which somebody waits for something. Whoever
//! starts such a thread runs its work in [`caught`] and tells the controller what came of it, so
//! that the VM ends with an error instead of standing still.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does `work` in the calling thread, which is called `thread` in the error.
///
/// # Errors
/// The sentence to tell when it panicked. Nothing that `work` shares may then be relied on but what
/// is sound after a panic: locks (poison is ignored throughout), atomics, descriptors.
pub fn caught<T>(thread: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| sentence(thread, &*payload))
}

/// What is told of the panic of `thread`, whose message is in `payload`.
fn sentence(thread: &str, payload: &(dyn Any + Send)) -> String {
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    format!("{thread} panicked, which is a bug in husk: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_thread_and_its_message() {
        assert_eq!(caught("x", || 7), Ok(7));
        let told = caught("the thread x", || panic!("plain")).unwrap_err();
        assert_eq!(told, "the thread x panicked, which is a bug in husk: plain");
        let told = caught("y", || panic!("number {}", 7)).unwrap_err();
        assert!(told.ends_with("number 7"), "{told}");
        let told = caught("y", || std::panic::panic_any(7)).unwrap_err();
        assert!(told.ends_with("without a message"), "{told}");
    }
}
