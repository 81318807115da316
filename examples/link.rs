//! Two machines on a wire: what one sends, the other gets, and no network of the host's is touched.
//!
//! ```text
//! cargo run --example link -- debian.ext4
//! ```

use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use husk::{GuestCommand, TestError, TestVm, Vm};

/// A machine with the root file system in `image`, at one end of a wire.
fn machine(image: &Path, wire: &str, address: &str) -> Result<TestVm, TestError> {
    let vm = Vm::builder().memory("192M").root(image).link(wire, address);
    vm.timeout(Duration::from_secs(240)).start()
}

/// Tests that two machines of this kind hear each other.
///
/// # Errors
/// Whatever fails of it.
pub fn run(image: &Path) -> Result<(), Box<dyn Error>> {
    // Of this process alone: two tests at once have two wires.
    let wire = format!("example-{}", std::process::id());
    let a = machine(image, &wire, "10.0.9.1/24")?;
    let b = machine(image, &wire, "10.0.9.2/24")?;
    // They start beside each other.
    a.ready()?;

    // Until the first answer, however long the other one takes to come.
    let ping = b.exec(["ping", "-c", "1", "-w", "200", "10.0.9.1"])?;
    if !ping.status.success() {
        return Err(String::from_utf8_lossy(&ping.stdout).into());
    }

    // What arrives is what one of them counts while the other one sends.
    let count = "cat /sys/class/net/eth0/statistics/rx_packets; read line; \
                 cat /sys/class/net/eth0/statistics/rx_packets";
    let mut counting = a.spawn(&GuestCommand::new(["sh", "-c", count]))?;
    let mut counts = counting.stdout.take().ok_or("a child has a standard output")?;
    let mut first = [0; 64];
    let len = counts.read(&mut first)?;
    let pings = b.exec(["ping", "-q", "-c", "20", "-i", "0.01", "-w", "200", "10.0.9.1"])?;
    // The end of its input is the line.
    drop(counting.stdin.take());
    let mut second = String::new();
    counts.read_to_string(&mut second)?;
    let before: u64 =
        String::from_utf8_lossy(first.get(..len).unwrap_or_default()).trim().parse()?;
    let after: u64 = second.trim().parse()?;
    if !pings.status.success() || after < before + 20 {
        return Err(format!("{:?}, and {} packets came", pings.status, after - before).into());
    }
    println!("{} packets came over the wire", after - before);
    Ok(())
}

#[allow(dead_code, reason = "this file is a part of husk's own tests, too")]
fn main() -> Result<(), Box<dyn Error>> {
    run(Path::new(&std::env::args_os().nth(1).ok_or("which image? link debian.ext4")?))
}
