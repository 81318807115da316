//! The initramfs that husk makes for a guest that runs commands: the agent, and those of the kernel's
//! modules that it needs, in the order in which they are loaded.
//!
//! ```text
//! the user's --initrd, if there is one │ /dev/null … │ /husk/init │ /husk/modules │ /husk/*.ko
//! ```
//!
//! It is made in memory and is in no file system. The kernel unpacks archives one after the other.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::path::Path;

use husk_initramfs::Cpio;

use super::drivers;
use super::error::ImageError;
use super::modules::{Modules, directory_of, places_of};
use crate::config::VmConfig;
use crate::files;

/// The longest initrd of the user's own that is put in front, in bytes.
const OWN_MAX: u64 = 4 << 30;

/// Makes the initramfs of `config`, whose guest is husk's, as a file without a name. The kernel has the modules
/// `absent` certainly not in itself.
///
/// # Errors
/// When the kernel lacks a driver, or something cannot be read.
pub fn make(config: &VmConfig, absent: &[&str]) -> Result<File, ImageError> {
    if let Some(file_system) = drivers::only_read(config) {
        return Err(ImageError::OnlyRead { file_system });
    }
    let mut cpio = Cpio::default();
    for directory in ["dev", "proc", "sys", "run", "husk"] {
        cpio.directory(directory);
    }
    // Before /dev is mounted: the kernel opens the first of them for init, init the second.
    cpio.device("dev/console", 0o666, 5, 1);
    cpio.device("dev/null", 0o666, 1, 3);
    cpio.file("husk/init", 0o755, super::AGENT);
    add_modules(config, absent, &mut cpio)?;

    let failed = |source| ImageError::Memory { source };
    let mut file = anonymous().map_err(failed)?;
    if let Some(own) = &config.initrd {
        let bytes = files::read(own, OWN_MAX)
            .map_err(|source| ImageError::Initrd { path: own.clone(), source })?;
        // An archive begins on a boundary of four bytes.
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        file.write_all(&bytes).map_err(failed)?;
        file.write_all(&vec![0; padding]).map_err(failed)?;
    }
    file.write_all(&cpio.finish()).map_err(failed)?;
    Ok(file)
}

/// Adds the modules. Of a kernel without a directory of them everything is taken to be built in, unless it is
/// known not to be; what is missing then is told by the guest.
fn add_modules(config: &VmConfig, absent: &[&str], cpio: &mut Cpio) -> Result<(), ImageError> {
    let given = config.guest.as_ref().and_then(|guest| guest.modules.as_deref());
    let found = match given {
        Some(directory) => Some(directory.to_owned()),
        None => directory_of(&config.kernel),
    };
    let drivers = drivers::of(config);
    let Some(directory) = found else {
        let missing = drivers.needed.iter().find(|need| absent.contains(&need.driver.module));
        return missing.map_or(Ok(()), |missing| {
            Err(ImageError::NoModules {
                kernel: config.kernel.clone(),
                module: missing.driver.module,
                option: missing.driver.option,
                purpose: missing.purpose,
                looked: places_of(&config.kernel),
            })
        });
    };
    let modules = Modules::open(&directory)?;
    if let Some(missing) = drivers.needed.iter().find(|need| !modules.index.has(need.driver.module))
    {
        return Err(ImageError::MissingDriver {
            kernel: config.kernel.clone(),
            module: missing.driver.module,
            option: missing.driver.option,
            purpose: missing.purpose,
            modules: directory,
        });
    }
    let needed = drivers.needed.iter().map(|need| need.driver.module);
    // What others ask for comes first.
    let wanted: Vec<&str> = drivers.wished.iter().copied().chain(needed).collect();
    let now = modules.index.closure(&wanted);
    let all = modules.index.closure(&[&wanted[..], &drivers.later].concat());
    let mut orders = [String::new(), String::new()];
    for (n, (name, path)) in all.iter().enumerate() {
        cpio.file(&format!("husk/{name}.ko"), 0o644, &modules.read(path)?);
        // It begins with what is loaded now.
        let [first, later] = &mut orders;
        let order = if n < now.len() { first } else { later };
        order.push_str(name);
        order.push('\n');
    }
    let [first, later] = &orders;
    cpio.file("husk/modules", 0o644, first.as_bytes());
    cpio.file("husk/modules.later", 0o644, later.as_bytes());
    Ok(())
}

/// A file in memory.
fn anonymous() -> io::Result<File> {
    // SAFETY: a string that outlives the call.
    let fd = unsafe { libc::memfd_create(c"husk-initramfs".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and is nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// What the initramfs is called in messages.
pub fn name() -> &'static Path {
    Path::new("(made by husk)")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;
    use crate::config::GuestConfig;

    fn config(directory: &Path, builtin: &str) -> VmConfig {
        std::fs::write(
            directory.join("modules.dep"),
            "k/virtio_mmio.ko: k/virtio.ko\nk/virtio.ko:\nk/unused.ko:\nk/evdev.ko: k/virtio.ko\n",
        )
        .unwrap();
        std::fs::write(directory.join("modules.builtin"), builtin).unwrap();
        std::fs::create_dir_all(directory.join("k")).unwrap();
        for name in ["virtio_mmio", "virtio", "unused", "evdev"] {
            std::fs::write(directory.join(format!("k/{name}.ko")), name).unwrap();
        }
        let mut config = VmConfig::new("a-kernel");
        let modules = Some(directory.to_owned());
        config.guest = Some(GuestConfig { modules, ..GuestConfig::default() });
        config
    }

    #[test]
    fn it_holds_the_agent_and_the_modules_that_are_needed_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), "k/vmw_vsock_virtio_transport.ko\n");
        let own = dir.path().join("own");
        std::fs::write(&own, b"mine!").unwrap();
        config.initrd = Some(own);
        let mut bytes = Vec::new();
        let mut file = make(&config, &[]).unwrap();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"mine!\x00\x00\x00070701"));
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(has(b"virtio\nvirtio_mmio\n") && has(b"husk/modules.later\0"));
        assert!(has(b"evdev\n") && !has(b"virtio_mmio\nevdev\n"), "it is loaded later");
        assert!(has(b"husk/init\0") && !has(b"unused"));
        assert!(has(&super::super::AGENT[..4096]));
    }

    #[test]
    fn a_kernel_without_a_driver_is_told_by_the_option_that_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let error = make(&config(dir.path(), ""), &[]).unwrap_err().to_string();
        assert!(error.contains("CONFIG_VIRTIO_VSOCKETS"), "{error}");
        assert!(error.contains("a-kernel"), "{error}");
    }

    #[test]
    fn a_kernel_away_from_its_modules_is_told_where_they_were_looked_for_if_it_needs_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = VmConfig::new(dir.path().join("vmlinuz-0.0-none"));
        config.guest = Some(GuestConfig::default());
        make(&config, &[]).unwrap();
        make(&config, &["a_driver_that_nobody_needs"]).unwrap();
        let error = make(&config, &["vmw_vsock_virtio_transport"]).unwrap_err().to_string();
        for words in ["CONFIG_VIRTIO_VSOCKETS", "--modules DIR", "/lib/modules/0.0-none"] {
            assert!(error.contains(words), "{error}");
        }
    }
}
