//! The first process of a machine: brings it up, serves the host, turns it off.
//!
//! It connects to the host once, says Hello, is told what the machine is to be, says Ready or why not,
//! and keeps that connection: when the host closes it, or asks for it, everything ends.

use core::ffi::CStr;

use husk_guest_protocol::{Frame, GUEST_PORT, HOST_PORT, Record, Records, VERSION, tag};

use crate::sys::{Errno, Fd, Result, file, interface, machine, process, socket};
use crate::text::{Digits, Path};
use crate::wire::Wire;
use crate::{modules, mounts, root, say, serve};

/// What the host wants of the machine. Borrowed from its frame.
#[derive(Default)]
struct Setup<'a> {
    root: Option<root::Place<'a>>,
    writable: bool,
    read_only: bool,
    host_name: Option<&'a [u8]>,
    clock: Option<(u64, u32)>,
    /// The serial number of the disk that overlays are on.
    overlay: Option<&'a [u8]>,
}

/// The whole life of a machine.
pub fn main() -> i32 {
    file::have_streams();
    mounts::early();
    // Whatever a command does to the machine's memory, who could tell of it lives on.
    let _ = file::write_file(c"/proc/self/oom_score_adj", b"-1000");
    modules::load();
    let later = modules::Later::open();
    let host = match socket::connect_to_host(HOST_PORT) {
        Ok(host) => host,
        Err(error) => {
            let why: &[u8] = match error {
                Errno::AFNOSUPPORT => {
                    b"the kernel needs CONFIG_VIRTIO_VSOCKETS, built in or as a module that husk can \
                      find: --modules DIR"
                }
                _ if machine::acpi() == machine::Acpi::Unknown => {
                    b"the kernel has no ACPI and was not told of its devices otherwise: --no-acpi"
                }
                _ => b"it does not answer",
            };
            let number = Digits::of(error.0 as u64);
            say::line(&[b"there is no way to the host: ", why, b" (errno ", number.bytes(), b")"]);
            machine::power_off();
            return 1;
        }
    };
    let mut host = Wire::new(host);
    match set_up(&mut host) {
        // Whatever ended it, nobody comes any more.
        Ok(listening) => drop(serve::serve(&mut host, listening, later)),
        Err(None) => {}
        // The host has it in words; it turns the machine off when it has read them.
        Err(Some(())) => {
            while let Ok(Some(frame)) = host.receive() {
                if frame == Frame::Shutdown {
                    break;
                }
            }
        }
    }
    serve::shut_down();
    1
}

/// Does what the host says. `Err(Some)`: it could not, and has said why.
fn set_up(host: &mut Wire) -> core::result::Result<Fd, Option<()>> {
    let heard = host.send(Frame::Hello(VERSION)).and_then(|()| host.receive().map(drop_frame));
    let setup = match heard {
        Ok(Some(setup)) => setup,
        Ok(None) | Err(_) => return Err(None),
    };
    let failed = match bring_up(setup) {
        Ok(listening) => match host.send(Frame::Ready) {
            Ok(()) => return Ok(listening),
            Err(_) => return Err(None),
        },
        Err(failed) => failed,
    };
    let (what, Errno(number)) = failed;
    let mut words = [0u8; 256];
    let digits = Digits::of(number as u64);
    let mut len = 0;
    for part in [what, b" (errno ", digits.bytes(), b")"] {
        for (to, from) in words.iter_mut().skip(len).zip(part) {
            *to = *from;
        }
        len = (len + part.len()).min(words.len());
    }
    match host.send(Frame::Failed(words.get(..len).unwrap_or_default())) {
        Ok(()) => Err(Some(())),
        Err(_) => Err(None),
    }
}

