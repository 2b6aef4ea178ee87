//! Virtio over PCI (virtio 1.2, 4.1): the modern transport with its registers in BAR 0, and the
//! legacy interrupt line with the ISR register. No MSI-X.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemory;

use super::Device;
use super::presets::config_space;
use super::queue::{Queue, QueueError};
use crate::events::Outputs;
use crate::pci::config::{self, ConfigSpace};

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const NO_VECTOR: u16 = 0xffff;

/// Size of BAR 0 and the places of the structures in it; each has 4 KiB.
pub(super) const BAR_SIZE: u64 = 0x4000;
pub(super) const COMMON: u32 = 0x0000;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const NOTIFY: u32 = 0x3000;
pub(super) const COMMON_LEN: u32 = 56;
/// Bytes between the notification registers of neighbouring queues.
pub(super) const NOTIFY_STRIDE: u32 = 4;

/// The capability through which the BAR is reached from configuration space.
pub(super) const WINDOW_CAP: u8 = 0x84;
const WINDOW_DATA: u8 = WINDOW_CAP + 16;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// One virtio function on the PCI bus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtioPci {
    slot: u8,
    space: ConfigSpace,
    device: Device,
    queues: Vec<Queue>,
    status: u8,
    isr: u8,
    feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    /// How often the guest broke the device since power-on, for the log.
    faults: u64,
}

impl VirtioPci {
    pub fn new(slot: u8, device: Device) -> Self {
        let mut this = Self {
            slot,
            space: config_space(slot, &device),
            queues: device
                .queue_sizes()
                .iter()
                .map(|size| Queue::new(*size))
                .collect(),
            device,
            status: 0,
            isr: 0,
            feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            faults: 0,
        };
        this.reset();
        this
    }

    /// Whether a restored state is one that this code can have saved.
    pub fn is_valid(&self) -> bool {
        let sizes = self.device.queue_sizes();
        self.space.is_valid()
            && self.queues.len() == sizes.len()
            && self
                .queues
                .iter()
                .zip(sizes)
                .all(|(q, size)| q.is_valid() && q.max_size == *size)
    }

    pub fn slot(&self) -> u8 {
        self.slot
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    pub fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    /// How often the guest broke a rule of this device since power-on.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Machine reset: configuration space too.
    pub fn power_on_reset(&mut self) {
        self.space = config_space(self.slot, &self.device);
        self.reset();
    }

    /// Device reset (status 0).
    fn reset(&mut self) {
        self.queues.iter_mut().for_each(Queue::reset);
        self.device.reset();
        self.status = 0;
        self.isr = 0;
        self.feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
    }

    /// The interrupt line INTA#.
    pub fn irq(&self) -> bool {
        self.isr != 0 && self.space.u16(config::COMMAND) & config::COMMAND_NO_INTX == 0
    }

    /// The driver is up, nothing is broken and the function may access memory.
    pub fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
            && self.space.u16(config::COMMAND) & config::COMMAND_MASTER != 0
    }

    /// The offset in BAR 0 that an address stands for.
    pub fn offset_of(&self, addr: u64) -> Option<u32> {
        if self.space.u16(config::COMMAND) & config::COMMAND_MEMORY == 0 {
            return None;
        }
        let low = self.space.u32(config::BAR0) & !0xf;
        let base = u64::from(low) | u64::from(self.space.u32(config::BAR0 + 4)) << 32;
        let offset = addr.checked_sub(base)?;
        (offset < BAR_SIZE).then_some(offset as u32)
    }

