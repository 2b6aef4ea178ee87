//! What this host's CPU makes of instructions whose results the ISA leaves open to the model:
//! approximations, transcendental functions, x87 condition codes. Replicas on hosts that answer
//! differently cannot run in lockstep on these instructions, so the log's header carries this.
#![allow(unsafe_code)]

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, IcedError, Instruction};

use super::{NativeCode, NativeError};
use crate::fpstate::FpState;

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// SSE instructions on XMM1, XMM2.
const SSE: [Emit; 8] = [
    |a| a.rcpps(xmm1, xmm2),
    |a| a.rcpss(xmm1, xmm2),
    |a| a.rsqrtps(xmm1, xmm2),
    |a| a.rsqrtss(xmm1, xmm2),
    |a| a.dpps(xmm1, xmm2, 0xff),
    |a| a.dppd(xmm1, xmm2, 0x33),
    |a| a.cvtpd2ps(xmm1, xmm2),
    |a| a.divps(xmm1, xmm2),
];

/// x87 instructions on ST(0), ST(1).
const X87: [Emit; 14] = [
    |a| a.f2xm1(),
    |a| a.fyl2x(),
    |a| a.fyl2xp1(),
    |a| a.fsin(),
    |a| a.fcos(),
    |a| a.fsincos(),
    |a| a.fptan(),
    |a| a.fpatan(),
    |a| a.fprem(),
    |a| a.fprem1(),
    |a| a.fscale(),
    |a| a.fxtract(),
    |a| a.fxam(),
    |a| a.fsqrt(),
];

/// Rounds of new operands for each instruction.
const ROUNDS: usize = 32;

/// FNV-1a, and a generator of operands.
struct Mixer {
    hash: u64,
    state: u64,
}

impl Mixer {
    fn add(&mut self, v: u128) {
        for word in [v as u64, (v >> 64) as u64] {
            self.hash = (self.hash ^ word).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn next(&mut self) -> u64 {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// A number of moderate size.
    fn extended(&mut self) -> u128 {
        let sign = (self.next() & 1) << 15;
        let exponent = (0x3fff - 8 + self.next() % 16) | sign;
        u128::from(exponent) << 64 | u128::from(self.next() | 1 << 63)
    }

    fn packed(&mut self) -> u128 {
        u128::from(self.next() & 0xbfff_ffff_bfff_ffff) << 64
            | u128::from(self.next() & 0xbfff_ffff_bfff_ffff)
    }
}

fn one(emit: Emit) -> Result<Instruction, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    emit(&mut a)?;
    let code = a.assemble(0)?;
    Ok(Decoder::new(64, &code, DecoderOptions::NONE).decode())
}

impl NativeCode {
    /// The fingerprint of this host.
    pub fn fingerprint(&mut self) -> Result<u64, NativeError> {
        let mut mixer = Mixer {
            hash: 0xcbf2_9ce4_8422_2325,
            state: 0x1234_5678_9abc_def1,
        };
        for emit in SSE {
            let stub = self.sse(&one(emit)?)?;
            for _ in 0..ROUNDS {
                let mut fp = FpState::default();
                (fp.xmm[1], fp.xmm[2]) = (mixer.packed(), mixer.packed());
                let mut gpr = [0; 16];
                let (base, gpr) = (&raw mut fp, &raw mut gpr);
                // SAFETY: the operands are the registers named by the instruction.
                unsafe {
                    let first = (&raw mut (*base).xmm[1]).cast();
                    let second = (&raw mut (*base).xmm[2]).cast();
                    stub.call(first, second, base, gpr);
                }
                mixer.add(fp.xmm[1]);
                mixer.add(u128::from(fp.mxcsr));
            }
        }
        for emit in X87 {
            let stub = self.x87(&one(emit)?)?;
            for _ in 0..ROUNDS {
                let mut fp = FpState::default();
                fp.init();
                fp.set_top(6);
                fp.ftw = 0xc0;
                (fp.st[0], fp.st[1]) = (mixer.extended(), mixer.extended());
                // SAFETY: there is no memory operand, and no exception is pending.
                unsafe { stub.call(std::ptr::null_mut(), &mut fp, 0) };
                mixer.add(u128::from(fp.fsw) << 8 | u128::from(fp.ftw));
                fp.st.into_iter().for_each(|st| mixer.add(st));
            }
        }
        Ok(mixer.hash)
    }
}
