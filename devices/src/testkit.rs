//! For tests: a machine's board with guest memory, and a small virtio driver that works through
//! the board's ports and MMIO as a guest does.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{Board, BoardSpec, Input, Output};

pub type Memory = GuestMemoryMmap<()>;

pub const RAM: u64 = 4 << 20;
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

pub const WRITE: u16 = 2;
pub const NEXT: u16 = 1;

const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;

/// A board, its memory, and a virtual time that stands still unless told.
pub struct Machine {
    pub board: Board,
    pub mem: Memory,
    pub now: u64,
}

pub fn spec() -> BoardSpec {
    BoardSpec {
        memory_bytes: RAM,
        net: true,
        mac: MAC,
        disk_sectors: Some(2048),
        disk_id: "lockstep-disk-0".to_owned(),
        unix_epoch_ns: 1_795_264_496_000_000_000,
        rng_seed: [7; 32],
        exit_port: true,
    }
}

impl Machine {
    pub fn new() -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        Self {
            board: Board::new(&spec()),
            mem,
            now: 0,
        }
    }

    pub fn out(&mut self, port: u16, size: u8, value: u32) {
        self.board.io_write(&self.mem, self.now, port, size, value);
    }

    pub fn inp(&mut self, port: u16, size: u8) -> u32 {
        self.board.io_read(&self.mem, self.now, port, size)
    }

    pub fn write(&mut self, addr: u64, size: u8, value: u64) {
        self.board
            .mmio_write(&self.mem, self.now, addr, size, value);
    }

    pub fn read(&mut self, addr: u64, size: u8) -> u64 {
        self.board.mmio_read(&self.mem, self.now, addr, size)
    }

    pub fn deliver(&mut self, input: Input) {
        self.board.deliver(&self.mem, input).unwrap();
    }

    pub fn outputs(&mut self) -> Vec<Output> {
        self.board.take_outputs()
    }

    pub fn config(&mut self, slot: u32, offset: u32) -> u32 {
        self.out(0xcf8, 4, 1 << 31 | slot << 11 | offset);
        self.inp(0xcfc, 4)
    }

    pub fn set_config(&mut self, slot: u32, offset: u32, value: u32) {
        self.out(0xcf8, 4, 1 << 31 | slot << 11 | offset);
        self.out(0xcfc, 4, value);
    }

    /// Initialises the 8259 pair at vectors 20h and 28h with nothing masked.
    pub fn init_pic(&mut self) {
        for (base, vector) in [(0x20, 0x20), (0xa0, 0x28)] {
            for (offset, value) in [(0, 0x11), (1, vector), (1, 4), (1, 1), (1, 0)] {
                self.out(base + offset, 1, value);
            }
        }
        // The timer would ask all the time.
        self.out(0x21, 1, 1);
    }
}

/// Where a queue's rings are and how far the driver is.
#[derive(Clone, Debug)]
pub struct Ring {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub size: u16,
    pub avail_idx: u16,
    pub used_seen: u16,
    next_desc: u16,
    notify: u64,
}

/// A driver of one virtio function.
pub struct Driver {
    pub bar: u64,
    pub rings: Vec<Ring>,
}

impl Driver {
    pub fn bar_of(machine: &mut Machine, slot: u32) -> u64 {
        u64::from(machine.config(slot, 0x10) & !0xf) | u64::from(machine.config(slot, 0x14)) << 32
    }

    /// Brings a device up with queues of `size`, rings from address 1 MiB + slot * 256 KiB on.
    pub fn start(machine: &mut Machine, slot: u32, size: u16, features: u64) -> Self {
        let mut driver = Self {
            bar: Self::bar_of(machine, slot),
            rings: Vec::new(),
        };
        let bar = driver.bar;
        for status in [0, 1, 3] {
            machine.write(bar + 20, 1, status);
        }
        assert_eq!(machine.read(bar + 20, 1), 3);
        let features = features | VERSION_1;
        for half in 0..2 {
            machine.write(bar + 8, 4, half);
            machine.write(bar + 12, 4, features >> (32 * half) & 0xffff_ffff);
        }
        machine.write(bar + 20, 1, 11);
        assert_eq!(machine.read(bar + 20, 1), 11, "features refused");
        for index in 0..machine.read(bar + 18, 2) {
            let base = 0x10_0000 + u64::from(slot) * 0x4_0000 + index * 0x1_0000;
            let ring = Ring {
                desc: base,
                avail: base + 0x4000,
                used: base + 0x8000,
                size,
                avail_idx: 0,
                used_seen: 0,
                next_desc: 0,
                notify: bar + 0x3000 + 4 * index,
            };
            driver.set_up(machine, index, &ring);
            driver.rings.push(ring);
        }
        machine.write(bar + 20, 1, 15);
        assert_eq!(machine.read(bar + 20, 1), 15);
        driver
    }

