//! The filter of system calls that a container has by default: the profile that podman, buildah and CRI-O
//! read from a file of this host, made into the filter of an OCI bundle as they make it.
//!
//! `crun run` and `runc run` alone give none to what `runc spec` makes, and so neither time nor facts would
//! be those of the containers people use. The profile is `containers-seccomp.json(5)` of containers-common
//! (docker's has the same form, and refuses more); the result is `config-linux.md`, "Seccomp", of the OCI's
//! runtime-spec.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

/// Where profiles are, the administrator's before the package's (containers-common `pkg/seccomp`).
const PLACES: [&str; 2] = ["/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json"];
/// What brings one.
pub const PACKAGE: &str =
    "`apt-get install golang-github-containers-common`, elsewhere containers-common";
/// Debian's has 16 KiB.
const MOST: u64 = 1 << 20;
/// This machine, as Go and as libseccomp name it.
const MACHINE: (&str, &str) = ("amd64", "SCMP_ARCH_X86_64");

/// A filter for the bundles.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The profile it was made of.
    pub profile: PathBuf,
    /// `linux.seccomp` of a bundle's config.json.
    pub oci: Value,
}

/// The filter of the first profile that is there, for a container with these `capabilities` on a host with
/// this kernel's `release`; none without a profile.
///
/// # Errors
/// What is wrong with a profile that is there, with its path.
pub fn default_filter(capabilities: &[&str], release: &str) -> Result<Option<Filter>, String> {
    first_of(PLACES.iter().map(Path::new), capabilities, release)
}

fn first_of<'a>(
    mut places: impl Iterator<Item = &'a Path>,
    capabilities: &[&str],
    release: &str,
) -> Result<Option<Filter>, String> {
    let Some(path) = places.find(|path| path.exists()) else { return Ok(None) };
    let wrong = |why: String| format!("{}: {why}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    file.take(MOST).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    let profile: Profile = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    Ok(Some(Filter { profile: path.to_owned(), oci: profile.oci(capabilities, release) }))
}

/// A profile, as far as it matters here. Others have more in them, about which nothing is to be said.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    arch_map: Vec<Machine>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

/// A machine, and others whose programs it runs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

/// What becomes of some system calls.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    /// Null where there is none.
    args: Option<Vec<Value>>,
    includes: Option<Where>,
    excludes: Option<Where>,
}

/// For whom a rule is.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Where {
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    caps: Vec<String>,
    min_kernel: Option<String>,
}

impl Profile {
    fn oci(&self, capabilities: &[&str], release: &str) -> Value {
        let mut machines = vec![MACHINE.1.to_owned()];
        let known = self.arch_map.iter().filter(|machine| machine.architecture == MACHINE.1);
        machines.extend(known.flat_map(|machine| machine.sub_architectures.iter().cloned()));
        let rules = self.syscalls.iter().filter(|rule| rule.is_for(capabilities, release));
        let mut filter = json!({
            "defaultAction": self.default_action,
            "architectures": machines,
            "syscalls": rules.map(Rule::oci).collect::<Vec<_>>(),
        });
        put(&mut filter, "defaultErrnoRet", self.default_errno_ret);
        filter
    }
}

impl Rule {
    /// Whether it is for a container with these capabilities on a host with this kernel. (`setupSeccomp`
    /// in containers-common `pkg/seccomp` and in docker's `profiles/seccomp`.)
    fn is_for(&self, capabilities: &[&str], release: &str) -> bool {
        let has = |cap: &String| capabilities.contains(&cap.as_str());
        let here = |arches: &[String]| arches.iter().any(|arch| arch == MACHINE.0);
        let included = self.includes.as_ref().is_none_or(|includes| {
            (includes.arches.is_empty() || here(&includes.arches))
                && includes.caps.iter().all(has)
                && includes
                    .min_kernel
                    .as_ref()
                    .is_none_or(|least| version(release) >= version(least))
        });
        let excluded = self.excludes.as_ref().is_some_and(|excludes| {
            here(&excludes.arches)
                || excludes.caps.iter().any(has)
                || excludes
                    .min_kernel
                    .as_ref()
                    .is_some_and(|least| version(release) >= version(least))
        });
        included && !excluded
    }

    fn oci(&self) -> Value {
        let mut rule = json!({ "names": self.names, "action": self.action });
        put(&mut rule, "errnoRet", self.errno_ret);
        put(&mut rule, "args", self.args.clone().filter(|args| !args.is_empty()));
        rule
    }
}

/// Adds `value`, if there is one.
fn put(to: &mut Value, name: &str, value: Option<impl Into<Value>>) {
    if let (Some(object), Some(value)) = (to.as_object_mut(), value) {
        object.insert(name.to_owned(), value.into());
    }
}

/// The first two numbers of a release; what is none is 0.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS",
        "archMap": [
            { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"] },
            { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"] }
        ],
        "syscalls": [
            { "names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {} },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ" }] },
            { "names": ["breakpoint"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["arm", "arm64"] } },
            { "names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["amd64", "x32"] } },
            { "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": { "caps": ["CAP_KILL"] } },
            { "names": ["old"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "4.8" } },
            { "names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "6.10" } }
        ]
    }"#;

    #[test]
    fn a_profile_becomes_the_filter_of_this_machine_and_of_a_container_with_these_capabilities() {
        let profile: Profile = serde_json::from_str(PROFILE).unwrap();
        let oci = profile.oci(&["CAP_KILL"], "6.9.3-amd64");
        assert_eq!(oci["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(oci["defaultErrnoRet"], 38);
        let machines = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        assert_eq!(oci["architectures"], machines);
        let arg = json!([{ "index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ" }]);
        let rules = json!([
            { "names": ["read", "write"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": arg },
            { "names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["old"], "action": "SCMP_ACT_ALLOW" },
        ]);
        assert_eq!(oci["syscalls"], rules);
        // Whoever may administer the system may load programs into the kernel.
        let oci = profile.oci(&["CAP_SYS_ADMIN"], "6.10");
        let names = |rule: &Value| rule["names"][0].as_str().unwrap().to_owned();
        let names: Vec<_> = oci["syscalls"].as_array().unwrap().iter().map(names).collect();
        assert_eq!(names, ["read", "personality", "arch_prctl", "bpf", "old", "new"]);
    }

    #[test]
    fn the_first_profile_that_is_there_counts_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [none, good, bad] = ["none", "good", "bad"].map(|name| dir.path().join(name));
        std::fs::write(&good, PROFILE).unwrap();
        std::fs::write(&bad, "{ \"syscalls\": 7 }").unwrap();
        let find = |places: &[&Path]| first_of(places.iter().copied(), &[], "6.1");
        assert_eq!(find(&[&none]), Ok(None));
        assert_eq!(find(&[&none, &good, &bad]).unwrap().unwrap().profile, good);
        let why = find(&[&bad, &good]).unwrap_err();
        assert!(why.starts_with(&format!("{}: ", bad.display())), "{why}");
        assert!(find(&[dir.path()]).is_err());
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(version("6.10.0-rc1") > version("6.9"));
        assert_eq!(version("5"), (5, 0));
        assert_eq!(version("six"), (0, 0));
    }
}
