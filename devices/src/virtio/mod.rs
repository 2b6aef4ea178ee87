//! Virtio 1.2 devices over PCI: queues, the transport, and the devices behind it.
//!
//! All work is done inside the call that caused it: a notification takes every available chain,
//! an input from the log fills what buffers there are. Data of inputs wait inside the device until
//! then. Offered: VERSION_1 and EVENT_IDX on every device, and what each lists.

pub mod blk;
pub mod console;
pub mod net;
mod presets;
mod queue;
pub mod rng;
#[cfg(test)]
mod tests;
mod transport;

use blk::Blk;
use console::Console;
use net::Net;
use queue::{Queue, QueueError};
use rng::Rng;
use serde::{Deserialize, Serialize};
pub use transport::VirtioPci;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_RNG,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemory;

use crate::events::Outputs;

/// The device behind a transport.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Device {
    Net(Net),
    Blk(Blk),
    Rng(Box<Rng>),
    Console(Console),
}

impl Device {
    /// Virtio device type (virtio 1.2, 5).
    fn id(&self) -> u16 {
        let id = match self {
            Self::Net(_) => VIRTIO_ID_NET,
            Self::Blk(_) => VIRTIO_ID_BLOCK,
            Self::Rng(_) => VIRTIO_ID_RNG,
            Self::Console(_) => VIRTIO_ID_CONSOLE,
        };
        id as u16
    }

    /// PCI class, subclass, programming interface.
    fn class(&self) -> [u8; 3] {
        match self {
            Self::Net(_) => [0x02, 0x00, 0x00],
            Self::Blk(_) => [0x01, 0x80, 0x00],
            Self::Rng(_) => [0x10, 0x80, 0x00],
            Self::Console(_) => [0x07, 0x80, 0x00],
        }
    }

    fn features(&self) -> u64 {
        let own = match self {
            Self::Net(_) => net::FEATURES,
            Self::Blk(_) => blk::FEATURES,
            Self::Rng(_) | Self::Console(_) => 0,
        };
        own | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &'static [u16] {
        match self {
            Self::Net(_) => &net::QUEUE_SIZES,
            Self::Blk(_) => &blk::QUEUE_SIZES,
            Self::Rng(_) => &rng::QUEUE_SIZES,
            Self::Console(_) => &console::QUEUE_SIZES,
        }
    }

    /// The device-specific configuration space; read-only for the driver.
    fn config(&self) -> Vec<u8> {
        match self {
            Self::Net(net) => net.config(),
            Self::Blk(blk) => blk.config(),
            Self::Rng(_) | Self::Console(_) => Vec::new(),
        }
    }

    /// Does all the work that there is for one queue.
    fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queue: &mut Queue,
        mem: &M,
        outputs: &mut Outputs,
    ) -> Result<(), QueueError> {
        match self {
            Self::Net(net) => net.process(index, queue, mem, outputs),
            Self::Blk(blk) => blk.process(queue, mem, outputs),
            Self::Rng(rng) => rng.process(queue, mem),
            Self::Console(console) => console.process(index, queue, mem, outputs),
        }
    }

    /// The driver reset the device.
    fn reset(&mut self) {
        match self {
            Self::Net(net) => net.reset(),
            Self::Blk(blk) => blk.reset(),
            Self::Rng(_) | Self::Console(_) => {}
        }
    }
}
