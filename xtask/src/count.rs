//! The count of tests and checks, which is the last line of `cargo xtask test` and decides its exit
//! status.

use std::collections::BTreeSet;

/// How a line begins by which a test says that it is skipped (`tests/fixture/skipped.rs`).
pub const SKIPPED: &str = "SKIPPED ";

/// Tests and checks that passed and failed.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
    /// Passed as far as the harness knows, but said that they lack something here.
    pub skipped: usize,
    pub not_run: usize,
    /// What failed that is no single test: a check, a crash, a build.
    pub problems: Vec<String>,
}

impl Count {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped += other.skipped;
        self.not_run += other.not_run;
        self.problems.extend(other.problems);
    }

    /// Takes those that were skipped from those that passed. `list` is what the tests wrote into
    /// `$HUSK_SKIPPED`; a test may have skipped several parts of itself and counts once.
    pub fn skip(&mut self, list: &str) {
        let names: BTreeSet<&str> = list
            .lines()
            .filter_map(|line| Some(line.strip_prefix(SKIPPED)?.split_once(": ")?.0))
            .collect();
        self.passed = self.passed.saturating_sub(names.len());
        self.skipped += names.len();
    }

    fn is_good(&self) -> bool {
        self.failed == 0 && self.not_run == 0 && self.problems.is_empty()
    }

    /// Filters that fit no test at all are a mistake, unless it never came to the tests.
    pub fn expect_some(&mut self, filters: &[String]) {
        let tests = self.passed + self.failed + self.ignored + self.skipped + self.not_run;
        if !filters.is_empty() && tests == 0 && self.problems.is_empty() {
            self.problems.push(format!("no test is called anything like {}", filters.join(", ")));
        }
    }

    /// Prints the problems and the count; gives the exit status.
    pub fn conclude(&self) -> u8 {
        for problem in &self.problems {
            println!("FAILED: {problem}");
        }
        println!("{}", self.words());
        u8::from(!self.is_good())
    }

    /// `12 passed, 1 failed`, and what else there is to say.
    fn words(&self) -> String {
        let mut words = format!("{} passed, {} failed", self.passed, self.failed);
        for (count, what) in
            [(self.ignored, "ignored"), (self.skipped, "skipped"), (self.not_run, "not run")]
        {
            if count > 0 {
                words.push_str(&format!(", {count} {what}"));
            }
        }
        words
    }

    /// The count of what libtest says of one or more executables: by their result lines, and by
    /// the tests' own lines where an executable did not come to its result.
    pub fn of_output(text: &str) -> Self {
        let (mut count, mut open) = (Self::default(), Self::default());
        for line in text.lines() {
            if let Some(result) = Self::of_result(line) {
                count.add(result);
                open = Self::default();
            } else if let Some(planned) = planned(line) {
                count.add(std::mem::take(&mut open));
                open.not_run = planned;
            } else if open.not_run > 0 {
                open.add_test(line);
            }
        }
        count.add(open);
        count
    }

    /// Takes note of a line `test a::b ... ok`.
    fn add_test(&mut self, line: &str) {
        let verdict = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        let Some((_, verdict)) = verdict else { return };
        match verdict.split([' ', ',']).next() {
            Some("ok") => self.passed += 1,
            Some("FAILED") => self.failed += 1,
            Some("ignored") => self.ignored += 1,
            _ => return,
        }
        self.not_run -= 1;
    }

    /// What a line `test result: ok. 3 passed; 0 failed; 1 ignored; …` says.
    fn of_result(line: &str) -> Option<Self> {
        let (_, result) = line.split_once("test result: ")?;
        let (_, numbers) = result.split_once(". ")?;
        let mut count = Self::default();
        for part in numbers.split(';') {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => count.passed += number,
                Some("failed") => count.failed += number,
                Some("ignored") => count.ignored += number,
                _ => {}
            }
        }
        Some(count)
    }
}

/// The number in a line `running 3 tests`.
fn planned(line: &str) -> Option<usize> {
    let (number, what) = line.strip_prefix("running ")?.split_once(' ')?;
    what.starts_with("test").then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let mut count = Count::of_output(
            "running 15 tests\ntest a ... ok\n\
             test result: ok. 13 passed; 0 failed; 2 ignored; 0 measured; x\n\
             test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured\n",
        );
        assert_eq!((count.passed, count.failed, count.ignored), (14, 3, 2));
        assert_eq!(count.words(), "14 passed, 3 failed, 2 ignored");
        let all = "SKIPPED lib-1::a::b: no KVM\nSKIPPED bin-2::a::b: no KVM: why\n";
        count.skip(&format!("{all}SKIPPED lib-1::a::b: nor huge pages\n"));
        assert_eq!(count.words(), "12 passed, 3 failed, 2 ignored, 2 skipped");
        assert!(!count.is_good());
    }

    #[test]
    fn an_executable_without_a_result_is_counted_by_the_lines_of_its_tests() {
        let count = Count::of_output(
            "running 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n\
             running 4 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored, why\n",
        );
        assert_eq!(count.words(), "2 passed, 1 failed, 1 ignored, 1 not run");
    }

    #[test]
    fn filters_that_fit_no_test_are_a_problem_and_a_skipped_test_is_one() {
        let filters = ["name".to_owned()];
        let mut count = Count { passed: 1, ..Count::default() };
        count.skip("SKIPPED lib-1::name: why\n");
        count.expect_some(&filters);
        assert!(count.is_good());
        let mut count = Count::default();
        count.expect_some(&filters);
        assert!(!count.is_good());
    }

    #[test]
    fn a_problem_that_is_no_test_is_no_success() {
        let count = Count { problems: vec!["cargo fmt".to_owned()], ..Count::default() };
        assert!(!count.is_good());
    }
}
