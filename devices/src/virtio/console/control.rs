//! Messages of the control queues (virtio 1.3 §5.3.6.2 "Multiport Device Operation").
//!
//! ```text
//! 0  id     le32, the port
//! 4  event  le16
//! 6  value  le16
//! 8  the name, in a PORT_NAME of the device's
//! ```

/// Events (virtio 1.3 §5.3.6.2).
const VIRTIO_CONSOLE_DEVICE_READY: u16 = 0;
const VIRTIO_CONSOLE_PORT_ADD: u16 = 1;
const VIRTIO_CONSOLE_PORT_READY: u16 = 3;
const VIRTIO_CONSOLE_PORT_OPEN: u16 = 6;
const VIRTIO_CONSOLE_PORT_NAME: u16 = 7;

/// Bytes of a message without a name.
pub(super) const LEN: usize = 8;

/// What a driver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromDriver {
    /// The driver can take ports now, or could not.
    DeviceReady(bool),
    /// The driver knows the port, or could not make it.
    PortReady(u32, bool),
    /// Somebody in the guest has opened the port, or closed it.
    PortOpen(u32, bool),
    /// Nothing that a device hears.
    Other,
}

impl FromDriver {
    pub(super) fn parse(message: [u8; LEN]) -> FromDriver {
        let [a, b, c, d, e, f, g, h] = message;
        let (id, value) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([g, h]) != 0);
        match u16::from_le_bytes([e, f]) {
            VIRTIO_CONSOLE_DEVICE_READY => FromDriver::DeviceReady(value),
            VIRTIO_CONSOLE_PORT_READY => FromDriver::PortReady(id, value),
            VIRTIO_CONSOLE_PORT_OPEN => FromDriver::PortOpen(id, value),
            _ => FromDriver::Other,
        }
    }
}

/// What the device says of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToDriver<'a> {
    /// There is this port.
    Add,
    /// Its name.
    Name(&'a str),
    /// Somebody on the host has opened it, or closed it.
    Open(bool),
}

impl ToDriver<'_> {
    /// The message about port `id`.
    pub(super) fn bytes(self, id: u32) -> Vec<u8> {
        let (event, value, name) = match self {
            ToDriver::Add => (VIRTIO_CONSOLE_PORT_ADD, 1, ""),
            ToDriver::Name(name) => (VIRTIO_CONSOLE_PORT_NAME, 1, name),
            ToDriver::Open(open) => (VIRTIO_CONSOLE_PORT_OPEN, u16::from(open), ""),
        };
        let mut message = id.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(name.bytes());
        message
    }
}
