//! A kernel, from a path to an entry point.
//!
//! [`Kernel::open`] recognises what the user gave; [`Kernel::begin_load`] says how it is entered, and
//! [`Kernel::read`] puts it into guest memory. Which vCPU registers that means is for the caller to know.

use std::ops::Range;
use std::path::{Path, PathBuf};

use vm_memory::GuestMemoryMmap;

use super::brought;
use super::builtin::Absent;
use super::bzimage::{self, SetupHeader};
use super::cache::Cache;
use super::elf::Segment;
use super::error::KernelError;
use super::image::Image;
use super::load::{self, LoadMethod, Reading};
use super::recognise::{Body, Recognised, recognise};
use crate::x86_64::entry::Protocol;

/// The longest command line of an x86 Linux, in bytes without the NUL (`COMMAND_LINE_SIZE` 2048).
pub const LINUX_CMDLINE_MAX: usize = 2047;
/// The highest address of an initrd's last byte that every x86-64 Linux takes
/// (`initrd_addr_max` in `arch/x86/boot/header.S`).
pub const LINUX_INITRD_MAX: u64 = 0x7fff_ffff;
/// No command line may be longer than this whatever the header says.
const CMDLINE_CEILING: u32 = 64 << 10;

/// What a caller may want otherwise than by default.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// How the bytes get there.
    pub method: LoadMethod,
    /// The only protocol to enter by, or `None`: PVH if the kernel can, else `Linux64`.
    pub protocol: Option<Protocol>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { method: LoadMethod::Read, protocol: None }
    }
}

/// A kernel in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The guest-physical address to begin at.
    pub entry: u64,
    /// In which state and with which parameters.
    pub protocol: Protocol,
    /// The first address free to use above it, its zeroed data and early heap included.
    pub end: u64,
    /// The highest address the last byte of an initrd may have.
    pub initrd_max: u64,
    /// The longest command line it takes, in bytes without the NUL.
    pub cmdline_max: usize,
    /// The header of the `bzImage` it came in, for `boot_params`.
    pub setup_header: Option<SetupHeader>,
    /// How it was loaded: `Map` if that was wanted and any of it was mapped.
    pub method: LoadMethod,
}

/// A kernel on its way into guest memory.
#[derive(Debug)]
pub struct Load {
    reading: Reading,
    loaded: Loaded,
}

impl Load {
    /// Whether it takes long enough for a thread more to be worth it.
    pub fn is_long(&self) -> bool {
        self.reading.is_long()
    }

    /// What it is when it is there.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }
}

/// A kernel file, recognised and checked, open until dropped.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    image: Image,
    body: Body,
    header: Option<SetupHeader>,
}

impl Kernel {
    /// Opens the kernel at `path`. It is looked up in `cache`, or made ready to load and kept there:
    /// a `bzImage` unpacked, a `vmlinux` without its zeros and its debugging information.
    ///
    /// # Errors
    /// When there is no such file, or it is no kernel husk can boot.
    pub fn open(path: &Path, cache: &Cache) -> Result<Kernel, KernelError> {
        let Recognised { image, body, header } = recognise(path, cache)?;
        Ok(Kernel { path: path.to_owned(), image, body, header })
    }

    /// Whether it is a `bzImage` that carries no Linux husk could see: memtest86+, say.
    pub fn is_opaque(&self) -> bool {
        matches!(self.body, Body::Code(_))
    }

    /// Whether it is a Linux that has nothing of its own that it could run. Takes a while: all of it is
    /// looked at. False also when it cannot be told.
    pub fn brings_nothing(&self) -> bool {
        let has_device = self.header.as_ref().is_some_and(SetupHeader::has_root_device);
        !has_device && !self.is_opaque() && brought::nothing(&self.image).unwrap_or(false)
    }

    /// Drivers that it certainly has not in itself.
    pub fn absent(&self) -> Absent {
        match &self.body {
            Body::Elf(elf) => elf.absent,
            Body::Code(_) => Absent::default(),
        }
    }

    /// The guest addresses where its file may be mapped over the guest's memory.
    pub fn mapped(&self, method: LoadMethod) -> Vec<Range<u64>> {
        let pages = |segment| load::mapped_pages(&self.image, segment, method);
        self.segments().iter().filter_map(pages).collect()
    }

    fn segments(&self) -> &[Segment] {
        match &self.body {
            Body::Elf(elf) => elf.segments.as_slice(),
            Body::Code(segment) => std::slice::from_ref(segment),
        }
    }

    /// Begins to put it into `memory`, which must be freshly mapped: what is not loaded is taken to be zero.
    ///
    /// # Errors
    /// When it cannot be entered by the protocol wanted, or the guest has no memory where it goes.
    pub fn begin_load(
        &self,
        memory: &GuestMemoryMmap,
        options: LoadOptions,
    ) -> Result<Load, KernelError> {
        let (entry, protocol) = self.choose_entry(options.protocol)?;
        let segments = self.segments();
        let reading = load::begin(memory, &self.image, segments, options.method)
            .map_err(|source| KernelError::Load { path: self.path.clone(), source })?;

        let start = segments.first().map_or(0, |segment| segment.paddr);
        // boot.rst, "init_size": counted from where the kernel runs, which for one that cannot be
        // relocated is its preferred address, wherever it was loaded.
        let needs = self.header.as_ref().map_or(0, |header| {
            header.pref_address.max(start).saturating_add(u64::from(header.init_size))
        });
        let end = segments.last().map_or(0, Segment::end).max(needs);
        let loaded = Loaded {
            entry,
            protocol,
            end,
            initrd_max: self.initrd_max(protocol),
            cmdline_max: self.cmdline_max(),
            setup_header: self.header.clone(),
            method: reading.method,
        };
        Ok(Load { reading, loaded })
    }

    /// Takes part in what was begun. The kernel is there when everybody who does so is done, one at least.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, load: &Load) -> Result<(), KernelError> {
        let read = load.reading.read(&self.image);
        read.map_err(|source| KernelError::Load { path: self.path.clone(), source })
    }

    fn choose_entry(&self, wanted: Option<Protocol>) -> Result<(u64, Protocol), KernelError> {
        let (pvh, linux64) = match &self.body {
            Body::Elf(elf) => (elf.pvh_entry, elf.entry),
            Body::Code(segment) => (None, Some(segment.paddr + bzimage::ENTRY64)),
        };
        let pvh = pvh.map(|entry| (entry, Protocol::Pvh));
        let linux64 = linux64.map(|entry| (entry, Protocol::Linux64));
        let chosen = match wanted {
            Some(Protocol::Pvh) => pvh,
            Some(Protocol::Linux64) => linux64,
            None => pvh.or(linux64),
        };
        chosen.ok_or_else(|| KernelError::NoSuchEntry {
            path: self.path.clone(),
            protocol: wanted.unwrap_or(Protocol::Linux64),
        })
    }

    fn initrd_max(&self, protocol: Protocol) -> u64 {
        match &self.header {
            Some(header) if protocol == Protocol::Linux64 && header.can_be_above_4g() => u64::MAX,
            Some(header) => u64::from(header.initrd_addr_max),
            None => LINUX_INITRD_MAX,
        }
    }

    fn cmdline_max(&self) -> usize {
        match &self.header {
            Some(header) => header.cmdline_size.min(CMDLINE_CEILING) as usize,
            None => LINUX_CMDLINE_MAX,
        }
    }
}

#[cfg(test)]
mod tests;
