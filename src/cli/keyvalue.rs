//! Option values of the form `path=disk.img,ro,id=root`.

use std::collections::BTreeMap;

/// The parts of such a value, taken out one by one.
#[derive(Debug)]
pub struct KeyValues<'a> {
    option: &'a str,
    known: &'a [&'a str],
    values: BTreeMap<String, Option<String>>,
}

impl<'a> KeyValues<'a> {
    /// Splits `text`, the value of `option`. A first part without `=` that is no key is the value of
    /// `known[0]`. A comma within a value is written twice.
    pub fn parse(option: &'a str, known: &'a [&'a str], text: &str) -> Result<Self, String> {
        Self::split(option, known, known.first().copied(), text)
    }

    /// As [`parse`](Self::parse), of an option all of whose parts have keys: a mistyped key would
    /// be a value.
    pub fn parse_keys(option: &'a str, known: &'a [&'a str], text: &str) -> Result<Self, String> {
        Self::split(option, known, None, text)
    }

    /// A first part that has no key is the value of `bare`.
    fn split(
        option: &'a str,
        known: &'a [&'a str],
        bare: Option<&str>,
        text: &str,
    ) -> Result<Self, String> {
        let mut parsed = Self { option, known, values: BTreeMap::new() };
        for (n, part) in split(text).into_iter().enumerate() {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) if known.contains(&key) => {
                    (key.to_owned(), Some(value.to_owned()))
                }
                Some((key, _)) if n > 0 || key.bytes().all(|b| b.is_ascii_lowercase()) => {
                    return Err(parsed.unknown(key));
                }
                None if known.contains(&part.as_str()) => (part, None),
                _ => match bare.filter(|_| n == 0) {
                    Some(key) => (key.to_owned(), Some(part)),
                    None => return Err(parsed.unknown(&part)),
                },
            };
            if parsed.values.insert(key.clone(), value).is_some() {
                return Err(format!("{option}: `{key}` is given twice"));
            }
        }
        Ok(parsed)
    }

    fn unknown(&self, key: &str) -> String {
        let meant = match husk::config::nearest(key, self.known.iter().copied()) {
            Some(known) => format!("; did you mean `{known}`?"),
            None => String::new(),
        };
        let known = self.known.join(", ");
        format!("{}: unknown key `{key}`{meant} (the keys are {known})", self.option)
    }

    /// Takes the value of `key`, if it is given.
    pub fn value(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.values.remove(key) {
            None => Ok(None),
            Some(Some(value)) if !value.is_empty() => Ok(Some(value)),
            Some(_) => Err(format!("{}: `{key}` needs a value: {key}=…", self.option)),
        }
    }

    /// Takes the switch `key`: `ro`, `ro=on`, `ro=off`.
    pub fn switch(&mut self, key: &str) -> Result<bool, String> {
        match self.values.remove(key) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(value)) => match value.as_str() {
                "on" | "true" | "yes" | "1" => Ok(true),
                "off" | "false" | "no" | "0" => Ok(false),
                _ => Err(format!("{}: {key}={value} is neither on nor off", self.option)),
            },
        }
    }
}

/// Splits at commas; two in a row are one comma of the value.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if c != ',' || doubled => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["path", "ro", "id"];

    #[test]
    fn keys_switches_and_a_bare_first_value_are_understood() {
        let mut kv = KeyValues::parse("--disk", KEYS, "path=a=b,ro,id=root").unwrap();
        assert_eq!(kv.value("path"), Ok(Some("a=b".to_owned())));
        assert_eq!(kv.switch("ro"), Ok(true));
        assert_eq!(kv.value("id"), Ok(Some("root".to_owned())));
        let mut kv = KeyValues::parse("--disk", KEYS, "my,,disk.img,ro=off").unwrap();
        assert_eq!(kv.value("path"), Ok(Some("my,disk.img".to_owned())));
        assert_eq!((kv.switch("ro"), kv.switch("id")), (Ok(false), Ok(false)));
    }

    #[test]
    fn mistakes_name_the_option_and_the_nearest_key() {
        let error = KeyValues::parse("--disk", KEYS, "pth=x").unwrap_err();
        assert!(error.contains("--disk") && error.contains("did you mean `path`"), "{error}");
        let error = KeyValues::parse("--disk", KEYS, "x,rw").unwrap_err();
        assert!(error.contains("`rw` (the keys are path, ro, id)"), "{error}");
        assert!(KeyValues::parse("--disk", KEYS, "x,id=a,id=b").unwrap_err().contains("twice"));
        let mut kv = KeyValues::parse("--disk", KEYS, "path=,ro=maybe,id").unwrap();
        assert!(kv.value("path").is_err() && kv.switch("ro").is_err() && kv.value("id").is_err());
    }
}
