//! The order of kernel versions: 6.10 comes after 6.9, and 6.9-rc1 before 6.9.

/// A version that can be compared.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<Part>);

/// In this order: `6.9-rc1` < `6.9` < `6.9-amd64` < `6.9.1`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Candidate(u64),
    End,
    Word(String),
    Number(u64),
}

impl Version {
    /// The version `name` is or contains.
    pub fn of(name: &str) -> Self {
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
        let candidate = |word: &str| word.strip_prefix("rc")?.parse().ok();
        let parts = words.map(|word| match (word.parse(), candidate(word)) {
            (Ok(number), _) => Part::Number(number),
            (_, Some(number)) => Part::Candidate(number),
            _ => Part::Word(word.to_owned()),
        });
        Self(parts.chain([Part::End]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let ordered = [
            "5.10.0-40-amd64",
            "6.1.0-9-amd64",
            "6.1.0-32-amd64",
            "6.1.0-32-cloud-amd64",
            "6.9-rc7-amd64",
            "6.9~rc10-amd64",
            "6.9",
            "6.9-amd64",
            "6.9.1-amd64",
            "6.10-amd64",
            "6.12.38+deb13-amd64",
        ];
        for pair in ordered.windows(2) {
            assert!(Version::of(pair[0]) < Version::of(pair[1]), "{pair:?}");
        }
    }
}
