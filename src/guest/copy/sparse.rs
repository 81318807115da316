//! A file that is made of what comes, without room for zeros where it is a regular one.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use husk_guest_protocol::holes::{Run, runs};

/// What is filled from its begin: a regular file that is new, or something else that is written to.
pub struct Sparse<'a> {
    file: &'a File,
    /// Whether what is left out of it is zero: a pipe or a device gets every byte.
    may_have_holes: bool,
    /// How much has come, in bytes.
    at: u64,
    /// Nothing is written at the end yet.
    ends_in_hole: bool,
}

impl<'a> Sparse<'a> {
    /// Nothing has come yet.
    ///
    /// # Errors
    /// The host's.
    pub fn new(file: &'a File) -> io::Result<Sparse<'a>> {
        let metadata = file.metadata()?;
        let may_have_holes = metadata.is_file() && metadata.len() == 0;
        Ok(Sparse { file, may_have_holes, at: 0, ends_in_hole: false })
    }

    /// Adds `bytes`.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.may_have_holes {
            return self.file.write_all(bytes);
        }
        for run in runs(self.at, bytes) {
            let len = match run {
                Run::Data(run) => {
                    self.file.write_all_at(run, self.at)?;
                    run.len()
                }
                Run::Hole(len) => len,
            };
            self.ends_in_hole = matches!(run, Run::Hole(_));
            self.at = self.at.checked_add(len as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Ok(())
    }

    /// Gives the file its length.
    ///
    /// # Errors
    /// The host's.
    pub fn finish(&self) -> io::Result<()> {
        if self.ends_in_hole { self.file.set_len(self.at) } else { Ok(()) }
    }
}
