//! `--root`, `--rw`, `--tmpfs` and `--cwd`: what a command's guest has of the host's files, as disks, volumes and
//! directories in memory of the configuration. Nothing is opened here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::Args;
use husk::config::{
    DiskConfig, GuestConfig, OWN_MOUNTS, OverlayConfig, RootConfig, VmConfig, VolumeCache,
    VolumeConfig, check_mount,
};

use crate::cli::Error;
use crate::cli::values::{parse_cache, parse_image, parse_overlay};

/// The id of the disk or the volume that is the root.
const ID: &str = "root";
/// What `--root` says for a guest without one.
const NONE: &str = "none";

/// What a command finds in its guest.
#[derive(Args)]
pub struct Files {
    /// The guest's root: IMAGE|DIR[:cow|ro|rw][,OPTIONS], or none; without a command a shell is run
    /// [default: the host's own, or the --initrd]
    #[arg(long, value_name = "ROOT")]
    pub root: Option<OsString>,
    /// A directory of the host's, at its place and written to
    #[arg(long, value_name = "DIR")]
    pub rw: Vec<PathBuf>,
    /// An empty directory in the guest's memory; may be repeated
    #[arg(long, value_name = "DIR")]
    pub tmpfs: Vec<String>,
    /// Where what is `cow` is written to: memory, or disk[,size=SIZE][,dir=DIR], a file gone with the VM
    /// [default: memory]
    #[arg(long, value_name = "WHERE", value_parser = parse_overlay)]
    pub overlay: Option<OverlayConfig>,
    /// Run the command in husk's directory; what it writes is lost
    #[arg(long, conflicts_with = "workdir")]
    pub cwd: bool,
}

/// What follows from them for the command.
#[derive(Default)]
pub struct Place {
    /// The directory it runs in.
    pub directory: Option<PathBuf>,
    /// Where its user is at home.
    pub home: Option<OsString>,
}

impl Files {
    /// Adds to `config` and `guest` what is asked for, and what the `command` needs to be found. A guest that
    /// is `described` in the configuration already has the root that it has there.
    ///
    /// # Errors
    /// What cannot be.
    pub fn apply(
        self,
        config: &mut VmConfig,
        guest: &mut GuestConfig,
        described: bool,
        command: Option<&OsStr>,
    ) -> Result<Place, Error> {
        let mut place = Place::default();
        let by_default = !described && config.initrd.is_none();
        let root = self.root.or_else(|| by_default.then(|| "/".into()));
        let mut is_host = false;
        if let Some(root) = root.filter(|root| root != NONE) {
            is_host = add_root(config, guest, &root)?;
        }
        if is_host {
            place.home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        }
        if let Some(overlay) = self.overlay {
            guest.overlay = overlay;
        }
        for path in self.tmpfs {
            add_tmpfs(guest, path);
        }
        for path in &self.rw {
            let volume = same_place("--rw", path)?;
            config.volumes.push(volume);
        }
        if self.cwd {
            let here = std::env::current_dir()
                .map_err(|e| format!("--cwd: the directory that husk runs in: {e}"))?;
            if !is_volume(config, &here) && (!is_host || is_hidden(guest, &here)) {
                let volume = same_place("--cwd", &here)?;
                config.volumes.push(VolumeConfig { overlay: true, ..volume });
            }
            place.directory = Some(here);
        }
        if is_host
            && let Some(directory) = command.and_then(|command| beside(command, guest))
            && !is_volume(config, &directory)
        {
            let volume = same_place("the command's directory", &directory)?;
            config.volumes.push(VolumeConfig { readonly: true, ..volume });
        }
        Ok(place)
    }
}

/// Whether a volume brings that directory of the host's.
fn is_volume(config: &VmConfig, directory: &Path) -> bool {
    let mut mounts = config.volumes.iter().filter_map(|volume| volume.mount.as_deref());
    mounts.any(|mount| directory.starts_with(mount))
}

/// Whether the guest has something of its own where the host has that directory.
fn is_hidden(guest: &GuestConfig, directory: &Path) -> bool {
    let mut own = OWN_MOUNTS.into_iter().chain(guest.tmpfs.iter().map(String::as_str));
    own.any(|above| directory.starts_with(above))
}

