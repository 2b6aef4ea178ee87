//! The board: what is where, and how the interrupt lines are wired.
//!
//! | ports | device | line |
//! |---|---|---|
//! | 20 21 a0 a1 4d0 4d1 | 8259 pair, ELCR | |
//! | 40–43 61 | 8254, gate and speaker | 0 |
//! | 60 64 | keyboard controller, nothing plugged in | 1 |
//! | 70 71 | RTC and CMOS memory | 8 |
//! | 80 ed | delay ports (writes vanish) | |
//! | 92 | fast A20 and reset | |
//! | f4 | exit port, if asked for | |
//! | 3f8–3ff | 16550 | 4 |
//! | 604 b004 | power off | |
//! | cf8 cfc–cff | PCI configuration mechanism 1 | |
//! | cf9 | reset control | |
//!
//! Everything else reads as all ones, VGA and firmware ports included.
//!
//! | PCI slot | device | line |
//! |---|---|---|
//! | 0 | host bridge (440FX) | |
//! | 1 | ISA bridge (PIIX3) with the interrupt router | |
//! | 2 | virtio network interface | 11 |
//! | 3 | virtio disk | 5 |
//! | 4 | virtio entropy | 9 |
//! | 5 | virtio console | 10 |

mod ports;
mod state;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use crate::events::{DeliverError, DiskRequest, Input, MAX_FRAME, MIN_FRAME, Output, Outputs};
use crate::i8042::I8042;
use crate::irq;
use crate::pci::{FIRST_DEVICE, Pci, routing_table};
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::uart::Uart;
use crate::virtio::blk::Blk;
use crate::virtio::console::{self, Console};
use crate::virtio::net::{self, Net};
use crate::virtio::rng::Rng;
use crate::virtio::{Device, VirtioPci};

/// What a machine's board is built from. Equal specs give equal boards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardSpec {
    /// Bytes of RAM, for the CMOS memory that says so.
    pub memory_bytes: u64,
    /// Whether there is a network interface.
    pub net: bool,
    /// Its address; the lowest bit of the first byte must be 0 (unicast).
    pub mac: [u8; 6],
    /// Size of the disk in sectors of 512 bytes; `None` for no disk.
    pub disk_sectors: Option<u64>,
    /// The disk's serial number; the guest sees the first 20 bytes.
    pub disk_id: String,
    /// Wall clock at virtual time 0, in ns since 1970 (UTC).
    pub unix_epoch_ns: u64,
    /// Seed of the entropy device. It must be unpredictable and the same on both replicas.
    pub rng_seed: [u8; 32],
    /// Whether port 0F4h ends the machine, as QEMU's isa-debug-exit does.
    pub exit_port: bool,
}

/// What the board has counted since power-on, for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The network interface's frames.
    pub net: net::NetCounters,
    /// Console input bytes that were dropped because the guest did not read them, serial port.
    pub serial_dropped: u64,
    /// The same for the virtio console.
    pub console_dropped: u64,
    /// How often a driver broke the rules of a virtio device and stopped it.
    pub virtio_faults: u64,
}

/// Every device of the machine. See the crate's documentation for the rules of time and order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Board {
    exit_port: bool,
    /// The largest `now` seen.
    now: u64,
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    i8042: I8042,
    /// Port 92h without the reset bit.
    port92: u8,
    /// Port CF9h without the bit that resets.
    reset_control: u8,
    pci: Pci,
    virtio: Vec<VirtioPci>,
    outputs: Outputs,
}

// PIRQs, and so the lines in the table above, follow from the slot.
const NET: u8 = FIRST_DEVICE;
const DISK: u8 = FIRST_DEVICE + 1;
const ENTROPY: u8 = FIRST_DEVICE + 2;
const CONSOLE: u8 = FIRST_DEVICE + 3;

const PORT92_A20: u8 = 0x02;

impl Board {
    /// The board at power-on.
    pub fn new(spec: &BoardSpec) -> Self {
        let net = spec.net.then(|| (NET, Device::Net(Net::new(spec.mac))));
        let disk = spec
            .disk_sectors
            .map(|sectors| (DISK, Device::Blk(Blk::new(sectors, &spec.disk_id))));
        let rng = (ENTROPY, Device::Rng(Box::new(Rng::new(spec.rng_seed))));
        let console = (CONSOLE, Device::Console(Console::new()));
        let virtio = net.into_iter().chain(disk).chain([rng, console]);
        Self {
            exit_port: spec.exit_port,
            now: 0,
            pic: Pic::new(),
            pit: Pit::new(0),
            rtc: Rtc::new(spec.unix_epoch_ns, spec.memory_bytes),
            uart: Uart::new(),
            i8042: I8042::new(),
            port92: PORT92_A20,
            reset_control: 0,
            pci: Pci::new(),
            virtio: virtio
                .map(|(slot, device)| VirtioPci::new(slot, device))
                .collect(),
            outputs: Outputs::default(),
        }
    }

