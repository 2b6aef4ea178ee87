//! Where one instruction can lead, when it faults not: found by decoding it with the registers and
//! the memory of the moment.

use engine::CpuState;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::stepper::Stepper;

const CS: usize = 1;
const SS: usize = 2;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const RFLAGS_RF: u64 = 1 << 16;
const EFER_LMA: u64 = 1 << 10;

/// The instruction at which a vCPU stands.
#[derive(Clone, Copy, Debug)]
pub struct Current {
    pub instruction: Instruction,
    /// Its linear address.
    pub linear: u64,
}

impl Current {
    /// Whether it is one that branch counters count.
    pub fn is_conditional(&self) -> bool {
        self.instruction.flow_control() == FlowControl::ConditionalBranch
    }

    /// Whether it jumps to itself and does nothing else: once there, the vCPU stays and does not
    /// change.
    pub fn is_endless(&self) -> bool {
        let ins = &self.instruction;
        ins.flow_control() == FlowControl::UnconditionalBranch
            && is_near(ins.op0_kind())
            && ins.near_branch_target() == ins.ip()
    }

    /// Whether it is a string instruction that repeats.
    pub fn repeats(&self) -> bool {
        let ins = &self.instruction;
        ins.is_string_instruction() && (ins.has_rep_prefix() || ins.has_repne_prefix())
    }
}

/// The width of code: 16, 32 or 64.
pub fn bits(state: &CpuState) -> u32 {
    let access = state.segments[CS].access;
    if state.msrs.efer & EFER_LMA != 0 && access & 1 << 13 != 0 {
        64
    } else if state.cr0 & 1 != 0 && access & 1 << 14 != 0 {
        32
    } else {
        16
    }
}

/// CS.base + RIP; the base is 0 in 64-bit code.
pub fn code_linear(state: &CpuState, rip: u64) -> u64 {
    if bits(state) == 64 {
        rip
    } else {
        (state.segments[CS].base.wrapping_add(rip)) & 0xffff_ffff
    }
}

