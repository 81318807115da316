//! Who `USER[:GROUP]` is, by this machine's /etc/passwd and /etc/group.

use core::ffi::CStr;

use crate::sys::{Errno, Result, file, process};
use crate::text::{lines, number};

/// Bytes of /etc/passwd and /etc/group that are read.
const FILE_MAX: usize = 256 << 10;

/// The most groups that a user is made a member of, the own one among them.
const GROUPS_MAX: usize = 1024;

/// A user and groups.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    pub user: u32,
    groups: [u32; GROUPS_MAX],
    len: usize,
}

impl User {
    fn new(user: u32, group: u32) -> User {
        let mut groups = [0; GROUPS_MAX];
        groups[0] = group;
        User { user, groups, len: 1 }
    }

    /// The own group first, which there always is.
    pub fn groups(&self) -> &[u32] {
        self.groups.get(..self.len).unwrap_or_default()
    }

    fn join(&mut self, group: u32) -> Result<()> {
        if self.groups().contains(&group) {
            return Ok(());
        }
        *self.groups.get_mut(self.len).ok_or(Errno::TOOBIG)? = group;
        self.len += 1;
        Ok(())
    }
}

/// Finds who is meant. One who is named, without a group, has also the groups of which /etc/group says so, as
/// by initgroups(3); a number is that user alone, as in a container.
///
/// # Errors
/// When nobody is called so, or has too many groups; when one of the files is larger than [`FILE_MAX`], for
/// what a part of it says of somebody may be wrong.
pub fn find(wanted: &[u8]) -> Result<User> {
    among(wanted, table(c"/etc/passwd")?, table(c"/etc/group")?)
}

/// All of a file, of which there may be none.
fn table(path: &CStr) -> Result<&'static [u8]> {
    let text = file::read_file(path, process::memory(FILE_MAX)?).unwrap_or_default();
    if text.len() < FILE_MAX { Ok(text) } else { Err(Errno::TOOBIG) }
}

fn among(wanted: &[u8], passwd: &[u8], groups: &[u8]) -> Result<User> {
    let mut words = wanted.splitn(2, |byte| *byte == b':');
    let (name, group) = (words.next().ok_or(Errno::NOENT)?, words.next());
    let (user, own) = match number(name) {
        // Its group as the file says, if it is there; a user without a line is in group 0, as in a
        // container.
        Some(id) => (id, Some(field_of(passwd, 2, name, 3).unwrap_or(0))),
        None => (field_of(passwd, 0, name, 2).ok_or(Errno::NOENT)?, field_of(passwd, 0, name, 3)),
    };
    if let Some(group) = group {
        let group = number(group).or_else(|| field_of(groups, 0, group, 2));
        return Ok(User::new(user, group.ok_or(Errno::NOENT)?));
    }
    let mut found = User::new(user, own.ok_or(Errno::NOENT)?);
    if number(name).is_none() {
        for line in lines(groups) {
            let mut fields = line.split(|byte| *byte == b':');
            let id = fields.nth(2).and_then(number);
            let mut members = fields.next().unwrap_or_default().split(|byte| *byte == b',');
            if let Some(id) = id.filter(|_| members.any(|member| member == name)) {
                found.join(id)?;
            }
        }
    }
    Ok(found)
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
    const GROUPS: &[u8] =
        b"root:x:0:\nwheel:x:10:ann\nkvm:x:36:bob,ann\nann:x:1001:ann\nanna:x:7:anna\nbad:x:y:ann\nshort:x:8";

    #[test]
    fn of_a_file_that_is_too_long_nothing_is_believed_and_one_that_is_not_there_is_empty() {
        let path = std::env::temp_dir().join(format!("husk-users-{}", std::process::id()));
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        let read = |len: usize| {
            std::fs::write(&path, vec![b'x'; len]).unwrap();
            table(&name).map(<[u8]>::len)
        };
        let found = [read(FILE_MAX - 1), read(FILE_MAX), read(FILE_MAX + 1)];
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found, [Ok(FILE_MAX - 1), Err(Errno::TOOBIG), Err(Errno::TOOBIG)]);
        assert_eq!(table(&name), Ok(&b""[..]));
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number_and_a_stranger_is_not() {
        let find = |wanted: &str| among(wanted.as_bytes(), PASSWD, GROUPS);
        let found = |wanted: &str, user, groups: &[u32]| {
            let found = find(wanted).unwrap();
            assert_eq!((found.user, found.groups()), (user, groups), "{wanted}");
        };
        // Those that list the name, and the own one once.
        found("ann", 1000, &[1001, 10, 36]);
        found("root", 0, &[0]);
        // A number, and whoever is given a group, has no others.
        found("1000", 1000, &[1001]);
        found("ann:wheel", 1000, &[10]);
        found("65534:7", 65534, &[7]);
        found("4242", 4242, &[0]);
        for nobody in ["bob", "ann:nobody", "", "-1"] {
            assert_eq!(find(nobody).unwrap_err(), Errno::NOENT, "{nobody}");
        }
    }

    #[test]
    fn a_user_with_more_groups_than_there_is_room_for_is_told_and_not_cut_short() {
        let groups = |count: usize| -> String {
            (0..count).map(|n| format!("g{n}:x:{}:ann\n", 2000 + n)).collect()
        };
        let most = among(b"ann", PASSWD, groups(GROUPS_MAX - 1).as_bytes()).unwrap();
        assert_eq!(most.groups().len(), GROUPS_MAX);
        let error = among(b"ann", PASSWD, groups(GROUPS_MAX).as_bytes()).unwrap_err();
        assert_eq!(error, Errno::TOOBIG);
    }
}
