use std::os::unix::fs::symlink;

use super::*;

fn kernel(directory: &Path, version: &str) {
    let modules = directory.join(version).join("lib/modules").join(version);
    std::fs::create_dir_all(modules).unwrap();
    std::fs::write(directory.join(version).join("vmlinuz"), "").unwrap();
}

/// An own directory and a /boot in a temporary place.
fn places(root: &Path) -> Places {
    let (own, boot) = (root.join("own"), root.join("boot"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir_all(&boot).unwrap();
    Places { variable: None, own: Some(own), boot, release: "5.15.0-1-generic".to_owned() }
}

#[test]
fn the_newest_version_wins_unless_there_is_a_default() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["6.1.0-9-amd64", "6.1.0-32-amd64", "5.10.0-40-amd64"] {
        kernel(dir.path(), version);
    }
    assert_eq!(newest(dir.path()), Some(dir.path().join("6.1.0-32-amd64/vmlinuz")));
    symlink("5.10.0-40-amd64", dir.path().join("default")).unwrap();
    assert_eq!(newest(dir.path()), Some(dir.path().join("default/vmlinuz")));
    std::fs::remove_dir_all(dir.path().join("5.10.0-40-amd64")).unwrap();
    assert_eq!(newest(dir.path()), Some(dir.path().join("6.1.0-32-amd64/vmlinuz")));
}

#[test]
fn a_kernel_is_called_what_the_list_calls_it_also_by_a_link_and_another_by_its_file() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let own = places.own.clone().unwrap();
    kernel(&own, "6.1.0-9-amd64");
    symlink("6.1.0-9-amd64", own.join("default")).unwrap();
    std::fs::write(places.boot.join("vmlinuz-5.15.0-1-generic"), "").unwrap();
    symlink("boot/vmlinuz-5.15.0-1-generic", root.path().join("vmlinuz")).unwrap();
    for (path, name) in [
        ("own/default/vmlinuz", "6.1.0-9-amd64"),
        ("own/6.1.0-9-amd64/vmlinuz", "6.1.0-9-amd64"),
        ("own/6.1.0-9-amd64/../../vmlinuz", "5.15.0-1-generic"),
        ("boot/vmlinuz-5.15.0-1-generic", "5.15.0-1-generic"),
        ("own/vmlinuz", "vmlinuz"),
        ("elsewhere/vmlinuz-mine", "vmlinuz-mine"),
    ] {
        assert_eq!(places.name(&root.path().join(path)), name, "{path}");
    }
}

#[test]
fn a_fetch_under_way_is_no_kernel() {
    let dir = tempfile::tempdir().unwrap();
    kernel(dir.path(), ".fetch-99999");
    assert_eq!(newest(dir.path()), None);
}

#[test]
fn the_list_marks_the_one_kernel_run_would_take() {
    let root = tempfile::tempdir().unwrap();
    let mut places = places(root.path());
    let own = places.own.clone().unwrap();
    kernel(&own, "6.1.0-9-amd64");
    kernel(&own, "6.1.0-32-amd64");
    symlink("6.1.0-9-amd64", own.join("default")).unwrap();
    for name in ["vmlinuz-5.15.0-1-generic", "vmlinuz-5.15.0-10-generic", "config-5.15.0-1"] {
        std::fs::write(places.boot.join(name), "").unwrap();
    }
    let shown = |places: &Places| -> Vec<(String, Origin, bool)> {
        places.list().into_iter().map(|k| (k.version, k.origin, k.default)).collect()
    };
    let mut expected = vec![
        ("6.1.0-32-amd64".to_owned(), Origin::Husk, false),
        ("6.1.0-9-amd64".to_owned(), Origin::Husk, true),
        ("5.15.0-10-generic".to_owned(), Origin::Host, false),
        ("5.15.0-1-generic".to_owned(), Origin::Host, false),
    ];
    assert_eq!(shown(&places), expected);
    let modules = places.list()[0].modules.clone();
    assert_eq!(modules, Some(own.join("6.1.0-32-amd64/lib/modules/6.1.0-32-amd64")));

    places.variable = Some("/no/such/bzImage".into());
    expected[1].2 = false;
    expected.insert(0, ("bzImage".to_owned(), Origin::Environment, true));
    assert_eq!(shown(&places), expected);
}

#[test]
fn the_hosts_running_kernel_is_the_last_resort_and_then_the_error_says_where_it_looked() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let error = places.default_kernel().unwrap_err().to_string();
    assert!(error.contains("husk kernel fetch") && error.contains("vmlinuz-5.15.0-1"), "{error}");
    let host = places.boot.join("vmlinuz-5.15.0-1-generic");
    std::fs::write(&host, "").unwrap();
    assert_eq!(places.default_kernel().unwrap(), host);
}

#[test]
fn a_kernel_that_husk_built_without_acpi_is_known_by_its_config() {
    let own = tempfile::tempdir().unwrap();
    for (version, config) in [("fast", "CONFIG_PVH=y\n"), ("full", "CONFIG_ACPI=y\n")] {
        std::fs::create_dir(own.path().join(version)).unwrap();
        std::fs::write(own.path().join(version).join("vmlinux"), "").unwrap();
        std::fs::write(own.path().join(version).join("config"), config).unwrap();
    }
    symlink("fast", own.path().join("default")).unwrap();
    let without = |path: &str| is_without_acpi_in(own.path(), &own.path().join(path));
    assert!(without("fast/vmlinux") && without("default/vmlinux"));
    assert!(!without("full/vmlinux") && !without("absent/vmlinux"));
    assert_eq!(newest(own.path()), Some(own.path().join("default/vmlinux")));
    // Of a kernel elsewhere nothing is known.
    assert!(!is_without_acpi_in(&own.path().join("fast"), &own.path().join("fast/vmlinux")));
}
