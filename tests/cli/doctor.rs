//! `husk doctor` and `husk kernel` as a user runs them. Nothing here needs the network or a KVM.

use std::path::Path;
use std::process::{Command, Output};

use husk::doctor::{Report, Status};
use husk::kernels::KnownKernel;

/// The command, with a home and data directory of its own.
fn husk(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk"));
    command.env("HOME", home).env("XDG_DATA_HOME", home.join("data")).env_remove("HUSK_KERNEL");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(home: &Path, arguments: &[&str]) -> Output {
    husk(home).args(arguments).output().unwrap()
}

#[test]
fn the_doctors_exit_status_is_whether_linux_boots() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["doctor", "--json"]);
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(if report.linux_boots { 0 } else { 1 }));
    let failed: Vec<_> = report.checks.iter().filter(|c| c.status == Status::Fail).collect();
    assert_eq!(report.linux_boots, failed.is_empty());
    assert!(failed.iter().all(|check| check.remedy.is_some()));

    let output = run(home.path(), &["doctor"]);
    let table = text(&output.stdout);
    assert_eq!(table.matches('✗').count() > 0, !report.linux_boots, "{table}");
    assert!(table.lines().last().unwrap().starts_with("Linux can"), "{table}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_closed_stdout_is_no_accident() {
    let home = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = husk(home.path()).arg("doctor").stdout(writer).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn without_a_data_directory_none_of_the_kernels_is_husks_own() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["kernel", "list", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let known: Vec<KnownKernel> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(known.iter().all(|kernel| kernel.path.starts_with("/boot")), "{known:?}");
    let output = run(home.path(), &["kernel", "list"]);
    assert_eq!(text(&output.stdout).lines().count(), known.len());
    assert_eq!(text(&output.stderr).contains("husk kernel fetch"), known.is_empty());
    assert!(!home.path().join("data").exists(), "looking makes nothing");
}

#[test]
fn the_kernel_of_the_environment_is_listed_first_and_marked() {
    let home = tempfile::tempdir().unwrap();
    let mut command = husk(home.path());
    command.args(["kernel", "list"]).env("HUSK_KERNEL", "/no/such/kernel");
    let listed = text(&command.output().unwrap().stdout);
    let first = listed.lines().next().unwrap();
    assert!(first.starts_with("* kernel") && first.contains("does not exist"), "{first}");
}

#[test]
fn fetching_without_apt_says_what_else_can_be_done() {
    let home = tempfile::tempdir().unwrap();
    let output =
        husk(home.path()).args(["kernel", "fetch"]).env("PATH", home.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("apt-get") && said.contains("husk run --kernel FILE"), "{said}");
    assert!(!home.path().join("data").exists(), "nothing is left");
}

/// Stand-ins for apt's tools: a package with a kernel, from lists that must be brought first if
/// `fresh` does not exist.
fn fake_apt(bin: &Path, fresh: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let fresh = fresh.display();
    let apt_get = format!(
        "#!/bin/sh\ncase \" $* \" in\n\
         *' update '*) : >{fresh};;\n\
         *--print-uris*) echo \"'http://x/k_1_amd64.deb' k_1_amd64.deb 1048576 SHA256:0\";;\n\
         *) : >k_1_amd64.deb;;\nesac\n"
    );
    let apt_cache = format!(
        "#!/bin/sh\n[ -e {fresh} ] || {{ echo 'E: No packages found' >&2; exit 100; }}\n\
         case \"$*\" in *linux-image-6*) echo x;; *) echo '  Depends: linux-image-6.1-x';; esac\n"
    );
    let dpkg_deb = "#!/bin/sh\n/bin/mkdir -p $3/boot $3/lib/modules/6.1-x\n\
                    printf '\\177ELF\\n' >$3/boot/vmlinuz-6.1-x\n: >$3/lib/modules/6.1-x/modules.dep\n";
    for (name, script) in
        [("apt-get", apt_get.as_str()), ("apt-cache", apt_cache.as_str()), ("dpkg-deb", dpkg_deb)]
    {
        std::fs::write(bin.join(name), script).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_fetched_kernel_is_the_default_and_is_not_fetched_twice() {
    let home = tempfile::tempdir().unwrap();
    let (bin, own) = (home.path().join("bin"), home.path().join("data/husk/kernels"));
    std::fs::create_dir(&bin).unwrap();
    fake_apt(&bin, &home.path().join("fresh"));
    let fetch_of = |package| {
        let mut command = husk(home.path());
        command.args(["kernel", "fetch", "--package", package]).env("PATH", &bin);
        command.output().unwrap()
    };
    // What is no name is refused before anything is made, or asked for.
    let refused = fetch_of("../linux");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("`../linux` can be no package's name"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!home.path().join("data").exists());
    let fetch = || fetch_of("linux-image-x");
    let output = fetch();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("package lists") && said.contains("downloading linux-image-6.1-x"),
        "{said}"
    );
    assert_eq!(output.stdout, b"");
    assert_eq!(std::fs::read(own.join("default/vmlinuz")).unwrap(), b"\x7fELF\n");

    let said = text(&fetch().stderr);
    assert!(said.contains("was here already") && !said.contains("downloading"), "{said}");
    let mut left: Vec<_> =
        std::fs::read_dir(&own).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["6.1-x", "default"]);

    let listed = text(&run(home.path(), &["kernel", "list"]).stdout);
    assert!(listed.starts_with("* 6.1-x"), "{listed}");
}

#[test]
fn a_fetch_that_fails_leaves_the_directory_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    // The lists never become fresh.
    fake_apt(&bin, &home.path().join("no/such/directory"));
    let mut command = husk(home.path());
    command.args(["kernel", "fetch", "--package", "linux-image-x"]).env("PATH", &bin);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("no package linux-image-x") && said.contains("--package"), "{said}");
    let own = home.path().join("data/husk/kernels");
    assert_eq!(std::fs::read_dir(own).unwrap().count(), 0);
}

#[test]
fn an_interrupted_fetch_ends_its_tools_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (bin, own) = (home.path().join("bin"), home.path().join("data/husk/kernels"));
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(home.path().join("fresh"), "").unwrap();
    fake_apt(&bin, &home.path().join("fresh"));
    let pid = home.path().join("pid");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--print-uris*) exit;; esac\n\
         echo $$ >{0}.new; /bin/mv {0}.new {0}; exec /bin/sleep 60\n",
        pid.display()
    );
    std::fs::write(bin.join("apt-get"), script).unwrap();
    let mut command = husk(home.path());
    command.args(["kernel", "fetch", "--package", "linux-image-x"]).env("PATH", &bin);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let tool = (0..600).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        std::fs::read_to_string(&pid).ok()
    });
    let tool = tool.expect("apt-get was started");
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), 1, "what is under way");
    // Only husk gets it, as from a supervisor.
    let kill = Command::new("/bin/kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), 0);
    assert!(!Path::new("/proc").join(tool.trim()).exists());
}

#[test]
fn unpacking_what_is_no_kernel_names_it() {
    let home = tempfile::tempdir().unwrap();
    let (input, output) = (home.path().join("notes.txt"), home.path().join("vmlinux"));
    std::fs::write(&input, "not a kernel").unwrap();
    let arguments = ["kernel", "unpack", input.to_str().unwrap(), output.to_str().unwrap()];
    let done = run(home.path(), &arguments);
    assert_eq!(done.status.code(), Some(125));
    assert!(text(&done.stderr).contains("notes.txt"));
    assert!(!output.exists());
}
