//! What an embedder asks of a running machine's devices.

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
