//! What an embedder asks of a running machine's devices.

use crate::fixture::interrupts::{COUNT, counting_input};
use crate::fixture::{Emit, Guest, Kernel};
use crate::needs_kvm;

#[test]
fn what_the_console_carried_is_in_the_metrics_also_after_the_end() {
    needs_kvm!();
    let kernel = Kernel::pvh(|a| {
        a.say("four")?;
        a.power_off()
    });
    let guest = Guest::start_with(&kernel, |config| config.rng = true);
    guest.vm.wait();
    let metrics = guest.vm.metrics();
    let com1 = metrics.devices["com1"];
    assert_eq!((com1.virtio, com1.counts.bytes_from_guest, com1.counts.requests), (None, 4, 4));
    let rng = metrics.devices["rng"];
    assert_eq!((rng.virtio, rng.counts), (Some(4), husk::Counts::default()));
    let text = metrics.to_json();
    assert_eq!(serde_json::from_str::<husk::Metrics>(&text).unwrap(), metrics, "{text}");
}

#[test]
fn a_new_generation_has_another_id_in_guest_memory_and_interrupts_the_guest() {
    needs_kvm!();
    /// Where ACPI says that the id is, and the interrupt that tells of another.
    const ID: u32 = 0xd_f028;
    const INPUT: u32 = 3;
    let kernel = counting_input(INPUT, |a| {
        a.dump(ID, 16)?;
        a.say("!")?;
        a.await_count(COUNT, 1)?;
        a.dump(ID, 16)
    });
    let guest = Guest::start(&kernel);
    // The id itself may have any byte.
    assert!(guest.console.wait_until(crate::fixture::LIMIT, |said| said.len() >= 17));
    guest.vm.renew_generation().unwrap();
    let said = guest.powered_off();
    let ([first @ .., b'!'], [second @ .., count]) = said.split_at(17) else { panic!("{said:x?}") };
    assert_eq!((first.len(), second.len(), *count), (16, 16, 1));
    assert!(first != second && first != [0; 16] && second != [0; 16], "{said:x?}");
}
