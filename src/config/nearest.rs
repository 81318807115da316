//! What somebody may have meant who mistyped a word.

/// The one of `known` that `wrong` is a typo of, if it is one: at most a third of the letters
/// differ (exchanged neighbours count as one). A suggestion that is not obvious misleads.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|word| {
        let letters = wrong.chars().count().max(word.chars().count());
        (strsim::damerau_levenshtein(wrong, word), letters, word)
    });
    let (distance, letters, word) = distances.min_by_key(|(distance, ..)| *distance)?;
    (distance * 3 <= letters).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_recognised_and_another_word_is_not() {
        let known = ["path", "ro", "id", "tap", "hugepages", "on_reboot", "cpus"];
        for (wrong, meant) in [
            ("pth", "path"),
            ("idd", "id"),
            ("tpa", "tap"),
            ("hugepage", "hugepages"),
            ("onreboot", "on_reboot"),
            ("cpu", "cpus"),
        ] {
            assert_eq!(nearest(wrong, known), Some(meant), "{wrong}");
        }
        // `rw` least of all means `ro`.
        for wrong in ["rw", "xyzzy", "mac", "format", "readonly", "", "x"] {
            assert_eq!(nearest(wrong, known), None, "{wrong}");
        }
        assert_eq!(nearest("path", []), None);
    }
}
