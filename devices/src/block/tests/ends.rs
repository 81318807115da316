//! Engines that end, and what they hold until then: memory, and the lock of their disk.

use super::*;

#[test]
fn an_engine_that_is_dropped_keeps_memory_and_lock_until_the_host_is_done() {
    for choice in patient() {
        let Some(hanging) = HangingFile::mount() else { return };
        let mut rig = Rig::new(hanging.path(), choice, UNREAD);
        let mut memory = Box::new([0u8; 4096]);
        let data = memory.as_mut_ptr();
        let memory: Keep = std::sync::Arc::new(memory);
        let kept = std::sync::Arc::downgrade(&memory);
        rig.engine.protect(memory);
        // SAFETY: the memory is kept by the engine.
        let piece = unsafe { std::slice::from_raw_parts_mut(data, 4096) };
        rig.submit(Operation::Read, 0, 0, &mut [piece]);
        hanging.wait_for_a_reader();
        let begin = Instant::now();
        drop(rig);
        assert!(begin.elapsed() < Duration::from_secs(1), "{choice:?}");
        assert!(kept.upgrade().is_some(), "{choice:?}: the memory went before the answer");
        let again = Disk::open(hanging.path(), DiskOptions::default());
        assert!(matches!(again, Err(DiskError::InUse { .. })), "{choice:?}");
        hanging.answer();
        let deadline = Instant::now() + Duration::from_secs(10);
        while kept.upgrade().is_some() {
            assert!(Instant::now() < deadline, "{choice:?}: the memory is kept for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_disk_can_be_opened_again_as_soon_as_its_engine_is_gone() {
    for choice in engines() {
        let file = image(4096);
        for _ in 0..200 {
            let mut rig = Rig::writable(file.path(), choice);
            let mut data = [0; 512];
            rig.read(512, &mut data).unwrap();
            rig.run(Operation::Flush, 0, 0, &mut []).unwrap();
        }
    }
}

#[test]
fn a_lock_that_is_about_to_go_is_waited_for() {
    let file = image(4096);
    let first = Disk::open(file.path(), DiskOptions::default()).unwrap();
    let going = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
    });
    let second = Disk::open(file.path(), DiskOptions::default()).unwrap();
    going.join().unwrap();
    let begin = Instant::now();
    let refused = Disk::open(file.path(), DiskOptions::default());
    assert!(matches!(refused, Err(DiskError::InUse { .. })));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    drop(second);
}
