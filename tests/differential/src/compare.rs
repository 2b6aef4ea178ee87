//! What differs between two outputs, as far as it is defined.

use std::fmt::Write;

use iced_x86::{Instruction, Mnemonic};

use crate::case::{DATA, End, HARNESS, Output, PAGE, STACK};
use crate::sequence::{Encoded, Item, Sequence};

/// RFLAGS bits that are compared besides the arithmetic ones: fixed 1, DF, ID and the like; not RF,
/// which the host's kernel handles in its own way.
const FLAGS: u64 = 0x0024_7fd7;
/// From here on the host's kernel says "present" in the error code of every page fault: the end of
/// Linux's user addresses.
const KERNEL_HALF: u64 = (1 << 47) - 0x1000;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strictness {
    /// Undefined flags too.
    pub undefined: bool,
    /// FIP, FDP and FOP: only where the host saves them as Intel's do.
    pub pointers: bool,
    /// The host may do what AMD's do otherwise: see `freedom`.
    pub amd: bool,
    /// Flags may be undefined by an instruction further behind. The engine has nearly always those
    /// of Intel's, so that nobody sees it there.
    pub back: bool,
}

impl Strictness {
    /// Everything that is defined and that this host is able to tell.
    pub fn for_this_host() -> Self {
        let vendor = std::arch::x86_64::__cpuid(0).ebx;
        Self {
            undefined: false,
            pointers: vendor == u32::from_le_bytes(*b"Genu"),
            amd: vendor == u32::from_le_bytes(*b"Auth"),
            back: false,
        }
    }
}

/// The differences, one for each line; empty if there are none.
pub fn differences(
    sequence: &Sequence,
    encoded: &Encoded,
    strictness: Strictness,
    native: &Output,
    guest: &Output,
) -> String {
    let mut out = String::new();
    // The harness is mapped on the host only: an access to it says nothing.
    let harness = HARNESS..HARNESS + 2 * PAGE as u64;
    if native.end == End::Skipped || guest.vector == 14 && harness.contains(&guest.cr2) {
        return out;
    }
    let mut line = |name: &str, native: u64, guest: u64| {
        if native != guest {
            let _ = writeln!(
                out,
                "  {name:<8} native {native:#018x}  engine {guest:#018x}"
            );
        }
    };
    if native.end != guest.end {
        return format!(
            "  end      native {}  engine {}\n",
            ending(native),
            ending(guest)
        );
    }
    line("rip", native.rip, guest.rip);
    let at = encoded.starts.iter().position(|&s| s == native.rip);
    let faulting = at
        .filter(|_| native.end == End::Exception)
        .and_then(|i| sequence.items.get(i))
        .map(Item::effective);
    if native.end == End::Exception {
        // Misaligned with alignment checks on: #AC or #GP, as the implementation likes (SDM vol. 2,
        // FXSAVE, protected mode exceptions).
        let either = (native.vector, guest.vector) == (17, 13)
            && faulting.is_some_and(|i| {
                use Mnemonic::{Fxrstor, Fxrstor64, Fxsave, Fxsave64};
                matches!(i.mnemonic(), Fxsave | Fxsave64 | Fxrstor | Fxrstor64)
            });
        if !either {
            line("vector", u64::from(native.vector), u64::from(guest.vector));
        }
        if native.vector == guest.vector {
            let mut mask = u64::MAX;
            if native.vector == 14 {
                // Microcode probes long and masked operands in an order of its own.
                let coarse = faulting.is_some_and(|i| {
                    i.memory_size().size() > 10 && i.memory_size().size() != 16
                        || matches!(i.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq)
                });
                if coarse {
                    mask = 0;
                } else {
                    line("cr2", native.cr2, guest.cr2);
                }
                if native.cr2 >= KERNEL_HALF {
                    mask &= !1;
                }
            }
            line("error", native.error & mask, guest.error & mask);
        }
    }
    // On some hosts what was popped before the fault stays.
    let popa = faulting.is_some_and(|i| matches!(i.mnemonic(), Mnemonic::Popa | Mnemonic::Popad));
    for (i, name) in NAMES.iter().enumerate().filter(|&(i, _)| !popa || i == 4) {
        line(name, native.gpr[i], guest.gpr[i]);
    }
    let mut flags = FLAGS;
    if !strictness.undefined && (native.rflags ^ guest.rflags) & FLAGS != 0 {
        let undefined = sequence.undefined();
        // Somewhere else: after a jump into the middle of something.
        flags &= !at
            .or((native.end == End::Reached).then_some(undefined.len() - 1))
            .and_then(|i| undefined.get(i).copied())
            .unwrap_or(crate::sequence::STATUS);
        if strictness.back && sequence.may_go_back() {
            flags &= !undefined.into_iter().fold(0, |all, flags| all | flags);
        }
    }
    line("rflags", native.rflags & flags, guest.rflags & flags);
    let mmx = faulting.is_some_and(|i| (0..i.op_count()).any(|n| i.op_register(n).is_mm()));
    let xm = faulting.filter(|_| native.vector == 19);
    fx(strictness, mmx, xm, &native.fx, &guest.fx, &mut line);
    let (mut data, mut stack) = (native.data, native.stack);
    if let Some(ins) = faulting
        && matches!(
            ins.mnemonic(),
            Mnemonic::Call | Mnemonic::Enter | Mnemonic::Pusha | Mnemonic::Pushad
        )
    {
        // Written before the fault was found, and below RSP again after it.
        ignore_below(native.gpr[4].wrapping_sub(STACK), &mut stack, &guest.stack);
        ignore_below(native.gpr[4].wrapping_sub(DATA), &mut data, &guest.data);
    }
    if faulting.is_some_and(|i| i.memory_size().size() == 10 || i.memory_size().size() > 16) {
        // The part of a long store before the page that it faults on may be done.
        ignore_below(native.cr2.wrapping_sub(DATA), &mut data, &guest.data);
        ignore_below(native.cr2.wrapping_sub(STACK), &mut stack, &guest.stack);
    }
    let saves = |item: &Item| item.effective().mnemonic() == Mnemonic::Fxsave64;
    if sequence.items.iter().any(saves) {
        ignore_linear_width(&mut data, &guest.data);
        ignore_linear_width(&mut stack, &guest.stack);
    }
    bytes("data", DATA, &data, &guest.data, &mut out);
    bytes("stack", STACK, &stack, &guest.stack, &mut out);
    out
}

