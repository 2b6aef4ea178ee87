//! Ports: which byte belongs to which device.

use vm_memory::GuestMemory;

use super::{Board, PORT92_A20};
use crate::events::{ConsolePort, Output};
use crate::i8042::Request;

impl Board {
    pub(super) fn config_read(&mut self, byte: u8, size: u8) -> u32 {
        let Some(register) = self.pci.selected() else {
            return u32::MAX;
        };
        let offset = register.offset + byte;
        if let Some(bridge) = self.pci.bridge(register.slot) {
            return bridge.read(offset, size);
        }
        let function = self.virtio.iter_mut().find(|f| f.slot() == register.slot);
        function.map_or(u32::MAX, |function| function.config_read(offset, size))
    }

    pub(super) fn config_write<M: GuestMemory>(&mut self, byte: u8, size: u8, value: u32, mem: &M) {
        let Some(register) = self.pci.selected() else {
            return;
        };
        let offset = register.offset + byte;
        if let Some(bridge) = self.pci.bridge(register.slot) {
            bridge.write(offset, size, value);
        } else if let Some(function) = self
            .virtio
            .iter_mut()
            .find(|function| function.slot() == register.slot)
        {
            function.config_write(offset, size, value, mem, &mut self.outputs);
        }
    }

    pub(super) fn read_byte(&mut self, port: u16) -> u8 {
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

    pub(super) fn write_byte(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.write(port, value),
            0x40..=0x43 | 0x61 => self.pit.write(self.now, port, value),
            0x60 | 0x64 => {
                let request = self.i8042.write(port, value);
                self.reset_cpu_if(request == Some(Request::Reset));
            }
            0x70 | 0x71 => self.rtc.write(self.now, port, value),
            0x92 => {
                // Bit 0 resets the CPU.
                self.reset_cpu_if(value & 1 != 0);
                self.port92 = value & PORT92_A20;
            }
            0x3f8..=0x3ff => {
                if let Some(byte) = self.uart.write((port & 7) as u8, value) {
                    self.outputs.console(ConsolePort::Serial, &[byte]);
                }
            }
            0xcf9 => {
                // PIIX3 data sheet, reset control register: bit 2 resets.
                self.reset_cpu_if(value & 0x04 != 0);
                self.reset_control = value & 0x02;
            }
            _ => {}
        }
    }

    fn reset_cpu_if(&mut self, asked: bool) {
        if asked {
            self.outputs.push(Output::Reset);
        }
    }

    /// The sleep enable bit of an ACPI PM1 control register, which is what these ports were on the
    /// machines that programs know them from.
    pub(super) fn write_power(&mut self, value: u16) {
        const SLEEP_ENABLE: u16 = 1 << 13;
        if value & SLEEP_ENABLE != 0 {
            self.outputs.push(Output::PowerOff);
        }
    }
}
