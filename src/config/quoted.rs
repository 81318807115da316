//! Words that are shown so that they can be typed again.

/// A word as a shell takes it (POSIX.1-2017, Shell Command Language, 2.2.2).
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./,:=@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
