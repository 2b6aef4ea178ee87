//! Integer arithmetic whose status flags the host computes.
//!
//! The guest's ADD is the host's ADD: result and flags come from the same instruction, read by
//! PUSHF. Only instructions whose flags are all defined are used so; what the SDM leaves undefined is
//! fixed here or in the handler, and does not depend on the host's model.
#![allow(unsafe_code)]

use std::arch::asm;

use crate::flags::{AF, CF, OF};
use crate::width::Int;

/// Arithmetic on one operand width. `status` is `Cpu::status`: read where the operation takes a
/// carry, replaced by the new flags.
pub trait Arith: Int {
    fn add(self, b: Self, status: &mut u64) -> Self;
    fn adc(self, b: Self, status: &mut u64) -> Self;
    fn sub(self, b: Self, status: &mut u64) -> Self;
    fn sbb(self, b: Self, status: &mut u64) -> Self;
    /// CF is kept.
    fn inc(self, status: &mut u64) -> Self;
    /// CF is kept.
    fn dec(self, status: &mut u64) -> Self;
    fn neg(self, status: &mut u64) -> Self;
    /// SF, ZF and PF of a result; CF, OF and AF (undefined after logic) clear.
    fn logic_flags(self) -> u64;
}

macro_rules! two {
    ($name:ident, $text:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, status: &mut u64) -> Self {
            let mut a = self;
            // SAFETY: arithmetic on registers; PUSHF and POP leave the stack as it was.
            unsafe {
                asm!(
                    concat!($text, " {a", $m, "}, {b", $m, "}"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) a,
                    b = in($class) b,
                    f = lateout(reg) *status,
                );
            }
            a
        }
    };
}

macro_rules! two_carry {
    ($name:ident, $text:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, status: &mut u64) -> Self {
            let mut a = self;
            // SAFETY: arithmetic on registers; PUSHF and POP leave the stack as it was.
            unsafe {
                asm!(
                    "bt {f:e}, 0",
                    concat!($text, " {a", $m, "}, {b", $m, "}"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) a,
                    b = in($class) b,
                    f = inout(reg) *status,
                );
            }
            a
        }
    };
}

macro_rules! one {
    ($name:ident, $text:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(self, status: &mut u64) -> Self {
            let mut a = self;
            // SAFETY: arithmetic on registers; PUSHF and POP leave the stack as it was.
            unsafe {
                asm!(
                    "bt {f:e}, 0",
                    concat!($text, " {a", $m, "}"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) a,
                    f = inout(reg) *status,
                );
            }
            a
        }
    };
}

macro_rules! arith {
    ($t:ty, $class:ident, $m:literal) => {
        impl Arith for $t {
            two!(add, "add", $class, $m);
            two!(sub, "sub", $class, $m);
            two_carry!(adc, "adc", $class, $m);
            two_carry!(sbb, "sbb", $class, $m);
            one!(inc, "inc", $class, $m);
            one!(dec, "dec", $class, $m);
            one!(neg, "neg", $class, $m);

            #[inline(always)]
            fn logic_flags(self) -> u64 {
                let flags: u64;
                // SAFETY: a test of a register; PUSHF and POP leave the stack as it was.
                unsafe {
                    asm!(
                        concat!("test {a", $m, "}, {a", $m, "}"),
                        "pushfq",
                        "pop {f}",
                        a = in($class) self,
                        f = lateout(reg) flags,
                    );
                }
                flags & !AF
            }
        }
    };
}
arith!(u8, reg_byte, "");
arith!(u16, reg, ":x");
arith!(u32, reg, ":e");
arith!(u64, reg, ":r");

/// Flags of a result with CF and OF given; AF clear.
#[inline(always)]
pub fn flags_with<T: Arith>(result: T, carry: bool, overflow: bool) -> u64 {
    result.logic_flags() & !(CF | OF) | u64::from(carry) | u64::from(overflow) << 11
}

/// A binary operation of the ADD family.
pub trait Binary: 'static {
    /// The result is written (not for CMP and TEST).
    const WRITES: bool;
    fn run<T: Arith>(a: T, b: T, status: &mut u64) -> T;
}

