//! Reports of made-up results, and a real comparison of what needs neither KVM nor root.

use std::time::Duration;

use super::results::Clock;
use super::*;

/// A plan that can be carried out.
pub fn plan() -> Plan {
    Plan {
        husk: "/usr/bin/husk".into(),
        with: vec!["process".to_owned()],
        runs: 5,
        parallel: vec![1, 3],
        idle: 2,
        cold: false,
        workload: Workload::True,
        kernel: None,
        append: "noxsave".to_owned(),
        seed: 42,
    }
}

fn results() -> Results {
    let entrant = |name, family| Entrant {
        name,
        family,
        version: "1.0 <b>\u{1b}[2J & \"co\"".to_owned(),
        command: format!("{name} --run 'a b'"),
    };
    let names = [("process", Family::Process), ("crun", Family::Container), ("husk", Family::Vm)];
    let mut runs = Vec::new();
    for (entrant, (_, family)) in names.iter().enumerate() {
        for (parallel, cold) in [(1, false), (3, false), (1, true)] {
            for round in 0..4 {
                let at = |ms: usize| Duration::from_millis((ms + round * 7) as u64);
                let vm = *family == Family::Vm;
                let moments = Moments {
                    kvm_run: vm.then(|| at(20)),
                    kernel: None,
                    init: vm.then(|| at(300)),
                    first: at(10 + 400 * entrant),
                    exit: at(30 + 450 * entrant),
                };
                let outcome = match (entrant, round) {
                    (1, 3) => Err("it ended, \"badly\"".to_owned()),
                    _ => Ok(moments),
                };
                let (traced, instance) = (false, 0);
                runs.push(Run { entrant, cold, traced, parallel, round, instance, outcome });
            }
        }
    }
    let idle = (0..3).flat_map(|entrant| {
        (1..=2).map(move |count| Idle {
            entrant,
            count,
            pss: Some(((entrant + 1) * count) as u64 * (3 << 20)),
            taken: Some(-4096),
            disk: (entrant > 0).then_some(8192),
        })
    });
    let isolation = (0..3).map(|entrant| Isolation {
        entrant,
        namespaces: vec!["pid".to_owned(), "net".to_owned()],
        filtered: (1, 3),
        reach: [Some(Reach::All), Some(Reach::Some(301)), None].get(entrant).copied().flatten(),
        syscalls: (entrant == 2).then_some(44),
    });
    let mut environment = Environment::of(&crate::doctor::examine());
    environment.kvm = Kvm::Emulated;
    Results {
        environment,
        workload: Workload::True,
        plan: plan(),
        kernel: Some("/boot/a kernel's/vm<linuz".into()),
        kernel_release: Some("6.1.0-48-amd64".to_owned()),
        kernel_bytes: Some(8 << 20),
        files_bytes: 2 << 20,
        entrants: names.map(|(name, family)| entrant(name, family)).to_vec(),
        absent: vec![("runc", "not on PATH: `apt-get install runc`".to_owned())],
        runs,
        idle: idle.collect(),
        isolation: isolation.collect(),
        daemons: vec![Daemon {
            entrant: 1,
            name: "crund",
            count: 2,
            pss: (Some(40 << 20), Some(42 << 20)),
        }],
        notes: vec!["a note".to_owned()],
    }
}

#[test]
fn the_table_has_percentiles_ratios_failures_phases_and_what_is_missing() {
    let table = results().table();
    let line = |start: &str| {
        let found = table.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start:?} in {table}")).to_owned()
    };
    let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // 10, 17, 24 and 31 ms; 410, 417 and 424.
    assert_eq!(words(line("process ")), ["process", "17.00", "31.00", "31.00", "1.00", "4"]);
    let crun = ["crun", "417.00", "424.00", "424.00", "24.53", "3", "(1", "failed)"];
    assert_eq!(words(line("crun ")), crun);
    assert!(table.contains("×process"), "{table}");
    let phases =
        "start of the VMM 30.50 → guest kernel 280.00 → init 510.00 → workload and end 120.00";
    assert!(table.contains(phases), "{table}");
    assert!(table.contains("one at a time, caches cold") && table.contains("3 at once"), "{table}");
    let filtered = |name: &str| {
        let idle = table.lines().skip_while(|line| !line.starts_with("idle, ")).skip(1);
        let line = idle.into_iter().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(4).take(4).collect::<Vec<_>>().join(" ")
    };
    let each = ["process ", "crun ", "husk "].map(filtered);
    assert_eq!(each, ["1 of 3 all", "1 of 3 301", "1 of 3 –"], "{table}");
    let shared = "besides, for all instances of crun: crund 40.0 MiB (PSS), 42.0 with 2 idle";
    assert!(table.lines().any(|line| line == shared), "{table}");
    assert!(table.contains("left out: runc: not on PATH: `apt-get install runc`"), "{table}");
    assert!(table.contains("note: a note"), "{table}");
    assert!(line("the guests' kernel: ").contains("Linux 6.1.0-48-amd64, /boot/"), "{table}");
    assert!(line("! ").contains("emulated"), "{table}");
}

