//! Stubs of representative shapes against what the SDM says.

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::NativeCode;
use crate::fpstate::FpState;

fn one(emit: impl FnOnce(&mut CodeAssembler)) -> Instruction {
    let mut a = CodeAssembler::new(64).unwrap();
    emit(&mut a);
    let code = a.assemble(0).unwrap();
    Decoder::new(64, &code, DecoderOptions::NONE).decode()
}

fn registers() -> (FpState, [u64; 16]) {
    (FpState::default(), [0; 16])
}

#[test]
fn packed_add_of_high_registers() {
    let mut code = NativeCode::new().unwrap();
    let stub = code.sse(&one(|a| a.paddd(xmm14, xmm9).unwrap())).unwrap();
    let (mut fp, mut gpr) = registers();
    fp.xmm[14] = 0x0000_0001_ffff_ffff_0000_0003_0000_0004;
    fp.xmm[9] = 0x0000_0001_0000_0001_0000_0001_0000_0001;
    let base = &raw mut fp;
    // SAFETY: the pointers are those of the operands.
    unsafe {
        let d = (&raw mut (*base).xmm[14]).cast();
        let s = (&raw mut (*base).xmm[9]).cast();
        stub.call(d, s, base, &mut gpr);
    }
    assert_eq!(fp.xmm[14], 0x0000_0002_0000_0000_0000_0004_0000_0005);
}

#[test]
fn flags_of_mxcsr_and_of_a_compare() {
    let mut code = NativeCode::new().unwrap();
    let (mut fp, mut gpr) = registers();
    let mut half = 3.0f64.to_bits() as u128;
    fp.xmm[0] = 1.0f64.to_bits() as u128;
    let stub = code
        .sse(&one(|a| a.divsd(xmm0, qword_ptr(rbx + 5)).unwrap()))
        .unwrap();
    let base = &raw mut fp;
    // SAFETY: the pointers are those of the operands.
    unsafe {
        let d = (&raw mut (*base).xmm[0]).cast();
        stub.call(d, (&raw mut half).cast(), base, &mut gpr);
    }
    assert_eq!(fp.xmm[0], u128::from((1.0f64 / 3.0).to_bits()));
    assert_eq!(fp.mxcsr, 0x1fa0, "inexact is reported");
    let stub = code.sse(&one(|a| a.ucomisd(xmm0, xmm1).unwrap())).unwrap();
    let base = &raw mut fp;
    // SAFETY: the pointers are those of the operands.
    let flags = unsafe {
        let d = (&raw mut (*base).xmm[0]).cast();
        stub.call(d, (&raw mut half).cast(), base, &mut gpr)
    };
    assert_eq!(flags & 0x8d5, 1, "less");
}

#[test]
fn string_compare_uses_implied_registers() {
    let mut code = NativeCode::new().unwrap();
    let (mut fp, mut gpr) = registers();
    gpr[0] = 3;
    gpr[2] = 16;
    fp.xmm[3] = u128::from_le_bytes(*b"abcdefghijklmnop");
    fp.xmm[4] = u128::from_le_bytes(*b"0123abc789abcdef");
    let stub = code
        .sse(&one(|a| a.pcmpestri(xmm3, xmm4, 0x0c).unwrap()))
        .unwrap();
    let base = &raw mut fp;
    // SAFETY: the pointers are those of the operands.
    let flags = unsafe {
        let d = (&raw mut (*base).xmm[3]).cast();
        let s = (&raw mut (*base).xmm[4]).cast();
        stub.call(d, s, base, &mut gpr)
    };
    assert_eq!(gpr[1], 4, "the substring is found there");
    assert_eq!(flags & 1, 1);
}

#[test]
fn x87_unmasked_exception_stays_pending() {
    let mut code = NativeCode::new().unwrap();
    let (mut fp, _) = registers();
    fp.init();
    fp.fcw = 0x37b; // divide by zero not masked
    fp.set_top(6);
    fp.ftw = 0xc0;
    fp.st[0] = 0x3fff_8000_0000_0000_0000;
    fp.st[1] = 0;
    let before = fp.st;
    let stub = code.x87(&one(|a| a.fdiv_2(st0, st1).unwrap())).unwrap();
    // SAFETY: there is no memory operand.
    unsafe { stub.call(std::ptr::null_mut(), &mut fp, 0) };
    assert_eq!(fp.fsw & 0x80ff, 0x8084, "ZE, ES and B");
    assert_eq!(fp.st, before);
    assert!(fp.pending());
    // The host's x87 is usable afterwards, and so is the next stub.
    fp.init();
    let stub = code.x87(&one(|a| a.fld1().unwrap())).unwrap();
    // SAFETY: there is no memory operand.
    unsafe { stub.call(std::ptr::null_mut(), &mut fp, 0) };
    assert_eq!(fp.st[0], 0x3fff_8000_0000_0000_0000);
    assert_eq!((fp.top(), fp.ftw), (7, 0x80));
    let image = fp.to_image();
    assert_eq!(image[28..32], [0xff, 0xff, 0, 0], "not the host's mask");
}

#[test]
fn stubs_are_shared() {
    let mut code = NativeCode::new().unwrap();
    for d in [xmm0, xmm5, xmm15] {
        code.sse(&one(|a| a.pxor(d, xmm7).unwrap())).unwrap();
        code.sse(&one(|a| a.pxor(d, xmmword_ptr(rbp + 8)).unwrap()))
            .unwrap();
    }
    assert_eq!(code.stubs.len(), 2);
}

#[test]
fn fingerprint_is_the_same_each_time() {
    let one = NativeCode::new().unwrap().fingerprint().unwrap();
    let mut code = NativeCode::new().unwrap();
    assert_eq!(code.fingerprint().unwrap(), one);
    assert_eq!(code.fingerprint().unwrap(), one);
}
