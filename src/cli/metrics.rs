//! `--metrics FILE`: what the devices have done, written when the VM starts, at each SIGUSR1, and at
//! the end. Nothing is written in between, so that an idle VM costs nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use husk::RunningVm;

/// The file, known to be writable.
#[derive(Clone)]
pub struct File {
    path: PathBuf,
    /// A file that is written beside it and takes its place, so that nobody reads half of one; what is
    /// no regular file (a pipe, a terminal) is written to itself.
    beside: Option<PathBuf>,
}

impl File {
    /// Makes `path`, empty, or finds that it can be written to.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn make(path: &Path) -> Result<Self, String> {
        let refused = |e: io::Error| format!("--metrics {}: {e}", path.display());
        let regular = std::fs::metadata(path).map_or(true, |m| m.is_file());
        let beside = regular.then(|| {
            let mut name = path.as_os_str().to_owned();
            name.push(".new");
            PathBuf::from(name)
        });
        let file = Self { path: path.to_owned(), beside };
        if regular {
            file.put("").map_err(refused)?;
        }
        Ok(file)
    }

    /// Writes what `vm`'s devices have done so far.
    pub fn write(&self, vm: &RunningVm) {
        if let Err(e) = self.put(&vm.metrics().to_json()) {
            log::warn!("--metrics {}: {e}", self.path.display());
        }
    }

    fn put(&self, text: &str) -> io::Result<()> {
        match &self.beside {
            Some(beside) => {
                std::fs::write(beside, text)?;
                std::fs::rename(beside, &self.path)
            }
            None => {
                let mut file = std::fs::OpenOptions::new().write(true).open(&self.path)?;
                file.write_all(text.as_bytes())
            }
        }
    }
}
