//! Results made readable: a table for a terminal, every run as CSV, and one page of HTML with plots.
//! All of them say where the figures come from, and what they are not when KVM is not the hardware's.

mod axes;
mod csv;
mod html;
mod plots;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{CompareError, Results};
use crate::files;

/// The file of all runs.
const CSV: &str = "results.csv";
/// The page.
const HTML: &str = "report.html";

/// A directory for results.
#[derive(Debug)]
pub struct Prepared {
    /// What was made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Prepared {
    /// Removes what was made, as far as nothing is in it.
    pub fn give_up(self) {
        for directory in self.made {
            if std::fs::remove_dir(directory).is_err() {
                // Somebody has put something there.
                return;
            }
        }
    }
}

/// Makes `dir` and sees that it can be written to, before hours are spent on what goes there.
///
/// # Errors
/// It cannot.
pub fn prepare(dir: &Path) -> Result<Prepared, CompareError> {
    let shown = dir.display();
    let missing = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
    let prepared = Prepared { made: missing.map(Path::to_owned).collect() };
    std::fs::create_dir_all(dir).map_err(CompareError::host(format!("making {shown}")))?;
    let probe = dir.join(".husk-compare");
    let written =
        files::write_renamed(&probe, None, |_| Ok(())).and_then(|()| std::fs::remove_file(&probe));
    match written {
        Ok(()) => Ok(prepared),
        Err(e) => {
            prepared.give_up();
            Err(CompareError::host(format!("writing to {shown}"))(e))
        }
    }
}

impl Results {
    /// The table for a terminal.
    pub fn table(&self) -> String {
        table::table(self)
    }

    /// What containers and VMs differ in, axis by axis, with what was measured.
    pub fn axes(&self) -> String {
        axes::axes(self)
    }

    /// Every run, as CSV (RFC 4180, with names in the first line).
    pub fn csv(&self) -> String {
        csv::csv(self)
    }

    /// One page of HTML that needs nothing else.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    pub fn html(&self) -> Result<String, CompareError> {
        html::html(self)
    }

    /// Writes `results.csv` and `report.html` to `dir`; returns where they are.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&self, dir: &Path) -> Result<[PathBuf; 2], CompareError> {
        let paths = [dir.join(CSV), dir.join(HTML)];
        for (path, text) in paths.iter().zip([self.csv(), self.html()?]) {
            files::write_renamed(path, None, |file| file.write_all(text.as_bytes()))
                .map_err(CompareError::host(format!("writing {}", path.display())))?;
        }
        Ok(paths)
    }
}

/// What a level of parallelism is called.
fn level_name(parallel: usize, cold: bool) -> String {
    match (parallel, cold) {
        (1, false) => "one at a time".to_owned(),
        (1, true) => "one at a time, caches cold".to_owned(),
        (n, _) => format!("{n} at once"),
    }
}

/// Bytes as MiB.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
