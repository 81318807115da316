use super::*;

fn shell(script: &str) -> Call {
    let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
    Call { command, undo: None, directory: None }
}

fn run(script: &str, limit: Duration) -> Result<Seen, Failure> {
    let mut instance = Instance::start(&shell(script))?;
    instance.until_end(limit, &AtomicBool::new(false))?;
    Ok(instance.seen)
}

#[test]
fn the_moments_come_in_their_order() {
    let seen = run("echo @init; sleep 0.05; echo @work; sleep 0.05", LIMIT).unwrap();
    let (init, first, exit) = (seen.init.unwrap(), seen.first.unwrap(), seen.exit.unwrap());
    assert!(init < first && first < exit, "{seen:?}");
    assert!(exit - init >= Duration::from_millis(100), "{seen:?}");
}

#[test]
fn a_failure_says_the_last_words() {
    let words = |script| run(script, LIMIT).unwrap_err().to_string();
    assert_eq!(
        words("echo no such root >&2; exit 3"),
        "it ended (exit status: 3) before the workload began: no such root"
    );
    assert_eq!(words("echo @work; exit 4"), "it ended with exit status: 4: @work");
    let absent = Call { command: vec!["/no/such/program".into()], undo: None, directory: None };
    assert!(Instance::start(&absent).is_err_and(|e| e.to_string().contains("cannot be started")));
}

#[test]
fn what_takes_too_long_or_is_given_up_is_killed_with_its_children_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (pid, gone) = (dir.path().join("pid"), dir.path().join("gone"));
    let script = format!("sleep 1000 & echo $! >{}; echo @work; wait", pid.display());
    let undo = Some(vec!["touch".into(), gone.clone().into()]);
    let call = Call { undo, ..shell(&script) };
    let mut instance = Instance::start(&call).unwrap();
    let cancel = AtomicBool::new(false);
    instance.until_first(LIMIT, &cancel).unwrap();
    let late = instance.until_end(Duration::from_millis(50), &cancel).unwrap_err();
    assert!(late.to_string().starts_with("not done after 0 s"), "{late}");
    cancel.store(true, Ordering::Release);
    assert_eq!(instance.until_end(LIMIT, &cancel), Err(Failure::Cancelled));
    drop(instance);
    assert!(gone.exists());
    let pid = std::fs::read_to_string(pid).unwrap();
    dies(&pid, "the child of a killed launcher lives");
}

fn dies(pid: &str, words: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    let state = format!("/proc/{}/stat", pid.trim());
    // Its new parent may not have reaped it.
    while std::fs::read_to_string(&state).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < end, "{words}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_flood_is_read_and_its_end_kept() {
    let flood = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo @work";
    assert!(run(flood, LIMIT).unwrap().first.is_some());
    let mut tail = Tail::default();
    tail.push(&[b'x'; 3 * KEPT]);
    tail.push(b"end");
    assert_eq!(tail.0.len(), KEPT);
    assert!(tail.text().ends_with("xend") && tail.has("end") && !tail.has("other"));
}

#[test]
fn a_tool_that_hangs_is_ended() {
    let command = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    assert_eq!(quietly(&command(&["echo", "1.2"]), LIMIT).as_deref(), Some("1.2\n"));
    assert_eq!(quietly(&command(&["false"]), LIMIT), None);
    assert_eq!(quietly(&command(&["/no/such/program"]), LIMIT), None);
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! >{}; wait", pid.display());
    // Long enough that the shell has begun, on any machine.
    assert_eq!(quietly(&command(&["sh", "-c", &script]), Duration::from_secs(1)), None);
    dies(&std::fs::read_to_string(pid).unwrap(), "the child of a tool that was ended lives");
}

#[test]
fn a_command_is_shown_as_a_shell_takes_it() {
    let words = ["printf", "%s|", "b c", "it's", "", "$HOME", "*", "a;b", "{{.x}}", "ä=1"];
    let command = words.map(OsString::from).to_vec();
    let line = Call { command, undo: None, directory: None }.line();
    assert!(line.starts_with("printf '%s|' 'b c' "), "{line}");
    let said = quietly(&["sh", "-c", &line].map(OsString::from), LIMIT).unwrap();
    assert_eq!(said, words.iter().skip(2).map(|word| format!("{word}|")).collect::<String>());
}

#[test]
fn what_is_asked_of_a_program_can_be_given_up() {
    let (begun, asked) = (Instant::now(), ["sleep", "100"].map(OsString::from));
    assert!(told(&asked, Duration::from_secs(100), &AtomicBool::new(true)).is_err());
    assert!(begun.elapsed() < Duration::from_secs(50), "it was waited for");
}
