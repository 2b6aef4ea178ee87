//! CPUID: the engines' common table under this one's name.

use engine::cpuid::{self, Brand};

use crate::cpu::{Cpu, reg};
use crate::op::Op;
use crate::stop::Stop;

const BRAND: &Brand = b"Lockstep software CPU @ 1.00GHz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A hash of everything that CPUID shows.
pub fn hash() -> u64 {
    cpuid::hash(BRAND)
}

pub fn cpuid(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let eax = cpu.gpr[usize::from(reg::RAX)] as u32;
    let ecx = cpu.gpr[usize::from(reg::RCX)] as u32;
    let [a, b, c, d] = cpuid::leaf(BRAND, eax, ecx);
    for (register, v) in [(reg::RAX, a), (reg::RBX, b), (reg::RCX, c), (reg::RDX, d)] {
        cpu.gpr[usize::from(register)] = u64::from(v);
    }
    Ok(())
}