#[test]
fn every_output_says_that_the_kvm_is_emulated() {
    let results = results();
    assert!(results.table().contains("emulated"));
    assert!(results.axes().contains("emulated"));
    assert!(results.html().unwrap().contains("class=\"caveat\">this machine and its KVM"));
    let html = results.html().unwrap();
    let plots: Vec<_> =
        html.split("<svg ").skip(1).map(|rest| rest.split("</svg>").next().unwrap()).collect();
    assert_eq!(plots.len(), 5);
    for plot in plots {
        assert!(plot.contains("KVM emulated: no figures of hardware"), "{plot}");
    }
    let mut native = results.clone();
    native.environment.kvm = Kvm::Native;
    assert!(!native.html().unwrap().contains("no figures of hardware"));
    let csv = results.csv();
    assert!(csv.lines().skip(1).all(|line| line.contains(",emulated,")), "{csv}");
}

#[test]
fn the_csv_has_a_line_for_every_run_and_as_many_fields_in_each() {
    let results = results();
    let csv = results.csv();
    assert_eq!(csv.lines().count(), results.runs.len() + 1);
    for line in csv.lines() {
        // No field but a quoted one has a comma.
        let bare = line.replace("\"it ended, \"\"badly\"\"\"", "error");
        assert_eq!(bare.split(',').count(), 15, "{line}");
    }
    let husk = "husk,VM,emulated,true,warm,no,1,0,0,20.000,,300.000,810.000,930.000,";
    assert!(csv.lines().any(|line| line == husk), "{csv}");
    let csv = traced().csv();
    let husk = "husk,VM,emulated,true,warm,yes,1,0,0,40.000,50.000,90.000,800.000,1000.000,";
    assert!(csv.lines().any(|line| line == husk), "{csv}");
}

/// The results with two runs of the VM in which KVM was traced.
fn traced() -> Results {
    let mut results = results();
    for round in 0..2 {
        let at = |ms: usize| Duration::from_millis((ms + round * 10) as u64);
        let moments = Moments {
            kvm_run: Some(at(40)),
            kernel: Some(at(50)),
            init: Some(at(90)),
            first: at(800),
            exit: at(1000),
        };
        let (entrant, cold, parallel, instance) = (2, false, 1, 0);
        let outcome = Ok(moments);
        results.runs.push(Run { entrant, cold, traced: true, parallel, round, instance, outcome });
    }
    results
}

#[test]
fn traced_runs_tell_the_phases_of_their_vm_and_are_in_no_table_of_times() {
    let (plain, traced) = (results(), traced());
    for clock in [Clock::First, Clock::Exit] {
        assert_eq!(traced.values(2, 1, false, clock), plain.values(2, 1, false, clock));
    }
    let table = traced.table();
    let phases = "husk     start of the VMM 45.00 → to the kernel's entry 10.00 → guest kernel 40.00 → \
                  init 710.00 → workload and end 200.00";
    assert!(table.contains(phases), "{table}");
    assert!(table.contains("crun     start 417.00 → workload and end 70.00"), "{table}");
    let head =
        "where the time goes, ms (mean), one at a time; VMs in runs of their own, with KVM traced";
    assert!(table.contains(head) && !plain.table().contains("traced"), "{table}");
    // A VMM of which nothing before its guest's init was to be seen.
    let mut blind = plain;
    for run in &mut blind.runs {
        run.outcome = run.outcome.clone().map(|moments| Moments { kvm_run: None, ..moments });
    }
    let table = blind.table();
    assert!(table.contains("husk     VMM and guest kernel 310.50 → init 510.00 → "), "{table}");
    check_markup(&traced.html().unwrap());
}

/// Panics unless every element that is opened is closed in its order, and no text has markup in it.
fn check_markup(html: &str) {
    let mut open: Vec<String> = Vec::new();
    let body = html.strip_prefix("<!DOCTYPE html>").unwrap();
    for piece in body.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("no end of <{piece}"));
        assert!(!text.contains('>'), "a stray > in {text:?}");
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_owned();
        assert!(!name.is_empty(), "<{piece}");
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_ref(), Some(&name), "</{name}>");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn the_page_is_well_formed_needs_no_network_and_has_the_plots() {
    let html = results().html().unwrap();
    check_markup(&html);
    for outside in ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!html.contains(outside), "{outside} in the page");
    }
    assert!(!html.contains('\u{1b}'));
    assert_eq!(html.matches("<svg ").count(), 5);
    assert!(html.contains("husk compare --with process,crun,husk --runs 5 --parallel 1,3"));
    let kernel = r" --kernel '/boot/a kernel'\''s/vm&lt;linuz' --append noxsave";
    assert!(html.contains(kernel), "{html}");
    assert!(html.contains("Linux 6.1.0-48-amd64, /boot/a kernel's/vm&lt;linuz"), "{html}");
    // Drawn, not only framed.
    assert!(html.matches("<polyline").count() >= 9, "{}", html.matches("<polyline").count());
}

