//! One 8259A.

use serde::{Deserialize, Serialize};

/// Where the chip is in its initialisation sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Init {
    /// Operating: the odd port is the mask register.
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A: registers as in the data sheet, plus the ELCR byte that the PIIX adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chip {
    /// Interrupt request register.
    irr: u8,
    /// In-service register.
    isr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// Levels of the input pins.
    lines: u8,
    /// Level-triggered lines.
    elcr: u8,
    /// Lines that slaves drive; special fully nested mode is about those.
    cascades: u8,
    /// ICW1 bit 3: all lines are level-triggered.
    all_level: bool,
    /// Vector of line 0; a multiple of 8.
    base: u8,
    /// The line with the lowest priority.
    lowest: u8,
    init: Init,
    /// ICW1 said that an ICW4 follows.
    wants_icw4: bool,
    /// ICW1 said that there is no ICW3.
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The even port reads ISR rather than IRR.
    read_isr: bool,
    /// The next read is a poll.
    poll: bool,
}

impl Chip {
    pub fn new(elcr: u8, cascades: u8) -> Self {
        Self {
            irr: 0,
            isr: 0,
            imr: 0xff,
            lines: 0,
            elcr,
            cascades,
            all_level: false,
            base: 0,
            lowest: 7,
            init: Init::Done,
            wants_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
        }
    }

    fn is_level(&self, bit: u8) -> bool {
        self.all_level || self.elcr & bit != 0
    }

    pub fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1 << (line & 7);
        let rising = level && self.lines & bit == 0;
        if self.is_level(bit) {
            self.irr = if level {
                self.irr | bit
            } else {
                self.irr & !bit
            };
        } else if rising {
            self.irr |= bit;
        }
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
    }

    pub fn lines(&self) -> u8 {
        self.lines
    }

    /// The slave's output: a level whatever the mode.
    pub fn set_cascade(&mut self, line: u8, level: bool) {
        let bit = 1 << line;
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        self.irr = if level {
            self.irr | bit
        } else {
            self.irr & !bit
        };
    }

    pub fn is_unmasked(&self, line: u8) -> bool {
        self.imr & (1 << (line & 7)) == 0
    }

    /// Not masked and not requested.
    pub fn would_notice(&self, line: u8) -> bool {
        (self.imr | self.irr) & (1 << (line & 7)) == 0
    }

    pub fn elcr(&self) -> u8 {
        self.elcr
    }

    pub fn set_elcr(&mut self, value: u8) {
        self.elcr = value;
        // A line that is now level-triggered requests as long as it is high, and only then.
        self.irr = (self.irr & !value) | (self.lines & value);
    }

    /// Priority of the highest line in `set`: 0 is highest, 8 means none.
    fn priority(&self, set: u8) -> u8 {
        let first = (self.lowest + 1) & 7;
        // Rotated so that bit 0 is the line with the highest priority.
        (set.rotate_right(u32::from(first)).trailing_zeros() as u8).min(8)
    }

    fn line_of(&self, priority: u8) -> u8 {
        (self.lowest + 1 + priority) & 7
    }

    /// The line that asks for service and outranks what is in service.
    pub fn request(&self) -> Option<u8> {
        if self.init != Init::Done {
            return None;
        }
        let wanted = self.priority(self.irr & !self.imr);
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        if self.special_fully_nested {
            serving &= !self.cascades;
        }
        (wanted < self.priority(serving)).then(|| self.line_of(wanted))
    }

    /// INTA: the vector, line 7's when nothing asks any more.
    pub fn acknowledge(&mut self) -> u8 {
        match self.request() {
            Some(line) => {
                self.in_service(line);
                self.base | line
            }
            None => self.base | 7,
        }
    }

    /// Moves a line from requested to in service.
    pub fn in_service(&mut self, line: u8) {
        let bit = 1 << line;
        if !self.is_level(bit) {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = line;
        }
    }

    pub fn read(&mut self, odd: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.request() {
                Some(line) => {
                    self.in_service(line);
                    0x80 | line
                }
                None => 0,
            };
        }
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    pub fn write(&mut self, odd: bool, value: u8) {
        match (odd, self.init) {
            (false, _) if value & 0x10 != 0 => self.write_icw1(value),
            (false, _) if value & 0x08 != 0 => self.write_ocw3(value),
            (false, _) => self.write_ocw2(value),
            (true, Init::Done) => self.imr = value,
            (true, Init::Icw2) => {
                self.base = value & 0xf8;
                self.init = if self.single {
                    self.after_icw3()
                } else {
                    Init::Icw3
                };
            }
            // The wiring is fixed, so ICW3 says nothing new.
            (true, Init::Icw3) => self.init = self.after_icw3(),
            (true, Init::Icw4) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init = Init::Done;
            }
        }
    }

    fn after_icw3(&self) -> Init {
        if self.wants_icw4 {
            Init::Icw4
        } else {
            Init::Done
        }
    }

    fn write_icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            imr: 0,
            base: self.base,
            init: Init::Icw2,
            wants_icw4: value & 0x01 != 0,
            single: value & 0x02 != 0,
            all_level: value & 0x08 != 0,
            ..Self::new(self.elcr, self.cascades)
        };
        // The edge detectors are reset: a line must fall and rise to ask again.
        self.irr = if self.all_level {
            self.lines
        } else {
            self.lines & self.elcr
        };
    }

    fn write_ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let line = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            command @ (1 | 5) => {
                // Special mask mode: lines that are masked stay in service.
                let eligible = if self.special_mask {
                    self.isr & !self.imr
                } else {
                    self.isr
                };
                let priority = self.priority(eligible);
                if priority < 8 {
                    let line = self.line_of(priority);
                    self.isr &= !(1 << line);
                    if command == 5 {
                        self.lowest = line;
                    }
                }
            }
            3 => self.isr &= !(1 << line),
            6 => self.lowest = line,
            7 => {
                self.isr &= !(1 << line);
                self.lowest = line;
            }
            _ => {}
        }
    }

    /// Whether the fields are in their ranges (they are when the chip came from these functions).
    pub fn is_valid(&self) -> bool {
        self.lowest < 8 && self.base & 7 == 0
    }
}
