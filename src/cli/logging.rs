//! husk's own words on stderr, one line each.

use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let level = record.level().as_str().to_ascii_lowercase();
        let line = format!("husk: {level}: {}\n", record.args());
        // A vCPU or a worker may be speaking: neither waits for a reader.
        super::stderr::say(&line, Duration::ZERO);
    }

    fn flush(&self) {}
}

/// Sends log lines of at least `level` to stderr.
pub fn init(level: LevelFilter) {
    // Fails only when there is a logger already.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
