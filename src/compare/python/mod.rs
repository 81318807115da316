//! The files of the workload `python`: the host's own interpreter, the modules it takes for the script
//! and its shared libraries, laid out so that they run in a root that has nothing else.
//!
//! The interpreter itself says what these are: `collect.py` lets it run the script and then looks at
//! what it has loaded. All contestants get the same files; a plain process takes the host's loader.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use super::error::CompareError;
use super::launch;
use super::program::find;
use super::workload::PYTHON;

const COLLECT: &str = include_str!("collect.py");
/// It takes a second on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A python3: the distribution's if it is there, whatever else is first on PATH.
fn interpreter() -> Option<PathBuf> {
    let distribution = Path::new("/usr/bin/python3");
    distribution.exists().then(|| distribution.to_owned()).or_else(|| find("python3"))
}

/// Lays the files out at `root`, an empty directory beside which there is room for scripts.
///
/// # Errors
/// There is no python3, or it does not do what it is told.
pub fn lay_out(root: &Path, scratch: &Path) -> Result<(), CompareError> {
    let python = interpreter().ok_or(CompareError::NoPython { tried: None })?;
    let (collect, work) = (scratch.join("collect.py"), scratch.join("work.py"));
    for (path, text) in [(&collect, COLLECT), (&work, PYTHON)] {
        let error = CompareError::host(format!("writing {}", path.display()));
        fs::write(path, text).map_err(error)?;
    }
    let mut command: Vec<OsString> = vec![python.clone().into(), "-I".into(), "-S".into()];
    command.extend([&collect, &work, root].map(OsString::from));
    let said = launch::quietly(&command, LIMIT);
    if said.is_some() && root.join("python/bin/python3").exists() {
        return Ok(());
    }
    Err(CompareError::NoPython { tried: Some(python) })
}

/// All that is below a directory, by names from there on.
#[derive(Debug, Default)]
pub struct Tree {
    /// The directories, each before what is in it.
    pub directories: Vec<String>,
    /// The files and what they hold.
    pub files: Vec<(String, Vec<u8>)>,
}

/// All directories and files below `root`.
///
/// # Errors
/// One cannot be read.
pub fn tree(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::default();
    let mut waiting = vec![String::new()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            let name =
                if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
            if entry.file_type()?.is_dir() {
                tree.directories.push(name.clone());
                waiting.push(name);
            } else {
                tree.files.push((name, fs::read(entry.path())?));
            }
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_collected_runs_the_script_from_where_it_was_laid_out() {
        if interpreter().is_none() {
            crate::skipped::skipped("no python3");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        lay_out(&root, dir.path()).unwrap();
        let Tree { directories, files } = tree(&root).unwrap();
        assert!(directories.iter().any(|name| name == "python/bin"));
        let at =
            |end: &str| files.iter().any(|(name, bytes)| name.ends_with(end) && !bytes.is_empty());
        // A library, the loader, a module, and its code.
        for end in ["/libc.so.6", "/os.py", "/json/decoder.py", "python/bin/python3"] {
            assert!(at(end), "no {end}");
        }
        assert!(files.iter().any(|(name, _)| name.contains("/ld-linux")));
        assert!(files.iter().any(|(name, _)| name.ends_with(".pyc") && name.contains("decoder")));
        // A directory stands before what is in it.
        for (n, name) in directories.iter().enumerate() {
            let parent = name.rsplit_once('/').map(|(parent, _)| parent);
            let known = |parent| directories.iter().take(n).any(|other| other == parent);
            assert!(parent.is_none_or(known), "{name}");
        }
    }
}
