//! Segmentation: from an offset in a segment to a linear address, and what follows from CS and SS.

use engine::Segment;

use crate::cpu::{CodeMode, Cpu, seg};
use crate::descriptor::access;
use crate::stop::{Stop, vector};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Bits of `access` that a flat writable data segment has in this state: usable, data, not
/// expand-down.
const PLAIN_MASK: u32 = access::UNUSABLE | access::S | access::CODE | access::DC | access::RW;
const PLAIN: u32 = access::S | access::RW;

impl Cpu {
    /// The linear address of `offset` in segment `segment` (an index into `seg`), for an access of
    /// `len` bytes: base added, in legacy modes with limit and type checked (#GP(0), #SS(0)).
    #[inline]
    pub fn linear(
        &mut self,
        segment: u8,
        offset: u64,
        len: u64,
        access: Access,
    ) -> Result<u64, Stop> {
        let s = &self.seg[usize::from(segment)];
        if self.code_mode == CodeMode::Bits64 {
            if segment >= seg::FS {
                return Ok(offset.wrapping_add(s.base));
            }
            return Ok(offset);
        }
        let address = s.base.wrapping_add(offset) & 0xffff_ffff;
        if s.access & PLAIN_MASK == PLAIN && offset + (len - 1) <= u64::from(s.limit) {
            return Ok(address);
        }
        self.check_segment(segment, offset, len, access)?;
        Ok(address)
    }

    #[cold]
    fn check_segment(
        &mut self,
        segment: u8,
        offset: u64,
        len: u64,
        access: Access,
    ) -> Result<(), Stop> {
        let s = self.seg[usize::from(segment)];
        let allowed = !self.protected() || permits(&s, access);
        if allowed && within_limit(&s, offset, len) {
            return Ok(());
        }
        let vector = if segment == seg::SS {
            vector::SS
        } else {
            vector::GP
        };
        Err(self.raise(vector, Some(0)))
    }

    /// The linear address of the code at `ip`: base added; outside of legacy CS limit #GP(0).
    #[inline]
    pub fn code_linear(&mut self, ip: u64) -> Result<u64, Stop> {
        if self.code_mode == CodeMode::Bits64 {
            return Ok(ip);
        }
        let cs = &self.seg[usize::from(seg::CS)];
        if ip > u64::from(cs.limit) {
            return Err(self.raise_gp(0));
        }
        Ok(cs.base.wrapping_add(ip) & 0xffff_ffff)
    }

    /// Whether stack instructions use 16, 32 or 64 bits of RSP, in bytes.
    #[inline]
    pub fn stack_size(&self) -> u8 {
        if self.code_mode == CodeMode::Bits64 {
            8
        } else if self.seg[usize::from(seg::SS)].access & access::DB != 0 {
            4
        } else {
            2
        }
    }

    /// Recomputes what follows from CS, EFER and CPL: `code_mode`, `ip_mask`, access rights.
    pub fn update_mode(&mut self) {
        let cs = self.seg[usize::from(seg::CS)].access;
        self.code_mode = if self.long_mode() && cs & access::L != 0 {
            CodeMode::Bits64
        } else if cs & access::DB != 0 {
            CodeMode::Bits32
        } else {
            CodeMode::Bits16
        };
        self.ip_mask = if self.code_mode == CodeMode::Bits64 {
            u64::MAX
        } else {
            0xffff_ffff
        };
        self.update_rights();
    }
}

/// Whether the segment's type allows the access, in protected mode.
fn permits(s: &Segment, access: Access) -> bool {
    if s.access & access::UNUSABLE != 0 {
        return false;
    }
    let code = s.access & access::CODE != 0;
    let rw = s.access & access::RW != 0;
    match access {
        Access::Read => !code || rw,
        Access::Write => !code && rw,
    }
}

/// Whether `len` bytes at `offset` lie in the segment. A limit of 4 GiB is never exceeded.
pub fn within_limit(s: &Segment, offset: u64, len: u64) -> bool {
    let last = offset + (len - 1);
    let limit = u64::from(s.limit);
    let expand_down = s.access & (access::CODE | access::DC) == access::DC;
    if expand_down {
        let top = if s.access & access::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        return offset > limit && last <= top;
    }
    s.limit == u32::MAX || last <= limit
}
