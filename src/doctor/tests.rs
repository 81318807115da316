use super::*;

#[test]
fn the_report_is_consistent_wherever_it_is_made() {
    let report = examine();
    let fails = report.checks.iter().filter(|c| c.status == Status::Fail).count();
    assert_eq!(report.linux_boots, fails == 0);
    assert!(report.checks.iter().all(|c| (c.status == Status::Ok) == c.remedy.is_none()));
    if report.linux_boots {
        assert_eq!(report.native, Some(true));
    }
    let device = report.checks.first().unwrap();
    assert_eq!(device.name, "/dev/kvm");
    assert_eq!(device.status == Status::Ok, report.kvm_api_version.is_some());
    let openable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    assert_eq!(openable, report.kvm_api_version.is_some());
}

#[test]
fn only_a_loop_far_slower_in_the_guest_is_interpreted() {
    let native = |guest_ns, host_ns| Speed { iterations: 20_000, guest_ns, host_ns }.is_native();
    assert!(native(6_500, 6_500), "bare metal");
    assert!(native(0, 6_500), "a measurement lost in the noise");
    assert!(native(200_000, 120_000), "all of it emulated alike");
    assert!(!native(26_000_000, 8_000), "interpreted");
    assert!(!native(26_000_000, 200_000), "interpreted on a slow, busy host");
    assert!(!native(26_000_000, 0), "a clock that stands still");
}
