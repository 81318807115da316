use super::*;
use crate::bus::BusDevice;
use std::sync::Mutex;

fn recorder() -> (EventSink, Arc<Mutex<Vec<GuestEvent>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    (Arc::new(move |event| sink.lock().unwrap().push(event)), seen)
}

#[test]
fn only_s5_with_sleep_enable_turns_the_machine_off() {
    let (sink, seen) = recorder();
    let power = PowerControl::new(sink);
    power.write(0, &[PowerControl::S5 << 2]);
    power.write(0, &[3 << 2 | 1 << 5]);
    power.write(1, &[PowerControl::S5 << 2 | 1 << 5]);
    assert!(seen.lock().unwrap().is_empty());
    power.write(0, &[PowerControl::S5 << 2 | 1 << 5]);
    assert_eq!(*seen.lock().unwrap(), [GuestEvent::PowerOff]);
}

#[test]
fn the_reset_register_takes_its_own_value_only_at_any_width() {
    let (sink, seen) = recorder();
    let power = PowerControl::new(sink);
    power.write(2, &[0]);
    assert!(seen.lock().unwrap().is_empty());
    power.write(1, &[0, PowerControl::RESET_VALUE]);
    assert_eq!(*seen.lock().unwrap(), [GuestEvent::Reset]);
}

#[test]
fn pvpanic_tells_what_it_knows_and_reports_a_panic() {
    let (sink, seen) = recorder();
    let device = PvPanic::new(sink);
    let mut data = [0xff; 4];
    device.read(0, &mut data);
    assert_eq!(data, [1, 0, 0, 0]);
    device.write(0, &[2]);
    assert!(seen.lock().unwrap().is_empty());
    device.write(0, &[1]);
    assert_eq!(*seen.lock().unwrap(), [GuestEvent::Panic]);
}

#[test]
fn the_keyboard_controller_never_looks_busy_and_resets_the_machine() {
    let (sink, seen) = recorder();
    let device = KeyboardReset::new(sink);
    let mut status = [0xff];
    device.read(4, &mut status);
    assert_eq!(status[0] & 2, 0, "input buffer must read empty");
    device.write(0, &[0xfe]);
    device.write(4, &[0xfd]);
    assert!(seen.lock().unwrap().is_empty());
    device.write(4, &[0xfe]);
    assert_eq!(*seen.lock().unwrap(), [GuestEvent::Reset]);
}

#[test]
fn the_debug_exit_port_gives_the_status_that_qemu_would() {
    let (sink, seen) = recorder();
    let device = DebugExit(sink);
    device.write(1, &[1]);
    assert!(seen.lock().unwrap().is_empty());
    for value in [&[0][..], &[0x10, 0, 0, 0], &[0xff, 0xff]] {
        device.write(0, value);
    }
    let statuses = [1, 0x21, 0xff].map(GuestEvent::Exit);
    assert_eq!(*seen.lock().unwrap(), statuses);
}
