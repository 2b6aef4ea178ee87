//! The 16550A at 3F8h (COM1, ttyS0).
//!
//! Source: National Semiconductor PC16550D data sheet. The line is infinitely fast: a byte written
//! has been sent at once, so nothing depends on time. Input that does not fit the FIFO waits in a
//! bounded backlog and moves up as the guest reads.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::events::INPUT_CHUNK;

/// Depth of the receive FIFO.
const FIFO: usize = 16;
/// Input bytes that wait behind the FIFO; more are dropped and counted.
pub const BACKLOG: usize = 64 << 10;

const IER_RECEIVE: u8 = 0x01;
const IER_TRANSMIT: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const IER_MODEM: u8 = 0x08;
const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVE: u8 = 0x02;
const LCR_DLAB: u8 = 0x80;
const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const LSR_DATA: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_EMPTY: u8 = 0x60;
const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;

/// The serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart {
    divisor: u16,
    ier: u8,
    fifo_control: u8,
    lcr: u8,
    mcr: u8,
    /// Modem status: lines in the high half, changes since the last read in the low half.
    msr: u8,
    scratch: u8,
    overrun: bool,
    /// The transmitter became empty and the guest has not been told.
    transmit_event: bool,
    received: VecDeque<u8>,
    backlog: VecDeque<u8>,
    dropped: u64,
}

impl Uart {
    pub fn new() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            fifo_control: 0,
            lcr: 3,
            mcr: 0,
            msr: MSR_CTS | MSR_DSR | MSR_DCD,
            scratch: 0,
            overrun: false,
            transmit_event: false,
            received: VecDeque::new(),
            backlog: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Input bytes lost because the backlog was full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn can_receive(&self) -> bool {
        self.backlog.len() + INPUT_CHUNK <= BACKLOG
    }

    /// Bytes from outside.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = BACKLOG.saturating_sub(self.backlog.len());
        let taken = bytes.len().min(room);
        self.backlog.extend(&bytes[..taken]);
        self.dropped += (bytes.len() - taken) as u64;
        self.refill();
    }

    fn refill(&mut self) {
        // In loopback the receiver is disconnected from the outside.
        while self.mcr & MCR_LOOP == 0 && self.received.len() < self.depth() {
            let Some(byte) = self.backlog.pop_front() else {
                break;
            };
            self.received.push_back(byte);
        }
    }

    fn fifo_enabled(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifo_enabled() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if !self.fifo_enabled() {
            return 1;
        }
        match self.fifo_control >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The interrupt identification: the highest cause that is enabled.
    fn cause(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            IIR_LINE
        } else if self.ier & IER_RECEIVE != 0 && self.received.len() >= self.trigger() {
            IIR_RECEIVE
        } else if self.ier & IER_RECEIVE != 0 && !self.received.is_empty() {
            // Below the trigger: the character timeout, which on an infinitely fast line is now.
            IIR_TIMEOUT
        } else if self.ier & IER_TRANSMIT != 0 && self.transmit_event {
            IIR_TRANSMIT
        } else if self.ier & IER_MODEM != 0 && self.msr & 0x0f != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// The interrupt line. On a PC, OUT2 connects it to the bus.
    pub fn irq(&self) -> bool {
        self.mcr & MCR_OUT2 != 0 && self.mcr & MCR_LOOP == 0 && self.cause() != IIR_NONE
    }

    /// Reads register 0 to 7.
    pub fn read(&mut self, register: u8) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor as u8,
            1 if dlab => (self.divisor >> 8) as u8,
            0 => {
                let byte = self.received.pop_front().unwrap_or(0);
                self.refill();
                byte
            }
            1 => self.ier,
            2 => {
                let cause = self.cause();
                if cause == IIR_TRANSMIT {
                    self.transmit_event = false;
                }
                cause | if self.fifo_enabled() { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let data = if self.received.is_empty() {
                    0
                } else {
                    LSR_DATA
                };
                let overrun = if std::mem::take(&mut self.overrun) {
                    LSR_OVERRUN
                } else {
                    0
                };
                LSR_EMPTY | data | overrun
            }
            6 => {
                let value = self.msr;
                self.msr &= 0xf0;
                value
            }
            _ => self.scratch,
        }
    }

    /// Writes register 0 to 7; the byte that leaves, if one does.
    pub fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => return self.transmit(value),
            1 => {
                // Enabling the transmit interrupt with an empty transmitter raises it.
                if value & !self.ier & IER_TRANSMIT != 0 {
                    self.transmit_event = true;
                }
                self.ier = value & 0x0f;
            }
            2 => self.write_fifo_control(value),
            3 => self.lcr = value,
            4 => {
                self.mcr = value & 0x1f;
                self.update_modem_status();
                self.refill();
            }
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    fn transmit(&mut self, value: u8) -> Option<u8> {
        self.transmit_event = true;
        if self.mcr & MCR_LOOP == 0 {
            return Some(value);
        }
        if self.received.len() < self.depth() {
            self.received.push_back(value);
        } else {
            self.overrun = true;
        }
        None
    }

    fn write_fifo_control(&mut self, value: u8) {
        // Switching the FIFOs on or off empties them.
        let switched = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        if switched || value & FCR_CLEAR_RECEIVE != 0 {
            self.received.clear();
        }
        self.fifo_control = if value & FCR_ENABLE != 0 {
            value & 0xc9
        } else {
            0
        };
        self.refill();
    }

    /// In loopback the modem inputs are the modem outputs; otherwise a modem that is always ready.
    fn update_modem_status(&mut self) {
        let lines = if self.mcr & MCR_LOOP == 0 {
            MSR_CTS | MSR_DSR | MSR_DCD
        } else {
            let when = |out: u8, line: u8| if self.mcr & out != 0 { line } else { 0 };
            when(MCR_RTS, MSR_CTS)
                | when(MCR_DTR, MSR_DSR)
                | when(MCR_OUT1, MSR_RI)
                | when(MCR_OUT2, MSR_DCD)
        };
        let old = self.msr & 0xf0;
        let mut changed = (old ^ lines) >> 4;
        // The ring indicator reports its trailing edge only.
        if lines & MSR_RI != 0 {
            changed &= !(MSR_RI >> 4);
        }
        self.msr = lines | (self.msr & 0x0f) | changed;
    }
}