/// The records of the frame, kept where they can be read after it.
fn drop_frame(frame: Option<Frame<'_>>) -> Option<&'static [u8]> {
    let Some(Frame::Setup(records)) = frame else { return None };
    let kept = process::memory(records.len()).ok()?;
    kept.copy_from_slice(records);
    Some(kept)
}

fn bring_up(records: &[u8]) -> core::result::Result<Fd, (&'static [u8], Errno)> {
    let setup = parse(records).map_err(|e| (&b"the set-up is malformed"[..], e))?;
    if let Some((seconds, nanos)) = setup.clock {
        // A machine with another time is still a machine.
        let _ = machine::set_clock(seconds, nanos);
    }
    give_addresses(records)?;
    if let Some(name) = setup.host_name {
        machine::set_host_name(name).map_err(|e| (&b"the host name cannot be set"[..], e))?;
    }
    let disk = setup.overlay.map(root::find).transpose();
    let disk = disk.map_err(|e| (&b"the overlay's disk has not appeared"[..], e))?;
    // It is found there also in the root that /dev moves to.
    let disk = disk.as_ref().map(Path::as_c_str);
    if let Some(place) = setup.root {
        root::change_to(place, setup.writable, disk)?;
    } else {
        mounts::complete();
    }
    for record in Records(records).flatten() {
        mount_record(record, disk)?;
    }
    if setup.root.is_none() {
        mounts::links_into_usr();
    }
    if setup.read_only {
        root::seal()?;
    }
    let _ = machine::loopback_up();
    socket::listen(GUEST_PORT).map_err(|e| (&b"the agent cannot listen"[..], e))
}

/// Mounts what a record wants mounted, if it does; overlays on `disk`, if there is one.
fn mount_record(
    record: Record<'_>,
    disk: Option<&CStr>,
) -> core::result::Result<(), (&'static [u8], Errno)> {
    let words = record.bytes();
    let (name, path) = match record.tag {
        tag::TMPFS => (&[][..], words),
        tag::VOLUME | tag::VOLUME_READ_ONLY | tag::VOLUME_OVERLAY => {
            let Some(colon) = words.iter().position(|byte| *byte == b':') else {
                return Err((b"the set-up is malformed", Errno::PROTO));
            };
            let (name, path) = words.split_at(colon);
            (name, path.get(1..).unwrap_or_default())
        }
        _ => return Ok(()),
    };
    let failed = |what: &'static [u8]| {
        move |e| {
            say::line(&[what, b": ", path]);
            (what, e)
        }
    };
    let place = mounts::place(path)
        .map_err(failed(b"a directory for a mount cannot be made in the guest"))?;
    let place = place.as_c_str();
    match record.tag {
        tag::TMPFS => {
            mounts::in_memory(place).map_err(failed(b"a directory in memory cannot be mounted"))
        }
        tag::VOLUME_OVERLAY => mounts::overlay(name, place, disk).map_err(failed(
            b"a shared directory cannot be mounted below an overlay: the kernel needs \
              CONFIG_VIRTIO_FS and CONFIG_OVERLAY_FS, and for a disk CONFIG_EXT4_FS",
        )),
        other => {
            let flags = if other == tag::VOLUME { 0 } else { machine::READ_ONLY };
            mounts::volume(name, place, flags).map_err(failed(
                b"a shared directory cannot be mounted: the kernel needs CONFIG_VIRTIO_FS",
            ))
        }
    }
}

/// Gives the network interfaces the addresses that the host wants them to have.
fn give_addresses(records: &[u8]) -> core::result::Result<(), (&'static [u8], Errno)> {
    for record in Records(records).flatten() {
        if record.tag != tag::INTERFACE {
            continue;
        }
        interface_of(record.bytes()).map_err(|e| {
            (&b"a network interface cannot be given its address: the kernel needs CONFIG_VIRTIO_NET"[..], e)
        })?;
    }
    Ok(())
}

fn interface_of(bytes: &[u8]) -> Result<()> {
    let bytes: &[u8; husk_guest_protocol::INTERFACE_LEN] =
        bytes.try_into().map_err(|_| Errno::PROTO)?;
    let &[number, a0, a1, a2, a3, prefix, g0, g1, g2, g3] = bytes;
    let name = Path::of(&[b"eth", Digits::of(number.into()).bytes()])?;
    let name = name.as_c_str().to_bytes();
    // Without it the network learns of the card as soon as it sends something.
    let _ = interface::announce();
    interface::set_address(name, [a0, a1, a2, a3], prefix)?;
    interface::up(name)?;
    match [g0, g1, g2, g3] {
        [0, 0, 0, 0] => Ok(()),
        gateway => interface::add_default_route(gateway),
    }
}

fn parse(records: &[u8]) -> Result<Setup<'_>> {
    let mut setup = Setup::default();
    for record in Records(records) {
        let record = record.map_err(|_| Errno::PROTO)?;
        match record.tag {
            tag::ROOT => setup.root = Some(root::Place::Disk(record.bytes())),
            tag::ROOT_VOLUME => setup.root = Some(root::Place::Volume(record.bytes())),
            tag::OVERLAY_DISK => setup.overlay = Some(record.bytes()),
            tag::ROOT_READ_ONLY => setup.read_only = true,
            tag::ROOT_WRITABLE => setup.writable = true,
            tag::HOST_NAME => setup.host_name = Some(record.bytes()),
            tag::CLOCK => {
                let &[s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = record.bytes() else {
                    return Err(Errno::PROTO);
                };
                let seconds = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
                setup.clock = Some((seconds, u32::from_le_bytes([n0, n1, n2, n3])));
            }
            // A newer host's.
            _ => {}
        }
    }
    Ok(setup)
}
