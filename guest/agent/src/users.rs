//! Who `USER[:GROUP]` is, by this machine's /etc/passwd and /etc/group.

use crate::sys::{Errno, Result, file, process};
use crate::text::{lines, number};

/// Bytes of /etc/passwd and /etc/group that are read.
const FILE_MAX: usize = 256 << 10;

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub user: u32,
    pub group: u32,
}

/// Finds who is meant.
///
/// # Errors
/// When nobody is called so.
pub fn find(wanted: &[u8]) -> Result<User> {
    let passwd = file::read_file(c"/etc/passwd", process::memory(FILE_MAX)?).unwrap_or_default();
    let groups = file::read_file(c"/etc/group", process::memory(FILE_MAX)?).unwrap_or_default();
    among(wanted, passwd, groups).ok_or(Errno::NOENT)
}

fn among(wanted: &[u8], passwd: &[u8], groups: &[u8]) -> Option<User> {
    let mut words = wanted.splitn(2, |byte| *byte == b':');
    let (name, group) = (words.next()?, words.next());
    let (user, own) = match number(name) {
        // Its group as the file says, if it is there; a user without a line is in group 0, as in a
        // container.
        Some(id) => (id, field_of(passwd, 2, name, 3).unwrap_or(0)),
        None => (field_of(passwd, 0, name, 2)?, field_of(passwd, 0, name, 3)?),
    };
    let group = match group {
        None => own,
        Some(group) => match number(group) {
            Some(id) => id,
            None => field_of(groups, 0, group, 2)?,
        },
    };
    Some(User { user, group })
}

/// The number in `field` of the line whose field `at` is `value`.
fn field_of(text: &[u8], at: usize, value: &[u8], field: usize) -> Option<u32> {
    lines(text).find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.clone().nth(at)? == value;
        if found { number(fields.nth(field)?) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n";
    const GROUPS: &[u8] = b"root:x:0:\nwheel:x:10:ann\n";

    #[test]
    fn a_user_is_found_by_name_and_by_number_and_a_stranger_is_not() {
        let find = |wanted: &str| among(wanted.as_bytes(), PASSWD, GROUPS);
        let user = |user, group| Some(User { user, group });
        assert_eq!(find("ann"), user(1000, 1001));
        assert_eq!(find("1000"), user(1000, 1001));
        assert_eq!(find("ann:wheel"), user(1000, 10));
        assert_eq!(find("65534:7"), user(65534, 7));
        assert_eq!(find("4242"), user(4242, 0));
        assert_eq!(find("bob"), None);
        assert_eq!(find("ann:nobody"), None);
        assert_eq!(find(""), None);
        assert_eq!(find("-1"), None);
    }
}
