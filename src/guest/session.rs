//! A session with the agent, from the host's side: frames over a socket, its streams, its end.
//!
//! A thread reads what the guest says as long as the session lives, and never waits for anybody else;
//! whoever writes waits for credit first. So neither side's reading ever waits for its writing, and
//! [`Session::cut`] ends every wait.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use husk_guest_protocol::{Begin, Frame, HEADER_LEN, Header, PAYLOAD_MAX, Stage, WINDOW, stream};

use super::pipe::Pipe;

/// How long a guest that is ready may take to take a connection and a request, and to say what became of
/// it, when nobody has said.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of stack of a thread that reads a session.
const STACK: usize = 128 << 10;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The command by itself, or a copy (with 0).
    Exited(u8),
    /// The command by this signal, and whether the guest's kernel sent it for want of memory.
    Signaled(u8, bool),
    /// It did not go on, for this error number.
    Cannot(Stage, i32),
    /// The guest has not said in time whether it begins.
    Late,
    /// The guest, or its agent, has gone, or the host has cut the session.
    Lost,
    /// The guest says what no agent says.
    Nonsense,
}

#[derive(Debug)]
struct State {
    /// Bytes of stdin that the guest takes now.
    credit: u32,
    /// It takes no more of them.
    deaf: bool,
    end: Option<End>,
    /// The permissions of a file that the guest sends.
    mode: Option<u32>,
    /// Processes that the guest's kernel has ended for want of memory.
    starved: u32,
}

/// A session that has begun.
#[derive(Debug)]
pub struct Session {
    writing: Mutex<UnixStream>,
    /// The same socket, for ending it while somebody writes.
    socket: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
    stdout: Pipe,
    stderr: Pipe,
}

/// A socket that is waited for until then, however often bytes come or go.
struct Timed<'a>(&'a UnixStream, Option<Instant>);

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.1 else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.0.set_read_timeout(Some(left))?;
        }
        self.0.read(room)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.0.set_write_timeout(Some(left))?;
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether an error of a socket means that a time is up.
pub fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Reads frames.
pub struct Frames {
    socket: UnixStream,
    payload: Vec<u8>,
    /// Until when a frame is waited for, if not by the socket's own limit.
    until: Option<Instant>,
}

impl Frames {
    /// Of this socket.
    pub fn new(socket: UnixStream) -> Frames {
        Frames { socket, payload: vec![0; PAYLOAD_MAX], until: None }
    }

    /// The next frame; `None` when there is no more.
    ///
    /// # Errors
    /// `InvalidData` at what is no frame, else the host's.
    pub fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        let mut header = [0; HEADER_LEN];
        let mut socket = Timed(&self.socket, self.until);
        match socket.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let nonsense = |_| io::Error::from(io::ErrorKind::InvalidData);
        let header = Header::decode(header).map_err(nonsense)?;
        let payload = self.payload.get_mut(..header.len).unwrap_or_default();
        socket.read_exact(payload)?;
        Frame::decode(header, payload).map(Some).map_err(nonsense)
    }
}

/// Sends a frame.
///
/// # Errors
/// The host's, when nobody is there.
pub fn send(socket: &UnixStream, frame: Frame<'_>) -> io::Result<()> {
    write(socket, frame)
}

fn write(mut socket: impl Write, frame: Frame<'_>) -> io::Result<()> {
    let encoded = frame.encode();
    match encoded.bytes() {
        [] => socket.write_all(encoded.head()),
        // In one write: a frame in two is two packets for the guest.
        bytes => socket.write_all(&[encoded.head(), bytes].concat()),
    }
}

