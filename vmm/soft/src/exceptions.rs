//! Exceptions and interrupts: what is delivered, and what becomes of faults on the way
//! (SDM vol. 3, 6.15, double fault). How a handler is entered is in `gates`.

use crate::cpu::{Cpu, attention};
use crate::gates::Event;
use crate::stop::{Exception, Stop, StopReason, vector};

/// Classes of exceptions for the double fault (SDM vol. 3, table 6-4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

/// Benign exceptions may follow each other for ever: #AC on a stack that is not aligned. A processor
/// hangs; this one shuts down.
const MAX_ATTEMPTS: u32 = 16;

fn class(event: &Event) -> Class {
    if event.soft || event.interrupt {
        return Class::Benign;
    }
    match event.vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        _ => Class::Benign,
    }
}

impl Cpu {
    /// Delivers a fault with `cpu.rip` at the instruction that raised it. Faults on the way become
    /// double and triple faults here.
    pub fn deliver(&mut self, exception: Exception) {
        let event = self.fault(exception);
        self.deliver_event(event);
    }

    /// Delivers #DB as a trap before the next instruction, with these bits set in DR6; wakes from HLT,
    /// which may be the instruction that was stepped (SDM vol. 2, HLT).
    pub fn debug_trap(&mut self, dr6: u64) {
        self.dr[4] |= dr6;
        let event = Event {
            resume: false,
            ..self.fault(Exception {
                vector: vector::DB,
                error: None,
                cr2: 0,
            })
        };
        self.deliver_event(event);
        self.wake();
    }

    /// Delivers an external interrupt before the next instruction; wakes from HLT.
    pub fn interrupt(&mut self, vector: u8) {
        self.deliver_event(Event {
            vector,
            error: None,
            cr2: 0,
            soft: false,
            interrupt: true,
            ext: 1,
            ip: self.rip,
            resume: false,
        });
        self.wake();
    }

    fn wake(&mut self) {
        self.halted = false;
        self.attention &= !attention::HALTED;
    }

    /// INT n, INT3, INTO (`checked`: the gate's DPL counts) and INT1, which end at `next`.
    pub fn software_interrupt(&mut self, vector: u8, next: u64, checked: bool) -> Result<(), Stop> {
        let event = Event {
            vector,
            error: None,
            cr2: 0,
            soft: checked,
            interrupt: true,
            ext: u32::from(!checked),
            ip: next,
            resume: false,
        };
        self.enter_handler(&event)
    }

    fn fault(&self, e: Exception) -> Event {
        Event {
            vector: e.vector,
            error: e.error,
            cr2: e.cr2,
            soft: false,
            interrupt: false,
            ext: 1,
            ip: self.rip,
            resume: true,
        }
    }

    /// Enters the handler of an event, or of what becomes of it. No instruction is running, so that
    /// stores to code are allowed; and nothing here reads memory outside RAM.
    fn deliver_event(&mut self, first: Event) {
        let stepping = std::mem::replace(&mut self.stepping, true);
        let mut event = first;
        self.note_page_fault(&first);
        let mut attempts = 0;
        while self.enter_handler(&event).is_err() {
            let exception = match self.stop {
                StopReason::Exception(exception) => exception,
                // A descriptor table or TSS that is not at a canonical address.
                _ => Exception {
                    vector: vector::GP,
                    error: Some(event.ext),
                    cr2: 0,
                },
            };
            let next = self.fault(exception);
            self.note_page_fault(&next);
            let serial = match (class(&event), class(&next)) {
                (Class::Benign, _) | (_, Class::Benign) => true,
                (Class::Contributory, Class::PageFault) => true,
                (Class::Contributory, Class::Contributory) | (Class::PageFault, _) => false,
            };
            attempts += 1;
            let double = event.vector == vector::DF && !event.interrupt;
            if double || attempts == MAX_ATTEMPTS {
                self.shut_down();
                break;
            }
            event = if serial {
                next
            } else {
                self.fault(Exception {
                    vector: vector::DF,
                    error: Some(0),
                    cr2: 0,
                })
            };
        }
        self.stepping = stepping;
    }

    /// CR2 is set when a page fault is detected, whatever becomes of it.
    fn note_page_fault(&mut self, event: &Event) {
        if class(event) == Class::PageFault {
            self.cr2 = event.cr2;
        }
    }

    /// Triple fault.
    pub fn shut_down(&mut self) {
        self.shutdown = true;
        self.attention |= attention::SHUTDOWN;
    }
}
