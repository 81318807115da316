//! What a console tells of the panic of the Linux that writes to it.
//!
//! A guest with a pvpanic driver says so itself. Of others only what they wrote can be read: before
//! the reset or the triple fault by which a panicked kernel ends, so that neither is taken for a
//! reboot or a crash.

/// Lines of the console in a report.
pub(super) const CONSOLE_LINES: usize = 40;
/// How a Linux panic begins.
const PANIC_WORDS: &str = "Kernel panic - not syncing";

/// Whether the end of a console is that of a Linux that panicked: the words, and behind them only the
/// kernel's own lines (which have a time in brackets), or in any case not more than a report's worth.
pub(super) fn tells_of_a_panic(console: &str) -> bool {
    let Some((_, after)) = console.rsplit_once(PANIC_WORDS) else { return false };
    let mut others = after.lines().skip(1).filter(|line| !line.trim_start().starts_with('['));
    others.nth(CONSOLE_LINES - 1).is_none()
}

/// The end of a console: its last lines, and more when the panic's own first line lies before them.
pub(super) fn last_words(console: &str) -> &str {
    let line_before =
        |at: usize| console.get(..at).and_then(|s| s.rfind('\n')).map_or(0, |n| n + 1);
    let tail = console.rmatch_indices('\n').nth(CONSOLE_LINES - 1).map_or(0, |(at, _)| at + 1);
    let start = console.rfind(PANIC_WORDS).map_or(tail, |at| line_before(at).min(tail));
    console.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_known_by_its_words_however_long_its_trace() {
        let words = "[    1.7] Kernel panic - not syncing: why\n";
        assert!(tells_of_a_panic(&format!("before\n{words}")));
        assert!(tells_of_a_panic(&format!(
            "{words}{}",
            "[    1.8]  ? a_function+0x1/0x2\n".repeat(90)
        )));
        // A kernel that prints no times.
        assert!(tells_of_a_panic(&format!("{words}{}", " ? a_function+0x1/0x2\n".repeat(30))));
        // Somebody showed an old log and went on.
        assert!(!tells_of_a_panic(&format!("{words}{}", "all is well\n".repeat(50))));
        assert!(!tells_of_a_panic("nothing of the kind"));
    }

    #[test]
    fn a_report_begins_with_the_panic_or_forty_lines_before_the_end() {
        let lines = |n: usize| (0..n).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
        assert_eq!(last_words(&lines(3)), lines(3));
        assert!(last_words(&lines(100)).starts_with("line 60\n"));
        let panic = "[    1.7] Kernel panic - not syncing: why";
        let long = format!("{}\n{panic}\n{}", lines(10), lines(60));
        assert!(last_words(&long).starts_with(panic));
        let short = format!("{}\n{panic}\n{}", lines(100), lines(5));
        assert!(last_words(&short).starts_with("line 66\n"));
    }
}
