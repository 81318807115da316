//! What the host wants run, as the kernel takes it: pointers into the request itself.

use core::ffi::CStr;

use husk_guest_protocol::{Records, tag};

use crate::sys::{Errno, Result, process};

/// A request, parsed. Its pointers are to strings in the request, which stays for ever.
pub struct Request {
    /// Null behind the last.
    pub arguments: &'static [*const u8],
    /// Null behind the last.
    pub environment: &'static [*const u8],
    /// Bytes that the two take at most, with what they point to.
    pub len: usize,
    /// The first argument.
    pub command: &'static CStr,
    /// Of the environment's `PATH`, where it has one.
    pub search: Option<&'static [u8]>,
    pub directory: Option<&'static CStr>,
    pub user: Option<&'static [u8]>,
    /// Whoever asks wants to hear when memory ran out.
    pub hears_of_memory: bool,
    pub file: Option<&'static CStr>,
    /// What it is called in the directory `file`, if that is one.
    pub name: Option<&'static [u8]>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// When it is malformed: a zero inside a string, say.
    pub fn parse(bytes: &'static [u8]) -> Result<Request> {
        let (mut arguments, mut variables) = (0, 0);
        for record in Records(bytes) {
            match record.map_err(|_| Errno::PROTO)?.tag {
                tag::ARGUMENT => arguments += 1,
                tag::VARIABLE => variables += 1,
                _ => {}
            }
        }
        let mut request = Request {
            arguments: &[],
            environment: &[],
            len: bytes.len() + (arguments + variables + 2) * size_of::<*const u8>(),
            command: c"",
            search: None,
            directory: None,
            user: None,
            hears_of_memory: false,
            file: None,
            name: None,
        };
        let (argument_places, variable_places) =
            (pointers(arguments + 1)?, pointers(variables + 1)?);
        let (mut next_argument, mut next_variable) =
            (argument_places.iter_mut(), variable_places.iter_mut());
        for record in Records(bytes) {
            let record = record.map_err(|_| Errno::PROTO)?;
            let text = CStr::from_bytes_with_nul(record.with_zero).map_err(|_| Errno::INVAL);
            match record.tag {
                tag::ARGUMENT => {
                    let text = text?;
                    if let Some(place) = next_argument.next() {
                        *place = text.as_ptr().cast();
                    }
                    if request.command.is_empty() {
                        request.command = text;
                    }
                }
                tag::VARIABLE => {
                    let text = text?;
                    if let Some(place) = next_variable.next() {
                        *place = text.as_ptr().cast();
                    }
                    request.search = text.to_bytes().strip_prefix(b"PATH=").or(request.search);
                }
                tag::DIRECTORY => request.directory = Some(text?),
                tag::USER => request.user = Some(record.bytes()),
                tag::OUT_OF_MEMORY => request.hears_of_memory = true,
                tag::FILE => request.file = Some(text?),
                tag::NAME => request.name = Some(record.bytes()),
                // A newer host's.
                _ => {}
            }
        }
        request.arguments = argument_places;
        request.environment = variable_places;
        Ok(request)
    }
}

/// Room for so many pointers, all null.
fn pointers(count: usize) -> Result<&'static mut [*const u8]> {
    let bytes = process::memory(count.checked_mul(size_of::<*const u8>()).ok_or(Errno::TOOBIG)?)?;
    // SAFETY: a mapping is page-aligned and zero, which is a null pointer; pointers have no other
    // demands.
    let (_, places, _) = unsafe { bytes.align_to_mut::<*const u8>() };
    Ok(places)
}