/// Makes the 512 bytes below `top` equal.
fn ignore_below(top: u64, native: &mut [u8], guest: &[u8]) {
    let top = top.min(native.len() as u64) as usize;
    let range = top.saturating_sub(0x200)..top;
    native[range.clone()].copy_from_slice(&guest[range]);
}

/// FXRSTOR64 makes FIP and FDP canonical for as many bits as the host's linear addresses have: 48
/// for the engine, 57 on some hosts. What FXSAVE64 stored of them is made equal where only the
/// upper 16 bits differ and the engine's repeat bit 47.
fn ignore_linear_width(native: &mut [u8], guest: &[u8]) {
    for (host, engine) in native.chunks_exact_mut(8).zip(guest.chunks_exact(8)) {
        let fill = if engine[5] & 0x80 == 0 { 0 } else { 0xff };
        if host[..6] == engine[..6] && engine[6..] == [fill; 2] {
            host.copy_from_slice(engine);
        }
    }
}

fn ending(output: &Output) -> String {
    match output.end {
        End::Exception => format!(
            "exception {} error {:#x} cr2 {:#x} at {:#x}",
            output.vector, output.error, output.cr2, output.rip
        ),
        end => format!("{end:?} at {:#x}", output.rip),
    }
}

/// With TOP 0, the registers renamed accordingly.
fn rotated(image: &[u8; 512]) -> [u8; 512] {
    let mut out = *image;
    let top = usize::from(image[3] >> 3 & 7);
    out[3] &= !0x38;
    out[32..160].rotate_right(16 * top);
    out
}

fn fx(
    strictness: Strictness,
    mmx: bool,
    xm: Option<Instruction>,
    native: &[u8; 512],
    guest: &[u8; 512],
    line: &mut impl FnMut(&str, u64, u64),
) {
    // An MMX instruction that faults has changed TOP and tags on some hosts.
    let (native, guest) = if mmx {
        (&rotated(native), &rotated(guest))
    } else {
        (native, guest)
    };
    let field = |image: &[u8; 512], at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&image[at..at + len]);
        u64::from_le_bytes(word)
    };
    let mut both = |name: &str, at: usize, len: usize| {
        line(name, field(native, at, len), field(guest, at, len));
    };
    both("fcw", 0, 2);
    both("fsw", 2, 2);
    if !mmx {
        both("ftw", 4, 1);
    }
    if strictness.pointers {
        both("fop", 6, 2);
        // Above that it depends on how many bits a linear address has.
        both("fip", 8, 6);
        both("fdp", 16, 6);
    }
    // An unmasked overflow or underflow: whether the result is inexact as well is that of a result
    // which is not there. A dot product stops at the first of its steps that raises something.
    let mxcsr = match xm {
        Some(i) if matches!(i.mnemonic(), Mnemonic::Dpps | Mnemonic::Dppd) => !0x3f,
        Some(_) if native[24] & 0x18 != 0 => !0x20,
        _ => u64::MAX,
    };
    line(
        "mxcsr",
        field(native, 24, 4) & mxcsr,
        field(guest, 24, 4) & mxcsr,
    );
    // Nothing of the host's.
    line("mask", 0xffff, field(guest, 28, 4));
    let mut both = |name: &str, at: usize, len: usize| {
        line(name, field(native, at, len), field(guest, at, len));
    };
    for i in 0..8 {
        both(&format!("st{i}.m"), 32 + 16 * i, 8);
        both(&format!("st{i}.e"), 40 + 16 * i, 2);
    }
    for i in 0..16 {
        both(&format!("xmm{i}.l"), 160 + 16 * i, 8);
        both(&format!("xmm{i}.h"), 168 + 16 * i, 8);
    }
}

fn bytes(name: &str, base: u64, native: &[u8], guest: &[u8], out: &mut String) {
    if native == guest {
        return;
    }
    let differing: Vec<usize> = (0..native.len())
        .filter(|&i| native[i] != guest[i])
        .collect();
    let (first, last) = (differing[0], differing[differing.len() - 1]);
    let hex = |b: &[u8]| {
        b.iter()
            .take(32)
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let _ = writeln!(
        out,
        "  {name} {:#x}..={:#x} ({} bytes)\n    native {}\n    engine {}",
        base + first as u64,
        base + last as u64,
        differing.len(),
        hex(&native[first..=last]),
        hex(&guest[first..=last])
    );
}
