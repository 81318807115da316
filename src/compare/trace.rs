//! When a VMM first enters its guest, and when that guest's kernel begins, as KVM's own tracepoints say it:
//! seen from outside, the same for every VMM, none of which has to say anything.
//!
//! Two buffers of ftrace are made for it, apart from whatever else is traced on this host, and gone when this is
//! dropped. Only what this thread starts is traced. Each keeps its first events and no others, so that
//! tracing costs a start next to nothing. It takes root and a mounted tracefs.
//! (Documentation/trace/ftrace.rst, events.rst; `arch/x86/kvm/trace.h`.)

use std::fs;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where tracefs is mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Where Linux' own code and data are in its own page tables (Documentation/arch/x86/x86_64/mm.rst).
const VIRTUAL: u64 = 0xffff_ffff_8000_0000;
/// What is looked at of what a buffer has, in bytes.
const MOST: u64 = 1 << 20;

/// What was seen of one VM, on CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entries {
    /// KVM_RUN was called for the first time.
    pub kvm_run: Option<Duration>,
    /// A processor went on in the kernel for the first time: at its entry, or behind the first instruction
    /// that made it leave the guest.
    pub kernel: Option<Duration>,
}

/// Buffers that the next VM is seen in.
pub struct Tracer {
    kvm_run: Buffer,
    kernel: Buffer,
}

impl Tracer {
    /// For guests whose kernel is at these physical addresses. What is traced is what the calling thread
    /// starts.
    ///
    /// # Errors
    /// Why there can be none here, in a sentence.
    pub fn make(kernel: &Range<u64>) -> Result<Self, String> {
        let places = PLACES.iter().map(|place| Path::new(place).join("instances"));
        let instances = places.into_iter().find(|place| place.is_dir()).ok_or(
            "KVM's tracepoints are not to be had: only root has them, where tracefs is mounted \
             (`mount -t tracefs tracefs /sys/kernel/tracing`)",
        )?;
        Self::at(&instances, kernel)
            .map_err(|e| format!("KVM's tracepoints are not to be had: {e}"))
    }

    fn at(instances: &Path, kernel: &Range<u64>) -> io::Result<Self> {
        let name = |what| instances.join(format!("husk-compare-{}-{what}", std::process::id()));
        let inside = format!(
            "rip >= {VIRTUAL:#x} || (rip >= {:#x} && rip < {:#x})",
            kernel.start, kernel.end
        );
        Ok(Self {
            // Told at the beginning of KVM_RUN, when the guest's floating-point state is loaded.
            kvm_run: Buffer::make(name("run"), "kvm_fpu", "load == 1")?,
            kernel: Buffer::make(name("kernel"), "kvm_entry", &inside)?,
        })
    }

    /// Forgets what was seen.
    ///
    /// # Errors
    /// The host's.
    pub fn clear(&self) -> io::Result<()> {
        self.kvm_run.write("trace", "")?;
        self.kernel.write("trace", "")
    }

    /// What was seen since.
    ///
    /// # Errors
    /// The host's.
    pub fn entries(&self) -> io::Result<Entries> {
        Ok(Entries { kvm_run: self.kvm_run.first()?, kernel: self.kernel.first()? })
    }
}

/// A buffer of ftrace with the first events of one kind.
struct Buffer {
    directory: PathBuf,
    event: &'static str,
}

impl Buffer {
    fn make(directory: PathBuf, event: &'static str, filter: &str) -> io::Result<Self> {
        // One of this name is that of a process that was killed and whose number is ours now.
        let _ = fs::remove_dir(&directory);
        fs::create_dir(&directory).map_err(named(&directory))?;
        // From here on it goes when something fails.
        let buffer = Self { directory, event };
        // The kernel makes it a few pages for each processor.
        buffer.write("buffer_size_kb", "4")?;
        buffer.write("options/overwrite", "0")?;
        buffer.write("trace_clock", "mono")?;
        buffer.write("options/event-fork", "1")?;
        // SAFETY: takes nothing, touches no memory and cannot fail.
        let thread = unsafe { libc::gettid() };
        buffer.write("set_event_pid", &thread.to_string())?;
        buffer.write(&format!("events/kvm/{event}/filter"), filter)?;
        buffer.write(&format!("events/kvm/{event}/enable"), "1")?;
        Ok(buffer)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let file = self.directory.join(file);
        let open = fs::OpenOptions::new().write(true).truncate(true).open(&file);
        open.and_then(|mut to| to.write_all(text.as_bytes())).map_err(named(&file))
    }

    fn first(&self) -> io::Result<Option<Duration>> {
        let (file, mut text) = (self.directory.join("trace"), String::new());
        let opened = fs::File::open(&file).map_err(named(&file))?;
        opened.take(MOST).read_to_string(&mut text).map_err(named(&file))?;
        Ok(first_in(&text, self.event))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The files in it are the kernel's, and go with it.
        let _ = fs::remove_dir(&self.directory);
    }
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<> {
    let path = path.display().to_string();
    move |e| io::Error::new(e.kind(), format!("{path}: {e}"))
}

/// When the first `event` of a trace happened. A line is `comm-PID [CPU] FLAGS SECONDS: EVENT: …`.
fn first_in(trace: &str, event: &str) -> Option<Duration> {
    let mark = format!(": {event}: ");
    let line = |line: &str| {
        let time = line.split_once(&mark)?.0.rsplit(' ').next()?.parse().ok()?;
        Duration::try_from_secs_f64(time).ok()
    };
    trace.lines().filter(|line| !line.starts_with('#')).find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "# tracer: nop\n#\n\
         # entries-in-buffer/entries-written: 2/2   #P:2\n\
         #           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION\n\
         CPU 0 a: kvm:-1234    [000] .....  9000.250001: kvm_entry: vcpu 0, rip 0x1000000\n\
         CPU 0/KVM-1234    [000] d..1.  9000.250999: kvm_entry: vcpu 0, rip 0xffffffff81000000\n";

    #[test]
    fn the_first_event_of_a_trace_is_read() {
        let at = Duration::from_micros(9_000_250_001);
        assert_eq!(first_in(TRACE, "kvm_entry"), Some(at));
        for none in ["kvm_fpu", "entry", "TIMESTAMP"] {
            assert_eq!(first_in(TRACE, none), None);
        }
        assert_eq!(first_in("x-1 [000] ..... -1.0: kvm_entry: vcpu 0", "kvm_entry"), None);
        assert_eq!(first_in("", "kvm_entry"), None);
    }

    #[test]
    fn where_there_is_no_tracing_it_is_said_which_file_is_missing_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        // A directory in which nothing appears by itself.
        let error = Tracer::at(dir.path(), &(1..2)).err().unwrap().to_string();
        assert!(error.contains("-run/buffer_size_kb: "), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let error = Tracer::at(&dir.path().join("none"), &(1..2)).err().unwrap().to_string();
        assert!(error.contains("/none/husk-compare-"), "{error}");
    }
}
