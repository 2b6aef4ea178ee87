//! The shifts and rotates against the host's own, over all counts and all defined flags.
use std::arch::asm;

use super::*;
use crate::flags::{PF, SF, ZF};

macro_rules! host_shift {
    ($name:ident, $text:literal) => {
        fn $name(a: u32, count: u8, carry: bool) -> (u32, u64) {
            let mut a = a;
            let mut f = u64::from(carry);
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!("bt {f:e}, 0", concat!($text, " {a:e}, cl"), "pushfq", "pop {f}",
                    a = inout(reg) a, f = inout(reg) f, in("cl") count);
            }
            (a, f)
        }
    };
}
host_shift!(host_shl, "shl");
host_shift!(host_shr, "shr");
host_shift!(host_sar, "sar");
host_shift!(host_rol, "rol");
host_shift!(host_ror, "ror");
host_shift!(host_rcl, "rcl");
host_shift!(host_rcr, "rcr");

fn check<S: Shift>(host: fn(u32, u8, bool) -> (u32, u64), flags: u64) {
    for a in [
        0,
        1,
        0x8000_0000,
        0xdead_beef,
        u32::MAX,
        0x7fff_ffff,
        0x4000_0001,
    ] {
        for count in 1..32u8 {
            for carry in [false, true] {
                let (want, want_flags) = host(a, count, carry);
                let mut status = u64::from(carry);
                let got = S::run(a, u32::from(count), &mut status);
                let mask = if count == 1 { flags | OF } else { flags };
                assert_eq!(got, want, "{a:x} by {count}, carry {carry}");
                assert_eq!(status & mask, want_flags & mask, "flags: {a:x} by {count}");
            }
        }
    }
}

#[test]
fn shifts_are_the_hosts() {
    check::<Shl>(host_shl, CF | ZF | SF | PF);
    check::<Shr>(host_shr, CF | ZF | SF | PF);
    check::<Sar>(host_sar, CF | ZF | SF | PF);
    check::<Rol>(host_rol, CF);
    check::<Ror>(host_ror, CF);
    check::<Rcl>(host_rcl, CF);
    check::<Rcr>(host_rcr, CF);
}
