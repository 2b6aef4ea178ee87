//! MOV, MOVZX, MOVSX, LEA, XCHG, CMOV and the like.

use iced_x86::Code;

use crate::cpu::Cpu;
use crate::decode::{Decoding, Ea};
use crate::ea::{Address, Flat, General, Rip};
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let handler = match d.ins.code() {
        Code::Mov_r64_rm64 => load::<u64>(d),
        _ => return None,
    };
    Some(handler)
}

fn load<T: Int>(d: &mut Decoding) -> Handler {
    d.op.dst = d.reg(0);
    if d.is_register(1) {
        d.op.src = d.reg(1);
        return mov_r_r::<T>;
    }
    match d.ea {
        Ea::Flat => mov_r_m::<T, Flat>,
        Ea::Rip => mov_r_m::<T, Rip>,
        Ea::General => mov_r_m::<T, General>,
    }
}

fn mov_r_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = T::get(&cpu.gpr, op.src);
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn mov_r_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?;
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}
