//! Random cases. Case number `n` of a seed is always the same, whatever runs before it.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::case::{CODE, CODE_SIZE, Input, Mode, PAGE};
use crate::catalog::is_allowed;
use crate::operands::{Known, fill};
use crate::sequence::{Item, STATUS, Sequence, flags_after, has_near_target, rflags_of};
use crate::values;

/// Longest sequence, in instructions.
const MAX_ITEMS: usize = 16;

/// Makes cases from a list of op codes.
pub struct Generator {
    seed: u64,
    mode: Mode,
    codes: Vec<Code>,
    privileged: Vec<Code>,
    factory: InstructionInfoFactory,
}

impl Generator {
    /// `codes` must not be empty.
    pub fn new(seed: u64, mode: Mode, codes: Vec<Code>) -> Self {
        let (privileged, plain): (Vec<_>, Vec<_>) =
            codes.into_iter().partition(|c| c.op_code().is_privileged());
        let codes = if plain.is_empty() {
            privileged.clone()
        } else {
            plain
        };
        Self {
            seed,
            mode,
            codes,
            privileged,
            factory: InstructionInfoFactory::new(),
        }
    }

    /// Case number `n`: fills `input` and gives its instructions.
    pub fn case(&mut self, n: u64, input: &mut Input) -> Sequence {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(n);
        values::fill(&mut rng, self.mode, input);
        let len = match rng.random_range(0..10) {
            0..3 => 1,
            3..6 => rng.random_range(2..=4),
            _ => rng.random_range(2..=MAX_ITEMS),
        };
        input.stops = if n.is_multiple_of(8) { n | 1 } else { 0 };
        input.code_at = match rng.random_range(0..20) {
            // An instruction across the pages; one across the end of them.
            0..4 => CODE + PAGE as u64 - rng.random_range(1..80),
            4..6 => CODE + CODE_SIZE as u64 - rng.random_range(1..60),
            _ => CODE,
        };
        let sequence = self.sequence(&mut rng, len, input);
        input.code.fill(0xcc);
        if let Some(encoded) = sequence.encode() {
            input.code[..encoded.bytes.len()].copy_from_slice(&encoded.bytes);
        }
        sequence
    }

    fn sequence(&mut self, rng: &mut ChaCha8Rng, len: usize, input: &Input) -> Sequence {
        let mut known = Known {
            gpr: &input.gpr,
            clobbered: 0,
            mode: self.mode,
        };
        let mut sequence = Sequence {
            items: Vec::new(),
            mode: self.mode,
            base: input.code_at,
        };
        // Flags undefined on entry to an item, by jumps to it and by the item before it.
        let mut jumped = [0u64; MAX_ITEMS + 24];
        let mut undefined = 0;
        for _ in 0..len * 4 {
            let at = sequence.items.len();
            if at >= len {
                break;
            }
            let before = undefined | jumped[at];
            if at + 2 <= MAX_ITEMS && rng.random_range(0..200) == 0 {
                self.popf(rng, &mut sequence);
                known.clobbered |= 1 << 4;
                // A jump may go between the two.
                undefined = before;
                continue;
            }
            let Some(mut item) = self.item(rng, &known) else {
                continue;
            };
            let ins = item.effective();
            if rflags_of(ins.rflags_read()) & before != 0 {
                continue;
            }
            if has_near_target(&item.ins) {
                item.target = Some(at + rng.random_range(1..=6));
            }
            sequence.items.push(item);
            let after = flags_after(&ins, before);
            undefined = after;
            if let Some(t) = sequence.items[at].target {
                jumped[t] |= if ins.flow_control() == FlowControl::Call {
                    before
                } else {
                    after
                };
            }
            self.clobber(&ins, &mut known);
        }
        let end = sequence.items.len();
        let popf = |t: usize| sequence.items.get(t).is_some_and(Item::is_popf);
        let targets: Vec<_> = (sequence.items.iter())
            .map(|item| item.target.map(|t| t.min(end)))
            // Not between a PUSH and its POPF.
            .map(|target| target.map(|t| if popf(t) { t - 1 } else { t }))
            .collect();
        for (item, target) in sequence.items.iter_mut().zip(targets) {
            item.target = target;
        }
        // Too long, or a short branch too far.
        while !sequence.items.is_empty() && sequence.encode().is_none() {
            sequence = sequence.without(sequence.items.len() - 1);
        }
        sequence
    }

    /// PUSH of a value with harmless control flags, then POPF.
    fn popf(&mut self, rng: &mut ChaCha8Rng, sequence: &mut Sequence) {
        let mut value = rng.random::<u32>() & (STATUS as u32 | 0x400 | 1 << 21 | 3 << 12) | 2;
        if rng.random_range(0..8) == 0 {
            // AC: alignment checks.
            value |= 1 << 18;
        }
        let (push, pop) = match self.mode {
            Mode::Bits64 => (Code::Pushq_imm32, Code::Popfq),
            Mode::Bits32 => (Code::Pushd_imm32, Code::Popfd),
        };
        let items = [
            Instruction::with1(push, value as i32),
            Ok(Instruction::with(pop)),
        ];
        for ins in items.into_iter().flatten() {
            sequence.items.push(Item::new(ins, self.mode));
        }
    }

    fn item(&mut self, rng: &mut ChaCha8Rng, known: &Known) -> Option<Item> {
        let codes = if !self.privileged.is_empty() && rng.random_range(0..100) == 0 {
            &self.privileged
        } else {
            &self.codes
        };
        let code = codes[rng.random_range(0..codes.len())];
        let mut item = Item::new(fill(rng, code, known)?, self.mode);
        let mut effective = item.decoded(CODE)?;
        if rng.random_range(0..12) == 0 && !has_near_target(&item.ins) {
            for _ in 0..rng.random_range(1..=3) {
                const PREFIXES: [u8; 16] = [
                    0x66, 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x3e, 0x26, 0x36, 0x65, 0x40, 0x48,
                    0x41, 0x44, 0x4f,
                ];
                item.prefixes.push(PREFIXES[rng.random_range(0..16)]);
            }
            effective = item.decoded(CODE)?;
        }
        (is_allowed(&effective, self.mode) && is_predictable(&effective, self.mode.bits()))
            .then_some(item)
    }

    fn clobber(&mut self, ins: &Instruction, known: &mut Known) {
        for used in self.factory.info(ins).used_registers() {
            let written = !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None
            );
            let full = used.register().full_register();
            if written && full.is_gpr64() {
                known.clobbered |= 1 << full.number();
            }
        }
    }
}

/// False for what the host does differently from run to run or slowly.
fn is_predictable(ins: &Instruction, bitness: u32) -> bool {
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    let atomic = memory && (ins.has_lock_prefix() || ins.mnemonic() == Mnemonic::Xchg);
    // Across cache lines: bus lock. Known only for absolute addresses; the generator aligns, and
    // prefixes may have changed the size.
    let split = atomic && {
        let at = ins.memory_displacement64();
        let size = ins.memory_size().size().max(8) as u64;
        let absolute = matches!(ins.memory_base(), Register::None | Register::RIP);
        !absolute || at & 63 > 64 - size
    };
    // A bit string instruction with a register offset goes anywhere.
    let bits = memory
        && ins.has_lock_prefix()
        && matches!(
            ins.mnemonic(),
            Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts
        );
    // The host's FS is its thread's.
    let fs = ins.segment_prefix() == Register::FS && bitness == 64;
    !split && !bits && !fs
}