macro_rules! binary {
    ($($name:ident, $writes:literal, |$a:ident, $b:ident, $s:ident| $e:expr;)*) => {$(
        pub struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn run<T: Arith>($a: T, $b: T, $s: &mut u64) -> T {
                $e
            }
        }
    )*};
}
binary! {
    Add, true, |a, b, s| a.add(b, s);
    Adc, true, |a, b, s| a.adc(b, s);
    Sub, true, |a, b, s| a.sub(b, s);
    Sbb, true, |a, b, s| a.sbb(b, s);
    Cmp, false, |a, b, s| a.sub(b, s);
    And, true, |a, b, s| logic(a.to_u64() & b.to_u64(), s);
    Or, true, |a, b, s| logic(a.to_u64() | b.to_u64(), s);
    Xor, true, |a, b, s| logic(a.to_u64() ^ b.to_u64(), s);
    Test, false, |a, b, s| logic(a.to_u64() & b.to_u64(), s);
}

#[inline(always)]
fn logic<T: Arith>(v: u64, status: &mut u64) -> T {
    let v = T::from_u64(v);
    *status = v.logic_flags();
    v
}

/// A unary operation.
pub trait Unary: 'static {
    fn run<T: Arith>(a: T, status: &mut u64) -> T;
}

macro_rules! unary {
    ($($name:ident, |$a:ident, $s:ident| $e:expr;)*) => {$(
        pub struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn run<T: Arith>($a: T, $s: &mut u64) -> T {
                $e
            }
        }
    )*};
}
unary! {
    Inc, |a, s| a.inc(s);
    Dec, |a, s| a.dec(s);
    Neg, |a, s| a.neg(s);
    Not, |a, _s| T::from_u64(!a.to_u64());
}

/// A shift or rotate by `count` bits, `count` masked to 5 or 6 bits and not 0.
///
/// OF is defined for counts of 1 only; for others it is given by the same formula. AF is clear after
/// shifts; rotates keep all but CF and OF.
pub trait Shift: 'static {
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T;
}

pub struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        // 128 bits: a carry out of 64-bit operands, and counts above 8 and 16 bits.
        let wide = u128::from(a.to_u64()) << count;
        let result = T::from_u64(wide as u64);
        let carry = wide >> T::BITS & 1 != 0;
        let sign = result.to_u64() & T::SIGN != 0;
        *status = flags_with(result, carry, carry != sign);
        result
    }
}

pub struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        let v = a.to_u64();
        let before = v >> (count - 1);
        let result = T::from_u64(before >> 1);
        *status = flags_with(result, before & 1 != 0, v & T::SIGN != 0);
        result
    }
}

pub struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        let before = a.to_i64() >> (count - 1);
        let result = T::from_u64((before >> 1) as u64);
        *status = flags_with(result, before & 1 != 0, false);
        result
    }
}

#[inline(always)]
fn rotate_flags(status: &mut u64, carry: bool, overflow: bool) {
    *status = *status & !(CF | OF) | u64::from(carry) | u64::from(overflow) << 11;
}

fn top_two_differ<T: Int>(v: u64) -> bool {
    (v & T::SIGN != 0) != (v & T::SIGN >> 1 != 0)
}

pub struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        let n = count % T::BITS;
        let v = u128::from(a.to_u64());
        let result = T::from_u64((v << n | v << n >> T::BITS) as u64).to_u64();
        let carry = result & 1 != 0;
        rotate_flags(status, carry, carry != (result & T::SIGN != 0));
        T::from_u64(result)
    }
}

pub struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        let n = count % T::BITS;
        let v = u128::from(a.to_u64());
        let result = T::from_u64((v >> n | v << (T::BITS - n)) as u64).to_u64();
        rotate_flags(status, result & T::SIGN != 0, top_two_differ::<T>(result));
        T::from_u64(result)
    }
}

pub struct Rcl;
impl Shift for Rcl {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            // All the way round: flags stay too.
            return a;
        }
        let bits = T::BITS + 1;
        let v = u128::from(a.to_u64()) | u128::from(*status & CF) << T::BITS;
        let wide = v << n | v >> (bits - n);
        let result = T::from_u64(wide as u64);
        let carry = wide >> T::BITS & 1 != 0;
        rotate_flags(status, carry, carry != (result.to_u64() & T::SIGN != 0));
        result
    }
}

pub struct Rcr;
impl Shift for Rcr {
    #[inline(always)]
    fn run<T: Arith>(a: T, count: u32, status: &mut u64) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            // All the way round: flags stay too.
            return a;
        }
        let bits = T::BITS + 1;
        let v = u128::from(a.to_u64()) | u128::from(*status & CF) << T::BITS;
        let wide = v >> n | v << (bits - n);
        let result = T::from_u64(wide as u64);
        let carry = wide >> T::BITS & 1 != 0;
        rotate_flags(status, carry, top_two_differ::<T>(result.to_u64()));
        result
    }
}

#[cfg(test)]
mod tests;
