use super::*;

const VERSION: &str = "6.1.0-56-cloud-amd64";

fn archives() -> Vec<Archive> {
    vec![Archive { file: "linux-image-x_1_amd64.deb".to_owned(), size: 1 }]
}

fn arranged(store: &Store, root: &Path) -> Result<(PathBuf, String), FetchError> {
    let runner = Runner::default();
    Fetch { runner: &runner, store, progress: &mut |_| () }.arrange(&archives(), &[root.to_owned()])
}

/// What `dpkg-deb -x` leaves of a kernel package.
fn package(root: &Path, modules: &str) {
    fs::create_dir_all(root.join("boot")).unwrap();
    for name in ["vmlinuz", "config", "System.map"] {
        let content = if name == "vmlinuz" { "\x7fELF" } else { name };
        fs::write(root.join("boot").join(format!("{name}-{VERSION}")), content).unwrap();
    }
    let modules = root.join(modules).join(VERSION);
    fs::create_dir_all(&modules).unwrap();
    fs::write(modules.join("modules.dep"), "").unwrap();
}

#[test]
fn a_package_becomes_a_directory_as_documented() {
    for modules in ["lib/modules", "usr/lib/modules"] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), || Ok(())).unwrap();
        let root = store.scratch("root").unwrap();
        package(&root, modules);
        let (kernel, version) = arranged(&store, &root).unwrap();
        assert_eq!(version, VERSION);
        assert_eq!(fs::read(kernel.join("vmlinuz")).unwrap(), b"\x7fELF");
        assert_eq!(fs::read(kernel.join("config")).unwrap(), b"config");
        assert!(kernel.join("lib/modules").join(VERSION).join("modules.dep").exists());
        let packages = fs::read_to_string(kernel.join("packages")).unwrap();
        assert_eq!(packages, "linux-image-x_1_amd64.deb\n");
    }
}

#[test]
fn a_package_without_a_kernel_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), || Ok(())).unwrap();
    let root = store.scratch("root").unwrap();
    let error = arranged(&store, &root).unwrap_err().to_string();
    assert!(error.contains("linux-image-x_1"), "{error}");
    fs::create_dir(root.join("boot")).unwrap();
    fs::write(root.join("boot/vmlinuz-default"), "").unwrap();
    assert!(arranged(&store, &root).is_err());
    drop(store);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_link_among_a_packages_directories_is_refused_and_what_it_leads_to_stays() {
    let host = tempfile::tempdir().unwrap();
    package(host.path(), "lib/modules");
    package(host.path(), "usr/lib/modules");
    for link in ["boot", "lib", "lib/modules", "usr", "usr/lib", "usr/lib/modules"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("lib/modules/{VERSION}"), format!("boot/config-{VERSION}")])
    {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), || Ok(())).unwrap();
        let root = store.scratch("root").unwrap();
        package(&root, if link.starts_with("usr") { "usr/lib/modules" } else { "lib/modules" });
        let place = root.join(&link);
        if place.is_dir() {
            fs::remove_dir_all(&place).unwrap();
        } else {
            fs::remove_file(&place).unwrap();
        }
        std::os::unix::fs::symlink(host.path().join(&link), place).unwrap();
        let error = arranged(&store, &root).unwrap_err().to_string();
        assert!(error.contains(&format!("{link} in linux-image-x_1")), "{link}: {error}");
        for left in ["boot/vmlinuz-", "boot/config-", "lib/modules/", "usr/lib/modules/"] {
            let left = host.path().join(format!("{left}{VERSION}"));
            assert!(left.exists(), "{} is gone", left.display());
        }
    }
}

#[test]
fn what_is_called_a_kernel_and_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), || Ok(())).unwrap();
    let root = store.scratch("root").unwrap();
    package(&root, "lib/modules");
    fs::write(root.join(format!("boot/vmlinuz-{VERSION}")), "#!/bin/sh\n").unwrap();
    let error = arranged(&store, &root).unwrap_err().to_string();
    assert!(error.contains("is no kernel"), "{error}");
}