    fn set_up(&self, machine: &mut Machine, index: u64, ring: &Ring) {
        machine
            .mem
            .write_slice(&[0; 0xc000], GuestAddress(ring.desc))
            .unwrap();
        machine.write(self.bar + 22, 2, index);
        machine.write(self.bar + 24, 2, ring.size.into());
        for (offset, addr) in [(32, ring.desc), (40, ring.avail), (48, ring.used)] {
            machine.write(self.bar + offset, 4, addr & 0xffff_ffff);
            machine.write(self.bar + offset + 4, 4, addr >> 32);
        }
        machine.write(self.bar + 28, 2, 1);
        assert_eq!(machine.read(self.bar + 28, 2), 1);
    }

    pub fn status(&self, machine: &mut Machine) -> u64 {
        machine.read(self.bar + 20, 1)
    }

    pub fn isr(&self, machine: &mut Machine) -> u64 {
        machine.read(self.bar + 0x1000, 1)
    }

    /// Writes one descriptor as it is.
    pub fn descriptor(
        &self,
        machine: &Machine,
        queue: usize,
        index: u16,
        (addr, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = self.rings[queue].desc + 16 * u64::from(index);
        let mem = &machine.mem;
        mem.write_obj(addr, GuestAddress(at)).unwrap();
        mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
        mem.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that begins at `head` available, without a notification.
    pub fn offer(&mut self, machine: &Machine, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.avail_idx % ring.size);
        machine
            .mem
            .write_obj(head, GuestAddress(ring.avail + 4 + 2 * slot))
            .unwrap();
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        machine
            .mem
            .write_obj(ring.avail_idx, GuestAddress(ring.avail + 2))
            .unwrap();
    }

    /// Adds a chain of (address, length, writable) buffers; its head.
    pub fn add(&mut self, machine: &Machine, queue: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let size = self.rings[queue].size;
        let head = self.rings[queue].next_desc;
        for (index, (addr, len, writable)) in buffers.iter().enumerate() {
            let this = (head + index as u16) % size;
            let last = index + 1 == buffers.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(
                machine,
                queue,
                this,
                (*addr, *len, flags, (this + 1) % size),
            );
        }
        self.rings[queue].next_desc = (head + buffers.len() as u16) % size;
        self.offer(machine, queue, head);
        head
    }

    pub fn notify(&self, machine: &mut Machine, queue: usize) {
        machine.write(self.rings[queue].notify, 2, queue as u64);
    }

    /// Chains returned since the last call: (head, bytes written).
    pub fn used(&mut self, machine: &Machine, queue: usize) -> Vec<(u32, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = machine.mem.read_obj(GuestAddress(ring.used + 2)).unwrap();
        let mut chains = Vec::new();
        while ring.used_seen != index {
            let at = ring.used + 4 + 8 * u64::from(ring.used_seen % ring.size);
            chains.push((
                machine.mem.read_obj(GuestAddress(at)).unwrap(),
                machine.mem.read_obj(GuestAddress(at + 4)).unwrap(),
            ));
            ring.used_seen = ring.used_seen.wrapping_add(1);
        }
        chains
    }
}

pub fn bytes(mem: &Memory, addr: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    mem.read_slice(&mut data, GuestAddress(addr)).unwrap();
    data
}

pub fn put(mem: &Memory, addr: u64, data: &[u8]) {
    mem.write_slice(data, GuestAddress(addr)).unwrap();
}
