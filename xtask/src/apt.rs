//! Debian packages: those of tools that are missing here, installed when root (otherwise the error
//! says what to install), and those that are only unpacked: `apt-get download` and `dpkg-deb -x`.
//! Mirror and proxy are those that this machine's apt is set up for.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::host;

/// Makes sure every tool of `(tool, package)` is installed, through apt when root.
pub fn need(tools: &[(&str, &str)]) -> Result<()> {
    let mut packages: Vec<&str> =
        tools.iter().filter(|(tool, _)| host::find(tool).is_none()).map(|(_, p)| *p).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if host::find("apt-get").is_none() {
        bail!(
            "not installed here: {list} (Debian's package names), and there is no apt-get to \
             install them with; install them by this system's own means"
        );
    }
    if !host::is_root() {
        bail!("not installed here: {list}; run `sudo apt-get install -y {list}` and try again");
    }
    host::say(format!("installing {list} (apt-get install)"));
    let install = || {
        host::output(
            host::command("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "-qq", "--no-install-recommends"])
                .args(&packages),
        )
    };
    if install().is_err() {
        // The usual reason is package lists that are old or absent.
        update()?;
        install().with_context(|| {
            format!("could not install {list}; check the network and /etc/apt/sources.list*")
        })?;
    }
    Ok(())
}

/// Refreshes the package lists (root only; otherwise an error that says how).
pub fn update() -> Result<()> {
    if !host::is_root() {
        bail!("the package lists are absent or old; run `sudo apt-get update` and try again");
    }
    host::say("refreshing the package lists (apt-get update)");
    host::output(host::command("apt-get").args(["update", "-qq"]))
        .context("apt-get update failed; check the network and /etc/apt/sources.list*")?;
    Ok(())
}

/// What the meta package `package` stands for today: the first of its dependencies that starts
/// with `prefix` (`linux-image-amd64` → `linux-image-6.1.0-56-amd64`).
pub fn resolve(package: &str, prefix: &str) -> Result<String> {
    need(&[("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
    let look = || -> Result<Option<String>> {
        let fields =
            host::text(host::command("apt-cache").args(["show", "--no-all-versions", package]))?;
        Ok(dependency(&fields, prefix))
    };
    if let Ok(Some(found)) = look() {
        return Ok(found);
    }
    update()?;
    look()
        .and_then(|found| found.context("its entry names no such dependency"))
        .with_context(|| format!("no usable package {package} here; husk's set-up knows Debian's"))
}

fn dependency(fields: &str, prefix: &str) -> Option<String> {
    let depends = fields.lines().find_map(|l| l.strip_prefix("Depends:"))?;
    depends
        .split([',', '|'])
        .filter_map(|d| d.split_whitespace().next())
        .find(|d| d.starts_with(prefix))
        .map(str::to_owned)
}

/// Downloads `package` and unpacks it under `into`. The archive itself is not kept.
pub fn unpack(package: &str, into: &Path) -> Result<()> {
    need(&[("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
    let debs = into.join(".debs");
    std::fs::create_dir_all(&debs).with_context(|| format!("making {}", debs.display()))?;
    let download = || {
        let mut apt = host::command("apt-get");
        apt.current_dir(&debs).args(["download", "-qq", package]);
        if host::is_root() {
            // Else apt warns that its own user cannot write here.
            apt.args(["-o", "APT::Sandbox::User=root"]);
        }
        host::output(&mut apt)
    };
    if download().is_err() {
        update()?;
        download().with_context(|| {
            format!(
                "could not download {package}; check the network, then `apt-get download {package}` \
                 by hand, and run this again"
            )
        })?;
    }
    for entry in std::fs::read_dir(&debs).with_context(|| format!("reading {}", debs.display()))? {
        host::output(host::command("dpkg-deb").arg("-x").arg(entry?.path()).arg(into))?;
    }
    std::fs::remove_dir_all(&debs).with_context(|| format!("removing {}", debs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_package_names_the_real_one() {
        let fields = "Package: linux-image-amd64\n\
                      Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2), other\n";
        assert_eq!(
            dependency(fields, "linux-image-").as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(dependency("Package: x\n", "linux-image-"), None);
    }
}
