//! Which states no engine takes: a file or a peer may have sent anything.

use crate::bits::{MXCSR, access, cr0, cr4, efer, is_canonical, rflags};
use crate::cpuid::PHYSICAL_BITS;
use crate::{CpuState, Segment};

/// Refuses what no guest's CPU can be in; the error says what.
pub fn check(s: &CpuState) -> Result<(), String> {
    let long = s.msrs.efer & efer::LMA != 0;
    let paging = s.cr0 & cr0::PG != 0;
    let refuse = |wrong: bool, what: &str, value: u64| {
        if wrong {
            return Err(format!("{what} cannot be {value:#x}"));
        }
        Ok(())
    };
    refuse(s.cr0 & !cr0::ALL != 0 || s.cr0 & cr0::ET == 0, "CR0", s.cr0)?;
    refuse(paging && s.cr0 & cr0::PE == 0, "CR0", s.cr0)?;
    refuse(s.cr4 & !cr4::ALL != 0, "CR4", s.cr4)?;
    refuse(long && s.cr4 & cr4::PAE == 0, "CR4 in long mode", s.cr4)?;
    refuse(s.cr3 >> PHYSICAL_BITS != 0, "CR3", s.cr3)?;
    refuse(s.cr8 > 15, "CR8", s.cr8)?;
    refuse(s.xcr0 != 1, "XCR0", s.xcr0)?;
    let lma = paging && s.msrs.efer & efer::LME != 0;
    refuse(
        s.msrs.efer & !efer::ALL != 0 || lma != long,
        "EFER",
        s.msrs.efer,
    )?;
    let flags = s.rflags & !rflags::ALL != 2 || s.rflags & rflags::VM != 0;
    refuse(flags, "RFLAGS", s.rflags)?;
    refuse(s.cpl > 3, "CPL", u64::from(s.cpl))?;
    if s.debug_due && (s.halted || s.shutdown) {
        return Err("a #DB cannot be due in HLT or after a triple fault".to_owned());
    }
    refuse(s.dr[4] >> 32 != 0, "DR6", s.dr[4])?;
    refuse(s.dr[5] >> 32 != 0, "DR7", s.dr[5])?;
    let image = <&[u8; 512]>::try_from(s.fxsave.as_slice())
        .map_err(|_| format!("the FXSAVE image has {} bytes, not 512", s.fxsave.len()))?;
    let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
    refuse(mxcsr & !MXCSR != 0, "MXCSR", u64::from(mxcsr))?;
    for segment in s.segments.iter().chain([&s.ldtr, &s.tr]) {
        check_segment(segment)?;
    }
    for (base, what) in [
        (s.gdtr.base, "GDTR's base"),
        (s.idtr.base, "IDTR's base"),
        (s.msrs.lstar, "LSTAR"),
        (s.msrs.cstar, "CSTAR"),
        (s.msrs.kernel_gs_base, "KERNEL_GS_BASE"),
        (s.msrs.sysenter_esp, "SYSENTER_ESP"),
        (s.msrs.sysenter_eip, "SYSENTER_EIP"),
    ] {
        refuse(!is_canonical(base), what, base)?;
    }
    Ok(())
}

fn check_segment(s: &Segment) -> Result<(), String> {
    let known = access::ALL | access::UNUSABLE;
    if s.access & !known != 0 {
        return Err(format!(
            "segment {:#x} cannot have access rights {:#x}",
            s.selector, s.access
        ));
    }
    if !is_canonical(s.base) {
        return Err(format!(
            "segment {:#x} cannot have base {:#x}",
            s.selector, s.base
        ));
    }
    Ok(())
}
