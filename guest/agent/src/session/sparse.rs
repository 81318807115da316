//! A file that is made of what comes, without room for zeros.

use husk_guest_protocol::holes::{Run, runs};

use crate::sys::{Errno, Fd, Result, file};

/// A new regular file, which is filled from its begin.
pub struct Sparse {
    fd: Fd,
    /// How much of it has come, in bytes.
    at: u64,
    /// Nothing is written at its end yet.
    ends_in_hole: bool,
}

impl Sparse {
    /// Nothing has come yet.
    pub fn new(fd: Fd) -> Sparse {
        Sparse { fd, at: 0, ends_in_hole: false }
    }

    /// Adds `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for run in runs(self.at, bytes) {
            let len = match run {
                Run::Data(run) => {
                    file::write_all_at(self.fd, self.at, run)?;
                    run.len()
                }
                Run::Hole(len) => len,
            };
            self.ends_in_hole = matches!(run, Run::Hole(_));
            self.at = self.at.checked_add(len as u64).ok_or(Errno::FBIG)?;
        }
        Ok(())
    }

    /// Gives it its length.
    pub fn finish(&self) -> Result<()> {
        if self.ends_in_hole { file::set_len(self.fd, self.at) } else { Ok(()) }
    }
}
