//! From a linear address to a guest-physical one through the guest's own page tables (SDM vol. 3,
//! chapter 4), to read an instruction that KVM has stopped at. Rights are not checked: the processor
//! has fetched from there a moment ago.

use engine::bits::{cr0, cr4, efer};
use engine::cpuid::PHYSICAL_BITS;
use kvm_bindings::kvm_sregs;

use crate::ram::Ram;

/// The control registers that say how to translate.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits of a PDPTE of PAE paging that are not reserved, beside its address.
const PDPTE_FREE: u64 = 0xe19;
/// Address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Something that page tables can be read from.
pub trait Memory {
    fn read_u32(&self, gpa: u64) -> Option<u32>;
    fn read_u64(&self, gpa: u64) -> Option<u64>;
    fn read_u8(&self, gpa: u64) -> Option<u8>;
}

impl Memory for Ram {
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        self.read(gpa).map(u32::from_le_bytes)
    }

    fn read_u64(&self, gpa: u64) -> Option<u64> {
        self.read(gpa).map(u64::from_le_bytes)
    }

    fn read_u8(&self, gpa: u64) -> Option<u8> {
        self.read(gpa).map(u8::from_le_bytes)
    }
}

impl Paging {
    /// Of a vCPU that stands in the guest.
    pub fn of_vcpu(sregs: &kvm_sregs) -> Self {
        Self {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
        }
    }

    /// The four entries that PAE paging keeps in the processor (SDM vol. 3, 4.4.1); zeros with any other.
    /// One that the processor would not have loaded has been written since, and counts as not present.
    pub fn pdptes(&self, memory: &impl Memory) -> [u64; 4] {
        let pae = self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0;
        if !pae || self.efer & efer::LMA != 0 {
            return [0; 4];
        }
        let at = |i: u64| memory.read_u64((self.cr3 & 0xffff_ffe0) + 8 * i);
        let reserved = !(ADDRESS & ((1 << PHYSICAL_BITS) - 1)) & !PDPTE_FREE;
        [0, 1, 2, 3].map(|i| at(i).filter(|entry| entry & reserved == 0).unwrap_or(0))
    }

    /// The guest-physical address behind `linear`; None if it is not mapped.
    pub fn translate(&self, memory: &impl Memory, linear: u64) -> Option<u64> {
        if self.cr0 & cr0::PG == 0 {
            return Some(linear & 0xffff_ffff);
        }
        if self.cr4 & cr4::PAE == 0 {
            return self.two_levels(memory, linear & 0xffff_ffff);
        }
        if self.efer & efer::LMA != 0 {
            return wide(memory, self.cr3 & ADDRESS, linear, 39);
        }
        let linear = linear & 0xffff_ffff;
        let pdpte = memory.read_u64((self.cr3 & 0xffff_ffe0) + 8 * (linear >> 30))?;
        if pdpte & PRESENT == 0 {
            return None;
        }
        wide(memory, pdpte & ADDRESS, linear, 21)
    }

    /// 32-bit paging; PSE-36 for the large pages.
    fn two_levels(&self, memory: &impl Memory, linear: u64) -> Option<u64> {
        let pde = u64::from(memory.read_u32((self.cr3 & 0xffff_f000) + 4 * (linear >> 22))?);
        if pde & PRESENT == 0 {
            return None;
        }
        if pde & LARGE != 0 && self.cr4 & cr4::PSE != 0 {
            let high = (pde >> 13 & 0xff) << 32;
            return Some(high | pde & 0xffc0_0000 | linear & 0x3f_ffff);
        }
        let entry = (pde & 0xffff_f000) + 4 * (linear >> 12 & 0x3ff);
        let pte = u64::from(memory.read_u32(entry)?);
        (pte & PRESENT != 0).then_some(pte & 0xffff_f000 | linear & 0xfff)
    }
}

/// The linear address of the code at `rip`, on a vCPU that stands in the guest.
pub fn linear(sregs: &kvm_sregs, rip: u64) -> u64 {
    if sregs.efer & efer::LMA != 0 && sregs.cs.l != 0 {
        rip
    } else {
        sregs.cs.base.wrapping_add(rip) & 0xffff_ffff
    }
}

/// Tables of 512 entries, from the one whose index begins at bit `shift` of the address.
fn wide(memory: &impl Memory, mut table: u64, linear: u64, mut shift: u32) -> Option<u64> {
    loop {
        let entry = memory.read_u64(table + 8 * (linear >> shift & 0x1ff))?;
        if entry & PRESENT == 0 {
            return None;
        }
        let last = shift == 12 || shift < 39 && entry & LARGE != 0;
        if last {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// Up to 15 bytes of code at `linear`; fewer where the next page is not mapped.
pub fn code(memory: &impl Memory, paging: &Paging, linear: u64) -> Vec<u8> {
    let mut bytes = vec![0; 15];
    let len = read(memory, paging, linear, &mut bytes);
    bytes.truncate(len);
    bytes
}

/// Fills `into` from `linear` on as far as that is mapped to RAM; the number of bytes.
pub fn read(memory: &impl Memory, paging: &Paging, linear: u64, into: &mut [u8]) -> usize {
    let mut page = None;
    for (i, byte) in into.iter_mut().enumerate() {
        let at = linear.wrapping_add(i as u64);
        if page.is_none() || at & 0xfff == 0 {
            page = paging.translate(memory, at).map(|gpa| gpa & !0xfff);
        }
        match page.and_then(|page| memory.read_u8(page | at & 0xfff)) {
            Some(found) => *byte = found,
            None => return i,
        }
    }
    into.len()
}

#[cfg(test)]
mod tests;
