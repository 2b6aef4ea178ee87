//! A split virtqueue (virtio 1.2, 2.7), the device's side.
//!
//! The guest may write anything into the rings. Each descriptor is copied once and the copy is
//! checked; a chain that breaks a rule is an error, never a shorter chain. Indirect descriptors
//! are not offered. Chains are plain data, so a request in flight can be saved.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

const DESCRIPTOR: u64 = 16;
const AVAIL_HEADER: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const INDEX: u64 = 2;

/// What the guest did wrong with a queue. The device stops until it is reset.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    #[error("queue size {0} is not a power of two up to {1}")]
    Size(u16, u16),
    #[error("{what} at {addr:#x} is not aligned or not in memory")]
    Ring { what: &'static str, addr: u64 },
    #[error("available index {index} is more than the queue's size ahead of {next}")]
    AvailIndex { index: u16, next: u16 },
    #[error("descriptor index {0} is beyond the queue's size")]
    DescriptorIndex(u16),
    #[error("descriptor chain from {0} is longer than the queue: it loops")]
    Loop(u16),
    #[error("indirect descriptor {0}, which was not offered")]
    Indirect(u16),
    #[error("descriptor {0} has no length")]
    ZeroLength(u16),
    #[error("descriptor {0} is for the device to read and follows one to write")]
    Order(u16),
    #[error("buffer at {addr:#x} of {len} bytes is not in memory")]
    Buffer { addr: u64, len: u64 },
    #[error("ring at {0:#x} is not in memory")]
    Access(u64),
    #[error("{0}")]
    Request(&'static str),
}

/// A stretch of guest memory, in memory as a whole when it was taken from a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub addr: u64,
    pub len: u32,
}

/// A descriptor chain, copied and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<Segment>,
    /// What the device may write.
    pub writable: Vec<Segment>,
}

/// Bytes in a list of segments.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Copies all of `segments` out of guest memory; the caller has bounded [`total`].
pub fn copy_out<M: GuestMemory>(mem: &M, segments: &[Segment]) -> Result<Vec<u8>, QueueError> {
    let mut data = vec![0; total(segments) as usize];
    let mut rest = data.as_mut_slice();
    for segment in segments {
        let (part, tail) = rest.split_at_mut(segment.len as usize);
        mem.read_slice(part, GuestAddress(segment.addr))
            .map_err(|_| QueueError::Buffer {
                addr: segment.addr,
                len: segment.len.into(),
            })?;
        rest = tail;
    }
    Ok(data)
}

/// Copies `data` into the start of `segments`; what does not fit is the caller's error.
pub fn copy_in<M: GuestMemory>(
    mem: &M,
    segments: &[Segment],
    mut data: &[u8],
) -> Result<(), QueueError> {
    for segment in segments {
        let (part, tail) = data.split_at(data.len().min(segment.len as usize));
        mem.write_slice(part, GuestAddress(segment.addr))
            .map_err(|_| QueueError::Buffer {
                addr: segment.addr,
                len: segment.len.into(),
            })?;
        data = tail;
    }
    if data.is_empty() {
        Ok(())
    } else {
        Err(QueueError::Request("buffer too small"))
    }
}

/// One queue: what the driver set up and how far the device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// The most that the device offers; a power of two.
    pub max_size: u16,
    pub size: u16,
    pub enabled: bool,
    pub event_idx: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring (the driver area).
    pub avail: u64,
    /// Used ring (the device area).
    pub used: u64,
    next_avail: u16,
    next_used: u16,
    /// `next_used` when the need for an interrupt was last looked at.
    signalled: u16,
    /// What the used ring's `avail_event` says.
    avail_event: u16,
}

