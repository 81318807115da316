//! Configuration files: JSON in, JSON out, and an error that names the nearest known key.

use std::path::{Path, PathBuf};

use super::VmConfig;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not the JSON that is expected.
    #[error("{path}: {message}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

impl VmConfig {
    /// Reads the JSON file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or as [`VmConfig::from_json`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigFileError::Read { path: path.to_owned(), source })?;
        Self::from_json(&text)
            .map_err(|message| ConfigFileError::Parse { path: path.to_owned(), message })
    }

    /// Reads JSON. The error is a sentence that names the place and, for an unknown key, the
    /// nearest one that exists.
    ///
    /// # Errors
    /// That sentence.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| explain(&e.to_string()))
    }

    /// The JSON that [`VmConfig::from_json`] reads.
    pub fn to_json(&self) -> String {
        // A struct of plain data with string keys always has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Adds the nearest known key to serde's "unknown field" message.
fn explain(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = ["unknown field", "unknown variant"].iter().any(|m| message.starts_with(m));
    let Some(wrong) = quoted.next().filter(|_| unknown) else { return message.to_owned() };
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(wrong, known), known))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, known)) if distance <= wrong.len().div_ceil(2) => {
            format!("{message}; did you mean `{known}`?")
        }
        _ => message.to_owned(),
    }
}
