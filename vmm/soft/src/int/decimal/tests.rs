//! Decimal arithmetic done with the adjustments comes out right.

use super::*;
use crate::alu::Arith;
use crate::chain::Single;
use crate::cpu::CodeMode;
use crate::decode::decode;
use crate::native::NativeCode;
use crate::phys::Phys;

/// A CPU that has just computed `ax` with `status` as the flags, and runs one 32-bit instruction.
fn run(bytes: &[u8], ax: u16, status: u64) -> (u16, u64) {
    let mut native = NativeCode::new().unwrap();
    let decoded = decode(bytes, CodeMode::Bits32, 0, &mut native).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: no RAM at all.
    let phys = unsafe { Phys::new(Vec::new()) }.unwrap();
    let mut cpu = Cpu::new(phys, native);
    cpu.gpr[0] = u64::from(ax);
    cpu.status = status;
    assert_eq!(Single::of(decoded.op, decoded.code).run(&mut cpu), Ok(()));
    (cpu.gpr[0] as u16, cpu.status)
}

fn packed(n: u8) -> u8 {
    ((n / 10) << 4) | (n % 10)
}

#[test]
fn packed_sums_and_differences() {
    for a in 0..100u8 {
        for b in (0..100u8).step_by(7) {
            let mut status = 0;
            let sum = packed(a).add(packed(b), &mut status);
            let (al, flags) = run(&[0x27], u16::from(sum), status);
            assert_eq!(al as u8, packed((a + b) % 100), "{a} + {b}");
            assert_eq!(flags & CF != 0, a + b >= 100, "carry of {a} + {b}");

            let difference = packed(a).sub(packed(b), &mut status);
            let (al, flags) = run(&[0x2f], u16::from(difference), status);
            assert_eq!(al as u8, packed((a + 100 - b) % 100), "{a} - {b}");
            assert_eq!(flags & CF != 0, a < b, "borrow of {a} - {b}");
        }
    }
}

#[test]
fn unpacked_digits() {
    for a in 0..10u8 {
        for b in 0..10u8 {
            let mut status = 0;
            // With ASCII digits, which is what AAA is for: the high nibble does not matter.
            let sum = (a | 0x30).add(b | 0x30, &mut status);
            let (ax, flags) = run(&[0x37], 0x0200 | u16::from(sum), status);
            let carry = u16::from(a + b >= 10);
            assert_eq!(ax, (2 + carry) << 8 | u16::from((a + b) % 10), "{a} + {b}");
            assert_eq!(flags & CF != 0, carry != 0);

            let difference = (a | 0x30).sub(b | 0x30, &mut status);
            let (ax, flags) = run(&[0x3f], 0x0200 | u16::from(difference), status);
            let borrow = u16::from(a < b);
            assert_eq!(ax, (2 - borrow) << 8 | u16::from((a + 10 - b) % 10));
            assert_eq!(flags & CF != 0, borrow != 0);

            let (ax, _) = run(&[0xd4, 10], u16::from(a * b), 0);
            assert_eq!(ax, u16::from(a * b / 10) << 8 | u16::from(a * b % 10));
            let (ax, _) = run(&[0xd5, 10], u16::from(a) << 8 | u16::from(b), 0);
            assert_eq!(ax, u16::from(a * 10 + b));
        }
    }
}
