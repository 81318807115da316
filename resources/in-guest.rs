//! Tests of a crate that is run with husk as cargo's runner: they fail anywhere but in its guest. See
//! `tests/soak_runner.rs`, which also runs the ignored ones, to see that husk passes their failures on.

use std::fs;
use std::io::Read;

#[test]
fn it_is_in_a_guest_and_finds_its_crate_where_what_it_writes_is_lost() {
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), "husk\n");
    let here = std::env::current_dir().unwrap();
    assert_eq!(std::env::var_os("CARGO_MANIFEST_DIR"), Some(here.into_os_string()));
    assert!(fs::read_to_string("Cargo.toml").unwrap().contains("in-guest"));
    assert!(!fs::exists("written").unwrap(), "the guest before kept it");
    fs::write("written", "by a test").unwrap();
    assert_eq!(fs::read_to_string("written").unwrap(), "by a test");
}

#[test]
fn nobody_types() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
#[ignore = "it fails, in words"]
fn it_fails() {
    panic!("as it should");
}

#[test]
#[ignore = "it ends by a signal"]
fn it_is_killed() {
    std::process::abort();
}
