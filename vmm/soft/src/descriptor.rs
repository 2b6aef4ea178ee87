//! Segment and gate descriptors (SDM vol. 3, 3.4.5 and 5.8.3).

use engine::Segment;

use crate::cpu::Cpu;
use crate::stop::{Stop, vector};

/// Bits of `Segment::access`.
pub mod access {
    pub const TYPE: u32 = 15;
    pub const ACCESSED: u32 = 1;
    /// Data: writable. Code: readable.
    pub const RW: u32 = 1 << 1;
    /// Data: expand down. Code: conforming.
    pub const DC: u32 = 1 << 2;
    pub const CODE: u32 = 1 << 3;
    /// Code or data, not a system segment.
    pub const S: u32 = 1 << 4;
    pub const P: u32 = 1 << 7;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}

/// Types of system descriptors.
pub mod system {
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL16: u32 = 4;
    pub const TASK: u32 = 5;
    pub const INT16: u32 = 6;
    pub const TRAP16: u32 = 7;
    pub const TSS32: u32 = 9;
    pub const TSS32_BUSY: u32 = 11;
    pub const CALL32: u32 = 12;
    pub const INT32: u32 = 14;
    pub const TRAP32: u32 = 15;
}

/// A descriptor as it lies in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub selector: u16,
    /// Linear address in its table.
    pub at: u64,
    pub raw: u64,
    /// Bits 32 to 63 of the base or offset of a 16-byte descriptor.
    pub high: u32,
}

impl Descriptor {
    /// As `Segment::access`.
    pub fn access(&self) -> u32 {
        (self.raw >> 40) as u32 & 0xf0ff
    }

    pub fn has(&self, bits: u32) -> bool {
        self.access() & bits == bits
    }

    pub fn present(&self) -> bool {
        self.has(access::P)
    }

    pub fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }

    /// The type of a system descriptor; None for code and data.
    pub fn system_type(&self) -> Option<u32> {
        (!self.has(access::S)).then(|| self.access() & access::TYPE)
    }

    pub fn is_code(&self) -> bool {
        self.has(access::S | access::CODE)
    }

    pub fn is_conforming(&self) -> bool {
        self.has(access::S | access::CODE | access::DC)
    }

    pub fn is_writable_data(&self) -> bool {
        self.has(access::S | access::RW) && !self.has(access::CODE)
    }

    /// The segment register's content for it, with another selector's RPL if that is given.
    pub fn segment(&self) -> Segment {
        let limit = (self.raw & 0xffff) as u32 | (self.raw >> 32) as u32 & 0xf_0000;
        Segment {
            selector: self.selector,
            access: self.access(),
            base: self.raw >> 16 & 0xff_ffff
                | self.raw >> 32 & 0xff00_0000
                | u64::from(self.high) << 32,
            limit: if self.has(access::G) {
                limit << 12 | 0xfff
            } else {
                limit
            },
        }
    }

    /// Offset of a gate.
    pub fn offset(&self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000 | u64::from(self.high) << 32
    }

    /// Target selector of a gate.
    pub fn target(&self) -> u16 {
        (self.raw >> 16) as u16
    }
}

/// What a null selector leaves in a segment register.
pub fn null_segment(selector: u16) -> Segment {
    Segment {
        selector,
        access: access::UNUSABLE,
        base: 0,
        limit: 0,
    }
}

