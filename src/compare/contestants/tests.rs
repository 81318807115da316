use super::super::kernel::Inside;
use super::super::workload::Workload;
use super::*;

/// A lab without a kernel, where there is what it is made of.
fn lab() -> Option<Lab> {
    match Lab::make(Workload::True, None, None) {
        Err(why @ CompareError::NoBusybox { .. }) => {
            crate::skipped::skipped(why);
            None
        }
        lab => Some(lab.unwrap()),
    }
}

/// A kernel's inside.
fn linux(acpi: bool) -> Inside {
    Inside { release: Some("6.1".to_owned()), acpi, physical: None }
}

#[test]
fn a_mistyped_contestant_is_answered_with_the_nearest() {
    assert_eq!(Kind::named("crun").unwrap().name, "crun");
    let error = Kind::named("fircracker").err().unwrap().to_string();
    assert!(error.contains("did you mean firecracker?"), "{error}");
    let error = Kind::named("bochs").err().unwrap().to_string();
    assert!(error.contains("there are process, crun,") && !error.contains("mean"), "{error}");
}

#[test]
fn every_contestant_gets_the_same_files_and_a_vm_the_kernel() {
    let Some(mut lab) = lab() else { return };
    let (given, unpacked) = (PathBuf::from("/k/vmlinuz"), PathBuf::from("/k/vmlinux"));
    lab.kernel = Some(Kernel { given, unpacked, has: linux(true) });
    lab.append = "noxsave nokaslr".to_owned();
    for kind in &KINDS {
        for job in [Job::Work, Job::Idle] {
            let start = Start { lab: &lab, program: Path::new("/bin/x"), id: "one", job };
            let call = kind.call(&start).unwrap();
            let mut said = call.line();
            if kind.name == "firecracker" {
                let file = call.command.last().unwrap();
                said.push_str(&std::fs::read_to_string(file).unwrap());
            }
            let files = match kind.family {
                Family::Vm => lab.initrd(job),
                // The image, of which the tag is the lab's.
                Family::Container if kind.name == "docker" => {
                    let tag = lab.path("").to_str().unwrap().rsplit('-').next().unwrap().to_owned();
                    format!(" husk-compare:{} ", tag.trim_end_matches('/')).into()
                }
                Family::Container if kind.name != "podman" => lab.bundle(job),
                _ => lab.root(),
            };
            assert!(said.contains(files.to_str().unwrap()), "{}: {said}", kind.name);
            assert_eq!(said.contains("/k/vmlinu"), kind.family == Family::Vm, "{said}");
            assert_eq!(said.contains(" noxsave nokaslr"), kind.family == Family::Vm, "{said}");
            let undone = call.undo.is_some_and(|undo| undo.last().is_some_and(|id| id == "one"));
            assert_eq!(undone, kind.family == Family::Container, "{}", kind.name);
        }
    }
}

#[test]
fn a_vm_without_a_kernel_is_an_error_and_no_panic() {
    let Some(lab) = lab() else { return };
    let start = Start { lab: &lab, program: Path::new("x"), id: "one", job: Job::Work };
    for kind in KINDS.iter().filter(|kind| kind.family == Family::Vm) {
        assert!(kind.call(&start).is_err(), "{}", kind.name);
    }
}

#[test]
fn a_kernel_whose_name_is_no_text_is_an_error_where_json_must_hold_it() {
    use std::os::unix::ffi::OsStringExt;
    let Some(mut lab) = lab() else { return };
    let odd = PathBuf::from(OsString::from_vec(b"/k/\xff".to_vec()));
    lab.kernel = Some(Kernel { given: odd.clone(), unpacked: odd, has: linux(false) });
    let start = Start { lab: &lab, program: Path::new("x"), id: "one", job: Job::Work };
    let error = Kind::named("firecracker").unwrap().call(&start).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
    let husk = Kind::named("husk").unwrap().call(&start).unwrap();
    assert!(husk.line().contains("END=reboot"), "{}", husk.line());
}

#[test]
fn a_kernel_without_acpi_is_not_given_to_whoever_it_cannot_end() {
    let Some(mut lab) = lab() else { return };
    let path = PathBuf::from("/elsewhere/vmlinux");
    for acpi in [true, false] {
        let kernel = Kernel { given: path.clone(), unpacked: path.clone(), has: linux(acpi) };
        lab.kernel = Some(kernel);
        let start = Start { lab: &lab, program: Path::new("x"), id: "one", job: Job::Work };
        let husk = Kind::named("husk").unwrap().call(&start).unwrap().line();
        assert_eq!(husk.contains(" --no-acpi"), !acpi, "{husk}");
        assert_eq!(husk.contains("END=poweroff"), acpi, "{husk}");
        let program = Path::new("/usr/bin/cloud-hypervisor");
        match Kind::named("cloud-hypervisor").unwrap().prepare(
            &lab,
            program,
            &AtomicBool::new(false),
        ) {
            Ok(undo) => assert!(acpi && undo.is_none()),
            Err(why) => assert!(!acpi && why.contains("/elsewhere/vmlinux has no ACPI"), "{why}"),
        }
    }
}

#[test]
fn every_kernel_is_told_the_same_but_for_how_it_ends_and_what_its_machine_has_not() {
    let Some(mut lab) = lab() else { return };
    let (given, unpacked) = (PathBuf::from("/k/vmlinuz"), PathBuf::from("/k/vmlinux"));
    lab.kernel = Some(Kernel { given, unpacked, has: linux(true) });
    lab.append = "noxsave".to_owned();
    let start = Start { lab: &lab, program: Path::new("x"), id: "one", job: Job::Work };
    let mut seen = 0;
    for kind in KINDS.iter().filter(|kind| kind.family == Family::Vm) {
        let call = kind.call(&start).unwrap();
        let said = match kind.name {
            "firecracker" => std::fs::read_to_string(call.command.last().unwrap()).unwrap(),
            _ => call.line(),
        };
        // All in one, with nothing before it.
        let at = said.find("console=ttyS0 quiet panic=-1 cryptomgr.notests ");
        let (before, line) = said.split_at(at.unwrap_or_else(|| panic!("{}: {said}", kind.name)));
        assert!(before.ends_with(['\'', '"']), "{said}");
        let line: Vec<_> = line.split(['\'', '"']).next().unwrap().split(' ').collect();
        let own: &[&str] = match kind.name {
            "husk" => &["pci=off", "END=poweroff"],
            "qemu" => &["pci=off", "END=reboot", "reboot=t"],
            "cloud-hypervisor" => &["END=poweroff"],
            "firecracker" => &[
                "pci=off",
                "i8042.noaux",
                "i8042.nomux",
                "i8042.dumbkbd",
                "END=reboot",
                "reboot=k",
            ],
            other => panic!("nothing is known of {other}"),
        };
        assert_eq!((&line[4..line.len() - 1], line.last()), (own, Some(&"noxsave")), "{said}");
        seen += 1;
    }
    assert_eq!(seen, 4);
    let husk = Kind::named("husk").unwrap().call(&start).unwrap();
    assert!(husk.command.contains(&"--cmdline".into()), "{}", husk.line());
}
