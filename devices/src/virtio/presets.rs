//! A virtio function's configuration space as firmware would leave it, with the capabilities that
//! lead a driver to the structures in BAR 0 (virtio 1.2, 4.1.4).

use super::Device;
use super::transport::{
    BAR_SIZE, COMMON, COMMON_LEN, DEVICE, ISR, NOTIFY, NOTIFY_STRIDE, WINDOW_CAP,
};
use crate::pci::config::{self, ConfigSpace, Identity};
use crate::pci::{Pci, bar_address};

/// Kinds of `virtio_pci_cap` (virtio 1.2, 4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_WINDOW: u8 = 5;

/// The configuration space at power-on: BAR 0 assigned, decoding and bus mastering on.
pub fn config_space(slot: u8, device: &Device) -> ConfigSpace {
    const VIRTIO_VENDOR: u16 = 0x1af4;
    const MODERN_BASE: u16 = 0x1040;
    const BAR_64BIT: u64 = 0x4;
    let mut space = ConfigSpace::new(&Identity {
        vendor: VIRTIO_VENDOR,
        device: MODERN_BASE + device.id(),
        revision: 1,
        class: device.class(),
        subsystem: (VIRTIO_VENDOR, 0x1100),
    });
    space.set(config::BAR0, &(bar_address(slot) | BAR_64BIT).to_le_bytes());
    space.allow(config::BAR0, &(!(BAR_SIZE - 1)).to_le_bytes());
    let command = config::COMMAND_MEMORY | config::COMMAND_MASTER;
    space.set(config::COMMAND, &command.to_le_bytes());
    space.allow(
        config::COMMAND,
        &(command | config::COMMAND_NO_INTX).to_le_bytes(),
    );
    space.set(config::STATUS, &config::STATUS_CAPABILITIES.to_le_bytes());
    Pci::preset_interrupt(&mut space, slot);

    let notify_len = NOTIFY_STRIDE * device.queue_sizes().len() as u32;
    let device_len = (device.config().len() as u32).max(4);
    space.set(config::CAPABILITIES, &[0x40]);
    capability(&mut space, 0x40, 0x50, CAP_COMMON, COMMON, COMMON_LEN);
    capability(&mut space, 0x50, 0x60, CAP_ISR, ISR, 1);
    capability(&mut space, 0x60, 0x70, CAP_DEVICE, DEVICE, device_len);
    capability(&mut space, 0x70, WINDOW_CAP, CAP_NOTIFY, NOTIFY, notify_len);
    space.set(0x70 + 2, &[20]);
    space.set(0x70 + 16, &NOTIFY_STRIDE.to_le_bytes());
    capability(&mut space, WINDOW_CAP, 0, CAP_WINDOW, 0, 0);
    space.set(WINDOW_CAP + 2, &[20]);
    // bar, offset, length and data are the driver's.
    space.allow(WINDOW_CAP + 4, &[0xff]);
    space.allow(WINDOW_CAP + 8, &[0xff; 12]);
    space
}

/// `virtio_pci_cap` (virtio 1.2, 4.1.4), 16 bytes, in BAR 0.
fn capability(space: &mut ConfigSpace, at: u8, next: u8, kind: u8, offset: u32, len: u32) {
    const VENDOR_SPECIFIC: u8 = 0x09;
    space.set(at, &[VENDOR_SPECIFIC, next, 16, kind, 0, 0, 0, 0]);
    space.set(at + 8, &offset.to_le_bytes());
    space.set(at + 12, &len.to_le_bytes());
}