/// The part of a selector that goes into an error code.
pub fn error_code(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

/// Whether a selector is null.
pub fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

impl Cpu {
    /// In protected mode (long mode included).
    pub fn protected(&self) -> bool {
        self.cr0 & 1 != 0
    }

    /// IA-32e mode is active (EFER.LMA).
    pub fn long_mode(&self) -> bool {
        self.msrs.efer & 1 << 10 != 0
    }

    /// Linear address of an offset in a system structure.
    pub fn system_address(&self, base: u64, offset: u64) -> u64 {
        let a = base.wrapping_add(offset);
        if self.long_mode() { a } else { a & 0xffff_ffff }
    }

    /// Base and limit of the table that a selector is in; None for an unusable LDT.
    fn table(&self, selector: u16) -> Option<(u64, u64)> {
        if selector & 4 == 0 {
            return Some((self.gdtr.base, u64::from(self.gdtr.limit)));
        }
        let usable = self.ldtr.access & access::UNUSABLE == 0;
        usable.then(|| (self.ldtr.base, u64::from(self.ldtr.limit)))
    }

    /// Reads the 8-byte descriptor of a selector that is not null; None if it lies outside its table.
    pub fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Stop> {
        let offset = u64::from(selector & 0xfff8);
        let Some((base, limit)) = self.table(selector) else {
            return Ok(None);
        };
        if offset + 7 > limit {
            return Ok(None);
        }
        let at = self.system_address(base, offset);
        let raw = self.load_sys::<u64>(at)?;
        Ok(Some(Descriptor {
            selector,
            at,
            raw,
            high: 0,
        }))
    }

    /// As `find_descriptor`; outside of the table is #GP with the selector and `ext`.
    pub fn descriptor(&mut self, selector: u16, ext: u32) -> Result<Descriptor, Stop> {
        match self.find_descriptor(selector)? {
            Some(d) => Ok(d),
            None => Err(self.raise_gp(error_code(selector) | ext)),
        }
    }

    /// Adds the upper half of a system descriptor in long mode, where it has 16 bytes. None if it
    /// lies outside the table or its type field is not 0.
    pub fn widen(&mut self, d: Descriptor) -> Result<Option<Descriptor>, Stop> {
        if !self.long_mode() {
            return Ok(Some(d));
        }
        let Some((_, limit)) = self.table(d.selector) else {
            return Ok(None);
        };
        if u64::from(d.selector & 0xfff8) + 15 > limit {
            return Ok(None);
        }
        let high = self.load_sys::<u64>(self.system_address(d.at, 8))?;
        if high >> 40 & 0x1f != 0 {
            return Ok(None);
        }
        Ok(Some(Descriptor {
            high: high as u32,
            ..d
        }))
    }

    /// Sets the accessed bit of a code or data descriptor in memory and in `d`.
    pub fn set_accessed(&mut self, d: &mut Descriptor) -> Result<(), Stop> {
        if !d.has(access::ACCESSED) {
            d.raw |= 1 << 40;
            let byte = (d.raw >> 40) as u8;
            self.store_sys::<u8>(self.system_address(d.at, 5), byte)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS as MOV does (SDM vol. 2, MOV).
    pub fn load_segment(&mut self, segment: u8, selector: u16) -> Result<(), Stop> {
        let new = self.segment_for(segment, selector)?;
        self.seg[usize::from(segment)] = new;
        Ok(())
    }

    /// What loading `selector` into a data segment register would put there.
    pub fn segment_for(&mut self, segment: u8, selector: u16) -> Result<Segment, Stop> {
        let old = self.seg[usize::from(segment)];
        if !self.protected() {
            return Ok(real_segment(old, selector));
        }
        if segment == crate::cpu::seg::SS {
            return self.stack_segment(selector, self.cpl, vector::GP, 0);
        }
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let mut d = self.descriptor(selector, 0)?;
        let error = error_code(selector);
        let readable = d.has(access::S) && (!d.is_code() || d.has(access::RW));
        let outranked = !d.is_conforming() && d.rpl().max(self.cpl) > d.dpl();
        if !readable || outranked {
            return Err(self.raise_gp(error));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment())
    }

    /// Checks a selector for SS at privilege level `cpl`. What is wrong with it raises `wrong` (#GP,
    /// or #TS if it comes from a TSS).
    pub fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        wrong: u8,
        ext: u32,
    ) -> Result<Segment, Stop> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            let allowed = self.code_mode == crate::cpu::CodeMode::Bits64 && cpl < 3 && rpl == cpl;
            if !allowed {
                return Err(self.raise(wrong, Some(ext)));
            }
            return Ok(Segment {
                // An unusable SS keeps the DPL.
                access: access::UNUSABLE | u32::from(cpl) << 5,
                ..null_segment(selector)
            });
        }
        let error = error_code(selector) | ext;
        let Some(mut d) = self.find_descriptor(selector)? else {
            return Err(self.raise(wrong, Some(error)));
        };
        if rpl != cpl || d.dpl() != cpl || !d.is_writable_data() {
            return Err(self.raise(wrong, Some(error)));
        }
        if !d.present() {
            return Err(self.raise(vector::SS, Some(error)));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment())
    }
}

/// A segment register loaded in real mode: limit and size stay as they were.
pub fn real_segment(old: Segment, selector: u16) -> Segment {
    Segment {
        selector,
        access: 0x93 | old.access & (access::DB | access::G),
        base: u64::from(selector) << 4,
        limit: old.limit,
    }
}
