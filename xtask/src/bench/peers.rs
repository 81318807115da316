//! The host's side of the device benchmark: who a guest talks to, and what KVM counts meanwhile.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::work::{VSOCK_SINK, VSOCK_SOURCE};
use crate::host;

/// Nobody on the other side is slower.
const PATIENCE: Duration = Duration::from_secs(60);

/// iperf3's server; it ends when this is dropped.
pub struct Iperf(Child);

impl Iperf {
    /// Starts it on this address.
    pub fn start(address: &str) -> Result<Self> {
        let mut iperf = host::command("iperf3");
        iperf.args(["-s", "-B", address]).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(iperf.spawn().context("starting iperf3")?))
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends 64 bytes to and fro for `span`; gives how often a second. The other side may have yet to
/// listen.
pub fn ping_pong(address: &str, port: u16, span: Duration) -> Result<f64> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect((address, port)) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() > deadline => return Err(e).context("the guest's echo"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (begun, mut count, mut message) = (Instant::now(), 0u32, [7; 64]);
    while begun.elapsed() < span {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Both of the host's sides of vsock, at `socket` and its ports: one takes `bytes`, one sends as many.
pub struct Vsock {
    sink: Receiver<f64>,
    source: Receiver<f64>,
    sockets: [PathBuf; 2],
}

impl Vsock {
    /// Listens.
    pub fn listen(socket: &str, bytes: usize) -> Result<Self> {
        let place = |port: u16| PathBuf::from(format!("{socket}_{port}"));
        let sockets = [place(VSOCK_SINK), place(VSOCK_SOURCE)];
        let [sink, source] = &sockets;
        let (sink, source) = (listen(sink)?, listen(source)?);
        let sink = served(sink, move |stream| {
            let (mut buffer, mut count) = (vec![0; 1 << 20], 0);
            // Not until the end of it: not every VMM passes that on while the other way is open.
            while count < bytes {
                match stream.read(&mut buffer)? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    len => count += len,
                }
            }
            Ok(count)
        });
        let source = served(source, move |stream| {
            let buffer = vec![7; 1 << 20];
            let mut left = bytes;
            while left > 0 {
                let now = left.min(buffer.len());
                stream.write_all(buffer.get(..now).unwrap_or_default())?;
                left -= now;
            }
            // The guest's program ends when it has all of it.
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read(&mut [0]).map(|_| bytes)
        });
        Ok(Self { sink, source, sockets })
    }

    /// MiB a second that came, once all of it has.
    pub fn came(&self) -> Result<f64> {
        self.sink.recv_timeout(PATIENCE).context("nothing came by vsock")
    }

    /// MiB a second that went.
    pub fn went(&self) -> Result<f64> {
        self.source.recv_timeout(PATIENCE).context("nothing went by vsock")
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // What is left is in RAM and ours.
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))
}

/// Serves one connection in a thread; gives its MiB a second.
fn served(
    listener: UnixListener,
    serve: impl FnOnce(&mut std::os::unix::net::UnixStream) -> std::io::Result<usize> + Send + 'static,
) -> Receiver<f64> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let begun = Instant::now();
        // Whoever waits learns of an error by getting no figure.
        if let Ok(bytes) = serve(&mut stream) {
            let _ = tell.send(bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64());
        }
    });
    told
}

/// How often a vCPU of any VM has left to its VMM for an access to a device's registers, as KVM counts
/// it (`mmio_exits`); `None` where the kernel does not tell.
pub fn exits() -> Option<f64> {
    const COUNTER: &str = "/sys/kernel/debug/kvm/mmio_exits";
    if !Path::new(COUNTER).exists() {
        let mut mount = Command::new("mount");
        mount.args(["-t", "debugfs", "none", "/sys/kernel/debug"]).stderr(Stdio::null());
        mount.status().ok()?;
    }
    std::fs::read_to_string(COUNTER).ok()?.trim().parse().ok()
}
