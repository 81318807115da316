//! `husk cp`: files and directories into a VM that has a name, and out of one.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use clap::Args;
use husk::CopyStop;
use husk::error::{ExecError, NameError};
use husk::named;

use super::Error;
use super::life::watch;
use super::signals::Signals;

/// Copy a file or a directory into a VM that has a name, or out of one
///
/// What is copied to a directory that is there goes into it, by its name; of DIR/. only what is in it. Links
/// in a directory stay links; one that is named itself is followed.
#[derive(Args)]
pub struct Cp {
    /// NAME:PATH in a VM, or a path here
    from: OsString,
    /// NAME:PATH in a VM, or a path here; one of the two is in a VM
    to: OsString,
}

impl Cp {
    /// Copies.
    pub fn execute(self) -> Result<u8, Error> {
        let (from, to) = (Place::of(&self.from)?, Place::of(&self.to)?);
        let stop = CopyStop::default();
        let signal = end_at_signals(&stop)?;
        let copied = match (from, to) {
            (Place::Here(from), Place::There(name, to)) => {
                named::find(&name).and_then(|vm| vm.copy_in(&from, &to, &stop))
            }
            (Place::There(name, from), Place::Here(to)) => {
                named::find(&name).and_then(|vm| vm.copy_out(&from, &to, &stop))
            }
            _ => {
                return Err(
                    "one of the two is in a VM, NAME:PATH, and the other one a file or directory here"
                        .into(),
                );
            }
        };
        match copied {
            Ok(()) => Ok(0),
            // Only a signal does that.
            Err(NameError::Exec(ExecError::Stopped)) => {
                Ok(128u8.wrapping_add(signal.load(Ordering::Acquire) as u8))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Has the first signal end the copy, which cleans up behind itself, and a second one husk; gives which one came.
fn end_at_signals(stop: &CopyStop) -> Result<Arc<AtomicI32>, Error> {
    let signals = Signals::block()?;
    let (stop, came) = (stop.clone(), Arc::new(AtomicI32::new(0)));
    let told = came.clone();
    watch(move || {
        let mut signal = signals.wait();
        told.store(signal, Ordering::Release);
        // Before it has begun there is nothing to clean up.
        if stop.stop() {
            signal = signals.wait();
        }
        std::process::exit(128 + signal);
    })?;
    Ok(came)
}

enum Place {
    Here(PathBuf),
    There(String, PathBuf),
}

impl Place {
    /// With a colon, and a name before it, it is there; a path here that has one begins with `./`.
    ///
    /// # Errors
    /// When it names nothing.
    fn of(text: &OsString) -> Result<Place, String> {
        let split = text.to_str().and_then(|text| text.split_once(':'));
        match split {
            Some((name, "")) if named::check(name).is_ok() => {
                Err(format!("`{name}:` names no file in the VM: {name}:PATH"))
            }
            Some((name, path)) if named::check(name).is_ok() => {
                Ok(Place::There(name.to_owned(), path.into()))
            }
            _ => file_here(text).map(Place::Here),
        }
    }
}

/// The file here called `text`, which is none of the standard streams: what other programs mean by `-`.
///
/// # Errors
/// When it would be one, or is empty.
pub fn file_here(text: &OsStr) -> Result<PathBuf, String> {
    match text.as_encoded_bytes() {
        b"-" => Err(
            "`-` is no file, and standard input and output are not used here: `./-` names a file"
                .into(),
        ),
        b"" => Err("a name of a file is empty".into()),
        _ => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_vm_or_here_and_no_stream() {
        let of = |text: &str| Place::of(&text.into());
        assert!(matches!(of("v1:/tmp/x"), Ok(Place::There(name, path))
            if name == "v1" && path.as_os_str() == "/tmp/x"));
        for here in ["x", "./v1:x", "a/b:c", "./-"] {
            assert!(
                matches!(of(here), Ok(Place::Here(path)) if path.as_os_str() == here),
                "{here}"
            );
        }
        for (text, words) in [("-", "./-"), ("", "empty"), ("v1:", "v1:PATH")] {
            let Err(error) = of(text) else { panic!("{text} is a place") };
            assert!(error.contains(words), "{error}");
        }
    }
}
