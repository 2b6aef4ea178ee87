//! Which interrupt line belongs to whom: the one table of the board's wiring to the 8259 pair.

/// 8254 channel 0.
pub const TIMER: u8 = 0;
/// Keyboard controller.
pub const KEYBOARD: u8 = 1;
/// 16550 at 3F8h.
pub const SERIAL: u8 = 4;
/// MC146818.
pub const RTC: u8 = 8;
/// The lines that PIRQ A to D of the ISA bridge are routed to at power-on.
pub const PIRQ: [u8; 4] = [10, 11, 5, 9];
/// Level-triggered lines at power-on, one bit per line: those that PCI uses.
pub const LEVEL_TRIGGERED: u16 = 1 << PIRQ[0] | 1 << PIRQ[1] | 1 << PIRQ[2] | 1 << PIRQ[3];
