//! What the devices have done so far, collected from their counters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use husk_devices::counters::{Counters, Counts};
use husk_devices::serial::Output;
use serde::{Deserialize, Serialize};

use super::devices::Devices;

/// What a VM's devices have done since it was made; reboots in place do not begin anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Seconds since the VM was made.
    pub seconds: f64,
    /// The devices by their ids; the serial console is `com1`.
    pub devices: BTreeMap<String, DeviceMetrics>,
}

/// What one device has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMetrics {
    /// The virtio device type (virtio 1.3 §5): 1 network, 2 block…; nothing for what is no virtio
    /// device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtio: Option<u32>,
    /// Its counts.
    #[serde(flatten)]
    pub counts: Counts,
}

impl Metrics {
    /// As JSON, a line at the end.
    pub fn to_json(&self) -> String {
        // A struct of plain data with string keys always has a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Where a VM's counters are. It outlives the devices.
pub(super) struct Collector {
    since: Instant,
    virtio: Vec<(String, u32, Arc<Counters>)>,
    uart: Arc<Counters>,
    console: Arc<Output>,
}

impl Collector {
    /// Of all of `devices`.
    pub fn new(devices: &Devices) -> Self {
        let transports = devices.transports();
        Self {
            since: Instant::now(),
            virtio: transports
                .map(|t| (t.name().to_owned(), t.device_type(), t.counters().clone()))
                .collect(),
            uart: devices.uart.counters().clone(),
            console: devices.uart.output().clone(),
        }
    }

    /// The counts now.
    pub fn collect(&self) -> Metrics {
        let mut com1 = self.uart.counts();
        com1.errors += self.console.dropped();
        let com1 = ("com1".to_owned(), DeviceMetrics { virtio: None, counts: com1 });
        let virtio = self.virtio.iter().map(|(name, kind, counters)| {
            let counts = counters.counts();
            (name.clone(), DeviceMetrics { virtio: Some(*kind), counts })
        });
        Metrics {
            seconds: self.since.elapsed().as_secs_f64(),
            devices: virtio.chain([com1]).collect(),
        }
    }
}
