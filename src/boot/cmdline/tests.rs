use vm_memory::{Bytes, GuestAddress};

use super::*;

fn cmdline(text: &str) -> Cmdline {
    Cmdline::new(text).unwrap()
}

#[test]
fn parameters_are_appended_before_what_is_for_init() {
    let mut line = cmdline("  console=ttyS0 quiet -- /bin/sh -c true ");
    line.append("reboot=t").unwrap();
    line.append("  ").unwrap();
    assert_eq!(line.text(), "console=ttyS0 quiet reboot=t -- /bin/sh -c true");

    assert_eq!(Cmdline::default().text(), "");
    let mut line = cmdline("-- a");
    assert_eq!(line.text(), "-- a");
    line.append("quiet").unwrap();
    assert_eq!(line.text(), "quiet -- a");
}

#[test]
fn what_is_appended_for_init_does_not_hide_what_is_appended_later() {
    let mut line = cmdline("quiet");
    line.append("ro -- single").unwrap();
    line.append("panic=-1").unwrap();
    line.append("-- --verbose").unwrap();
    assert_eq!(line.text(), "quiet ro panic=-1 -- single --verbose");
}

#[test]
fn parameters_are_found_as_the_kernel_finds_them() {
    let line = cmdline(r#"quiet panic=-1 panic=5 a-b=1 x="one two=3" "y=four five" -- z=1"#);
    assert!(line.has("quiet") && line.has("panic") && line.has("panic=") && !line.has("quiet="));
    assert_eq!(line.value("panic"), Some("5"));
    assert_eq!(line.value("a_b"), Some("1"));
    assert_eq!(line.value("x"), Some("one two=3"));
    assert_eq!(line.value("y"), Some("four five"));
    assert!(!line.has("two") && !line.has("z") && !line.has("pani") && !line.has("panic=-1"));
}

#[test]
fn dashes_inside_quotes_are_not_the_end() {
    let mut line = cmdline(r#"a="x -- y""#);
    line.append("b").unwrap();
    assert_eq!(line.text(), r#"a="x -- y" b"#);
}

#[test]
fn what_the_kernel_cannot_be_given_is_refused() {
    for (text, bad) in [("a\nb", '\n'), ("a\0", '\0'), ("caf\u{e9}", '\u{e9}'), ("a\tb", '\t')] {
        let error = Cmdline::new(text).unwrap_err();
        let CmdlineError::BadCharacter { character, .. } = error else { unreachable!("{error}") };
        assert_eq!(character, bad);
    }
    assert!(Cmdline::new("ab\u{e9}").unwrap_err().to_string().contains("position 3"));
    assert!(matches!(Cmdline::new("a=\"b"), Err(CmdlineError::OpenQuote)));
    let mut line = cmdline("a");
    assert!(line.append("b\n").is_err() && line.append("\"").is_err());
    assert_eq!(line.text(), "a");
}

#[test]
fn it_is_written_with_a_nul_if_it_is_not_too_long() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    memory.write_slice(&[0xff; 4096], GuestAddress(0)).unwrap();
    let line = cmdline("quiet panic=-1");
    let range = line.write(&memory, 0x100, 14).unwrap();
    assert_eq!(range, GuestRange { addr: 0x100, len: 14 });
    let mut found = [0; 16];
    memory.read_slice(&mut found, GuestAddress(0x100)).unwrap();
    assert_eq!(&found, b"quiet panic=-1\0\xff");

    let error = line.write(&memory, 0x100, 10).unwrap_err().to_string();
    assert!(error.contains("is 14 bytes, 4 more than the 10"), "{error}");
    assert!(matches!(line.write(&memory, 4090, 100), Err(CmdlineError::Write { .. })));
}
