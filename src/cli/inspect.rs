//! `husk inspect`: what a VM that has a name is made of, and what it does.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Args;
use husk::config::{ConsoleConfig, OverlayDisk, RootConfig};
use husk::named::{self, GuestState, Inspection};
use husk::{DeviceMetrics, State};

use super::Error;
use super::stdout::print;

/// Tell what a VM that has a name is made of, and what it does
#[derive(Args)]
pub struct Inspect {
    /// The VM
    name: String,
    /// Print all of it, as JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Prints what the VM tells.
    pub fn execute(self) -> Result<u8, Error> {
        let told = named::find(&self.name)?.inspect()?;
        if self.json {
            print(&(serde_json::to_string_pretty(&told)? + "\n"))?;
        } else {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
            // What it tells is the words of whoever started it.
            print(&super::stderr::plain(&table(&told, now)?))?;
        }
        Ok(0)
    }
}

/// What the guest may do to a disk or a volume, in the words of the options.
fn how(readonly: bool, overlay: bool) -> &'static str {
    match (readonly, overlay) {
        (true, _) => "ro",
        (_, true) => "cow",
        _ => "rw",
    }
}

/// Where the root of a guest is that runs commands, and what they may do to it.
fn root(root: Option<&RootConfig>) -> String {
    let Some(root) = root else { return "the initramfs".to_owned() };
    let how = match (root.writable, root.readonly) {
        (true, _) => "rw",
        (_, true) => "ro",
        _ => "cow",
    };
    match (&root.disk, &root.volume) {
        (Some(disk), _) => format!("disk {disk} ({how})"),
        (None, Some(volume)) => format!("volume {volume} ({how})"),
        (None, None) => how.to_owned(),
    }
}

/// The disk that what is written above the root is on.
fn overlay(disk: &OverlayDisk) -> String {
    let size = disk.size.map_or(String::new(), |size| format!(" of {size}"));
    let place = disk.dir.as_ref().map_or(String::new(), |dir| format!(" in {}", dir.display()));
    format!("a disk{size}{place}")
}

/// What the kernel is called, and where it is, if that is more.
fn kernel(name: &str, path: &str) -> String {
    if path.ends_with(name) { path.to_owned() } else { format!("{name}, {path}") }
}

/// The facts, a line each, at `now`.
fn table(told: &Inspection, now: u64) -> Result<String, std::fmt::Error> {
    let (info, config) = (&told.info, &told.config);
    let state = match told.state {
        State::Running => "running",
        State::Paused => "paused",
        State::Ended => "ended",
    };
    let mut facts = vec![
        ("name", info.name.clone()),
        ("state", format!("{state}, for {} s", now.saturating_sub(info.since))),
        ("process", info.pid.to_string()),
        ("directory", told.directory.display().to_string()),
        ("kernel", kernel(&info.kernel, &config.kernel.display().to_string())),
        ("vCPUs", config.cpus.to_string()),
        ("memory", config.memory.size.to_string()),
    ];
    if let Some(guest) = &told.guest {
        let guest = match guest {
            GuestState::Starting if config.agent => "its init has not started husk's agent yet",
            GuestState::Starting => "not ready for commands yet",
            GuestState::Ready => "ready for commands",
            GuestState::Failed => "could not be set up",
            GuestState::Gone => "its agent has gone",
        };
        facts.push(("guest", guest.to_owned()));
    }
    if let Some(command) = &told.about.command {
        facts.push(("command", command.join(" ")));
    }
    facts.push((
        "console",
        match (&told.console_path, &config.console) {
            (Some(path), _) => path.display().to_string(),
            (None, ConsoleConfig::File(path)) => path.display().to_string(),
            (None, ConsoleConfig::None) => "kept for `husk logs`".to_owned(),
            (None, _) => "the standard streams of the process".to_owned(),
        },
    ));
    if let Some(guest) = &config.guest {
        facts.push(("root", root(guest.root.as_ref())));
        facts.extend(guest.overlay_disk().map(|disk| ("overlay", overlay(disk))));
    }
    for disk in &config.disks {
        let how = how(disk.readonly, disk.overlay);
        facts.push(("disk", format!("{}: {} ({how})", disk.id, disk.path.display())));
    }
    for volume in &config.volumes {
        let at = volume.mount.as_ref().unwrap_or(&volume.tag);
        let how = how(volume.readonly, volume.overlay);
        facts.push(("volume", format!("{}: {at} ({how})", volume.path.display())));
    }
    for directory in config.guest.iter().flat_map(|guest| &guest.tmpfs) {
        facts.push(("tmpfs", directory.clone()));
    }
    let mut text = String::new();
    for (name, value) in facts {
        writeln!(text, "{name:<10} {value}")?;
    }
    writeln!(
        text,
        "\n{:<20} {:>10} {:>14} {:>14} {:>7} {:>11} {:>10}",
        "DEVICE", "REQUESTS", "FROM GUEST", "TO GUEST", "ERRORS", "INTERRUPTS", "DOORBELLS"
    )?;
    for (id, DeviceMetrics { counts, .. }) in &told.metrics.devices {
        writeln!(
            text,
            "{id:<20} {:>10} {:>14} {:>14} {:>7} {:>11} {:>10}",
            counts.requests,
            counts.bytes_from_guest,
            counts.bytes_to_guest,
            counts.errors,
            counts.interrupts,
            counts.doorbells
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use husk::config::Size;

    use super::*;

    #[test]
    fn a_kernel_has_its_version_before_a_path_that_does_not_tell_it() {
        let path = "/data/husk/kernels/default/vmlinuz";
        assert_eq!(kernel("6.1.0-9-amd64", path), format!("6.1.0-9-amd64, {path}"));
        assert_eq!(kernel("vmlinuz", "dir/vmlinuz"), "dir/vmlinuz");
        assert_eq!(
            kernel("6.1.0-9-amd64", "/boot/vmlinuz-6.1.0-9-amd64"),
            "/boot/vmlinuz-6.1.0-9-amd64"
        );
    }

    #[test]
    fn what_a_guest_may_do_to_its_files_is_told_in_the_words_of_the_options() {
        assert_eq!([how(true, false), how(false, true), how(false, false)], ["ro", "cow", "rw"]);
        assert_eq!(root(None), "the initramfs");
        let on = OverlayDisk { size: Some(Size::mib(64)), dir: Some("/scratch".into()) };
        assert_eq!(overlay(&on), "a disk of 64M in /scratch");
        assert_eq!(overlay(&OverlayDisk::default()), "a disk");
        let disk = RootConfig::on_disk("a");
        assert_eq!(root(Some(&disk)), "disk a (cow)");
        assert_eq!(root(Some(&RootConfig { writable: true, ..disk })), "disk a (rw)");
        let volume = RootConfig { readonly: true, ..RootConfig::on_volume("b") };
        assert_eq!(root(Some(&volume)), "volume b (ro)");
    }
}
