//! QEMU's monitor (the QEMU Machine Protocol, a line of JSON each way), for a machine that shows no
//! sign of life. It has two uses: to look at its processor, and to wake it.
//!
//! Waking is needed because QEMU 7.2 loses interrupts under SVM: `helper_vmrun` and `do_vmexit` change
//! the word of pending requests without the lock that the device threads change it under, so that
//! a bit just set there can vanish. The local APIC still holds its vector (IRR), but the processor is
//! not told, and with a one-shot timer nothing ever tells it again: it sleeps, or runs a guest that
//! waits for a lock. Any other interrupt makes it look, and nothing is lost but the time till then.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Our end of the monitor's socket.
pub struct Monitor {
    stream: BufReader<UnixStream>,
    greeted: bool,
}

impl Monitor {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), greeted: false }
    }

    /// Raises an interrupt that means nothing: a Shift key goes down and up.
    pub fn wake(&mut self) -> Result<()> {
        let key = json!({"type": "qcode", "data": "shift"});
        self.execute("send-key", json!({"keys": [key], "hold-time": 10}))?;
        Ok(())
    }

    /// The registers of the processors and what their interrupt controllers hold, twice: the second
    /// look tells a processor that runs in circles from one that sleeps.
    pub fn state(&mut self) -> Result<String> {
        let mut text = String::new();
        for question in ["info registers -a", "info lapic", "info pic", "info registers -a"] {
            let answer =
                self.execute("human-monitor-command", json!({"command-line": question}))?;
            text.push_str(answer.as_str().unwrap_or_default());
        }
        // Of what 100 lines of registers say, floating point says nothing.
        let plain = |line: &&str| !["FPR", "XMM", "FCW"].iter().any(|word| line.starts_with(word));
        Ok(text.lines().filter(plain).map(|line| format!("{}\n", line.trim_end())).collect())
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        if !self.greeted {
            let patience = Some(Duration::from_secs(5));
            self.stream.get_ref().set_read_timeout(patience).context("setting a time limit")?;
            self.ask(&json!({"execute": "qmp_capabilities"}))?;
            self.greeted = true;
        }
        self.ask(&json!({"execute": command, "arguments": arguments}))
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.stream.get_mut(), "{request}").context("asking QEMU's monitor")?;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).context("listening to QEMU's monitor")?;
            let mut answer: Value =
                serde_json::from_str(&line).context("reading what QEMU's monitor says")?;
            // The greeting and events come between.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                anyhow::bail!("QEMU's monitor refuses {request}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_greetings_events_and_refusals() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = std::thread::spawn(move || {
            let mut theirs = BufReader::new(theirs);
            let mut asked = Vec::new();
            for said in [
                "{\"QMP\": {}}\n{\"return\": {}}\n",
                "{\"event\": \"RESET\"}\n{\"return\": {}}\n",
                "{\"error\": {\"class\": \"GenericError\"}}\n",
            ] {
                let mut line = String::new();
                theirs.read_line(&mut line).unwrap();
                asked.push(serde_json::from_str::<Value>(&line).unwrap()["execute"].clone());
                theirs.get_mut().write_all(said.as_bytes()).unwrap();
            }
            asked
        });
        let mut monitor = Monitor::new(ours);
        monitor.wake().unwrap();
        assert!(monitor.state().unwrap_err().to_string().contains("GenericError"));
        assert!(monitor.wake().is_err(), "the other end has gone");
        let asked = qemu.join().unwrap();
        assert_eq!(asked, ["qmp_capabilities", "send-key", "human-monitor-command"]);
    }
}
