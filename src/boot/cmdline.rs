//! The kernel's command line, checked: printable ASCII, and not longer than the kernel reads.
//!
//! The machine appends what its devices need to what the user gave and asks what he gave himself
//! (`has("panic=")`), reading parameters as the kernel does (`lib/cmdline.c`, `kernel/params.c`):
//! blanks separate them except inside double quotes, `-` and `_` are the same in a name, and what
//! follows `--` is init's.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::params::GuestRange;
use crate::access::AccessError;

/// Why a command line will not do.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// A character the kernel could not be given.
    #[error(
        "kernel command line: the character {character:?} at position {position} is not printable \
         ASCII"
    )]
    BadCharacter {
        /// The character.
        character: char,
        /// Counted from 1.
        position: usize,
    },
    /// A quote without its other half would swallow what is appended.
    #[error("kernel command line: a double quote is not closed")]
    OpenQuote,
    /// It is longer than the kernel reads.
    #[error(
        "kernel command line: it is {len} bytes, {} more than the {max} this kernel takes",
        .len - .max
    )]
    TooLong {
        /// Its length in bytes, without the NUL.
        len: usize,
        /// The most the kernel takes.
        max: usize,
    },
    /// There is no guest memory where it is to go.
    #[error("kernel command line: cannot be written to guest memory at {address:#x}: {source}")]
    Write {
        /// The guest-physical address.
        address: u64,
        /// What is wrong with it.
        r#source: AccessError,
    },
}

/// A kernel command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// The kernel's parameters, and after them `--` and init's arguments, if any.
    kernel: String,
    init: String,
}

impl Cmdline {
    /// Takes `text`; blanks around it do not count.
    ///
    /// # Errors
    /// When a character in it is not printable ASCII, or a quote is not closed.
    pub fn new(text: &str) -> Result<Cmdline, CmdlineError> {
        check(text)?;
        let text = text.trim_matches(' ');
        let dashes = words(text).find(|word| *word == "--");
        // `words` hands out parts of `text`, so the distance is where in it "--" begins.
        let at = dashes.map_or(text.len(), |word| word.as_ptr().addr() - text.as_ptr().addr());
        let (kernel, init) = text.split_at_checked(at).unwrap_or((text, ""));
        Ok(Cmdline { kernel: kernel.trim_end_matches(' ').to_owned(), init: init.to_owned() })
    }

    /// Appends parameters: those for the kernel before what is for init, and what `text` has for
    /// init behind that.
    ///
    /// # Errors
    /// As [`Cmdline::new`]. `self` is then as it was.
    pub fn append(&mut self, text: &str) -> Result<(), CmdlineError> {
        let more = Cmdline::new(text)?;
        // One "--" is enough; a second would be an argument.
        let arguments = match self.init.is_empty() {
            true => more.init.as_str(),
            false => more.init.trim_start_matches("--").trim_start_matches(' '),
        };
        for (all, more) in [(&mut self.kernel, more.kernel.as_str()), (&mut self.init, arguments)] {
            if !more.is_empty() && !all.is_empty() {
                all.push(' ');
            }
            all.push_str(more);
        }
        Ok(())
    }

    /// Whether the kernel is given this parameter: `has("quiet")` the flag as it is or with a
    /// value, `has("panic=")` only with a value.
    pub fn has(&self, parameter: &str) -> bool {
        match parameter.strip_suffix('=') {
            Some(name) => self.value(name).is_some(),
            None => words(&self.kernel).any(|word| same_name(name_and_value(word).0, parameter)),
        }
    }

    /// The value of a parameter, without quotes; of several the last, which mostly wins.
    pub fn value(&self, name: &str) -> Option<&str> {
        let values = words(&self.kernel).filter_map(|word| match name_and_value(word) {
            (found, value) if same_name(found, name) => value,
            _ => None,
        });
        values.last()
    }

    /// The whole of it.
    pub fn text(&self) -> String {
        match (self.kernel.as_str(), self.init.as_str()) {
            (kernel, "") => kernel.to_owned(),
            ("", init) => init.to_owned(),
            (kernel, init) => format!("{kernel} {init}"),
        }
    }

    /// Checks it against the longest this kernel takes, in bytes without the NUL
    /// ([`Loaded::cmdline_max`](super::Loaded::cmdline_max)).
    ///
    /// # Errors
    /// By how much it is too long.
    pub fn check_len(&self, max: usize) -> Result<(), CmdlineError> {
        let len = self.text().len();
        if len > max { Err(CmdlineError::TooLong { len, max }) } else { Ok(()) }
    }

    /// Writes it to `address` with a NUL, and returns where it is (the length is without the NUL).
    ///
    /// # Errors
    /// When it is longer than `max`, or guest memory does not have the room.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        address: u64,
        max: usize,
    ) -> Result<GuestRange, CmdlineError> {
        self.check_len(max)?;
        let mut bytes = self.text().into_bytes();
        bytes.push(0);
        memory
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|e| CmdlineError::Write { address, source: e.into() })?;
        Ok(GuestRange { addr: address, len: bytes.len() as u64 - 1 })
    }
}

fn check(text: &str) -> Result<(), CmdlineError> {
    let printable = |c: char| matches!(c, ' '..='~');
    if let Some((index, character)) = text.chars().enumerate().find(|(_, c)| !printable(*c)) {
        return Err(CmdlineError::BadCharacter { character, position: index + 1 });
    }
    if !text.matches('"').count().is_multiple_of(2) {
        return Err(CmdlineError::OpenQuote);
    }
    Ok(())
}

/// The parameters: what is between blanks that are not inside double quotes.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let split = move |c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    };
    text.split(split).filter(|word| !word.is_empty())
}

/// A parameter's two halves, without the quotes around the whole or the value.
fn name_and_value(word: &str) -> (&str, Option<&str>) {
    let word = word.strip_prefix('"').map_or(word, |word| word.strip_suffix('"').unwrap_or(word));
    match word.split_once('=') {
        Some((name, value)) => {
            let value = value.strip_prefix('"').unwrap_or(value);
            (name, Some(value.strip_suffix('"').unwrap_or(value)))
        }
        None => (word, None),
    }
}

fn same_name(a: &str, b: &str) -> bool {
    let dashed = |c: u8| if c == b'-' { b'_' } else { c };
    a.bytes().map(dashed).eq(b.bytes().map(dashed))
}

#[cfg(test)]
mod tests;