#[test]
fn results_with_nothing_in_them_are_no_panic() {
    let mut empty = results();
    (empty.runs, empty.idle, empty.isolation) = (Vec::new(), Vec::new(), Vec::new());
    assert!(empty.table().contains("none"));
    check_markup(&empty.html().unwrap());
    empty.entrants.clear();
    check_markup(&empty.html().unwrap());
    assert!(empty.axes().contains("not yet") && empty.axes().contains("not measured"));
}

#[test]
fn the_axes_have_what_was_measured_and_say_what_is_not_yet() {
    let axes = results().axes();
    for axis in ["start-up", "resources", "isolation", "portability", "management", "scale"] {
        assert!(axes.lines().any(|line| line == axis), "{axes}");
    }
    assert!(axes.contains("different system calls of the VMM: 44"), "{axes}");
    assert!(axes.contains("net; a filter leaves the workload 301 system calls"), "{axes}");
    assert!(axes.contains("44; 1 of 3 threads under a filter"), "{axes}");
    assert!(axes.contains("crun: crund 40.0 MiB (PSS), 42.0 with 2 idle"), "{axes}");
    assert!(axes.contains("not yet"), "{axes}");
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_refused_with_the_option_it_is_about() {
    let refused = |change: fn(&mut Plan)| {
        let mut plan = plan();
        change(&mut plan);
        plan.check().unwrap_err().to_string()
    };
    assert!(refused(|plan| plan.runs = 0).starts_with("--runs must be from 1"));
    assert!(refused(|plan| plan.parallel = vec![1, 0]).contains("--parallel"));
    assert!(refused(|plan| plan.parallel = Vec::new()).contains("--parallel"));
    assert!(refused(|plan| plan.idle = 5000).starts_with("--idle"));
    let unknown = refused(|plan| plan.with = vec!["proces".to_owned()]);
    assert!(unknown.contains("did you mean process?"), "{unknown}");
    assert!(plan().check().is_ok());
}

#[test]
fn processes_are_compared_where_there_is_neither_kvm_nor_root() {
    let cancel = AtomicBool::new(false);
    let (mut last, mut plan) = (None, plan());
    plan.workload = Workload::Sh;
    plan.with.push("process".to_owned());
    let outcome = compare(&plan, &cancel, &mut |progress| last = Some(progress));
    let results = match outcome {
        Err(e @ CompareError::NoBusybox { .. }) => return crate::skipped::skipped(e),
        other => other.unwrap(),
    };
    assert_eq!(results.entrants.len(), 1);
    // Five alone, and two times three at once.
    assert_eq!(results.runs.len(), 5 + 2 * 3);
    assert!(results.runs.iter().all(|run| run.outcome.is_ok()), "{:?}", results.runs);
    for moments in results.good(0, 1, false) {
        assert!(moments.first <= moments.exit && moments.init.is_none(), "{moments:?}");
    }
    assert_eq!(results.idle.len(), 2);
    assert!(results.idle.iter().all(|idle| idle.pss.is_some_and(|pss| pss > 0)));
    assert!(last.is_some_and(|last| last.done < last.total));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    prepare_directory(&out).unwrap();
    let files = results.write(&out).unwrap();
    assert!(files.iter().all(|file| file.metadata().unwrap().len() > 500));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
}

#[test]
fn a_directory_that_got_no_results_goes_and_what_was_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("there");
    std::fs::create_dir(&there).unwrap();
    prepare_directory(&there.join("a/b")).unwrap().give_up();
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
    prepare_directory(&there).unwrap().give_up();
    let prepared = prepare_directory(&there.join("a")).unwrap();
    std::fs::write(there.join("a/mine"), "").unwrap();
    prepared.give_up();
    assert!(there.join("a/mine").exists());
}

#[test]
fn a_comparison_that_is_given_up_ends() {
    let cancel = AtomicBool::new(true);
    match compare(&plan(), &cancel, &mut |_| ()) {
        Err(e @ CompareError::NoBusybox { .. }) => crate::skipped::skipped(e),
        outcome => assert!(matches!(outcome, Err(CompareError::Cancelled)), "{outcome:?}"),
    }
}