/// The instruction at `rip`; `None` if it cannot be read or is none.
pub fn decode<S: Stepper>(stepper: &mut S, state: &CpuState, rip: u64) -> Option<Current> {
    let linear = code_linear(state, rip);
    let mut bytes = [0; 15];
    let len = stepper.read(linear, &mut bytes).min(bytes.len());
    let mut decoder = Decoder::with_ip(bits(state), &bytes[..len], rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(Current {
        instruction,
        linear,
    })
}

/// The linear addresses, 3 at most, at one of which the vCPU stands after `current` has retired;
/// `None` if that cannot be told.
pub fn successors<S: Stepper>(
    stepper: &mut S,
    state: &CpuState,
    current: &Current,
) -> Option<Vec<u64>> {
    let ins = &current.instruction;
    // No breakpoint strikes right after MOV SS, nor where IRET returns with RF to what has faulted.
    let behind = if blocks_debug(ins) {
        Some(CpuState {
            rip: ins.next_ip(),
            ..state.clone()
        })
    } else {
        resumed(stepper, state, ins)
    };
    let Some(behind) = behind else {
        return direct(stepper, state, current);
    };
    let then = decode(stepper, &behind, behind.rip)?;
    let mut all = direct(stepper, &behind, &then)?;
    all.truncate(2);
    all.push(code_linear(&behind, behind.rip));
    Some(all)
}

/// The state behind an IRET in 64-bit code whose frame has RF, as far as the next instruction's
/// successors depend on it.
fn resumed<S: Stepper>(stepper: &mut S, state: &CpuState, ins: &Instruction) -> Option<CpuState> {
    if ins.mnemonic() != Mnemonic::Iretq {
        return None;
    }
    let top = stack(state, 0);
    let [rip, flags, rsp] = [0, 16, 24].map(|at| read_word(stepper, top.wrapping_add(at), 8));
    let mut behind = state.clone();
    behind.rip = rip?;
    behind.rflags = flags?;
    behind.gpr[RSP] = rsp?;
    (behind.rflags & RFLAGS_RF != 0).then_some(behind)
}

/// As `successors`, where a breakpoint strikes at each of them.
fn direct<S: Stepper>(stepper: &mut S, state: &CpuState, current: &Current) -> Option<Vec<u64>> {
    let ins = &current.instruction;
    let next = code_linear(state, ins.next_ip());
    let single = match ins.flow_control() {
        FlowControl::Next | FlowControl::XbeginXabortXend => Some(next),
        FlowControl::ConditionalBranch => {
            let target = code_linear(state, ins.near_branch_target());
            return Some(vec![next, target]);
        }
        FlowControl::UnconditionalBranch | FlowControl::Call if is_near(ins.op0_kind()) => {
            Some(code_linear(state, ins.near_branch_target()))
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall => indirect(stepper, state, ins),
        FlowControl::Return => returns(stepper, state, ins),
        FlowControl::Call => system_call(state, ins),
        FlowControl::Interrupt => gate(stepper, state, ins),
        _ => None,
    };
    single.map(|one| vec![one])
}

fn is_near(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

/// Whether debug exceptions are held off until after the next instruction (SDM vol. 3, 6.8.3).
pub fn blocks_debug(ins: &Instruction) -> bool {
    let to_ss = ins.op_count() > 0
        && ins.op0_kind() == OpKind::Register
        && ins.op0_register() == Register::SS;
    to_ss && matches!(ins.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
}

fn read_word<S: Stepper>(stepper: &mut S, linear: u64, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    let whole = stepper.read(linear, bytes.get_mut(..size)?) == size;
    whole.then(|| u64::from_le_bytes(bytes))
}

/// JMP and CALL through a register or memory, near.
fn indirect<S: Stepper>(stepper: &mut S, state: &CpuState, ins: &Instruction) -> Option<u64> {
    let rip = if ins.op0_kind() == OpKind::Register {
        register(state, ins.op0_register())?
    } else {
        let near = matches!(
            ins.code(),
            Code::Jmp_rm16
                | Code::Jmp_rm32
                | Code::Jmp_rm64
                | Code::Call_rm16
                | Code::Call_rm32
                | Code::Call_rm64
        );
        if !near {
            return None;
        }
        let linear = ins.virtual_address(0, 0, |reg, _, _| register(state, reg))?;
        let linear = if bits(state) == 64 {
            linear
        } else {
            linear & 0xffff_ffff
        };
        read_word(stepper, linear, ins.memory_size().size())?
    };
    Some(code_linear(state, rip))
}

/// RET, IRET, SYSRET and SYSEXIT, where the destination's code segment is of the same base: far
/// returns otherwise are not followed.
fn returns<S: Stepper>(stepper: &mut S, state: &CpuState, ins: &Instruction) -> Option<u64> {
    let top = stack(state, 0);
    match ins.mnemonic() {
        Mnemonic::Ret => {
            let size = match ins.code() {
                Code::Retnq | Code::Retnq_imm16 => 8,
                Code::Retnd | Code::Retnd_imm16 => 4,
                _ => 2,
            };
            let rip = read_word(stepper, top, size)?;
            Some(code_linear(state, rip))
        }
        // To a 64-bit or a flat segment.
        Mnemonic::Iretq => read_word(stepper, top, 8),
        Mnemonic::Iretd if bits(state) != 16 => read_word(stepper, top, 4),
        Mnemonic::Sysretq => Some(state.gpr[RCX]),
        Mnemonic::Sysret => Some(state.gpr[RCX] & 0xffff_ffff),
        Mnemonic::Sysexitq => Some(state.gpr[RDX]),
        Mnemonic::Sysexit => Some(state.gpr[RDX] & 0xffff_ffff),
        _ => None,
    }
}

fn stack(state: &CpuState, offset: u64) -> u64 {
    let ss = &state.segments[SS];
    let sp = state.gpr[RSP].wrapping_add(offset);
    if bits(state) == 64 {
        sp
    } else if ss.access & 1 << 14 != 0 {
        ss.base.wrapping_add(sp & 0xffff_ffff) & 0xffff_ffff
    } else {
        ss.base.wrapping_add(sp & 0xffff) & 0xffff_ffff
    }
}

/// SYSCALL and SYSENTER.
fn system_call(state: &CpuState, ins: &Instruction) -> Option<u64> {
    let msrs = &state.msrs;
    match ins.mnemonic() {
        Mnemonic::Syscall if bits(state) == 64 => Some(msrs.lstar),
        Mnemonic::Syscall if msrs.efer & EFER_LMA != 0 => Some(msrs.cstar),
        Mnemonic::Sysenter if msrs.efer & EFER_LMA != 0 => Some(msrs.sysenter_eip),
        Mnemonic::Sysenter => Some(msrs.sysenter_eip & 0xffff_ffff),
        _ => None,
    }
}

/// INT n, INT3 and INT1.
fn gate<S: Stepper>(stepper: &mut S, state: &CpuState, ins: &Instruction) -> Option<u64> {
    let vector = match ins.mnemonic() {
        Mnemonic::Int => ins.immediate8(),
        Mnemonic::Int3 => 3,
        Mnemonic::Int1 => 1,
        _ => return None,
    };
    handler(stepper, state, vector)
}

/// The linear address at which the handler of `vector` begins, by the guest's interrupt table;
/// `None` if there is none, or a task gate. Outside of 64-bit code its segment is taken to be flat.
///
/// An engine whose injected interrupt is delivered only when the vCPU runs (`KVM_INTERRUPT`) goes to
/// a breakpoint there before it looks at the vCPU again.
pub fn handler<S: Stepper>(stepper: &mut S, state: &CpuState, vector: u8) -> Option<u64> {
    let (base, vector) = (state.idtr.base, u64::from(vector));
    if state.msrs.efer & EFER_LMA != 0 {
        let entry = base.wrapping_add(16 * vector);
        let low = read_word(stepper, entry, 8)?;
        let high = read_word(stepper, entry.wrapping_add(8), 8)?;
        return Some(low & 0xffff | low >> 32 & 0xffff_0000 | high << 32);
    }
    if state.cr0 & 1 != 0 {
        let low = read_word(stepper, base.wrapping_add(8 * vector), 8)?;
        // An interrupt or trap gate of 16 or 32 bits.
        return match low >> 40 & 0xf {
            0xe | 0xf => Some(low & 0xffff | low >> 32 & 0xffff_0000),
            0x6 | 0x7 => Some(low & 0xffff),
            _ => None,
        };
    }
    let vector = read_word(stepper, base.wrapping_add(4 * vector), 4)?;
    Some((vector >> 16 << 4) + (vector & 0xffff))
}

/// A register of an address or an indirect branch, zero-extended; segments give their base.
fn register(state: &CpuState, reg: Register) -> Option<u64> {
    if reg.is_segment_register() {
        let i = reg.number();
        let flat = bits(state) == 64 && i < 4;
        return Some(if flat { 0 } else { state.segments[i].base });
    }
    let full = state.gpr.get(reg.full_register().number())?;
    match reg.size() {
        8 => Some(*full),
        4 => Some(*full & 0xffff_ffff),
        2 => Some(*full & 0xffff),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
