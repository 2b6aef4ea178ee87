//! The keyboard controller at 60h and 64h with nothing plugged in: what a kernel's probe needs to
//! finish at once, the A20 and reset lines, and self-tests.
//!
//! The auxiliary port fails its tests, so no driver waits for a mouse; the keyboard port is there
//! and silent. Commands: IBM PS/2 Technical Reference, keyboard controller.

use serde::{Deserialize, Serialize};

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const CONFIG_KEYBOARD_IRQ: u8 = 0x01;
const CONFIG_SYSTEM: u8 = 0x04;
const OUTPUT_PORT_RUN: u8 = 0x01;
const OUTPUT_PORT_A20: u8 = 0x02;

/// What a write to the controller asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Pulse the CPU's reset line.
    Reset,
}

/// The keyboard controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042 {
    /// The controller's command byte.
    config: u8,
    output_port: u8,
    /// The answer that waits at port 60h.
    answer: Option<u8>,
    /// A command at 64h whose argument comes at 60h.
    awaiting: Option<u8>,
    /// The last write was to 64h.
    last_was_command: bool,
}

impl I8042 {
    pub fn new() -> Self {
        Self {
            config: CONFIG_SYSTEM,
            output_port: OUTPUT_PORT_RUN | OUTPUT_PORT_A20,
            answer: None,
            awaiting: None,
            last_was_command: false,
        }
    }

    /// Line 1: an answer waits and the command byte wants an interrupt for it.
    pub fn irq(&self) -> bool {
        self.answer.is_some() && self.config & CONFIG_KEYBOARD_IRQ != 0
    }

    /// Reads 60h or 64h.
    pub fn read(&mut self, port: u16) -> u8 {
        if port == 0x60 {
            return self.answer.take().unwrap_or(0);
        }
        let full = if self.answer.is_some() {
            STATUS_OUTPUT_FULL
        } else {
            0
        };
        let system = if self.config & CONFIG_SYSTEM != 0 {
            STATUS_SYSTEM
        } else {
            0
        };
        let command = if self.last_was_command {
            STATUS_COMMAND
        } else {
            0
        };
        STATUS_UNLOCKED | full | system | command
    }

    /// Writes 60h or 64h.
    pub fn write(&mut self, port: u16, value: u8) -> Option<Request> {
        self.last_was_command = port != 0x60;
        if port == 0x60 {
            self.write_data(value)
        } else {
            self.write_command(value)
        }
    }

    fn write_command(&mut self, value: u8) -> Option<Request> {
        self.awaiting = None;
        match value {
            0x20 => self.answer = Some(self.config),
            // Disable, enable ports.
            0xa7 => self.config |= 0x20,
            0xa8 => self.config &= !0x20,
            0xad => self.config |= 0x10,
            0xae => self.config &= !0x10,
            // Auxiliary port test: clock line stuck.
            0xa9 => self.answer = Some(0x01),
            // Self-test passed.
            0xaa => self.answer = Some(0x55),
            // Keyboard port test passed.
            0xab => self.answer = Some(0x00),
            0xd0 => self.answer = Some(self.output_port),
            0x60 | 0xd1..=0xd4 => self.awaiting = Some(value),
            // Pulse output port bits that are 0; bit 0 is reset.
            0xf0..=0xff if value & 1 == 0 => return Some(Request::Reset),
            _ => {}
        }
        None
    }

    fn write_data(&mut self, value: u8) -> Option<Request> {
        match self.awaiting.take() {
            Some(0x60) => self.config = value,
            Some(0xd1) => {
                // A20 stays on whatever is written: no machine of this kind needs it off.
                self.output_port = value | OUTPUT_PORT_A20;
                if value & OUTPUT_PORT_RUN == 0 {
                    self.output_port |= OUTPUT_PORT_RUN;
                    return Some(Request::Reset);
                }
            }
            // Keyboard loopback.
            Some(0xd2) => self.answer = Some(value),
            // Auxiliary loopback: there is no such port, so the byte comes back wrong.
            Some(0xd3) => self.answer = Some(!value),
            // To the auxiliary device or the keyboard: nobody answers.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(kbc: &mut I8042, command: u8, argument: Option<u8>) -> Option<u8> {
        assert_eq!(kbc.write(0x64, command), None);
        if let Some(argument) = argument {
            assert_eq!(kbc.write(0x60, argument), None);
        }
        (kbc.read(0x64) & STATUS_OUTPUT_FULL != 0).then(|| kbc.read(0x60))
    }

    /// Linux's i8042 probe, command by command: no wait in it may run into its time limit.
    #[test]
    fn a_probe_gets_every_answer_at_once() {
        let mut kbc = I8042::new();
        assert_eq!(
            kbc.read(0x64) & STATUS_OUTPUT_FULL,
            0,
            "the flush ends at once"
        );
        assert_eq!(command(&mut kbc, 0xaa, None), Some(0x55));
        let config = command(&mut kbc, 0x20, None).expect("command byte");
        assert_eq!(command(&mut kbc, 0x60, Some(config | 0x11)), None);
        assert_eq!(command(&mut kbc, 0x20, None), Some(config | 0x11));
        // The auxiliary port fails loopback and test, both at once.
        assert_ne!(command(&mut kbc, 0xd3, Some(0x5a)), Some(0x5a));
        assert_eq!(command(&mut kbc, 0xa9, None), Some(0x01));
        // The keyboard does not answer, which is what "not plugged in" looks like.
        assert_eq!(kbc.write(0x60, 0xf2), None);
        assert_eq!(kbc.read(0x64) & STATUS_OUTPUT_FULL, 0);
    }

    #[test]
    fn resets() {
        let mut kbc = I8042::new();
        assert_eq!(kbc.write(0x64, 0xfe), Some(Request::Reset));
        assert_eq!(kbc.write(0x64, 0xff), None, "pulses no line");
        kbc.write(0x64, 0xd1);
        assert_eq!(kbc.write(0x60, 0xdf), None);
        kbc.write(0x64, 0xd1);
        assert_eq!(kbc.write(0x60, 0xde), Some(Request::Reset));
    }

    #[test]
    fn answers_interrupt_when_asked_to() {
        let mut kbc = I8042::new();
        command(&mut kbc, 0x60, Some(0x01));
        kbc.write(0x64, 0xd2);
        kbc.write(0x60, 0x1c);
        assert!(kbc.irq());
        assert_eq!(kbc.read(0x60), 0x1c);
        assert!(!kbc.irq());
    }
}
