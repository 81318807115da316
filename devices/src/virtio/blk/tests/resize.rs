//! A disk whose size changes while a driver has it.

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::*;
use crate::block::ResizeError;

/// A task with nothing to do.
struct Idle;

impl MutEventSubscriber for Idle {
    fn init(&mut self, _ops: &mut EventOps) {}
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
}

fn capacity(rig: &Rig) -> u64 {
    u64::from_le_bytes(rig.driver.config(0, 8).try_into().unwrap())
}

#[test]
fn a_driver_is_told_of_a_new_size_and_has_it_at_once() {
    let file = image(4096);
    let mut rig = Rig::new(file.path(), false);
    assert_eq!((capacity(&rig), rig.driver.get(0x60) & 2, rig.driver.get(0xfc)), (8, 0, 0));
    assert_eq!(rig.ask(0, 8, &[Piece::In(BUFFER, 512)]), (1, 1));
    rig.driver.set(0x64, 3);
    assert_eq!(rig.driver.transport.resize(Some(1 << 20)).unwrap(), 1 << 20);
    // A change of the configuration, and another generation of it.
    assert_eq!((capacity(&rig), rig.driver.get(0x60) & 2, rig.driver.get(0xfc)), (2048, 2, 1));
    rig.driver.write(BUFFER, &[0x77; 512]);
    assert_eq!(rig.ask(1, 2047, &[Piece::Out(BUFFER, 512)]), (0, 1));
    assert_eq!(fs::read(file.path()).unwrap()[(1 << 20) - 512..], [0x77; 512]);

    rig.driver.transport.resize(Some(1024)).unwrap();
    assert_eq!(capacity(&rig), 2);
    assert_eq!(rig.ask(1, 2, &[Piece::Out(BUFFER, 512)]), (1, 1));
    assert_eq!(rig.ask(0, 1, &[Piece::In(BUFFER, 512)]), (0, 513));
    assert_eq!(fs::metadata(file.path()).unwrap().len(), 1024);

    // Whoever made the file longer himself has husk look again.
    file.as_file().set_len(8192).unwrap();
    assert_eq!(rig.driver.transport.resize(None).unwrap(), 8192);
    assert_eq!(capacity(&rig), 16);
    let refused = rig.driver.transport.resize(Some(513)).unwrap_err();
    let SizeError::Refused(why) = &refused else { panic!("{refused}") };
    assert!(matches!(why.downcast_ref(), Some(ResizeError::Sectors(513))));
    assert_eq!(refused.to_string(), "513 bytes are no multiple of a sector of 512");
    assert_eq!(rig.ask(0, 15, &[Piece::In(BUFFER, 512)]), (0, 513));
}

#[test]
fn a_driver_that_comes_up_after_a_change_is_told_of_it_then() {
    let file = image(4096);
    let rig = Rig::new(file.path(), false);
    rig.driver.negotiate(0);
    rig.driver.transport.resize(Some(8192)).unwrap();
    // Not before it is up, for it takes no interrupts.
    assert_eq!((rig.driver.get(0x60) & 2, rig.driver.get(0xfc)), (0, 0));
    let up = |rig: &Rig| {
        rig.driver.negotiate(1 << 32);
        rig.driver.set(0x70, 1 | 2 | 8 | 4);
    };
    // One that begins anew looks anew.
    up(&rig);
    assert_eq!((rig.driver.get(0x60) & 2, rig.driver.get(0xfc)), (0, 0));
    rig.driver.negotiate(1 << 32);
    rig.driver.transport.resize(Some(16384)).unwrap();
    rig.driver.set(0x70, 1 | 2 | 8 | 4);
    assert_eq!((capacity(&rig), rig.driver.get(0x60) & 2, rig.driver.get(0xfc)), (32, 2, 1));
}

