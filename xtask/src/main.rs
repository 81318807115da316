//! Developer commands of husk: `cargo xtask …`. Each decides by looking what this machine can do,
//! gets what it needs (through apt when root), says what it is doing on standard error, and says
//! in an error what would help.

mod apt;
mod assets;
mod bench;
mod cache;
mod cargo;
mod count;
mod deadline;
mod demo;
mod doctor;
mod fuzz;
mod host;
mod host_tests;
mod journal;
mod kernels;
mod level3;
mod limited;
mod modules;
mod runner;
mod skeleton;
#[cfg(test)]
#[path = "../../tests/fixture/skipped.rs"]
mod skipped;
mod soak;
mod tap;
mod test;
mod testbed;
mod vmlinux;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of husk
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command where KVM runs Linux, on any machine: in the testbed
    ///
    /// Its files, its current directory and its exit status are as outside. What it writes goes to
    /// RAM and vanishes, except under $HUSK_RESULTS (outside: target/testbed/results). On a
    /// terminal it has one too; three times Ctrl-] in a row ends the machine.
    Testbed(testbed::Args),
    /// Fetch and make the guests' kernels, initramfs images and root file system; print where
    Assets,
    /// Boot Debian with a disk and a network, see it work, and see where the time went
    Demo,
    /// Check and test everything; the last line counts
    Test(test::Args),
    /// The tests that boot Linux, with many more rounds of what can go wrong once in a while
    Soak(soak::Args),
    /// Fuzz a device with libFuzzer and AddressSanitizer
    Fuzz(fuzz::Args),
    /// Measure, and print ratios
    #[command(subcommand)]
    Bench(bench::Bench),
    /// (the benchmark's guests, where Linux boots)
    #[command(name = "__bench-guests", hide = true)]
    BenchGuests(bench::InnerArgs),
    /// (the command benchmark's guests)
    #[command(name = "__bench-command", hide = true)]
    BenchTrue(bench::InnerArgs),
    /// (the device benchmark's guests)
    #[command(name = "__bench-devices", hide = true)]
    BenchDevices(bench::InnerArgs),
    /// (the file benchmark's guests)
    #[command(name = "__bench-files", hide = true)]
    BenchFiles(bench::InnerArgs),
    /// (the demo beside its guest)
    #[command(name = "__demo", hide = true)]
    DemoInner(demo::Inner),
    /// (the tests that boot Linux, where Linux boots)
    #[command(name = "__run-tests", hide = true)]
    RunTests(runner::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Testbed(args) => testbed::main(args),
        Command::Assets => assets::all().map(|dir| {
            println!("{}", dir.display());
            0
        }),
        Command::Demo => demo::main(),
        Command::Test(args) => test::main(&args),
        Command::Soak(args) => soak::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Bench(bench) => bench::main(&bench),
        Command::BenchGuests(args) => bench::guests(&args),
        Command::BenchTrue(args) => bench::command(&args),
        Command::BenchDevices(args) => bench::devices(&args),
        Command::BenchFiles(args) => bench::files(&args),
        Command::DemoInner(args) => demo::inner(&args),
        Command::RunTests(args) => runner::main(&args),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(125)
        }
    }
}
