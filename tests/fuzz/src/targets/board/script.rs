//! Sound drivers' accesses as steps of the board's target.

use super::*;
use crate::input::put_block;

/// Writes steps.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn out(&mut self, port: u16, size: u8, value: u32) {
        self.0.push(OUT);
        self.0.extend(port.to_le_bytes());
        self.0.push(size / 2);
        self.0.extend(value.to_le_bytes());
    }

    fn inp(&mut self, port: u16, size: u8) {
        self.0.push(IN);
        self.0.extend(port.to_le_bytes());
        self.0.push(size / 2);
    }

    fn write(&mut self, slot: u8, at: u16, size: u8, value: u64) {
        self.0.extend([WRITE, slot]);
        self.0.extend(at.to_le_bytes());
        self.0.push(size - 1);
        self.0.extend(value.to_le_bytes());
    }

    fn read(&mut self, slot: u8, at: u16, size: u8) {
        self.0.extend([READ, slot]);
        self.0.extend(at.to_le_bytes());
        self.0.push(size - 1);
    }

    fn poke(&mut self, at: u32, bytes: &[u8]) {
        self.0.push(POKE);
        self.0.extend(at.to_le_bytes());
        put_block(&mut self.0, bytes);
    }

    fn block(&mut self, step: u8, bytes: &[u8]) {
        self.0.push(step);
        put_block(&mut self.0, bytes);
    }

    /// Brings a virtio function up, its queues of 8 at 64 KiB * slot.
    fn start(&mut self, slot: u8, queues: u16) {
        // Memory and bus mastering.
        self.0.extend([CONFIG_WRITE, slot, 4, 1]);
        self.0.extend(6u32.to_le_bytes());
        for status in [0, 1, 3] {
            self.write(slot, 20, 1, status);
        }
        // Everything that is offered in the low half, and VERSION_1.
        for (half, features) in [(0, 1u64 << 29), (1, 1)] {
            self.write(slot, 8, 4, half);
            self.write(slot, 12, 4, features);
        }
        self.write(slot, 20, 1, 11);
        for queue in 0..queues {
            let base = ring(slot, queue);
            self.write(slot, 22, 2, queue.into());
            self.write(slot, 24, 2, 8);
            for (at, addr) in [(32, base), (40, base + 0x1000), (48, base + 0x2000)] {
                self.write(slot, at, 8, addr.into());
            }
            self.write(slot, 28, 2, 1);
        }
        self.write(slot, 20, 1, 15);
    }

    /// Offers a chain of (address, length, device writes) as the `n`th of a queue.
    fn offer(&mut self, slot: u8, queue: u16, n: u16, chain: &[(u64, u32, bool)]) {
        let base = ring(slot, queue);
        let mut table = Vec::new();
        for (index, (addr, len, writes)) in (0u16..).zip(chain) {
            let last = usize::from(index) + 1 == chain.len();
            let flags = u16::from(!last) | u16::from(*writes) << 1;
            table.extend(addr.to_le_bytes());
            table.extend(len.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend((index + 1).to_le_bytes());
        }
        self.poke(base, &table);
        self.poke(
            base + 0x1000 + 4 + 2 * u32::from(n % 8),
            &0u16.to_le_bytes(),
        );
        self.poke(base + 0x1002, &(n + 1).to_le_bytes());
        self.write(slot, 0x3000 + 4 * queue, 2, queue.into());
    }
}

fn ring(slot: u8, queue: u16) -> u32 {
    u32::from(slot) * 0x1_0000 + u32::from(queue) * 0x4000
}

