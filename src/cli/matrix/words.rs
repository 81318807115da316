//! The words of the command line: those that are passed on, and what kernels are called.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Matrix;

/// All of `words`, which are those of a command line that was parsed, but the options `without` and their
/// values.
pub fn passed_on(words: impl Iterator<Item = OsString>, without: &[&str]) -> Vec<OsString> {
    let known = Matrix::augment_args(clap::Command::new(""));
    let has_value = |name: &[u8]| {
        known.get_arguments().any(|arg| {
            arg.get_long().is_some_and(|long| Some(long.as_bytes()) == name.strip_prefix(b"--"))
                && arg.get_action().takes_values()
        })
    };
    let mut passed = Vec::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            passed.push(word);
            break;
        }
        let equals = bytes.iter().position(|byte| *byte == b'=');
        let name = bytes.get(..equals.unwrap_or(bytes.len())).unwrap_or_default();
        let is_passed = !without.iter().any(|without| without.as_bytes() == name);
        let value = if equals.is_none() && has_value(name) { words.next() } else { None };
        if is_passed {
            passed.push(word);
            passed.extend(value);
        }
    }
    // The command.
    passed.extend(words);
    passed
}

/// What each kernel is called: by the fewest of its path's last names by which they differ.
pub fn labels(kernels: &[PathBuf]) -> Vec<String> {
    let most = kernels.iter().map(|kernel| kernel.iter().count()).max().unwrap_or(1);
    let last = |kernel: &Path, count: usize| {
        let names: Vec<&OsStr> = kernel.iter().collect();
        let kept: PathBuf = names.iter().skip(names.len().saturating_sub(count)).collect();
        super::plain(&kept.display().to_string())
    };
    let mut labels = Vec::new();
    for count in 1..=most {
        labels = kernels.iter().map(|kernel| last(kernel, count)).collect();
        let mut sorted: Vec<_> = labels.iter().collect();
        sorted.sort();
        sorted.dedup();
        if sorted.len() == labels.len() {
            break;
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(words: &[&str]) -> Vec<String> {
        let words = words.iter().map(OsString::from);
        let passed = passed_on(words, &["--kernel", "--parallel"]);
        passed.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn options_are_passed_on_with_their_values_and_the_kernels_are_not() {
        let words =
            ["--kernel", "a", "--memory", "1G", "--kernel=b", "--share-kernel", "--parallel"];
        let rest = ["2", "--append", "--kernel", "--", "sh", "--kernel", "c"];
        let wanted = [
            "--memory",
            "1G",
            "--share-kernel",
            "--append",
            "--kernel",
            "--",
            "sh",
            "--kernel",
            "c",
        ];
        assert_eq!(passed(&[&words[..], &rest].concat()), wanted);
    }

    #[test]
    fn kernels_are_called_by_as_little_as_tells_them_apart() {
        let named = |paths: &[&str]| labels(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(named(&["/boot/a", "b"]), ["a", "b"]);
        assert_eq!(named(&["/k/6.1/vmlinuz", "/k/5.10/vmlinuz"]), ["6.1/vmlinuz", "5.10/vmlinuz"]);
        assert_eq!(named(&["/a", "/a"]), ["/a", "/a"]);
    }
}
