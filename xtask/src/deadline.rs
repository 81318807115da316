//! When all of a run must be over: whoever runs the tests unattended kills what takes longer, and
//! then nobody learns what failed. Each single wait has a limit of its own and asks here how much of
//! it is left; a watchdog ends what waits all the same. Without a deadline nothing is cut short.

use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// What is left to do when the last wait is over: count and say it.
const CONCLUSION: Duration = Duration::from_secs(60);

/// When the last wait is over.
static LAST: OnceLock<Instant> = OnceLock::new();

/// What is being done, as [`crate::host::say`] said last.
static DOING: Mutex<String> = Mutex::new(String::new());

/// From now on everything is over after `all`, which starts now. The first call counts.
pub fn set(all: Duration) {
    let start = Instant::now();
    if LAST.set(start + all.saturating_sub(CONCLUSION)).is_err() {
        return;
    }
    thread::spawn(move || {
        thread::sleep(all);
        let doing = DOING.lock().map(|doing| doing.clone()).unwrap_or_default();
        println!("FAILED: not done after {} min; the last that was begun: {doing}", minutes(all));
        std::process::exit(1);
    });
}

/// `limit`, or what is left of the whole run if that is less.
pub fn within(limit: Duration) -> Duration {
    least(limit, LAST.get().map(|last| last.saturating_duration_since(Instant::now())))
}

fn least(limit: Duration, left: Option<Duration>) -> Duration {
    left.map_or(limit, |left| left.min(limit))
}

/// Remembers what is being done, for the watchdog's last words.
pub fn doing(what: &str) {
    if let Ok(mut doing) = DOING.lock() {
        what.clone_into(&mut doing);
    }
}

/// How long a limit was, for people.
pub fn shown(limit: Duration) -> String {
    match limit.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        _ => format!("{} min", minutes(limit)),
    }
}

fn minutes(limit: Duration) -> u64 {
    limit.as_secs() / 60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_longer_than_what_is_left() {
        let [short, long] = [5, 7].map(Duration::from_secs);
        assert_eq!(least(short, None), short);
        assert_eq!(least(short, Some(long)), short);
        assert_eq!(least(long, Some(short)), short);
        assert_eq!(least(long, Some(Duration::ZERO)), Duration::ZERO);
    }

    #[test]
    fn limits_are_told_in_the_unit_that_fits() {
        assert_eq!(shown(Duration::from_secs(90)), "90 s");
        assert_eq!(shown(Duration::from_secs(900)), "15 min");
    }
}