    /// A machine reset: every device as at power-on, except what outlives one: virtual time, the
    /// wall clock and CMOS memory, outputs not yet taken, disk requests on their way, and the
    /// entropy stream.
    pub fn reset(&mut self) {
        self.pic = Pic::new();
        self.pit = Pit::new(self.now);
        self.rtc.reset();
        self.uart = Uart::new();
        self.i8042 = I8042::new();
        self.port92 = PORT92_A20;
        self.reset_control = 0;
        self.pci = Pci::new();
        self.virtio.iter_mut().for_each(VirtioPci::power_on_reset);
    }

    /// The `$PIR` interrupt routing table, which firmware would leave on a 16-byte boundary
    /// between F0000h and FFFFFh. A Linux guest without it works and complains.
    pub fn pci_routing_table(&self) -> Vec<u8> {
        routing_table(&self.virtio.iter().map(VirtioPci::slot).collect::<Vec<_>>())
    }

    /// A port read of 1, 2 or 4 bytes at `now`.
    pub fn io_read<M: GuestMemory>(&mut self, _mem: &M, now: u64, port: u16, size: u8) -> u32 {
        self.advance(now);
        let value = match (port, size) {
            (0xcf8, 4) => self.pci.address(),
            (0xcfc..=0xcff, 1 | 2 | 4) if (port & 3) as u8 + size <= 4 => {
                self.config_read((port & 3) as u8, size)
            }
            _ => (0..u16::from(size.min(4))).fold(0, |value, index| {
                value | u32::from(self.read_byte(port.wrapping_add(index))) << (8 * index)
            }),
        };
        self.wire();
        value
    }

    /// A port write of 1, 2 or 4 bytes at `now`.
    pub fn io_write<M: GuestMemory>(&mut self, mem: &M, now: u64, port: u16, size: u8, value: u32) {
        self.advance(now);
        match (port, size) {
            (0xcf8, 4) => self.pci.set_address(value),
            (0xcfc..=0xcff, 1 | 2 | 4) if (port & 3) as u8 + size <= 4 => {
                self.config_write((port & 3) as u8, size, value, mem);
            }
            (0x604 | 0xb004, 2) => self.write_power(value as u16),
            (0xf4, 1 | 2 | 4) if self.exit_port => {
                let mask = u32::MAX >> (32 - 8 * u32::from(size));
                self.outputs.push(Output::Exit(value & mask));
            }
            _ => {
                for index in 0..u16::from(size.min(4)) {
                    self.write_byte(port.wrapping_add(index), (value >> (8 * index)) as u8);
                }
            }
        }
        self.wire();
    }

    /// An MMIO read of 1 to 8 bytes at `now`.
    pub fn mmio_read<M: GuestMemory>(&mut self, _mem: &M, now: u64, addr: u64, size: u8) -> u64 {
        self.advance(now);
        let hit = self
            .virtio
            .iter_mut()
            .find_map(|f| f.offset_of(addr).map(|at| (f, at)));
        let value = hit.map_or(u64::MAX, |(function, offset)| {
            function.bar_read(offset, size)
        });
        self.wire();
        value
    }

    /// An MMIO write of 1 to 8 bytes at `now`.
    pub fn mmio_write<M: GuestMemory>(
        &mut self,
        mem: &M,
        now: u64,
        addr: u64,
        size: u8,
        value: u64,
    ) {
        self.advance(now);
        let hit = self
            .virtio
            .iter_mut()
            .find_map(|f| f.offset_of(addr).map(|at| (f, at)));
        if let Some((function, offset)) = hit {
            function.bar_write(offset, size, value, mem, &mut self.outputs);
        }
        self.wire();
    }