    /// Does the work that waits for one queue, and signals it.
    pub fn work<M: GuestMemory>(&mut self, index: usize, mem: &M, outputs: &mut Outputs) {
        if !self.is_live() {
            return;
        }
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.enabled) else {
            return;
        };
        let result = self.device.process(index, queue, mem, outputs);
        // What was done before an error counts.
        match queue.finish(mem).and_then(|interrupt| {
            if interrupt {
                self.isr |= ISR_QUEUE;
            }
            result
        }) {
            Ok(()) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// The guest broke a rule: the device stops and says so (virtio 1.2, 2.1.2).
    fn fail(&mut self, error: &QueueError) {
        self.faults += 1;
        // A guest can do this as often as it likes; the log gets 1, 2, 4, 8, ... of them.
        if self.faults.is_power_of_two() {
            tracing::warn!(
                slot = self.slot,
                device = self.device.id(),
                count = self.faults,
                "virtio device stopped until the guest resets it: {error}"
            );
        }
        if self.status & DRIVER_OK != 0 {
            self.isr |= ISR_CONFIG;
        }
        self.status |= NEEDS_RESET;
    }

    /// A read of 1, 2 or 4 bytes of configuration space.
    pub fn config_read(&mut self, offset: u8, size: u8) -> u32 {
        if let Some(access) = self.window_access(offset, size) {
            let value = self.bar_read(access.offset, access.size);
            self.space.set(WINDOW_DATA, &(value as u32).to_le_bytes());
        }
        let status = config::STATUS_CAPABILITIES
            | if self.isr != 0 {
                config::STATUS_INTERRUPT
            } else {
                0
            };
        self.space.set(config::STATUS, &status.to_le_bytes());
        self.space.read(offset, size)
    }

    /// A write of 1, 2 or 4 bytes of configuration space.
    pub fn config_write<M: GuestMemory>(
        &mut self,
        offset: u8,
        size: u8,
        value: u32,
        mem: &M,
        outputs: &mut Outputs,
    ) {
        self.space.write(offset, size, value);
        if offset & !3 == config::COMMAND {
            // Bus mastering may have come on, with work waiting.
            for index in 0..self.queues.len() {
                self.work(index, mem, outputs);
            }
        }
        if let Some(access) = self.window_access(offset, size) {
            let data = u64::from(self.space.u32(WINDOW_DATA));
            self.bar_write(access.offset, access.size, data, mem, outputs);
        }
    }

    /// The BAR access that touching the window's data register stands for (virtio 1.2, 4.1.4.9).
    fn window_access(&self, offset: u8, size: u8) -> Option<BarAccess> {
        let touched = offset & !3 == WINDOW_DATA && size > 0;
        let (bar, at) = (
            self.space.byte(WINDOW_CAP + 4),
            self.space.u32(WINDOW_CAP + 8),
        );
        let len = self.space.u32(WINDOW_CAP + 12);
        (touched
            && bar == 0
            && matches!(len, 1 | 2 | 4)
            && at.is_multiple_of(len)
            && u64::from(at) < BAR_SIZE)
            .then_some(BarAccess {
                offset: at,
                size: len as u8,
            })
    }

    /// A read of 1 to 8 bytes in BAR 0.
    pub fn bar_read(&mut self, offset: u32, size: u8) -> u64 {
        let bytes = match offset & !0xfff {
            COMMON => self.common().to_vec(),
            ISR => {
                // Reading acknowledges (virtio 1.2, 4.1.4.5).
                vec![std::mem::take(&mut self.isr)]
            }
            DEVICE => self.device.config(),
            _ => Vec::new(),
        };
        let at = (offset & 0xfff) as usize;
        (0..usize::from(size.min(8))).fold(0, |value, index| {
            let byte = bytes.get(at + index).copied().unwrap_or(0);
            value | u64::from(byte) << (8 * index)
        })
    }

    /// A write of 1 to 8 bytes in BAR 0.
    pub fn bar_write<M: GuestMemory>(
        &mut self,
        offset: u32,
        size: u8,
        value: u64,
        mem: &M,
        outputs: &mut Outputs,
    ) {
        match offset & !0xfff {
            COMMON if size == 8 => {
                // A 64-bit field written in one go: two halves.
                self.common_write(offset, 4, value as u32, mem, outputs);
                self.common_write(offset + 4, 4, (value >> 32) as u32, mem, outputs);
            }
            COMMON => self.common_write(offset, size, value as u32, mem, outputs),
            // The register says which queue; the value repeats it.
            NOTIFY => self.work(((offset - NOTIFY) / NOTIFY_STRIDE) as usize, mem, outputs),
            _ => {}
        }
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    /// `virtio_pci_common_cfg` as the driver reads it.
    fn common(&self) -> [u8; COMMON_LEN as usize] {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut regs = [0; COMMON_LEN as usize];
        let mut put = |at: usize, bytes: &[u8]| regs[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.feature_select.to_le_bytes());
        put(4, &half(self.features(), self.feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(
            12,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(16, &NO_VECTOR.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        // Configuration never changes, so its generation stays 0.
        put(20, &[self.status, 0]);
        put(22, &self.queue_select.to_le_bytes());
        put(26, &NO_VECTOR.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(24, &queue.size.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.desc.to_le_bytes());
            put(40, &queue.avail.to_le_bytes());
            put(48, &queue.used.to_le_bytes());
        }
        regs
    }

    fn common_write<M: GuestMemory>(
        &mut self,
        offset: u32,
        size: u8,
        value: u32,
        mem: &M,
        outputs: &mut Outputs,
    ) {
        match (offset, size) {
            (0, 4) => self.feature_select = value,
            (8, 4) => self.driver_feature_select = value,
            (12, 4) if self.status & FEATURES_OK == 0 => self.set_driver_features(value),
            (20, 1) => self.write_status(value as u8, mem, outputs),
            (22, 2) => self.queue_select = value as u16,
            (24.., _) => self.queue_write(offset, size, value, mem),
            _ => {}
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn write_status<M: GuestMemory>(&mut self, value: u8, mem: &M, outputs: &mut Outputs) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut new = value & !NEEDS_RESET & !self.status;
        if new & FEATURES_OK != 0 {
            let unknown = self.driver_features & !self.features();
            if unknown != 0 || self.driver_features >> VIRTIO_F_VERSION_1 & 1 == 0 {
                new &= !FEATURES_OK;
            }
        }
        if (new | self.status) & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & DRIVER_OK != 0 {
            let event_idx = self.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0;
            for index in 0..self.queues.len() {
                self.queues[index].event_idx = event_idx;
                // A driver may have filled its queues before; inputs may wait, too.
                self.work(index, mem, outputs);
            }
        }
    }

    /// The selected queue's registers. They are frozen once the queue is enabled, and all of them
    /// once the driver is up.
    fn queue_write<M: GuestMemory>(&mut self, offset: u32, size: u8, value: u32, mem: &M) {
        if self.status & DRIVER_OK != 0 {
            return;
        }
        let index = usize::from(self.queue_select);
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.enabled) else {
            return;
        };
        let low = |field: &mut u64| *field = *field & !0xffff_ffff | u64::from(value);
        let high = |field: &mut u64| *field = *field & 0xffff_ffff | u64::from(value) << 32;
        match (offset, size) {
            (24, 2) => queue.size = value as u16,
            (28, 2) if value == 1 => {
                if let Err(error) = queue.enable(mem) {
                    self.fail(&error);
                }
            }
            (32, 4) => low(&mut queue.desc),
            (36, 4) => high(&mut queue.desc),
            (40, 4) => low(&mut queue.avail),
            (44, 4) => high(&mut queue.avail),
            (48, 4) => low(&mut queue.used),
            (52, 4) => high(&mut queue.used),
            _ => {}
        }
    }
}

/// An access to BAR 0 through configuration space.
struct BarAccess {
    offset: u32,
    size: u8,
}
