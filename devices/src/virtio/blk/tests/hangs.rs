//! A request that the host does not answer: pauses, resets and ends do not wait for it.

use super::*;
use crate::block::hanging::HangingFile;

/// A disk on a host that hangs, with a request that waits there; for each engine.
fn hanging(mut f: impl FnMut(Rig, HangingFile, u16)) {
    for engine in [EngineChoice::Threads, EngineChoice::IoUring] {
        let Some(file) = HangingFile::mount() else { return };
        let patience = Duration::from_millis(100);
        let options = BlkOptions { engine, patience, ..BlkOptions::default() };
        let device = match Blk::new("slow", open_unread(file.path()), options) {
            Ok(device) => device,
            Err(e) => return skipped(e),
        };
        let mut rig = Rig::of(device);
        rig.driver.write(HEAD, &[0; 16]);
        rig.driver.write(STATUS, &[0xee]);
        let pieces = [Piece::Out(HEAD, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)];
        let head = rig.driver.send(0, &pieces);
        file.wait_for_a_reader();
        f(rig, file, head);
    }
}

#[test]
fn a_request_that_hangs_at_the_host_is_pending_in_a_pause_and_answered_after_it() {
    hanging(|mut rig, file, head| {
        at_once(|| rig.driver.transport.pause());
        let state = rig.driver.transport.save();
        assert_eq!(state.queues[0].pending, [head]);
        assert_eq!(state.queues[0].next_used, 0);
        file.answer();
        std::thread::sleep(Duration::from_millis(20));
        assert!(rig.driver.rings[0].used().is_empty(), "answered in the pause");
        rig.driver.transport.resume();
        assert_eq!(rig.driver.wait_used(0, 1), [(head.into(), 513)]);
        assert_eq!((rig.driver.read(STATUS, 1), rig.driver.read(BUFFER, 1)), (vec![0], vec![b'h']));
        rig.driver.transport.pause();
        assert!(rig.driver.transport.save().queues[0].pending.is_empty());
    });
}

#[test]
fn a_pending_request_is_made_again_by_whoever_takes_over() {
    hanging(|mut rig, file, head| {
        rig.driver.transport.pause();
        let state = rig.driver.transport.save();
        let other = image(4096);
        let heir = Blk::new("heir", open(other.path(), false).unwrap(), BlkOptions::default());
        let heir = Box::new(heir.unwrap());
        let memory = rig.driver.memory.clone();
        let heir = crate::virtio::testing::transport("heir", heir, memory);
        heir.restore(&state).unwrap();
        heir.resume();
        assert_eq!(rig.driver.wait_used(0, 1), [(head.into(), 513)]);
        assert_eq!((rig.driver.read(STATUS, 1), rig.driver.read(BUFFER, 1)), (vec![0], vec![1]));
        file.answer();
    });
}

#[test]
fn a_reset_waits_for_no_hanging_host_but_no_other_driver_gets_the_disk_before() {
    hanging(|mut rig, file, _| {
        at_once(|| rig.driver.transport.reset());
        assert!(rig.driver.transport.is_busy());
        at_once(|| rig.driver.bring_up(0, 64));
        assert_ne!(rig.driver.status() & 0x40, 0, "it started while the host writes to memory");
        file.answer();
        wait_until("answer", || !rig.driver.transport.is_busy());
        rig.driver.bring_up(0, 64);
        assert_eq!(rig.ask(0, 0, &[Piece::In(BUFFER, 512)]), (0, 513));
        assert_eq!(rig.driver.read(BUFFER, 512), [b'h'; 512]);
    });
}

#[test]
fn a_disk_goes_away_though_its_host_hangs() {
    hanging(|rig, file, _| {
        at_once(|| drop(rig));
        file.answer();
    });
}
