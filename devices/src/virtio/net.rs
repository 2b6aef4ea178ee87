//! The virtio network interface (virtio 1.2, 5.1): one pair of queues, no offloads.
//!
//! Transmit copies the frame out at the notification. Receive takes a frame from the log; with no
//! buffer it waits in a bounded backlog, beyond which frames are dropped and counted.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP};
use vm_memory::GuestMemory;

use super::queue::{Queue, QueueError, copy_in, copy_out, total};
use crate::events::{MAX_FRAME, MIN_FRAME, Output, Outputs};

pub const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS;
/// Receive, transmit.
pub const QUEUE_SIZES: [u16; 2] = [256, 256];
pub const RECEIVE: usize = 0;
/// `virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// The smallest receive buffer that a driver may give (virtio 1.2, 5.1.6.3.1).
const MIN_BUFFER: u64 = 1526;
/// Frames that wait for receive buffers.
const BACKLOG: usize = 256;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
const BROADCAST: [u8; 6] = [0xff; 6];

/// What the interface did, for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub received: u64,
    /// Frames from the guest.
    pub transmitted: u64,
    /// Frames from outside that found the backlog full, the driver down or the buffer too small.
    pub receive_dropped: u64,
    /// Frames from the guest of an impossible length.
    pub transmit_dropped: u64,
}

/// The network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    mac: [u8; 6],
    backlog: VecDeque<ByteBuf>,
    counters: NetCounters,
    /// The guest's IPv4 address as its own frames showed it last.
    ipv4: Option<[u8; 4]>,
}

impl Net {
    pub fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            backlog: VecDeque::new(),
            counters: NetCounters::default(),
            ipv4: None,
        }
    }

    pub fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config
    }

    pub fn reset(&mut self) {
        self.counters.receive_dropped += self.backlog.len() as u64;
        self.backlog.clear();
    }

    pub fn counters(&self) -> NetCounters {
        self.counters
    }

    pub fn backlog_is_empty(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Keeps a frame for the receive queue; `live` says whether the driver is up.
    pub fn receive(&mut self, frame: Vec<u8>, live: bool) {
        if live && self.backlog.len() < BACKLOG {
            self.backlog.push_back(ByteBuf::from(frame));
        } else {
            self.counters.receive_dropped += 1;
        }
    }

    pub fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queue: &mut Queue,
        mem: &M,
        outputs: &mut Outputs,
    ) -> Result<(), QueueError> {
        if index == RECEIVE {
            self.fill(queue, mem)
        } else {
            self.transmit(queue, mem, outputs)
        }
    }

    fn fill<M: GuestMemory>(&mut self, queue: &mut Queue, mem: &M) -> Result<(), QueueError> {
        while !self.backlog.is_empty() {
            let Some(chain) = queue.pop(mem)? else { break };
            let room = total(&chain.writable);
            if !chain.readable.is_empty() || room < MIN_BUFFER {
                return Err(QueueError::Request(
                    "network receive buffer too small or readable",
                ));
            }
            let Some(frame) = self.backlog.pop_front() else {
                break;
            };
            let len = HEADER + frame.len();
            if room < len as u64 {
                queue.undo_pop();
                self.counters.receive_dropped += 1;
                continue;
            }
            let mut packet = Vec::with_capacity(len);
            packet.extend_from_slice(&[0; HEADER - 2]);
            // num_buffers, which is always 1 without MRG_RXBUF.
            packet.extend_from_slice(&1u16.to_le_bytes());
            packet.extend_from_slice(&frame);
            copy_in(mem, &chain.writable, &packet)?;
            queue.push_used(mem, chain.head, len as u32)?;
            self.counters.received += 1;
        }
        Ok(())
    }

    fn transmit<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        outputs: &mut Outputs,
    ) -> Result<(), QueueError> {
        const LENGTHS: std::ops::RangeInclusive<u64> =
            (HEADER + MIN_FRAME) as u64..=(HEADER + MAX_FRAME) as u64;
        while let Some(chain) = queue.pop(mem)? {
            if !chain.writable.is_empty() {
                return Err(QueueError::Request("network transmit buffer not readable"));
            }
            if LENGTHS.contains(&total(&chain.readable)) {
                let mut frame = copy_out(mem, &chain.readable)?;
                frame.drain(..HEADER);
                self.snoop(&frame);
                self.counters.transmitted += 1;
                outputs.push(Output::NetTransmit(frame));
            } else {
                self.counters.transmit_dropped += 1;
            }
            queue.push_used(mem, chain.head, 0)?;
        }
        Ok(())
    }

    /// Learns the guest's IPv4 address from what it sends under its own MAC address.
    fn snoop(&mut self, frame: &[u8]) {
        let at = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
        if at(6..12) != self.mac {
            return;
        }
        let sender = match at(12..14) {
            kind if kind == ETHERTYPE_ARP => at(28..32),
            kind if kind == ETHERTYPE_IPV4 => at(26..30),
            _ => return,
        };
        if let Ok(address) = <[u8; 4]>::try_from(sender)
            && address != [0; 4]
        {
            self.ipv4 = Some(address);
        }
    }

    /// A broadcast that moves the guest's address to this port of every switch: a gratuitous ARP
    /// (RFC 5227) if the guest's IPv4 address is known, else a RARP request (RFC 903).
    pub fn announcement(&self) -> Vec<u8> {
        const REQUEST_ARP: u16 = 1;
        const REQUEST_RARP: u16 = 3;
        let (kind, operation, target) = match self.ipv4 {
            Some(_) => (ETHERTYPE_ARP, REQUEST_ARP, [0; 6]),
            None => (ETHERTYPE_RARP, REQUEST_RARP, self.mac),
        };
        let address = self.ipv4.unwrap_or_default();
        let mut frame = Vec::with_capacity(60);
        frame.extend_from_slice(&BROADCAST);
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&kind);
        // Ethernet, IPv4, address lengths.
        frame.extend_from_slice(&[0, 1, 0x08, 0x00, 6, 4]);
        frame.extend_from_slice(&operation.to_be_bytes());
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&address);
        frame.extend_from_slice(&target);
        frame.extend_from_slice(&address);
        frame.resize(60, 0);
        frame
    }
}
