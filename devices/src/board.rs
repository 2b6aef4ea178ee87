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
//! | cf9 | reset control | |
//!
//! Everything else reads as all ones, VGA and firmware ports included.

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use crate::events::{ConsolePort, DeliverError, DiskRequest, Input, Output};
use crate::i8042::{I8042, Request};
use crate::irq;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::uart::Uart;

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

/// Every device of the machine. See the crate's documentation for the rules of time and order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Board {
    spec: BoardSpec,
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
    outputs: Vec<Output>,
}

impl Board {
    /// The board at power-on.
    pub fn new(spec: &BoardSpec) -> Self {
        Self {
            spec: spec.clone(),
            now: 0,
            pic: Pic::new(),
            pit: Pit::new(0),
            rtc: Rtc::new(spec.unix_epoch_ns, spec.memory_bytes),
            uart: Uart::new(),
            i8042: I8042::new(),
            port92: 0x02,
            reset_control: 0,
            outputs: Vec::new(),
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
        self.port92 = 0x02;
        self.reset_control = 0;
    }

    /// A port read of 1, 2 or 4 bytes at `now`.
    pub fn io_read<M: GuestMemory>(&mut self, mem: &M, now: u64, port: u16, size: u8) -> u32 {
        self.advance(now);
        let _ = mem;
        let value = self.split_read(port, size);
        self.wire();
        value
    }

    /// A port write of 1, 2 or 4 bytes at `now`.
    pub fn io_write<M: GuestMemory>(&mut self, mem: &M, now: u64, port: u16, size: u8, value: u32) {
        self.advance(now);
        let _ = mem;
        match (port, size) {
            (0x604 | 0xb004, 2) => self.write_power(value as u16),
            (0xf4, _) if self.spec.exit_port => {
                self.outputs.push(Output::Exit(value & mask(size)));
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
    pub fn mmio_read<M: GuestMemory>(&mut self, mem: &M, now: u64, addr: u64, size: u8) -> u64 {
        self.advance(now);
        let _ = (mem, addr, size);
        u64::MAX
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
        let _ = (mem, addr, size, value);
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
    /// in the 8259 do not count: unmasking is an access, and accesses catch up.
    pub fn next_deadline(&self) -> Option<u64> {
        let timer = self
            .pit
            .next_deadline()
            .filter(|_| self.pic.is_unmasked(irq::TIMER));
        let rtc = self
            .rtc
            .next_deadline()
            .filter(|_| self.pic.is_unmasked(irq::RTC));
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
        let _ = mem;
        match input {
            Input::SerialInput(bytes) => self.uart.receive(&bytes),
            Input::ConsoleInput(_) => return Err(DeliverError::NoDevice("virtio console")),
            Input::NetReceive(_) => return Err(DeliverError::NoDevice("network interface")),
            Input::DiskDone { .. } => return Err(DeliverError::NoDevice("disk")),
        }
        self.wire();
        Ok(())
    }

    /// Whether the guest has a buffer for a network frame.
    pub fn can_receive<M: GuestMemory>(&self, mem: &M) -> bool {
        let _ = mem;
        false
    }

    /// Whether the virtio console takes more input now without dropping any.
    pub fn console_can_receive(&self) -> bool {
        false
    }

    /// Whether the serial port takes more input now without dropping any.
    pub fn serial_can_receive(&self) -> bool {
        self.uart.can_receive()
    }

    /// What the guest did since the last call, in its order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether [`Board::take_outputs`] would give any.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Disk requests that were output and have no completion yet, oldest first. A backup that goes
    /// live issues them again.
    pub fn pending_disk(&self) -> Vec<DiskRequest> {
        Vec::new()
    }

    /// An Ethernet frame that tells switches where the machine's address is now.
    pub fn announce(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Drives the interrupt lines from the devices' outputs.
    fn wire(&mut self) {
        self.pic.set_line(irq::TIMER, self.pit.output0(self.now));
        self.pic.set_line(irq::KEYBOARD, self.i8042.irq());
        self.pic.set_line(irq::SERIAL, self.uart.irq());
        self.pic.set_line(irq::RTC, self.rtc.irq());
    }

    fn split_read(&mut self, port: u16, size: u8) -> u32 {
        (0..u16::from(size.min(4))).fold(0, |value, index| {
            value | u32::from(self.read_byte(port.wrapping_add(index))) << (8 * index)
        })
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.read(port),
            0x40..=0x43 | 0x61 => self.pit.read(self.now, port),
            0x60 | 0x64 => self.i8042.read(port),
            0x70 | 0x71 => self.rtc.read(self.now, port),
            0x92 => self.port92,
            0x3f8..=0x3ff => self.uart.read((port & 7) as u8),
            0xcf9 => self.reset_control,
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.write(port, value),
            0x40..=0x43 | 0x61 => self.pit.write(self.now, port, value),
            0x60 | 0x64 => {
                if self.i8042.write(port, value) == Some(Request::Reset) {
                    self.outputs.push(Output::Reset);
                }
            }
            0x70 | 0x71 => self.rtc.write(self.now, port, value),
            0x92 => {
                // A rising edge of bit 0 resets the CPU.
                if value & !self.port92 & 1 != 0 {
                    self.outputs.push(Output::Reset);
                }
                self.port92 = value & 0x02;
            }
            0x3f8..=0x3ff => {
                if let Some(byte) = self.uart.write((port & 7) as u8, value) {
                    self.console(ConsolePort::Serial, &[byte]);
                }
            }
            0xcf9 => {
                // PIIX3 2.5.8: bit 2 going from 0 to 1 resets.
                if value & !self.reset_control & 0x04 != 0 {
                    self.outputs.push(Output::Reset);
                }
                self.reset_control = value & 0x02;
            }
            _ => {}
        }
    }

    /// The sleep enable bit of an ACPI PM1 control register, which is what these ports were on the
    /// machines that programs know them from.
    fn write_power(&mut self, value: u16) {
        const SLEEP_ENABLE: u16 = 1 << 13;
        if value & SLEEP_ENABLE != 0 {
            self.outputs.push(Output::PowerOff);
        }
    }

    fn console(&mut self, port: ConsolePort, new: &[u8]) {
        if let Some(Output::Console { port: last, bytes }) = self.outputs.last_mut()
            && *last == port
        {
            bytes.extend_from_slice(new);
            return;
        }
        self.outputs.push(Output::Console {
            port,
            bytes: new.to_vec(),
        });
    }
}

fn mask(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
