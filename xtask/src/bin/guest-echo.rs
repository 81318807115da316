//! `echo`, a program of the benchmarks' guests: sends back what comes on one TCP connection, at once.
//! It is built as one static executable, by rustc alone, and so uses only std.
//!
//! ```text
//! echo PORT
//! ```

use std::io::{self, Read, Write};
use std::net::TcpListener;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| io::Error::other("usage: echo PORT"))?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("ECHO-SERVES {port}");
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; 4096];
    loop {
        let count = stream.read(&mut bytes)?;
        match bytes.get(..count) {
            None | Some([]) => return Ok(()),
            Some(some) => stream.write_all(some)?,
        }
    }
}
