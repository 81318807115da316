//! What the test runner writes down as it goes, line by line, where it survives the machine it
//! runs in: one JSON object a line, for each test when it is planned, when it starts and when it is done. After a
//! stall this says what is done, and which test was running.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How far a test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Planned,
    Running,
    Passed,
    /// Passed as far as the harness knows, but said that it lacks something here.
    Skipped,
    Failed,
    Ignored,
}

/// One line.
#[derive(Serialize, Deserialize)]
struct Line {
    test: String,
    state: State,
    seconds: f64,
}

/// The journal, open for writing.
pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens it for adding to it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: file.with_context(|| format!("opening {}", path.display()))? })
    }

    /// Writes that `test` has come to `state`, after so many seconds.
    pub fn write(&mut self, test: &str, state: State, seconds: f64) -> Result<()> {
        let line = Line { test: test.to_owned(), state, seconds };
        let mut text = serde_json::to_string(&line).context("writing the journal")?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).context("writing the journal")?;
        self.file.sync_data().context("writing the journal")
    }
}

/// What a journal says: how far each test is, and how long it took so far.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Record {
    pub tests: BTreeMap<String, State>,
    pub took: BTreeMap<String, Duration>,
}

impl Record {
    /// Reads a journal; no file is an empty one, and half a last line is not there.
    pub fn read(path: &Path) -> Self {
        Self::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut record = Self::default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
            let took = Duration::try_from_secs_f64(line.seconds).unwrap_or_default();
            record.took.insert(line.test.clone(), took);
            record.tests.insert(line.test, line.state);
        }
        record
    }

    /// How far this test is, if it was ever planned.
    pub fn state(&self, test: &str) -> Option<State> {
        self.tests.get(test).copied()
    }

    /// The tests that are in this state.
    pub fn all(&self, state: State) -> Vec<&str> {
        let those = self.tests.iter().filter(|(_, now)| **now == state);
        those.map(|(test, _)| test.as_str()).collect()
    }

    /// The tests that took longest, the slowest first, at most `most` of them.
    pub fn slowest(&self, most: usize) -> Vec<(&str, Duration)> {
        let mut all: Vec<_> = self.took.iter().map(|(test, took)| (test.as_str(), *took)).collect();
        all.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_stall_it_says_what_is_done_and_what_was_running() {
        let record = Record::parse(
            "{\"test\":\"a\",\"state\":\"planned\",\"seconds\":0}\n\
             {\"test\":\"b\",\"state\":\"planned\",\"seconds\":0}\n\
             {\"test\":\"c\",\"state\":\"planned\",\"seconds\":0}\n\
             {\"test\":\"a\",\"state\":\"running\",\"seconds\":0}\n\
             {\"test\":\"a\",\"state\":\"passed\",\"seconds\":1.5}\n\
             {\"test\":\"b\",\"state\":\"running\",\"seconds\":0}\n\
             {\"test\":\"c\",\"state\":\"runn",
        );
        assert_eq!(record.all(State::Passed), ["a"]);
        assert_eq!(record.all(State::Running), ["b"]);
        assert_eq!(record.all(State::Planned), ["c"]);
        assert_eq!(record.state("d"), None);
        assert_eq!(record.slowest(1), [("a", Duration::from_millis(1500))]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let path = std::env::temp_dir().join(format!("husk-journal-{}", std::process::id()));
        let mut journal = Journal::open(&path).unwrap();
        journal.write("a::b", State::Running, 0.0).unwrap();
        journal.write("a::b", State::Failed, 0.25).unwrap();
        let record = Record::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(record.all(State::Failed), ["a::b"]);
    }
}