/// The directory of a command that is a file of the host's, named by its whole path, in a directory below one
/// that the guest has in its memory: a test runner makes its programs there. `/tmp` itself is nobody's to show.
fn beside(command: &OsStr, guest: &GuestConfig) -> Option<PathBuf> {
    let path = Path::new(command);
    let directory = path.parent().filter(|_| path.is_absolute() && path.is_file())?;
    // Where it is by another name, the guest would look for it in vain.
    let directory = directory.canonicalize().ok().filter(|real| real == directory)?;
    let above = directory.parent()?;
    guest.tmpfs.iter().any(|own| above.starts_with(own)).then(|| directory.clone())
}

fn add_tmpfs(guest: &mut GuestConfig, path: String) {
    if !guest.tmpfs.contains(&path) {
        guest.tmpfs.push(path);
    }
}

/// A directory of the host's at the place in the guest that it has on the host.
fn same_place(option: &str, path: &Path) -> Result<VolumeConfig, Error> {
    let refused = |why: &str| Error::from(format!("{option} {}: {why}", path.display()));
    let path = path.canonicalize().map_err(|e| refused(&e.to_string()))?;
    if !path.is_dir() {
        return Err(refused(
            "it is not a directory, and no other file can be shared: name the one it is in",
        ));
    }
    let mount = path.to_str().ok_or_else(|| refused("it is not UTF-8"))?.to_owned();
    check_mount(&mount)
        .map_err(|why| refused(&format!("it would be at {mount} in the guest: {why}")))?;
    Ok(VolumeConfig { mount: Some(mount), path, ..VolumeConfig::default() })
}

/// What stands before the options of a root, and these: of a path only what is one of them is cut off.
fn split_options(root: &[u8]) -> (&[u8], String) {
    let is_option = |text: &[u8]| {
        text == b"backing" || [&b"cache="[..], b"format="].iter().any(|key| text.starts_with(key))
    };
    let mut path = root;
    while let Some(comma) = path.iter().rposition(|byte| *byte == b',') {
        let (before, option) = path.split_at(comma);
        if !option.get(1..).is_some_and(is_option) {
            break;
        }
        path = before;
    }
    let options = root.get(path.len()..).unwrap_or_default();
    (path, String::from_utf8_lossy(options).trim_start_matches(',').to_owned())
}

/// Makes that the guest's root, and tells whether it is the host's own.
fn add_root(config: &mut VmConfig, guest: &mut GuestConfig, root: &OsStr) -> Result<bool, Error> {
    let (bytes, options) = split_options(root.as_bytes());
    let (path, readonly, writable) =
        match bytes.rsplitn(2, |byte| *byte == b':').collect::<Vec<_>>()[..] {
            [b"rw", path] => (path, false, true),
            [b"ro", path] => (path, true, false),
            [b"cow", path] => (path, false, false),
            _ => (bytes, false, false),
        };
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    if config.disks.iter().any(|disk| disk.id == ID)
        || config.volumes.iter().any(|volume| volume.id == ID || volume.tag == ID)
    {
        return Err(
            "--root: there is a disk or a volume called `root` already; give it another id= \
                    or tag (or say --root none, if it is no root)"
                .into(),
        );
    }
    let is_host = path.canonicalize().is_ok_and(|path| path == Path::new("/"));
    if is_host && writable {
        return Err(
            "--root /:rw: the host's own root is only read; name what is to be written to with \
                    --rw DIR"
                .into(),
        );
    }
    if is_host || readonly {
        // Neither what others keep there on the host, nor nothing that can be written to.
        add_tmpfs(guest, "/tmp".to_owned());
    }
    let place = if path.is_dir() {
        let cache = match &options[..] {
            "" => VolumeCache::default(),
            options => parse_cache("--root", options)?,
        };
        config.volumes.push(VolumeConfig {
            id: ID.to_owned(),
            tag: ID.to_owned(),
            path,
            readonly: !writable,
            cache,
            ..VolumeConfig::default()
        });
        RootConfig::on_volume(ID)
    } else {
        let (format, backing) = match &options[..] {
            "" => (None, false),
            options => parse_image("--root", options)?,
        };
        let disk = DiskConfig {
            id: ID.to_owned(),
            path,
            readonly: !writable,
            format,
            backing,
            ..DiskConfig::default()
        };
        // Before all others.
        config.disks.insert(0, disk);
        RootConfig::on_disk(ID)
    };
    guest.root = Some(RootConfig { readonly, writable, ..place });
    Ok(is_host)
}
