//! What stands for qcow2 images where husk is built without them: there is none.

use std::fs::File;
use std::io;
use std::path::Path;

use super::error::DiskError;
use super::types::{DiskOptions, Step};

/// No image.
#[derive(Debug)]
pub(super) enum Qcow2 {}

pub(super) fn check(_file: &File, path: &Path, _writable: bool) -> Result<(), DiskError> {
    let why = "it is a qcow2 image, and this husk is built without the feature `qcow2`; make a raw \
               image of it with `qemu-img convert -O raw`, or say format=raw";
    Err(DiskError::Format { path: path.to_path_buf(), why: why.to_owned() })
}

impl Qcow2 {
    pub fn open(file: &File, path: &Path, options: DiskOptions) -> Result<Qcow2, DiskError> {
        let why = "there is no such format".to_owned();
        check(file, path, !options.read_only)?;
        Err(DiskError::Format { path: path.to_path_buf(), why })
    }

    pub fn size(&self) -> u64 {
        match *self {}
    }

    pub fn make(&self, _step: Step<'_>) -> i32 {
        match *self {}
    }

    pub fn resize(&self, _size: u64) -> io::Result<()> {
        match *self {}
    }
}
