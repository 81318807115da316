//! Processes that the kernel ends because memory ran out: how many there were, and whether a command was
//! one of them.
//!
//! The number is the whole machine's: of two commands that run at once both hear of it. Who it was the kernel
//! says in its log alone (`mm/oom_kill.c`), which is read only when there was one.

use crate::sys::file::{self, CLOEXEC, NONBLOCK, READ};
use crate::sys::{Errno, process};
use crate::text::{lines, number};

/// Bytes of a record of the log, the most that the kernel writes (`PRINTK_MESSAGE_MAX`).
const RECORD_MAX: usize = 8 << 10;
/// How often the log is looked at. The kernel sends the signal, and writes then.
const LOOKS: usize = 5;
/// Between two looks.
const PAUSE_MILLIS: u32 = 10;

/// How many processes this kernel has ended because memory ran out.
pub fn killed() -> u32 {
    let Ok(room) = process::memory(64 << 10) else { return 0 };
    let text = file::read_file(c"/proc/vmstat", room).unwrap_or_default();
    let found = lines(text).find_map(|line| line.strip_prefix(b"oom_kill "));
    found.and_then(number).unwrap_or(0)
}

/// Whether the process `id` was among them, of which there was one at least. True where the kernel has no
/// log that tells.
pub fn was_killed(id: i32) -> bool {
    (0..LOOKS).any(|look| {
        if look > 0 {
            process::sleep_millis(PAUSE_MILLIS);
        }
        is_in_log(id)
    })
}

fn is_in_log(id: i32) -> bool {
    let Ok(mut log) = file::open(c"/dev/kmsg", READ | NONBLOCK | CLOEXEC, 0) else { return true };
    let mut room = [0; RECORD_MAX];
    let found = loop {
        match file::read(log, &mut room) {
            Ok(0) => break false,
            Ok(count) => {
                let record = room.get(..count).unwrap_or_default();
                if victim(record).is_some_and(|victim| i64::from(victim) == i64::from(id)) {
                    break true;
                }
            }
            // The record that was next has been overwritten.
            Err(Errno::PIPE) => {}
            // No more, by now.
            Err(_) => break false,
        }
    };
    log.close();
    found
}

/// The process that a record of the log (`Documentation/ABI/testing/dev-kmsg`) says was killed. What a
/// process wrote to the log says nothing: it never has the kernel's facility, 0.
fn victim(record: &[u8]) -> Option<u32> {
    const WORDS: &[u8] = b"Killed process ";
    const LEVELS: u32 = 8;
    let priority = record.split(|byte| *byte == b',').next().and_then(number)?;
    let at = record.windows(WORDS.len()).position(|words| words == WORDS)?;
    let rest = record.get(at + WORDS.len()..)?;
    let id = rest.split(|byte| !byte.is_ascii_digit()).next().and_then(number)?;
    (priority < LEVELS).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_is_told_by_the_kernels_own_words_and_by_no_others() {
        let of = |record: &str| victim(record.as_bytes());
        let words = "Out of memory: Killed process 123 (tail) total-vm:1kB, anon-rss:1kB";
        assert_eq!(of(&format!("3,339,5140900,-;{words}\n")), Some(123));
        assert_eq!(of("3,9,5,-;Memory cgroup out of memory: Killed process 7 (a) x"), Some(7));
        assert_eq!(of("3,9,5,-;Killed process 41 (a), UID 0, total-vm:1kB"), Some(41));
        assert_eq!(of(&format!("11,339,5140900,-;{words}\n")), None, "a process wrote that");
        assert_eq!(of("6,1,0,-;Linux version 6.1"), None);
        for cut in ["", "3", "3,9,5,-;Killed process ", "3,9,5,-;Killed process x"] {
            assert_eq!(of(cut), None, "{cut}");
        }
    }
}
