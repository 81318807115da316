//! A husk that has ended, and what is expected of it.

use std::time::Duration;

use super::fail;

/// A husk that has ended.
pub struct Done {
    /// Its exit status, or 1000 plus the signal that ended it.
    pub status: i32,
    pub console: String,
    pub stderr: String,
    pub took: Duration,
    pub(super) shown: String,
}

impl Done {
    /// Ends the test unless the exit status is this.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        if self.status != status {
            self.fail(&format!("the exit status is {} and should be {status}", self.status));
        }
        self
    }

    /// Ends the test unless the guest's script ended well, husk with 0, and husk had nothing to
    /// complain of.
    #[track_caller]
    pub fn expect_clean(&self) -> &Self {
        self.expect_status(0);
        self.expect("HUSK-EXIT 0\n");
        if !self.stderr.is_empty() {
            self.fail("husk complained");
        }
        self
    }

    /// Ends the test unless the console said `text`.
    #[track_caller]
    pub fn expect(&self, text: &str) -> &Self {
        if !self.console.contains(text) {
            self.fail(&format!("the console never said {text:?}"));
        }
        self
    }

    /// Ends the test unless husk said `text`.
    #[track_caller]
    pub fn expect_stderr(&self, text: &str) -> &Self {
        if !self.stderr.contains(text) {
            self.fail(&format!("husk never said {text:?}"));
        }
        self
    }

    /// Ends the test unless the guest printed a line `name=value`, the only one of that name.
    #[track_caller]
    pub fn expect_fact(&self, name: &str, value: &str) -> &Self {
        let fact = self.fact(name);
        if fact != value {
            self.fail(&format!("{name} is {fact:?} and should be {value:?}"));
        }
        self
    }

    /// The value of the line `name=value`, the only one of that name.
    #[track_caller]
    pub fn fact(&self, name: &str) -> &str {
        let start = format!("{name}=");
        let mut found = self.console.lines().filter_map(|line| line.strip_prefix(&start));
        match (found.next(), found.next()) {
            (Some(value), None) => value.trim_end(),
            (None, _) => self.fail(&format!("the guest never printed {name}=")),
            (Some(_), Some(_)) => self.fail(&format!("the guest printed {name}= twice")),
        }
    }

    /// The same as a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let fact = self.fact(name);
        fact.parse().unwrap_or_else(|_| self.fail(&format!("{name}={fact} is no number")))
    }

    /// How often the console said `text`.
    pub fn count(&self, text: &str) -> usize {
        self.console.matches(text).count()
    }

    /// Ends the test and says what the console and husk said last.
    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        fail(what, &self.shown, &self.console, &self.stderr)
    }
}
