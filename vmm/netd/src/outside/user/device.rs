//! The stack's network card: frames from the guest in, frames to the switch out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::{Queue, dhcp};
use crate::server::Fabric;

/// Ethernet header and 1500 bytes.
const MAX_FRAME: usize = 1514;

pub struct Device {
    fabric: Arc<Fabric>,
    queue: Arc<Queue>,
    dhcp: dhcp::Server,
    /// Taken from the queue, not yet seen by the stack.
    waiting: VecDeque<Bytes>,
}

impl Device {
    pub fn new(fabric: Arc<Fabric>, queue: Arc<Queue>, dhcp: dhcp::Server) -> Device {
        Device {
            fabric,
            queue,
            dhcp,
            waiting: VecDeque::new(),
        }
    }

    /// Takes over what the guest has sent. Returns whether there is something for the stack.
    pub fn fill(&mut self) -> bool {
        self.waiting.append(&mut self.queue.take());
        !self.waiting.is_empty()
    }

    /// The next frame that is not for the DHCP server.
    fn next(&mut self) -> Option<Bytes> {
        while let Some(frame) = self.waiting.pop_front() {
            match self.dhcp.answer(&frame) {
                dhcp::Answer::NotDhcp => return Some(frame),
                dhcp::Answer::Ignored => {}
                dhcp::Answer::Reply(reply) => self.fabric.inbound(&Bytes::from(reply)),
            }
        }
        None
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    /// Always takes what the guest sends: the client waits for it. The answers to it (ACKs)
    /// are kept by the switch if no replica is live.
    fn receive(&mut self, _now: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.next()?;
        Some((Received(frame), Sender(&self.fabric)))
    }

    /// Sends only to a live replica; otherwise the stack keeps what it has to say.
    fn transmit(&mut self, _now: Instant) -> Option<Sender<'_>> {
        if self.fabric.ready() {
            return Some(Sender(&self.fabric));
        }
        self.queue.blocked.store(true, Ordering::SeqCst);
        // It may have become ready between the question and the note.
        if !self.fabric.ready() {
            return None;
        }
        self.queue.blocked.store(false, Ordering::SeqCst);
        Some(Sender(&self.fabric))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

pub struct Received(Bytes);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

pub struct Sender<'a>(&'a Fabric);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.inbound(&Bytes::from(frame));
        result
    }
}
