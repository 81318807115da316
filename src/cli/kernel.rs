//! `husk kernel`: the kernels husk knows of, and getting or building one.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use clap::{Args, Subcommand, ValueEnum};
use husk::kernels::{
    self, BuildError, BuildRequest, FetchError, Fetched, KnownKernel, Origin, Request,
};

use super::cp::file_here;
use super::signals::Signals;
use super::stdout::print;
use super::{Error, stderr};

/// SIGINT, when the signal ended apt-get and has not been seen here yet.
const INTERRUPT: u8 = 2;

/// List, fetch, build and unpack kernels
#[derive(Args)]
pub struct Kernel {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the kernels husk knows of; `husk run` takes the one marked *
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring the distribution's current kernel (Debian, Ubuntu) and make it the default
    ///
    /// The package is downloaded with apt-get and unpacked into husk's data directory with its
    /// modules. Nothing is installed, and root is not needed.
    Fetch {
        /// This package instead of the distribution's current kernel
        #[arg(long, value_name = "NAME")]
        package: Option<String>,
        /// The kernel for virtual machines, or the one with drivers for everything
        #[arg(long, value_name = "WHICH", default_value = "cloud", conflicts_with = "package")]
        flavour: Flavour,
    },
    /// Build a kernel that starts fast from the distribution's source, and make it the default
    ///
    /// The package linux-source is downloaded with apt-get and unpacked; nothing is installed. It
    /// takes some 2 GB while it builds, and minutes.
    Build {
        /// One processor and no ACPI, or several and ACPI
        #[arg(long, value_name = "WHICH", default_value = "fast")]
        variant: Variant,
        /// This tree of Linux sources instead
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
    },
    /// Write the vmlinux (ELF) that a vmlinuz (bzImage) carries
    Unpack {
        /// The bzImage
        #[arg(value_name = "IN")]
        input: PathBuf,
        /// Where to write the vmlinux
        #[arg(value_name = "OUT")]
        output: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Flavour {
    Cloud,
    Generic,
}

#[derive(Clone, Copy, ValueEnum)]
enum Variant {
    Fast,
    Full,
}

impl Kernel {
    /// Does what is asked and returns the exit status.
    pub fn execute(self) -> Result<u8, Error> {
        match self.command {
            Command::List { json } => list(json)?,
            Command::Fetch { package, flavour } => return fetch(package, flavour),
            Command::Build { variant, source } => return build(variant, source),
            Command::Unpack { input, output } => {
                let (input, output) = (file_here(input.as_ref())?, file_here(output.as_ref())?);
                let len = kernels::unpack(&input, &output)?;
                tell!("husk: {} ({:.1} MiB)\n", output.display(), len as f64 / f64::from(1 << 20));
            }
        }
        Ok(0)
    }
}

fn list(json: bool) -> Result<(), Error> {
    let known = kernels::list();
    if json {
        if let Some(kernel) = known.iter().find(|kernel| kernel.path.to_str().is_none()) {
            return Err(format!("{:?} is not UTF-8, and JSON cannot hold it", kernel.path).into());
        }
        return Ok(print(&(serde_json::to_string_pretty(&known)? + "\n"))?);
    }
    if known.is_empty() {
        tell!("husk: no kernels here; `husk kernel fetch` brings one\n");
    }
    Ok(print(&table(&known))?)
}

fn fetch(package: Option<String>, flavour: Flavour) -> Result<u8, Error> {
    let flavour = match flavour {
        Flavour::Cloud => kernels::Flavour::Cloud,
        Flavour::Generic => kernels::Flavour::Generic,
    };
    let request = |cancel| Request { package, flavour, cancel };
    bring(|cancel| Ok(kernels::fetch(&request(cancel), &mut |line| tell!("husk: {line}\n"))?))
}

fn build(variant: Variant, source: Option<PathBuf>) -> Result<u8, Error> {
    let variant = match variant {
        Variant::Fast => kernels::Variant::Fast,
        Variant::Full => kernels::Variant::Full,
    };
    let request = |cancel| BuildRequest { variant, source, cancel };
    bring(|cancel| kernels::build(&request(cancel), &mut |line| tell!("husk: {line}\n")))
}

/// Has a kernel brought by `work`, which gives up when it is told to, and says so; returns the exit
/// status.
fn bring(work: impl FnOnce(Arc<AtomicBool>) -> Result<Fetched, BuildError>) -> Result<u8, Error> {
    // A signal gives the work up, so that it can clean up behind itself.
    let signals = Signals::block()?;
    let (cancel, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(0)));
    let (given_up, came) = (cancel.clone(), signal.clone());
    std::thread::spawn(move || {
        came.store(signals.wait(), Ordering::Release);
        given_up.store(true, Ordering::Release);
    });
    let fetched = match work(cancel) {
        Err(e @ BuildError::Fetch(FetchError::Cancelled)) => {
            tell!("husk: {e}\n");
            let signal = signal.load(Ordering::Acquire);
            return Ok(128u8.wrapping_add(if signal == 0 { INTERRUPT } else { signal as u8 }));
        }
        other => other?,
    };
    let how = if fetched.was_there { "was here already, and is" } else { "is" };
    tell!(
        "husk: {} {how} the kernel `husk run` takes now ({})\n",
        fetched.version,
        fetched.directory.display()
    );
    Ok(0)
}

/// A line a kernel: mark, version, who put it there, the file.
fn table(known: &[KnownKernel]) -> String {
    // A file may be called anything.
    let field = |name: &str| stderr::plain(name).replace('\n', "\\n");
    let versions: Vec<String> = known.iter().map(|kernel| field(&kernel.version)).collect();
    let width = versions.iter().map(|version| version.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (kernel, version) in known.iter().zip(&versions) {
        let mark = if kernel.default { '*' } else { ' ' };
        let origin = match kernel.origin {
            Origin::Environment => "$HUSK_KERNEL",
            Origin::Husk => "husk",
            Origin::Host => "host",
        };
        let missing = if kernel.path.exists() { "" } else { " (does not exist)" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{mark} {version:width$}  {origin:12}  {}{missing}",
            field(&kernel.path.display().to_string()),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_marked_and_a_missing_file_said() {
        let kernel = |version: &str, origin, path: &str, default| KnownKernel {
            version: version.to_owned(),
            origin,
            path: path.into(),
            modules: None,
            default,
        };
        let known = [
            kernel("x", Origin::Environment, "/no/such/x", true),
            kernel("6.1.0", Origin::Husk, "/", false),
        ];
        assert_eq!(
            table(&known),
            "* x      $HUSK_KERNEL  /no/such/x (does not exist)\n\x20 6.1.0  husk          /\n"
        );
        assert_eq!(table(&[]), "");
        let hostile = [kernel("\u{1b}[2J\n", Origin::Host, "/boot/\u{1b}[2J\n", false)];
        let line = table(&hostile);
        assert!(!line.contains('\u{1b}') && line.matches('\n').count() == 1, "{line:?}");
    }
}
