//! `cargo xtask demo`: from nothing but cargo and apt to Debian at work in a husk. The set-up runs
//! here; the machine runs here too where this machine's KVM can, and in the testbed otherwise.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::doctor::{self, Place};
use crate::limited::{self, Errors};
use crate::tap::Tap;
use crate::{assets, cargo, host, testbed};

/// Debian takes seconds to come up; under two emulators a minute or two.
const LIMIT: Duration = Duration::from_secs(300);

/// What its machine is made of: nothing else is fetched or made for it.
const NEEDS: [&str; 3] = [assets::VMLINUZ_CLOUD, assets::FULL, assets::DEBIAN];

/// The part that runs beside the guest, in the testbed or not.
#[derive(clap::Args)]
pub struct Inner {
    husk: PathBuf,
    assets: PathBuf,
}

/// Runs `cargo xtask demo`; gives husk's exit status.
pub fn main() -> Result<u8> {
    let husk = cargo::build_husk()?;
    let assets = assets::only(&NEEDS)?;
    let place = match doctor::ask(&husk) {
        Place::Here if !host::is_root() => {
            Place::Testbed("making a TAP interface here wants root".to_owned())
        }
        place => place,
    };
    let why = match place {
        Place::Here => {
            host::say("running on this machine's own KVM");
            return inner(&Inner { husk, assets });
        }
        Place::Testbed(why) => why,
    };
    host::say(format!("running in the testbed: {why}"));
    let options = testbed::Options {
        timeout: LIMIT + Duration::from_secs(120),
        ..testbed::Options::new(again(husk, assets)?)?
    };
    let outcome = testbed::run(&options)?;
    if outcome.end == testbed::End::TimedOut {
        bail!("the demo was not over after {} s", options.timeout.as_secs());
    }
    Ok(outcome.end.status())
}

/// The command that does [`inner`] in another process.
fn again(husk: PathBuf, assets: PathBuf) -> Result<Vec<OsString>> {
    let xtask = std::env::current_exe().context("finding xtask's own executable")?;
    Ok(vec![xtask.into(), "__demo".into(), husk.into(), assets.into()])
}

/// Runs husk with a copy of the Debian image and a TAP interface.
pub fn inner(args: &Inner) -> Result<u8> {
    let dir = Scratch::new()?;
    host::say("copying the guest's kernel and disk to memory");
    assets::copy_to_ram(&args.assets, &NEEDS, &dir.0)?;
    let husk = dir.0.join("husk");
    std::fs::copy(&args.husk, &husk).with_context(|| format!("copying {}", args.husk.display()))?;
    catch_signals();
    let tap = Tap::create()?;

    let mut command = guest(&husk, &dir.0, &tap.name, [&tap.host(), &tap.guest()]);
    host::say(words(&command));
    let done = limited::run_until(&mut command, LIMIT, true, Errors::Joined, &STOP)?;
    if let limited::Ended::TimedOut = done.ended {
        host::say(format!("husk was not done after {} s, or was interrupted", LIMIT.as_secs()));
    }
    let (status, word) = verdict(done.status(), &done.text());
    host::say(word);
    Ok(status)
}

/// The husk of the demo: a guest made of the assets in `dir`, whose card is on `tap` with the addresses of both ends.
fn guest(husk: &Path, dir: &Path, tap: &str, [host, guest]: [&str; 2]) -> Command {
    let mut command = host::command(husk);
    command.arg("run").arg("--kernel").arg(dir.join(assets::VMLINUZ_CLOUD));
    command.arg("--initrd").arg(dir.join(assets::FULL));
    command.arg("--disk").arg(format!("path={},id=root", dir.join(assets::DEBIAN).display()));
    command.arg("--net").arg(format!("tap={tap}"));
    command.args(["--cpus", "2", "--memory", "512M", "--timeline", "--append"]);
    command.arg(format!("quiet root=/dev/vda rw husk.demo husk.ip={guest}/30 husk.gw={host}"));
    command
}

/// The demo's exit status and last word, when husk has ended with `status` and written `text`.
fn verdict(status: u8, text: &str) -> (u8, String) {
    match status {
        0 if text.contains("HUSK-DEMO-PASSED") => {
            (0, "the demo passed; the table above says where the time went".to_owned())
        }
        0 => {
            let unsaid = "husk ended well, but the guest did not say that its checks passed";
            (1, format!("the demo failed: {unsaid}"))
        }
        _ => (status, format!("the demo failed: husk ended with status {status}")),
    }
}

fn words(command: &Command) -> String {
    let quoted = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        if word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
    };
    let args = command.get_args().map(quoted);
    format!("husk {}", args.collect::<Vec<_>>().join(" "))
}

/// A directory in RAM for this run, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let ram = Path::new("/dev/shm");
        let base = if ram.is_dir() { ram.to_owned() } else { std::env::temp_dir() };
        let dir = base.join(format!("husk-demo-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // In RAM; what cannot be removed goes with the next start of the machine.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// An interrupted demo still takes its TAP interface down.
fn catch_signals() {
    extern "C" fn stop(_: libc::c_int) {
        STOP.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which signal-safety(7) allows.
        unsafe { libc::signal(signal, stop as *const () as libc::sighandler_t) };
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::Cli;

    #[test]
    fn what_runs_in_the_testbed_is_understood_there() {
        let command = again("/husk".into(), "/assets".into()).unwrap();
        assert!(Path::new(&command[0]).is_file(), "{command:?}");
        match Cli::try_parse_from(command).map(|cli| cli.command) {
            Ok(crate::Command::DemoInner(inner)) => {
                assert_eq!((inner.husk, inner.assets), ("/husk".into(), "/assets".into()));
            }
            _ => panic!("it is no demo"),
        }
    }

    #[test]
    fn what_is_made_for_the_demo_is_what_its_guest_is_made_of() {
        let command = guest(Path::new("husk"), Path::new("/ram"), "tap0", ["host", "guest"]);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let named = words.iter().filter_map(|word| word.split_once("/ram/"));
        let named: Vec<_> = named.filter_map(|(_, name)| name.split(',').next()).collect();
        assert_eq!(named, NEEDS);
    }

    #[test]
    fn a_demo_has_passed_only_if_the_guest_says_so() {
        let said = |status, text| verdict(status, text).0;
        assert_eq!(said(0, "== …\nHUSK-DEMO-PASSED\n"), 0);
        assert_eq!(said(0, "HUSK-DEMO-FAILED"), 1);
        assert_eq!(said(0, ""), 1);
        assert_eq!((said(134, "HUSK-DEMO-PASSED"), said(124, "")), (134, 124));
    }
}
