//! husk on a terminal of its own, which a test looks at and types to.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::pty::open_terminal;

/// A program that has a terminal. Killed when dropped.
pub struct Terminal {
    child: Child,
    main: File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts `command` in a session whose terminal has so many rows and columns.
    pub fn start(mut command: Command, size: (u16, u16)) -> Terminal {
        let (main, line) = open_terminal();
        resize(&main, size);
        command.stdin(line.try_clone().unwrap()).stdout(line.try_clone().unwrap()).stderr(line);
        // SAFETY: system calls without memory, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                match libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 {
                    true => Ok(()),
                    false => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        // With what it holds of the terminal, which ends with the program then.
        drop(command);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut glass, seen) = (main.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut room = [0; 1024];
            // EIO when nobody has the other end any more.
            while let Ok(len @ 1..) = glass.read(&mut room) {
                seen.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(room.get(..len).unwrap_or_default()));
            }
        });
        Terminal { child, main, screen }
    }

    /// Types this.
    pub fn type_in(&mut self, text: &str) {
        self.main.write_all(text.as_bytes()).unwrap();
    }

    /// Has so many rows and columns from now on, of which the program is told.
    pub fn resize(&self, size: (u16, u16)) {
        resize(&self.main, size);
    }

    /// Types `text` again and again until `answer` is seen.
    pub fn ask_until(&mut self, text: &str, answer: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.type_in(text);
            let soon = Instant::now() + Duration::from_secs(2);
            while Instant::now() < soon {
                if self.screen.lock().unwrap().contains(answer) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let screen = self.screen.lock().unwrap();
            assert!(Instant::now() < deadline, "{answer:?} is not seen: {screen}");
        }
    }

    /// Waits for the program's end, and gives its status and what was on the screen.
    pub fn end(mut self) -> (i32, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break super::process::status(status);
            }
            let screen = self.screen.lock().unwrap();
            assert!(Instant::now() < deadline, "it has not ended: {screen}");
            drop(screen);
            std::thread::sleep(Duration::from_millis(10));
        };
        let screen = self.screen.lock().unwrap().clone();
        (status, screen)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, (ws_row, ws_col): (u16, u16)) {
    let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a structure that is read.
    assert_eq!(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
}
