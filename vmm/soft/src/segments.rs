//! Segmentation.

use crate::cpu::{CodeMode, Cpu, seg};
use crate::stop::Stop;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Cpu {
    /// The linear address of `offset` in segment `segment` (an index into `seg`), for an access of
    /// `len` bytes: base added, in legacy modes with limit and type checked (#GP(0), #SS(0)).
    pub fn linear(
        &mut self,
        segment: u8,
        offset: u64,
        _len: u64,
        _access: Access,
    ) -> Result<u64, Stop> {
        if self.code_mode == CodeMode::Bits64 {
            if segment >= seg::FS {
                return Ok(offset.wrapping_add(self.seg[usize::from(segment)].base));
            }
            return Ok(offset);
        }
        let base = self.seg[usize::from(segment)].base;
        Ok(base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The linear address of the code at `ip`: base added; outside of legacy CS limit #GP(0).
    pub fn code_linear(&mut self, ip: u64) -> Result<u64, Stop> {
        if self.code_mode == CodeMode::Bits64 {
            return Ok(ip);
        }
        Ok(self.seg[usize::from(seg::CS)].base.wrapping_add(ip) & 0xffff_ffff)
    }

    /// Whether stack instructions use 16, 32 or 64 bits of RSP, in bytes.
    pub fn stack_size(&self) -> u8 {
        if self.code_mode == CodeMode::Bits64 {
            8
        } else if self.seg[usize::from(seg::SS)].access & 1 << 14 != 0 {
            4
        } else {
            2
        }
    }

    /// Recomputes what follows from CS, EFER and CR0: `code_mode`, `ip_mask`.
    pub fn update_mode(&mut self) {
        let cs = self.seg[usize::from(seg::CS)].access;
        let long = self.msrs.efer & 1 << 10 != 0;
        self.code_mode = if long && cs & 1 << 13 != 0 {
            CodeMode::Bits64
        } else if cs & 1 << 14 != 0 {
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
