//! A sequence of instructions: its bytes, and which flags are undefined where.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Formatter, GasFormatter, Instruction,
    Mnemonic, OpKind, RflagsBits,
};

use crate::case::{CODE, Mode, SEQUENCE_SIZE};

/// One instruction of a sequence.
#[derive(Clone, Debug)]
pub struct Item {
    pub ins: Instruction,
    /// For a near branch: the item it goes to (the number of items: the end).
    pub target: Option<usize>,
    /// Prefixes put before the encoded instruction.
    pub prefixes: Vec<u8>,
    pub mode: Mode,
}

/// A sequence and its encoding.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub items: Vec<Item>,
    pub mode: Mode,
    /// Where it begins.
    pub base: u64,
}

/// RFLAGS of iced's flag bits, without those of x87.
pub fn rflags_of(bits: u32) -> u64 {
    [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
    ]
    .into_iter()
    .filter(|&(bit, _)| bits & bit != 0)
    .map(|(_, flag)| flag)
    .sum()
}

/// The arithmetic flags.
pub const STATUS: u64 = 0x8d5;

impl Item {
    pub fn new(ins: Instruction, mode: Mode) -> Self {
        Self {
            ins,
            target: None,
            prefixes: Vec::new(),
            mode,
        }
    }

    /// Whether it pops RFLAGS: only what was pushed just before it may be popped.
    pub fn is_popf(&self) -> bool {
        matches!(self.ins.code(), Code::Popfq | Code::Popfd)
    }

    fn encode(&self, ip: u64, target: u64) -> Option<Vec<u8>> {
        let mut ins = self.ins;
        if self.target.is_some() {
            match self.mode {
                Mode::Bits64 => ins.set_near_branch64(target),
                Mode::Bits32 => ins.set_near_branch32(target as u32),
            }
        }
        let mut encoder = Encoder::new(self.mode.bits());
        encoder.encode(&ins, ip + self.prefixes.len() as u64).ok()?;
        let mut bytes = self.prefixes.clone();
        bytes.extend(encoder.take_buffer());
        Some(bytes)
    }

    /// What a decoder makes of the bytes at `ip`; `None` if that is not one whole instruction.
    pub fn decoded(&self, ip: u64) -> Option<Instruction> {
        let bytes = self.encode(ip, ip)?;
        let mut decoder = Decoder::with_ip(self.mode.bits(), &bytes, ip, DecoderOptions::NONE);
        let ins = decoder.decode();
        (!ins.is_invalid() && ins.len() == bytes.len()).then_some(ins)
    }

    /// The instruction with what its prefixes make of it.
    pub fn effective(&self) -> Instruction {
        self.decoded(CODE).unwrap_or(self.ins)
    }
}

/// What happens to the set of undefined flags when an instruction runs.
pub fn flags_after(ins: &Instruction, before: u64) -> u64 {
    let undefined = rflags_of(ins.rflags_undefined());
    let written = rflags_of(ins.rflags_written() | ins.rflags_cleared() | ins.rflags_set());
    if ins.flow_control() == FlowControl::Call {
        // What comes next runs after anything else.
        return STATUS;
    }
    if may_leave_flags(ins) {
        return before | undefined;
    }
    before & !written | undefined
}

/// Whether the flags may stay as they are: a count of 0.
fn may_leave_flags(ins: &Instruction) -> bool {
    let shift = matches!(
        ins.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Shr
            | Mnemonic::Sal
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    shift || ins.is_string_instruction() && (ins.has_rep_prefix() || ins.has_repne_prefix())
}

/// Encoded.
pub struct Encoded {
    pub bytes: Vec<u8>,
    /// Where each item begins, and the end.
    pub starts: Vec<u64>,
}

impl Sequence {
    /// The bytes with the jump to `END` behind them; `None` if they do not fit or a branch does not
    /// reach.
    pub fn encode(&self) -> Option<Encoded> {
        let mut starts = Vec::new();
        let mut ip = self.base;
        for item in &self.items {
            starts.push(ip);
            ip += item.encode(ip, ip)?.len() as u64;
        }
        starts.push(ip);
        let mut bytes = Vec::new();
        for (item, &start) in self.items.iter().zip(&starts) {
            let target = item.target.and_then(|t| starts.get(t)).copied();
            bytes.extend(item.encode(start, target.unwrap_or(start))?);
        }
        bytes.push(0xe9);
        bytes.extend((self.mode.end().wrapping_sub(ip + 5) as u32).to_le_bytes());
        (bytes.len() <= SEQUENCE_SIZE).then_some(Encoded { bytes, starts })
    }

    /// For each item and the end: flags whose value is undefined there.
    pub fn undefined(&self) -> Vec<u64> {
        let mut at = vec![0; self.items.len() + 1];
        let mut now = 0;
        for (i, item) in self.items.iter().enumerate() {
            now |= at[i];
            at[i] = now;
            let ins = item.effective();
            let after = flags_after(&ins, now);
            if let Some(t) = item.target {
                let to = t.min(self.items.len());
                at[to] |= if ins.flow_control() == FlowControl::Call {
                    now
                } else {
                    after
                };
            }
            now = if ins.flow_control() == FlowControl::UnconditionalBranch && item.target.is_some()
            {
                // Only reached by jumps, which have left their flags there.
                0
            } else {
                after
            };
        }
        at[self.items.len()] |= now;
        at
    }

    /// Whether it may come to an item from one behind it, with flags that `undefined` knows nothing of.
    pub fn may_go_back(&self) -> bool {
        use FlowControl::{IndirectBranch, IndirectCall, Return};
        (self.items.iter())
            .map(|item| item.ins.flow_control())
            .any(|flow| matches!(flow, IndirectBranch | IndirectCall | Return))
    }

    /// Without item `i`, and without the POPF that belongs to it.
    pub fn without(&self, i: usize) -> Self {
        let mut items = self.items.clone();
        items.remove(i);
        if items.get(i).is_some_and(Item::is_popf) {
            return Self { items, ..*self }.without(i);
        }
        let len = items.len();
        for item in &mut items {
            if let Some(t) = &mut item.target {
                if *t > i {
                    *t -= 1;
                }
                *t = (*t).min(len);
            }
        }
        Self { items, ..*self }
    }

    /// One line for each instruction: address, bytes, text.
    pub fn listing(&self) -> String {
        let Some(encoded) = self.encode() else {
            return "(cannot be encoded)".to_owned();
        };
        let mut decoder = Decoder::with_ip(
            self.mode.bits(),
            &encoded.bytes,
            self.base,
            DecoderOptions::NONE,
        );
        let mut formatter = GasFormatter::new();
        let mut out = String::new();
        let end = encoded.starts.last().copied().unwrap_or(self.base);
        while decoder.can_decode() && decoder.ip() < end {
            let at = decoder.position();
            let ins = decoder.decode();
            let mut text = String::new();
            formatter.format(&ins, &mut text);
            let hex: Vec<String> = encoded.bytes[at..decoder.position()]
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            out.push_str(&format!(
                "  {:#x}  {:<40} {text}\n",
                ins.ip(),
                hex.join(" ")
            ));
        }
        out
    }
}

/// Whether the instruction may go backwards or anywhere: `Item::target` is for the others.
pub fn has_near_target(ins: &Instruction) -> bool {
    ins.op_count() > 0 && matches!(ins.op_kind(0), OpKind::NearBranch64 | OpKind::NearBranch32)
}