#[test]
fn a_driver_that_is_not_up_is_not_told_and_a_paused_disk_stays_paused() {
    let file = image(4096);
    let mut device =
        Blk::new("d", open(file.path(), false).unwrap(), BlkOptions::default()).unwrap();
    let worker = Worker::spawn("d").unwrap();
    let handle = worker.handle();
    device.lanes[0].worker = Some(worker);
    let mut rig = Rig { driver: Driver::idle(Box::new(device)) };
    rig.driver.transport.resize(Some(8192)).unwrap();
    assert_eq!((capacity(&rig), rig.driver.get(0x60)), (16, 0));
    rig.driver.bring_up(EVENT_IDX | 1 << VIRTIO_BLK_F_FLUSH, 64);
    rig.driver.transport.pause();
    let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
    let mut header = [0; 16];
    header[8] = 31;
    rig.driver.write(HEAD, &header);
    rig.driver.send(0, &pieces);
    rig.driver.transport.resize(Some(16384)).unwrap();
    // Had it gone on, the worker would have taken the request before it takes the second task, and a
    // pause would have it answered.
    for _ in 0..2 {
        handle.add(Idle).unwrap().take().unwrap();
    }
    rig.driver.transport.pause();
    assert!(rig.driver.rings[0].used().is_empty(), "it has gone on");
    rig.driver.transport.resume();
    assert_eq!(rig.driver.wait_used(0, 1)[0].1, 513);
    assert_eq!(rig.driver.read(STATUS, 1), [0]);
}

#[test]
fn a_disk_whose_host_hangs_keeps_its_size_until_it_answers() {
    let Some(hanging) = HangingFile::mount() else { return };
    let disk = open_unread(hanging.path());
    let patience = Duration::from_millis(50);
    let options = BlkOptions { engine: EngineChoice::Threads, patience, ..BlkOptions::default() };
    let mut rig = Rig::of(Blk::new("d", disk, options).unwrap());
    let before = capacity(&rig);
    rig.driver.write(HEAD, &[0; 16]);
    let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
    rig.driver.send(0, &pieces);
    hanging.wait_for_a_reader();
    assert!(matches!(rig.driver.transport.resize(Some(512)), Err(SizeError::Busy)));
    assert_eq!(capacity(&rig), before);
    hanging.answer();
    assert_eq!(rig.driver.wait_used(0, 1)[0].1, 513);
}

/// A disk of 2 MiB whose host hangs over a request for 4 MiB.
fn hanging_over_a_size() -> Option<(Rig, HangingFile)> {
    let file = HangingFile::mount()?;
    let patience = Duration::from_millis(50);
    let options = BlkOptions { engine: EngineChoice::Threads, patience, ..BlkOptions::default() };
    let rig = Rig::of(Blk::new("d", open_unread(file.path()), options).unwrap());
    let late = at_once(|| rig.driver.transport.resize(Some(4 << 20)));
    assert!(matches!(late, Err(SizeError::Late)), "{late:?}");
    file.wait_for_a_reader();
    Some((rig, file))
}

#[test]
fn a_host_that_hangs_over_a_new_size_holds_up_the_disk_and_nobody_else() {
    let Some((mut rig, file)) = hanging_over_a_size() else { return };
    rig.driver.write(HEAD, &[0; 16]);
    let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
    at_once(|| {
        // A vCPU at registers behind the core's lock, who pauses, and who wants yet another size.
        rig.driver.set(0x30, 0);
        assert_eq!((capacity(&rig), rig.driver.get(0x34)), (4096, 256));
        rig.driver.transport.pause();
        rig.driver.transport.resume();
        assert!(!rig.driver.transport.is_busy(), "it has no memory of the guest's");
        assert!(matches!(rig.driver.transport.resize(None), Err(SizeError::Busy)));
        rig.driver.send(0, &pieces);
    });
    file.answer();
    assert_eq!(rig.driver.wait_used(0, 1)[0].1, 513);
    // A change of the configuration, and another generation of it.
    assert_eq!((capacity(&rig), rig.driver.get(0x60) & 2, rig.driver.get(0xfc)), (8192, 2, 1));
    assert_eq!(rig.ask(0, 8191, &[Piece::In(BUFFER, 512)]), (0, 513));
}

#[test]
fn a_driver_that_is_reset_while_the_host_hangs_over_a_new_size_gets_the_disk_when_it_answers() {
    let Some((mut rig, file)) = hanging_over_a_size() else { return };
    at_once(|| rig.driver.set(0x70, 0));
    at_once(|| rig.driver.bring_up(EVENT_IDX | 1 << VIRTIO_BLK_F_FLUSH, 64));
    file.answer();
    assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
    assert_eq!(capacity(&rig), 8192);
}

#[test]
fn a_disk_ends_while_its_host_hangs_over_a_new_size() {
    let Some((rig, file)) = hanging_over_a_size() else { return };
    at_once(|| drop(rig));
    file.answer();
}
