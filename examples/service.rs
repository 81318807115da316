//! A service tested from the host: Redis in a microVM, reached through a published port.
//!
//! ```text
//! mmdebstrap --variant=extract --include=redis-server bookworm redis
//! mkfs.ext4 -q -d redis redis.ext4 512M
//! cargo run --example service -- redis.ext4
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use husk::{GuestCommand, Vm};

/// Tests the Redis that is in the root file system in `image`.
///
/// # Errors
/// Whatever fails of it.
pub fn run(image: &Path) -> Result<(), Box<dyn Error>> {
    // The image is only read, so that any number of tests can have it at once.
    let vm = Vm::builder()
        .memory("256M")
        .root(image)
        .publish("6379")
        .timeout(Duration::from_secs(240))
        .start()?;

    let server = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    let mut server = vm.spawn(&GuestCommand::new(server))?;
    let words = server.stdout.take().ok_or("a child has a standard output")?;
    let mut words = BufReader::new(words).lines();
    let mut said = String::new();
    while !said.contains("Ready to accept connections") {
        match words.next() {
            Some(line) => said.push_str(&line?),
            None => return Err(format!("{:?}, and it said: {said}", server.wait()).into()),
        }
    }

    let mut client = TcpStream::connect(vm.port(6379)?)?;
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    client.write_all(b"SET greeting hello\r\nGET greeting\r\n")?;
    let answers: Result<Vec<_>, _> = BufReader::new(client).lines().take(3).collect();
    let answers = answers?;
    if answers != ["+OK", "$5", "hello"] {
        return Err(format!("Redis answers {answers:?}").into());
    }
    println!("Redis at {} keeps what it is told", vm.port(6379)?);
    Ok(())
}

#[allow(dead_code, reason = "this file is a part of husk's own tests, too")]
fn main() -> Result<(), Box<dyn Error>> {
    run(Path::new(&std::env::args_os().nth(1).ok_or("which image? service redis.ext4")?))
}