    /// Lets the timers act up to `now`.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        let timer = self.pit.advance(self.now);
        if timer.rose {
            self.pic.pulse(irq::TIMER);
        }
        self.pic.set_line(irq::TIMER, timer.level);
        self.rtc.advance(self.now);
        self.pic.set_line(irq::RTC, self.rtc.irq());
    }

    /// Virtual time of the next interrupt that a timer will raise by itself. Lines that are masked
    /// in the 8259 or ask already do not count: a further edge changes nothing before the guest
    /// unmasks or the interrupt is acknowledged, so ask again after those.
    pub fn next_deadline(&self) -> Option<u64> {
        let timer = || self.pit.next_deadline();
        let rtc = || self.rtc.next_deadline();
        let timer = self.pic.would_notice(irq::TIMER).then(timer).flatten();
        let rtc = self.pic.would_notice(irq::RTC).then(rtc).flatten();
        timer.into_iter().chain(rtc).min()
    }

    /// The 8259's INTR output.
    pub fn interrupt_pending(&self) -> bool {
        self.pic.interrupt_pending()
    }

    /// The INTA cycle: the vector to deliver. Without a request it is the spurious vector (line 7),
    /// as on the chip.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// An asynchronous input, already logged, at the position where the vCPU is stopped.
    ///
    /// # Errors
    /// The input does not fit this machine; the board is unchanged.
    pub fn deliver<M: GuestMemory>(&mut self, mem: &M, input: Input) -> Result<(), DeliverError> {
        match input {
            Input::SerialInput(bytes) => self.uart.receive(&bytes),
            Input::ConsoleInput(bytes) => self.deliver_console(mem, &bytes)?,
            Input::NetReceive(frame) => self.deliver_frame(mem, frame)?,
            Input::DiskDone { id, status, data } => {
                let (disk, outputs) = self.function(DISK, "disk")?;
                if let Device::Blk(blk) = disk.device_mut() {
                    blk.complete(id, status, data, outputs)?;
                }
                disk.work(0, mem, outputs);
            }
        }
        self.wire();
        Ok(())
    }

    fn deliver_frame<M: GuestMemory>(
        &mut self,
        mem: &M,
        frame: Vec<u8>,
    ) -> Result<(), DeliverError> {
        let (function, outputs) = self.function(NET, "network interface")?;
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Err(DeliverError::FrameLength(frame.len()));
        }
        let live = function.is_live();
        if let Device::Net(net) = function.device_mut() {
            net.receive(frame, live);
        }
        function.work(net::RECEIVE, mem, outputs);
        Ok(())
    }

    fn deliver_console<M: GuestMemory>(
        &mut self,
        mem: &M,
        bytes: &[u8],
    ) -> Result<(), DeliverError> {
        let (function, outputs) = self.function(CONSOLE, "virtio console")?;
        if let Device::Console(console) = function.device_mut() {
            console.receive(bytes);
        }
        function.work(console::INPUT, mem, outputs);
        Ok(())
    }

    /// The virtio function in a slot, and where its outputs go.
    fn function(
        &mut self,
        slot: u8,
        name: &'static str,
    ) -> Result<(&mut VirtioPci, &mut Outputs), DeliverError> {
        let function = self
            .virtio
            .iter_mut()
            .find(|function| function.slot() == slot);
        let function = function.ok_or(DeliverError::NoDevice(name))?;
        Ok((function, &mut self.outputs))
    }

    fn devices(&self) -> impl Iterator<Item = &Device> {
        self.virtio.iter().map(VirtioPci::device)
    }

    /// Whether the guest has a buffer for a network frame.
    pub fn can_receive<M: GuestMemory>(&self, mem: &M) -> bool {
        self.virtio.iter().any(|function| {
            matches!(function.device(), Device::Net(net) if net.backlog_is_empty())
                && function.is_live()
                && function
                    .queue(net::RECEIVE)
                    .is_some_and(|queue| queue.available(mem).is_ok_and(|count| count > 0))
        })
    }

    /// Whether the virtio console takes [`INPUT_CHUNK`](crate::INPUT_CHUNK) bytes without dropping any.
    pub fn console_can_receive(&self) -> bool {
        self.devices()
            .any(|device| matches!(device, Device::Console(c) if c.can_receive()))
    }

    /// Whether the serial port takes [`INPUT_CHUNK`](crate::INPUT_CHUNK) bytes without dropping any.
    pub fn serial_can_receive(&self) -> bool {
        self.uart.can_receive()
    }

    /// What the guest did since the last call, in its order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        self.outputs.take()
    }

    /// Whether [`Board::take_outputs`] would give any.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Disk requests that were output and have no completion yet, oldest first. A backup that goes
    /// live issues them again.
    pub fn pending_disk(&self) -> Vec<DiskRequest> {
        self.devices()
            .find_map(|device| match device {
                Device::Blk(blk) => Some(blk.pending().cloned().collect()),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// The request `id` of [`Board::pending_disk`], without copying any.
    pub fn pending_request(&self, id: u64) -> Option<&DiskRequest> {
        self.devices().find_map(|device| match device {
            Device::Blk(blk) => blk.pending().find(|request| request.id == id),
            _ => None,
        })
    }

    /// An Ethernet frame that tells switches where the machine's address is now.
    pub fn announce(&mut self) -> Option<Vec<u8>> {
        self.devices().find_map(|device| match device {
            Device::Net(net) => Some(net.announcement()),
            _ => None,
        })
    }

    /// Counts of what was received, sent, dropped and refused.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters {
            serial_dropped: self.uart.dropped(),
            virtio_faults: self.virtio.iter().map(VirtioPci::faults).sum(),
            ..Counters::default()
        };
        for device in self.devices() {
            match device {
                Device::Net(net) => counters.net = net.counters(),
                Device::Console(console) => counters.console_dropped = console.dropped(),
                Device::Blk(_) | Device::Rng(_) => {}
            }
        }
        counters
    }

    /// Drives the interrupt lines from the devices' outputs.
    fn wire(&mut self) {
        let mut lines = u16::from(self.pit.output0(self.now)) << irq::TIMER
            | u16::from(self.i8042.irq()) << irq::KEYBOARD
            | u16::from(self.uart.irq()) << irq::SERIAL
            | u16::from(self.rtc.irq()) << irq::RTC;
        for function in self.virtio.iter().filter(|function| function.irq()) {
            if let Some(line) = self.pci.line_of(function.slot()) {
                lines |= 1 << line;
            }
        }
        self.pic.set_lines(lines);
    }
}