/// Says what a session is to do and hears whether it does, all of it until then.
///
/// # Errors
/// How it has ended already.
pub fn begin(
    socket: UnixStream,
    begin: Begin,
    request: &[u8],
    until: Instant,
) -> Result<Arc<Session>, End> {
    let lost = |_| End::Lost;
    let mut frames = Frames::new(socket.try_clone().map_err(lost)?);
    frames.until = Some(until);
    // All in one: each write is a packet for the guest, and an interrupt.
    let mut bytes = Vec::with_capacity(request.len() + 2 * HEADER_LEN);
    let parts = request.chunks(Frame::PIECE).map(Frame::Part);
    for frame in [Frame::Begin(begin)].into_iter().chain(parts) {
        let encoded = frame.encode();
        bytes.extend_from_slice(encoded.head());
        bytes.extend_from_slice(encoded.bytes());
    }
    let said = Timed(&socket, Some(until)).write_all(&bytes);
    // When the guest does not want it any more it may have said why.
    match frames.next() {
        Ok(Some(Frame::Started)) if said.is_ok() => {}
        Ok(Some(Frame::Cannot(stage, errno))) => return Err(End::Cannot(stage, errno as i32)),
        Ok(None) => return Err(End::Lost),
        Err(e) if is_late(&e) => return Err(End::Late),
        Err(e) if e.kind() != io::ErrorKind::InvalidData => return Err(End::Lost),
        Ok(Some(_)) | Err(_) => return Err(End::Nonsense),
    }
    frames.until = None;
    socket.set_write_timeout(None).map_err(lost)?;
    socket.set_read_timeout(None).map_err(lost)?;
    let session = Arc::new(Session {
        writing: Mutex::new(socket.try_clone().map_err(lost)?),
        socket,
        state: Mutex::new(State { credit: WINDOW, deaf: false, end: None, mode: None, starved: 0 }),
        changed: Condvar::new(),
        stdout: Pipe::default(),
        stderr: Pipe::default(),
    });
    let reader = session.clone();
    let thread = std::thread::Builder::new().name("husk-session".to_owned()).stack_size(STACK);
    thread.spawn(move || reader.read_all(frames)).map_err(lost)?;
    Ok(session)
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pipe(&self, name: u8) -> Option<&Pipe> {
        match name {
            stream::STDOUT => Some(&self.stdout),
            stream::STDERR => Some(&self.stderr),
            _ => None,
        }
    }

    /// What the reading thread does.
    fn read_all(&self, mut frames: Frames) {
        let end = loop {
            let frame = match frames.next() {
                Ok(Some(frame)) => frame,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => break End::Nonsense,
                Ok(None) | Err(_) => break End::Lost,
            };
            match frame {
                Frame::Output(name, bytes) => match self.pipe(name).map(|pipe| pipe.push(bytes)) {
                    Some(Ok(())) => {}
                    Some(Err(_)) | None => break End::Nonsense,
                },
                Frame::OutputEnd(name) => self.pipe(name).into_iter().for_each(Pipe::end),
                Frame::Credit(stream::STDIN, bytes) => {
                    let mut state = self.state();
                    state.credit = state.credit.saturating_add(bytes).min(WINDOW);
                    self.changed.notify_all();
                }
                Frame::Close(stream::STDIN) => {
                    self.state().deaf = true;
                    self.changed.notify_all();
                }
                Frame::Mode(mode) => self.state().mode = Some(mode),
                Frame::OutOfMemory(killed) => self.state().starved = killed,
                Frame::Exited(status) => break End::Exited(status),
                Frame::Signaled(signal, memory) => break End::Signaled(signal, memory),
                Frame::Cannot(stage, errno) => break End::Cannot(stage, errno as i32),
                _ => break End::Nonsense,
            }
        };
        self.finish(end);
    }

    fn finish(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed.notify_all();
        self.stdout.end();
        self.stderr.end();
        // Whoever still writes need not wait; the guest's side has nothing more to say.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends it from this side, at once: the agent ends the command. An end that it has already stays.
    pub fn cut(&self) {
        self.finish(End::Lost);
    }

    /// The permissions of the file that the guest sends, if it has told them.
    pub fn mode(&self) -> Option<u32> {
        self.state().mode
    }

    /// How many processes the guest's kernel has ended for want of memory, as far as it has told.
    pub fn starved(&self) -> u32 {
        self.state().starved
    }

    /// Waits for its end, at most until then.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        let mut state = self.state();
        loop {
            if let Some(end) = state.end {
                return Some(end);
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Sends a frame that needs no credit.
    ///
    /// # Errors
    /// `BrokenPipe` after the end.
    pub fn say(&self, frame: Frame<'_>) -> io::Result<()> {
        if self.state().end.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        send(&writing, frame)
    }

    /// Sends as much of `bytes` as the guest takes, as soon as it takes any.
    ///
    /// # Errors
    /// `BrokenPipe` when it takes no more.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write_within(bytes, None)
    }

    /// The same, and an error that [is late](is_late) when it takes none in that time.
    ///
    /// # Errors
    /// As [`Session::write`].
    pub fn write_within(&self, bytes: &[u8], idle: Option<Duration>) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let until = idle.and_then(|idle| Instant::now().checked_add(idle));
        let mut state = self.state();
        while state.credit == 0 && !state.deaf && state.end.is_none() {
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        if state.deaf || state.end.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(Frame::PIECE).min(state.credit as usize);
        // At most the credit, so the cast keeps the number.
        state.credit -= count as u32;
        drop(state);
        self.say(Frame::Input(bytes.get(..count).unwrap_or_default()))?;
        Ok(count)
    }

    /// Reads from a stream of the guest's, and lets it send as much more.
    pub fn read(&self, name: u8, room: &mut [u8]) -> usize {
        let Some(pipe) = self.pipe(name) else { return 0 };
        let (count, granted) = pipe.read(room);
        // After the end nothing more comes, and nobody needs to be told.
        let _ = self.grant(name, granted);
        count
    }

    /// The same, and `None` when nothing has come in that time, or when the guest has not taken in
    /// [that of sending](Session::limit_sending) that it may send more.
    pub fn read_within(&self, name: u8, room: &mut [u8], idle: Duration) -> Option<usize> {
        let Some(pipe) = self.pipe(name) else { return Some(0) };
        let (count, granted) = pipe.read_within(room, idle)?;
        match self.grant(name, granted) {
            Err(e) if is_late(&e) => None,
            _ => Some(count),
        }
    }

    /// Waits at most so long for a guest that takes nothing of what it is sent.
    ///
    /// # Errors
    /// The host's.
    pub fn limit_sending(&self, limit: Duration) -> io::Result<()> {
        self.socket.set_write_timeout(Some(limit))
    }

    fn grant(&self, name: u8, bytes: u32) -> io::Result<()> {
        if bytes == 0 { Ok(()) } else { self.say(Frame::Credit(name, bytes)) }
    }

    /// Reads no more from a stream: whoever writes to it is told so.
    pub fn close(&self, name: u8) {
        if self.pipe(name).is_some_and(Pipe::close) {
            let _ = self.say(Frame::Close(name));
        }
    }
}
