//! Where husk keeps what lives no longer than the user's session: sockets and locks by which a user's processes find
//! each other. All of them look in one place, or they would not meet.
//!
//! This says only where that is. Whoever uses it makes it, and sees that it is the user's alone.

use std::path::{Path, PathBuf};

/// The user this process acts as.
pub fn user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// The user's runtime directory.
pub fn directory() -> PathBuf {
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    place(given, Path::new("/run/user"), user())
}

/// The one of `user` who has been given one, or has one in `usual` all the same, as in a shell of `su` or cron.
fn place(given: Option<PathBuf>, usual: &Path, user: u32) -> PathBuf {
    if let Some(given) = given.filter(|path| path.is_absolute()) {
        return given.join("husk");
    }
    let usual = usual.join(user.to_string());
    match usual.is_dir() {
        true => usual.join("husk"),
        false => PathBuf::from(format!("/tmp/husk-{user}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_runtime_directory_is_found_where_it_usually_is() {
        let usual = tempfile::tempdir().unwrap();
        let (run, none) = (usual.path(), PathBuf::from("/tmp/husk-7"));
        assert_eq!(place(None, run, 7), none);
        std::fs::create_dir(run.join("7")).unwrap();
        assert_eq!(place(None, run, 7), run.join("7/husk"));
        assert_eq!(place(Some("relative".into()), run, 7), run.join("7/husk"));
        assert_eq!(place(Some("/given".into()), run, 7), Path::new("/given/husk"));
        assert_eq!(place(None, run, 70), Path::new("/tmp/husk-70"));
    }
}
