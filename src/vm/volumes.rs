//! Shared directories: opened, and given what they may have of the process' descriptors.

use husk_devices::fs::{Share, ShareOptions};
use husk_devices::virtio::fs::Fs;

use super::error::VmError;
use super::opening::Opening;
use crate::config::VolumeConfig;

/// Descriptors that are left for everything else in this process.
const RESERVED: u64 = 256;
/// The most and the fewest that one directory gets: a guest with fewer hardly works, and more serve
/// nobody.
const MOST: u64 = 1 << 20;
const FEWEST: u64 = 64;

/// Opens the directories and adds their devices, and a worker for each.
///
/// # Errors
/// The directory that cannot be shared.
pub(super) fn open(configs: &[VolumeConfig], opening: &mut Opening) -> Result<(), VmError> {
    let max_files = files_each(descriptors(), configs.len() as u64);
    for config in configs {
        // What is written to an overlay is the guest's own affair.
        let read_only = config.readonly || config.overlay;
        let options = ShareOptions { read_only, cache: config.cache, max_files };
        let share = Share::open(&config.path, options)
            .map_err(|source| VmError::Volume { tag: config.tag.clone(), source })?;
        let own = opening.own_worker(format!("husk-{}", config.id))?;
        opening.add(&config.id, Fs::new(&config.tag, share, own)?);
    }
    Ok(())
}

/// How many descriptors this process may have.
fn descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes an rlimit; when it cannot, the limit stays 0.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur
}

/// What each of `volumes` gets of `descriptors`.
fn files_each(descriptors: u64, volumes: u64) -> usize {
    let each = descriptors.saturating_sub(RESERVED) / volumes.max(1);
    // At most MOST.
    each.clamp(FEWEST, MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_share_the_descriptors_and_leave_some() {
        assert_eq!(files_each(1024, 1), 768);
        assert_eq!(files_each(1024, 2), 384);
        assert_eq!(files_each(100, 3), 64);
        assert_eq!(files_each(u64::MAX, 1), 1 << 20);
    }
}
