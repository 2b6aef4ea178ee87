//! Which instructions cases are made of.

use crate::case::Mode;
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic};

/// What the engines' CPUID offers, by iced's names. Anything else raises #UD in the guest but works
/// on the host.
const OFFERED: [CpuidFeature; 30] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::POPCNT,
    CpuidFeature::FXSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CLFSH,
    CpuidFeature::PAUSE,
    CpuidFeature::PREFETCHW,
    CpuidFeature::MOVBE,
    CpuidFeature::CET_IBT,
    CpuidFeature::CPUID,
    CpuidFeature::WBNOINVD,
];

/// Whether the instruction may be part of a case: it is offered, its effect is its own (no
/// system calls, no descriptor tables, no clocks), and user code may run it or faults for sure.
pub fn is_allowed(ins: &Instruction, mode: Mode) -> bool {
    let code = ins.code();
    let op = code.op_code();
    op.is_instruction()
        && op.encoding() == EncodingKind::Legacy
        && op.is_available_in_mode(mode.bits())
        && op.decoder_option() == 0
        && code.cpuid_features().iter().all(|f| OFFERED.contains(f))
        && !is_excluded(ins.mnemonic())
        && !is_selector(code)
        && !(ins.mnemonic() == Mnemonic::Int && ins.immediate8() == 0x80)
}

fn is_excluded(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        // Enter the kernel, or read what is the machine's.
        Mnemonic::Syscall
            | Mnemonic::Sysenter
            | Mnemonic::Sysret
            | Mnemonic::Sysretq
            | Mnemonic::Sysexit
            | Mnemonic::Sysexitq
            | Mnemonic::Cpuid
            | Mnemonic::Rdtsc
            | Mnemonic::Rdpmc
            | Mnemonic::Sgdt
            | Mnemonic::Sidt
            | Mnemonic::Sldt
            | Mnemonic::Str
            | Mnemonic::Smsw
            // Depend on what is in the descriptor tables.
            | Mnemonic::Lar
            | Mnemonic::Lsl
            | Mnemonic::Verr
            | Mnemonic::Verw
            | Mnemonic::Iret
            | Mnemonic::Iretd
            | Mnemonic::Iretq
            | Mnemonic::Retf
            | Mnemonic::Lfs
            | Mnemonic::Lgs
            | Mnemonic::Lss
            | Mnemonic::Lds
            | Mnemonic::Les
            // TF, AC and NT; see `Generator::popf`.
            | Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq
            // Not instructions of this machine.
            | Mnemonic::Rsm
            | Mnemonic::Ud0
            | Mnemonic::Wbnoinvd
            | Mnemonic::Loadall
            | Mnemonic::Umov
            | Mnemonic::Xbts
            | Mnemonic::Ibts
    )
}

/// Loads of segment registers and far transfers.
fn is_selector(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let op = code.op_code();
    let far = matches!(op.mnemonic(), Mnemonic::Call | Mnemonic::Jmp)
        && matches!(
            code,
            Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
                | Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Call_ptr1616
                | Code::Call_ptr1632
                | Code::Jmp_ptr1616
                | Code::Jmp_ptr1632
        );
    let loads = op.mnemonic() == Mnemonic::Mov && op.op0_kind() == K::seg_reg
        || op.mnemonic() == Mnemonic::Pop
            && matches!(op.op0_kind(), K::es | K::ss | K::ds | K::fs | K::gs);
    far || loads
}

/// Every op code that may be part of a case and whose name contains `filter`.
pub fn catalog(filter: &str, mode: Mode) -> Vec<Code> {
    Code::values()
        .filter(|&code| {
            let mut ins = Instruction::default();
            ins.set_code(code);
            is_allowed(&ins, mode) && format!("{code:?}").to_lowercase().contains(filter)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalog_holds_what_it_should() {
        let all = catalog("", Mode::Bits64);
        assert!(all.len() > 1000, "{}", all.len());
        for code in [
            Code::Add_rm64_r64,
            Code::Movsb_m8_m8,
            Code::Fyl2x,
            Code::Pcmpestri_xmm_xmmm128_imm8,
            Code::Jmp_rel8_64,
        ] {
            assert!(all.contains(&code), "{code:?}");
        }
        for code in [
            Code::Syscall,
            Code::VEX_Vaddps_xmm_xmm_xmmm128,
            Code::Tzcnt_r32_rm32,
        ] {
            assert!(!all.contains(&code), "{code:?}");
        }
    }
}
