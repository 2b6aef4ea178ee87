//! Segment registers: KVM's form, and the one canonical form.
//!
//! The hidden parts reach us by two ways: from KVM's registers while the vCPU stands in the guest,
//! from the control block after an intercepted instruction. KVM touches up what it hands out (type
//! bits that a processor always has set, G from the limit), so both are brought to one form here,
//! and `state()` is the same whichever way the vCPU stands.

use engine::Segment;
use engine::bits::access;
use kvm_bindings::kvm_segment;

/// What a segment register is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Code,
    /// DS, ES.
    Data,
    /// FS, GS: the base counts even if the segment is null.
    Based,
    /// SS, with the CPL.
    Stack(u8),
    Ldt,
    Task,
}

/// What stands for a task register that has never been loaded, where the processor wants one that has:
/// no descriptor that a guest loads has a selector of 0.
pub const NO_TASK: Segment = Segment {
    selector: 0,
    access: 0x8b,
    base: 0,
    limit: 0,
};

/// The canonical form.
pub fn canonical(mut s: Segment, what: Use) -> Segment {
    if s.access & access::P == 0 || what == Use::Task && s == NO_TASK {
        return Segment {
            selector: s.selector,
            access: access::UNUSABLE,
            base: if what == Use::Based { s.base } else { 0 },
            limit: 0,
        };
    }
    s.access &= access::ALL & !access::G;
    if s.limit > 0xf_ffff {
        s.access |= access::G;
    }
    match what {
        Use::Task => s.access |= 2,
        Use::Data | Use::Based => s.access |= 1,
        Use::Stack(cpl) => s.access = s.access & !0x60 | u32::from(cpl & 3) << 5,
        Use::Code | Use::Ldt => {}
    }
    s
}

pub fn from_kvm(s: &kvm_segment) -> Segment {
    let unusable = s.unusable != 0 || s.present == 0;
    let mut rights = u32::from(s.type_)
        | u32::from(s.s) << 4
        | u32::from(s.dpl) << 5
        | u32::from(s.avl) << 12
        | u32::from(s.l) << 13
        | u32::from(s.db) << 14
        | u32::from(s.g) << 15;
    if !unusable {
        rights |= access::P;
    }
    Segment {
        selector: s.selector,
        access: rights,
        base: s.base,
        limit: s.limit,
    }
}

pub fn to_kvm(s: &Segment) -> kvm_segment {
    let bit = |n: u32| (s.access >> n & 1) as u8;
    let unusable = s.access & access::UNUSABLE != 0;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & 15) as u8,
        present: bit(7),
        dpl: (s.access >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(unusable),
        padding: 0,
    }
}

#[cfg(test)]
mod tests;