impl Queue {
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            event_idx: false,
            desc: 0,
            avail: 0,
            used: 0,
            next_avail: 0,
            next_used: 0,
            signalled: 0,
            avail_event: 0,
        }
    }

    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    pub fn is_valid(&self) -> bool {
        self.max_size.is_power_of_two()
            && (!self.enabled || self.size.is_power_of_two() && self.size <= self.max_size)
    }

    /// Takes the queue into use if what the driver set up is sound.
    pub fn enable<M: GuestMemory>(&mut self, mem: &M) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > self.max_size {
            return Err(QueueError::Size(self.size, self.max_size));
        }
        let size = u64::from(self.size);
        // Each ring has one more 16-bit field at its end: used_event, avail_event.
        let rings = [
            ("descriptor table", self.desc, 16, DESCRIPTOR * size),
            (
                "available ring",
                self.avail,
                2,
                AVAIL_HEADER + AVAIL_ELEMENT * size + 2,
            ),
            (
                "used ring",
                self.used,
                4,
                USED_HEADER + USED_ELEMENT * size + 2,
            ),
        ];
        for (what, addr, align, len) in rings {
            let fits = mem.check_range(GuestAddress(addr), len as usize, Permissions::ReadWrite);
            if !addr.is_multiple_of(align) || !fits {
                return Err(QueueError::Ring { what, addr });
            }
        }
        self.enabled = true;
        Ok(())
    }

    fn slot(&self, index: u16) -> u64 {
        // `size` is a power of two whenever the queue is enabled.
        u64::from(index & self.size.wrapping_sub(1))
    }

    fn read_u16<M: GuestMemory>(mem: &M, base: u64, offset: u64) -> Result<u16, QueueError> {
        let addr = base.checked_add(offset).ok_or(QueueError::Access(base))?;
        mem.read_obj(GuestAddress(addr))
            .map(u16::from_le)
            .map_err(|_| QueueError::Access(addr))
    }

    fn write<M: GuestMemory>(
        mem: &M,
        base: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), QueueError> {
        let addr = base.checked_add(offset).ok_or(QueueError::Access(base))?;
        mem.write_slice(data, GuestAddress(addr))
            .map_err(|_| QueueError::Access(addr))
    }

    /// Chains that the driver has made available and the device has not taken.
    pub fn available<M: GuestMemory>(&self, mem: &M) -> Result<u16, QueueError> {
        if !self.enabled {
            return Ok(0);
        }
        let index = Self::read_u16(mem, self.avail, INDEX)?;
        let count = index.wrapping_sub(self.next_avail);
        if count > self.size {
            return Err(QueueError::AvailIndex {
                index,
                next: self.next_avail,
            });
        }
        Ok(count)
    }

    /// Takes the next available chain.
    pub fn pop<M: GuestMemory>(&mut self, mem: &M) -> Result<Option<Chain>, QueueError> {
        if self.available(mem)? == 0 {
            return Ok(None);
        }
        let offset = AVAIL_HEADER + AVAIL_ELEMENT * self.slot(self.next_avail);
        let head = Self::read_u16(mem, self.avail, offset)?;
        let chain = self.walk(mem, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the chain that was popped last back.
    pub fn undo_pop(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    fn walk<M: GuestMemory>(&self, mem: &M, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(QueueError::DescriptorIndex(index));
            }
            let (segment, flags, next) = self.descriptor(mem, index)?;
            if flags & VRING_DESC_F_INDIRECT as u16 != 0 {
                return Err(QueueError::Indirect(index));
            }
            if segment.len == 0 {
                return Err(QueueError::ZeroLength(index));
            }
            let at = GuestAddress(segment.addr);
            if !mem.check_range(at, segment.len as usize, Permissions::ReadWrite) {
                return Err(QueueError::Buffer {
                    addr: segment.addr,
                    len: segment.len.into(),
                });
            }
            if flags & VRING_DESC_F_WRITE as u16 != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(QueueError::Order(index));
            }
            if flags & VRING_DESC_F_NEXT as u16 == 0 {
                return Ok(chain);
            }
            index = next;
        }
        Err(QueueError::Loop(head))
    }

    fn descriptor<M: GuestMemory>(
        &self,
        mem: &M,
        index: u16,
    ) -> Result<(Segment, u16, u16), QueueError> {
        let mut raw = [0; DESCRIPTOR as usize];
        let at = self.desc.saturating_add(DESCRIPTOR * u64::from(index));
        mem.read_slice(&mut raw, GuestAddress(at))
            .map_err(|_| QueueError::Access(at))?;
        // addr: le64, len: le32, flags: le16, next: le16.
        let raw = u128::from_le_bytes(raw);
        let segment = Segment {
            addr: raw as u64,
            len: (raw >> 64) as u32,
        };
        Ok((segment, (raw >> 96) as u16, (raw >> 112) as u16))
    }

    /// Returns a chain with `len` bytes written into it.
    pub fn push_used<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        let element = u64::from(head) | u64::from(len) << 32;
        let offset = USED_HEADER + USED_ELEMENT * self.slot(self.next_used);
        Self::write(mem, self.used, offset, &element.to_le_bytes())?;
        self.next_used = self.next_used.wrapping_add(1);
        Self::write(mem, self.used, INDEX, &self.next_used.to_le_bytes())
    }

    /// After a round of work: asks for a notification of the next new chain, and says whether the
    /// driver wants an interrupt for what was used.
    pub fn finish<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, QueueError> {
        if !self.enabled {
            return Ok(false);
        }
        let size = u64::from(self.size);
        if self.event_idx && self.avail_event != self.next_avail {
            let offset = USED_HEADER + USED_ELEMENT * size;
            Self::write(mem, self.used, offset, &self.next_avail.to_le_bytes())?;
            self.avail_event = self.next_avail;
        }
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        let added = self.next_used.wrapping_sub(old);
        if added == 0 {
            return Ok(false);
        }
        if self.event_idx {
            // virtio 1.2, 2.7.10: an interrupt when the index passes used_event.
            let event = Self::read_u16(mem, self.avail, AVAIL_HEADER + AVAIL_ELEMENT * size)?;
            return Ok(self.next_used.wrapping_sub(event).wrapping_sub(1) < added);
        }
        let flags = Self::read_u16(mem, self.avail, 0)?;
        Ok(flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }
}