pub fn samples() -> Vec<Vec<u8>> {
    let data = 0x6_0000;
    let mut disk = Script::default();
    disk.start(3, 1);
    for (n, kind) in [(0u16, 0u32), (1, 1), (2, 4), (3, 8), (4, 11), (5, 13)] {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 12]);
        disk.poke(data, &header);
        // Discard and write zeroes: sector, count, flags.
        let mut segment = 8u64.to_le_bytes().to_vec();
        segment.extend(4u32.to_le_bytes());
        segment.extend([0; 4]);
        disk.poke(data + 0x100, &segment);
        let address = u64::from(data);
        let middle = match kind {
            0 => Some((address + 0x1000, 1024, true)),
            1 => Some((address + 0x1000, 512, false)),
            8 => Some((address + 0x1000, 20, true)),
            4 => None,
            _ => Some((address + 0x100, 16, false)),
        };
        let mut chain = vec![(address, 16, false)];
        chain.extend(middle);
        chain.push((address + 0x800, 1, true));
        disk.offer(3, 0, n, &chain);
        disk.0
            .extend([OUTPUTS, SAVE, DISK_DONE, 0, 0, 7, INTERRUPT]);
    }
    disk.read(3, 0x1000, 1);

    let mut net = Script::default();
    net.start(2, 2);
    for n in 0..4 {
        net.offer(
            2,
            0,
            n,
            &[
                (u64::from(data), 12, true),
                (u64::from(data) + 64, 1600, true),
            ],
        );
        net.block(FRAME, &[0x33; 90]);
        net.offer(2, 1, n, &[(u64::from(data) + 0x2000, 100, false)]);
        net.0.extend([OUTPUTS, SAVE]);
    }
    net.read(2, 0x2000, 4);

    let mut others = Script::default();
    others.start(4, 1);
    others.offer(4, 0, 0, &[(u64::from(data), 64, true)]);
    others.start(5, 2);
    others.block(CONSOLE, b"typed");
    others.offer(5, 0, 0, &[(u64::from(data), 64, true)]);
    others.offer(5, 1, 0, &[(u64::from(data), 64, false)]);
    others.0.extend([SAVE, OUTPUTS, RESET, SAVE]);
    vec![disk.0, net.0, others.0, legacy(), configuration()]
}

/// The devices at fixed ports, and time.
fn legacy() -> Vec<u8> {
    let mut script = Script::default();
    for (base, vector) in [(0x20, 0x20), (0xa0, 0x28)] {
        for (offset, value) in [(0, 0x11), (1, vector), (1, 4), (1, 1), (1, 0)] {
            script.out(base + offset, 1, value);
        }
    }
    for (port, value) in [
        (0x43, 0x34),
        (0x40, 0xa9),
        (0x40, 4),
        (0x43, 0xb6),
        (0x42, 9),
        (0x42, 1),
    ] {
        script.out(port, 1, value);
    }
    for register in 0..0x10 {
        script.out(0x70, 1, register);
        script.inp(0x71, 1);
        script.out(0x71, 1, 0x12 + register);
    }
    for port in 0x3f8..0x400 {
        script.out(port, 1, 0x83);
        script.inp(port, 1);
    }
    script.block(SERIAL, b"typed");
    script.0.push(PASS);
    script.0.extend(1_000_000_000u32.to_le_bytes());
    script.0.extend([INTERRUPT, SAVE, PASS]);
    script.0.extend(4_000_000u32.to_le_bytes());
    for (port, value) in [
        (0x64, 0x20),
        (0x60, 1),
        (0x61, 3),
        (0x92, 2),
        (0xcf9, 6),
        (0x64, 0xfe),
    ] {
        script.out(port, 1, value);
        script.inp(port, 1);
    }
    script.0.push(JUMP);
    script.0.extend((1u64 << 50).to_le_bytes());
    script.out(0x604, 2, 0x2000);
    script.0
}

/// PCI: sizing of BARs, lines, the window through configuration space.
fn configuration() -> Vec<u8> {
    let mut script = Script::default();
    for slot in 0..7u8 {
        for (at, size, value) in [(4, 1, 7u32), (0x10, 2, u32::MAX), (0x3c, 0, 9)] {
            script.0.extend([CONFIG_WRITE, slot, at, size]);
            script.0.extend(value.to_le_bytes());
            script.0.extend([CONFIG_READ, slot, at]);
        }
        // Bar 0, offset 20, 1 byte: the status register.
        for (at, value) in [(0x88, 0u32), (0x8c, 20), (0x90, 1), (0x94, 15)] {
            script.0.extend([CONFIG_WRITE, slot, at, 2]);
            script.0.extend(value.to_le_bytes());
            script.0.extend([CONFIG_READ, slot, at]);
        }
    }
    script.0.push(ANYWHERE);
    script.0.extend(0xffff_fff0u64.to_le_bytes());
    script.0.extend([3, 1, 2, 3, 4, 5, 6, 7, 8]);
    script.0
}
