//! Hardware breakpoints (SDM vol. 3, 17.2): on instructions, and on data. Breakpoints on ports never
//! match.
//!
//! While one is enabled (`attention::BREAKPOINTS`) instructions run one by one. Pages with data
//! breakpoints are kept out of the TLB, so that every access to them takes the slow path and is
//! compared.

use crate::cpu::{Cpu, attention};
use crate::flags::RF;
use crate::phys::PAGE_MASK;
use crate::stop::vector;
use crate::tlb::Kind;

/// DR7.R/W of breakpoint `i`.
fn condition(dr7: u64, i: usize) -> u64 {
    dr7 >> (16 + 4 * i) & 3
}

const ON_EXECUTION: u64 = 0;
const ON_WRITE: u64 = 1;
const ON_ACCESS: u64 = 3;

/// Bytes that breakpoint `i` covers.
fn length(dr7: u64, i: usize) -> u64 {
    [1, 2, 8, 4][(dr7 >> (18 + 4 * i) & 3) as usize]
}

fn enabled(dr7: u64, i: usize) -> bool {
    dr7 >> (2 * i) & 3 != 0
}

impl Cpu {
    /// DR0 to DR3 or DR7 have changed.
    pub(crate) fn update_breakpoints(&mut self) {
        let dr7 = self.dr[5];
        let any = (0..4).any(|i| enabled(dr7, i));
        let data =
            (0..4).any(|i| enabled(dr7, i) && matches!(condition(dr7, i), ON_WRITE | ON_ACCESS));
        self.attention &= !attention::BREAKPOINTS;
        if any {
            self.attention |= attention::BREAKPOINTS;
        }
        if data || self.mmu.watching {
            // Pages may now have to be kept out.
            self.mmu.tlb.flush();
        }
        self.mmu.watching = data;
    }

    /// Whether an instruction breakpoint strikes before the next instruction; then DR6 says which,
    /// and `stop` is its #DB.
    pub(crate) fn breakpoint(&mut self) -> bool {
        if self.control_flag(RF) {
            return false;
        }
        let Ok(linear) = self.code_linear(self.rip) else {
            return false;
        };
        let dr7 = self.dr[5];
        let strikes = |i: &usize| {
            let execution = condition(dr7, *i) == ON_EXECUTION;
            enabled(dr7, *i) && execution && self.dr[*i] == linear
        };
        let hits = (0..4).filter(strikes).fold(0, |hits, i| hits | 1 << i);
        if hits == 0 {
            return false;
        }
        self.dr[4] |= hits;
        self.raise(vector::DB, None);
        true
    }

    /// Clears RF, whose instruction has retired.
    pub(crate) fn clear_resume(&mut self) {
        self.control &= !RF;
    }

    /// Whether the page of `linear` has a data breakpoint. Only asked while `mmu.watching`.
    pub(crate) fn is_watched_page(&self, linear: u64) -> bool {
        let dr7 = self.dr[5];
        (0..4).any(|i| {
            let data = matches!(condition(dr7, i), ON_WRITE | ON_ACCESS);
            enabled(dr7, i) && data && (self.dr[i] ^ linear) & PAGE_MASK == 0
        })
    }

    /// Notes the data breakpoints that an access within one page hits.
    pub(crate) fn watch_access(&mut self, kind: Kind, linear: u64, len: u64) {
        let dr7 = self.dr[5];
        for i in 0..4 {
            let strikes = match condition(dr7, i) {
                ON_WRITE => kind == Kind::Write,
                ON_ACCESS => true,
                _ => false,
            };
            let size = length(dr7, i);
            let start = self.dr[i] & !(size - 1);
            let overlaps = linear < start + size && start < linear + len;
            if enabled(dr7, i) && strikes && overlaps {
                self.mmu.watch_hits |= 1 << i;
            }
        }
    }

    /// After an instruction has retired: the traps that it has caused, by RFLAGS.TF (`stepped`) or by
    /// data breakpoints.
    pub(crate) fn trap_after(&mut self, stepped: bool) {
        let hits = std::mem::take(&mut self.mmu.watch_hits);
        let step = if stepped { 1 << 14 } else { 0 };
        if hits | step != 0 {
            self.debug_trap(hits | step);
        }
    }
}
