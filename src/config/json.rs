//! Configuration files: JSON in, JSON out, and an error that names the nearest known key.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::{VmConfig, nearest};
use crate::files;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        r#source: std::io::Error,
    },
    /// It is not text.
    #[error("cannot read {path}: it is not UTF-8", path = .0.display())]
    NotText(PathBuf),
    /// It is not the JSON that is expected.
    #[error("{path}: {message}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

/// A configuration that has no JSON form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToJsonError {
    /// A path that is not text, which JSON is.
    #[error("{0:?} is not UTF-8, and JSON cannot hold it")]
    Path(PathBuf),
    /// Anything else.
    #[error("the configuration has no JSON form: {0}")]
    Other(String),
}

/// The longest configuration file, in bytes. The most devices a VM can have fill a hundredth of it.
pub const FILE_MAX: u64 = 1 << 20;

impl VmConfig {
    /// Reads the JSON file at `path`, of at most [`FILE_MAX`] bytes.
    ///
    /// # Errors
    /// When it is no regular file, is too long or cannot be read, or as [`VmConfig::from_json`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigFileError> {
        let bytes = files::read(path, FILE_MAX)
            .map_err(|source| ConfigFileError::Read { path: path.to_owned(), source })?;
        let text =
            String::from_utf8(bytes).map_err(|_| ConfigFileError::NotText(path.to_owned()))?;
        Self::from_json(&text)
            .map_err(|message| ConfigFileError::Parse { path: path.to_owned(), message })
    }

    /// Reads JSON. The error is a sentence that names the place and, for an unknown key, the
    /// nearest one that exists.
    ///
    /// # Errors
    /// That sentence.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_str(text);
        let config = json.deserialize_map(Object);
        let config = config.and_then(|config| json.end().map(|()| config));
        config.map_err(|e| explain(&e.to_string()))
    }

    /// The JSON that [`VmConfig::from_json`] reads.
    ///
    /// # Errors
    /// When a path in it is not UTF-8.
    pub fn to_json(&self) -> Result<String, ToJsonError> {
        if let Some((_, path)) = self.paths().into_iter().find(|(_, path)| path.to_str().is_none())
        {
            return Err(ToJsonError::Path(path.to_owned()));
        }
        serde_json::to_string_pretty(self).map_err(|e| ToJsonError::Other(e.to_string()))
    }
}

/// A configuration is an object; serde would take a list of its values as well.
struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = VmConfig;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object in {braces}")
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<VmConfig, A::Error> {
        VmConfig::deserialize(MapAccessDeserializer::new(map))
    }
}

/// What serde expects, in its words and in those of people who write JSON.
const EXPECTED: [(&str, &str); 7] = [
    ("u32", "a whole number from 0 to 4294967295"),
    ("i32", "a whole number from -2147483648 to 2147483647"),
    ("a sequence", "a list in [brackets]"),
    ("path string", "a path in \"quotes\""),
    ("a string", "a text in \"quotes\""),
    ("a boolean", "true or false"),
    ("newtype variant", "an object in {braces}, {\"disk\": {}} for one"),
];

/// Makes serde's message one for people: without Rust's names of types, and with the nearest known
/// key when there is no such key.
fn explain(message: &str) -> String {
    let unknown = ["unknown field", "unknown variant"].iter().any(|m| message.starts_with(m));
    if unknown {
        let mut quoted = message.split('`').skip(1).step_by(2);
        let meant = quoted.next().and_then(|wrong| nearest(wrong, quoted));
        return match meant {
            Some(known) => format!("{message}; did you mean `{known}`?"),
            None => message.to_owned(),
        };
    }
    // The last one: what comes before may be quoted from the file.
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let (expected, place) = expected.split_at(expected.find(" at line ").unwrap_or(expected.len()));
    let words = match EXPECTED.iter().find(|(serdes, _)| *serdes == expected) {
        Some((_, ours)) => ours,
        None if expected.starts_with("struct ") => "an object in {braces}",
        None => expected,
    };
    // Of a value it quotes serde says what it is as people do.
    let found = match found {
        "invalid type: sequence" => "invalid type: a list in [brackets]",
        "invalid type: map" => "invalid type: an object in {braces}",
        "invalid type: unit variant" => "invalid type: a name alone",
        other => other,
    };
    format!("{found}, expected {words}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_told_in_the_words_of_what_was_expected() {
        let error = |text: &str| VmConfig::from_json(text).unwrap_err().to_string();
        for (text, words) in [
            ("[1]", "a list in [brackets], expected an object in {braces}"),
            (r#"{"disks": {}}"#, "an object in {braces}, expected a list in [brackets]"),
            (r#"{"cpus": []}"#, "a list in [brackets], expected a whole number"),
            (r#"{"cpus": "sequence"}"#, "string \"sequence\", expected a whole number"),
        ] {
            let error = error(text);
            assert!(error.contains(words), "{error}");
        }
    }
}
