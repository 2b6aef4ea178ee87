//! The self-test's guest: a loop with a bit of everything that can lead a landing astray.

use std::ops::Range;

use engine::{CpuState, DescriptorTable, Segment};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Guest-physical layout; linear addresses are the same but for `TEST`.
mod at {
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    pub const STACK: u64 = 0x5000;
    pub const STACK0: u64 = 0x6000;
    pub const USER_STACK: u64 = 0x8000;
    pub const DATA: u64 = 0x9000;
    pub const PML4: u64 = 0x10000;
    pub const PDPT: u64 = 0x11000;
    pub const PD: u64 = 0x12000;
    pub const PT: u64 = 0x13000;
    pub const CODE: u64 = 0x20000;
    pub const PAGE_FAULT: u64 = 0x21000;
    pub const UNDEFINED: u64 = 0x22000;
    pub const TIMER: u64 = 0x23000;
    pub const SYSCALL: u64 = 0x24000;
    pub const SOFTWARE: u64 = 0x25000;
    pub const USER: u64 = 0x26000;
    pub const BREAKPOINT: u64 = 0x27000;
    pub const SAVED: u64 = 0xf000;
    /// A linear address of 1 MiB, backed by `BACKING` when the page fault's handler says so.
    pub const TEST: u64 = 0x10_0000;
    pub const BACKING: u64 = 0xe000;
    pub const END: u64 = 0x3_0000;
}

/// Where the guest writes: stacks, data, page tables.
pub(super) const CHANGED: Range<u64> = at::TSS..at::CODE;

/// The external interrupt's vector.
pub(super) const TIMER_VECTOR: u8 = 0x20;
/// The port of the exits.
pub(super) const PORT: u16 = 0x80;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;

const CODE64: u16 = 0x08;
const DATA: u16 = 0x10;
const TSS: u16 = 0x30;

/// A program with its memory and registers.
#[derive(Clone, Debug)]
pub struct Guest {
    /// RAM from guest-physical address 0 on; a multiple of 4 KiB.
    pub memory: Vec<u8>,
    pub state: CpuState,
}

impl Guest {
    /// The self-test's, with its program passed through `passes` times. It ends with HLT, interrupts
    /// off.
    pub fn for_self_test(passes: u32) -> Result<Self, IcedError> {
        Self::new(&[
            (at::CODE, main(passes)?),
            (at::PAGE_FAULT, page_fault()?),
            (at::UNDEFINED, undefined()?),
            (at::TIMER, timer()?),
            (at::SYSCALL, syscall_entry()?),
            (at::SOFTWARE, software()?),
            (at::USER, user()?),
            (at::BREAKPOINT, breakpoint()?),
        ])
    }

    /// Kernel code of one's own at `CODE`, with the handlers of the self-test.
    #[cfg(test)]
    pub(crate) fn with_main(code: Vec<u8>) -> Result<Self, IcedError> {
        let mut guest = Self::for_self_test(1)?;
        guest.put(at::CODE, &[0xf4; 0x1000]);
        guest.put(at::CODE, &code);
        Ok(guest)
    }

    #[cfg(test)]
    pub(crate) const MAIN: u64 = at::CODE;
    #[cfg(test)]
    pub(crate) const SCRATCH: u64 = at::DATA;
    #[cfg(test)]
    pub(crate) const DEMAND: u64 = at::TEST;
    #[cfg(test)]
    pub(crate) const DEMAND_ENTRY: u64 = at::PT + 8 * (at::TEST >> 12);

    fn new(code: &[(u64, Vec<u8>)]) -> Result<Self, IcedError> {
        let mut guest = Self {
            memory: vec![0; at::END as usize],
            state: registers(),
        };
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            // For SYSRET: 32-bit code (unused), data, 64-bit code.
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8900_3000_0067,
            0,
        ];
        for (i, descriptor) in gdt.iter().enumerate() {
            guest.put_u64(at::GDT + 8 * i as u64, *descriptor);
        }
        for (vector, handler, dpl) in [
            (3, at::BREAKPOINT, 3),
            (6, at::UNDEFINED, 0),
            (14, at::PAGE_FAULT, 0),
            (u64::from(TIMER_VECTOR), at::TIMER, 0),
            (0x80, at::SOFTWARE, 3),
        ] {
            guest.gate(vector, handler, dpl);
        }
        guest.put_u64(at::TSS + 4, at::STACK0);
        guest.put(at::TSS + 0x66, &0x1000u16.to_le_bytes());
        guest.put_u64(at::PML4, at::PDPT | P | W | U);
        guest.put_u64(at::PDPT, at::PD | P | W | U);
        guest.put_u64(at::PD, at::PT | P | W | U);
        for page in 0..at::END >> 12 {
            guest.put_u64(at::PT + 8 * page, page << 12 | P | W | U);
        }
        for (start, bytes) in code {
            guest.put(*start, bytes);
        }
        Ok(guest)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn gate(&mut self, vector: u64, handler: u64, dpl: u64) {
        let low = handler & 0xffff
            | u64::from(CODE64) << 16
            | (0x8e00 | dpl << 13) << 32
            | (handler >> 16 & 0xffff) << 48;
        self.put_u64(at::IDT + 16 * vector, low);
        self.put_u64(at::IDT + 16 * vector + 8, handler >> 32);
    }
}

/// 64-bit mode, CPL 0, at `CODE`, interrupts off.
fn registers() -> CpuState {
    let flat = |selector, access| Segment {
        selector,
        access,
        base: 0,
        limit: u32::MAX,
    };
    let mut s = CpuState::at_reset();
    s.segments = [flat(DATA, 0xc093); 6];
    s.segments[1] = flat(CODE64, 0xa09b);
    s.cr0 = 0x8001_0033;
    s.cr3 = at::PML4;
    s.cr4 = 0x6a0;
    // SYSCALL, long mode on and active, NX.
    s.msrs.efer = 0xd01;
    s.msrs.lstar = at::SYSCALL;
    // Kernel's selectors from 08h, SYSRET's from 18h.
    s.msrs.star = 0x0018_0008 << 32;
    // SYSCALL clears TF, IF, DF.
    s.msrs.sfmask = 0x700;
    s.gdtr = DescriptorTable {
        base: at::GDT,
        limit: 0x3f,
    };
    s.idtr = DescriptorTable {
        base: at::IDT,
        limit: 0xfff,
    };
    s.tr = Segment {
        selector: TSS,
        access: 0x8b,
        base: at::TSS,
        limit: 0x67,
    };
    s.ldtr = Segment {
        selector: 0,
        access: 0x1_0000,
        base: 0,
        limit: 0,
    };
    s.gpr = [0; 16];
    s.gpr[4] = at::STACK;
    s.rip = at::CODE;
    s
}

/// The program: branches on pseudo-random data, strings, faults, a system call; an exit now and then.
fn main(passes: u32) -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let (mut pass, mut mix, mut even, mut back, mut spin, mut silent) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    a.mov(ebp, passes)?;
    a.mov(r8d, 12345)?;
    a.sti()?;
    a.set_label(&mut pass)?;
    // Data-dependent branches.
    a.mov(ecx, 150)?;
    a.set_label(&mut mix)?;
    a.imul_3(r8d, r8d, 1_103_515_245)?;
    a.add(r8d, 12345)?;
    a.test(r8d, 0x1_0000)?;
    a.je(even)?;
    a.inc(r9)?;
    a.xor(r9, r8)?;
    a.set_label(&mut even)?;
    a.loop_(mix)?;
    // A branch to itself.
    a.mov(ecx, 9)?;
    a.set_label(&mut spin)?;
    a.loop_(spin)?;
    // Strings.
    a.cld()?;
    a.mov(edi, at::DATA as u32)?;
    a.mov(eax, r8d)?;
    a.mov(ecx, 200)?;
    a.rep().stosb()?;
    a.mov(esi, at::DATA as u32)?;
    a.mov(edi, at::DATA as u32 + 0x800)?;
    a.mov(ecx, 30)?;
    a.rep().movsq()?;
    a.mov(edi, at::DATA as u32)?;
    a.mov(ecx, 250)?;
    a.repe().scasb()?;
    a.add(r9, rcx)?;
    // Flags that are stored.
    a.pushfq()?;
    a.pop(rax)?;
    a.add(r10, rax)?;
    a.mov(eax, ss)?;
    a.mov(ss, eax)?;
    a.pushfq()?;
    a.popfq()?;
    // Faults: a page that is not there, across a string, and no instruction at all.
    a.and(qword_ptr(at::PT + 8 * (at::TEST >> 12)), 0)?;
    a.invlpg(byte_ptr(at::TEST))?;
    a.mov(edi, at::TEST as u32)?;
    a.mov(ecx, 5)?;
    a.rep().stosd()?;
    a.ud2()?;
    a.int3()?;
    a.int(0x80)?;
    // An exit.
    a.test(ebp, 7)?;
    a.jne(silent)?;
    a.mov(eax, r8d)?;
    a.out(i32::from(PORT), al)?;
    a.set_label(&mut silent)?;
    // User mode and back.
    a.lea(rax, qword_ptr(back))?;
    a.mov(qword_ptr(at::SAVED), rax)?;
    a.mov(qword_ptr(at::SAVED + 8), rsp)?;
    a.mov(ecx, at::USER as u32)?;
    a.mov(r11d, 0x202)?;
    a.cli()?;
    a.mov(rsp, at::USER_STACK)?;
    a.sysretq()?;
    a.set_label(&mut back)?;
    a.dec(ebp)?;
    a.jne(pass)?;
    a.cli()?;
    a.hlt()?;
    asm.assemble(at::CODE)
}

/// Maps the page and goes on. Handlers begin with CLD, which changes nothing here: the tests'
/// vCPU counts on it.
fn page_fault() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let mut again = a.create_label();
    a.cld()?;
    a.push(rax)?;
    a.push(rcx)?;
    a.mov(rax, at::BACKING | P | W)?;
    a.mov(qword_ptr(at::PT + 8 * (at::TEST >> 12)), rax)?;
    a.mov(ecx, 6)?;
    a.set_label(&mut again)?;
    a.inc(r12)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 8)?;
    a.iretq()?;
    asm.assemble(at::PAGE_FAULT)
}

/// Skips the two bytes of UD2. No branch: the count does not tell that it has run.
fn undefined() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    a.cld()?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()?;
    asm.assemble(at::UNDEFINED)
}

fn breakpoint() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    a.cld()?;
    a.add(r12, qword_ptr(rsp + 16))?;
    a.iretq()?;
    asm.assemble(at::BREAKPOINT)
}

fn timer() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let mut again = a.create_label();
    a.cld()?;
    a.push(rcx)?;
    // What was interrupted goes into a sum: RIP, flags.
    a.mov(rcx, qword_ptr(rsp + 8))?;
    a.add(r13, rcx)?;
    a.mov(rcx, qword_ptr(rsp + 24))?;
    a.add(r13, rcx)?;
    a.mov(ecx, 3)?;
    a.set_label(&mut again)?;
    a.inc(r14)?;
    a.loop_(again)?;
    a.pop(rcx)?;
    a.iretq()?;
    asm.assemble(at::TIMER)
}

fn software() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let mut over = a.create_label();
    a.cld()?;
    a.test(r8d, 8)?;
    a.je(over)?;
    a.inc(r15)?;
    a.set_label(&mut over)?;
    a.iretq()?;
    asm.assemble(at::SOFTWARE)
}

/// User mode: calls and branches, a software interrupt, then the system call.
fn user() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let (mut sub, mut start, mut again) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(start)?;
    a.set_label(&mut sub)?;
    a.add(rbx, 3)?;
    a.ret()?;
    a.set_label(&mut start)?;
    a.mov(edx, 11)?;
    a.set_label(&mut again)?;
    a.call(sub)?;
    a.lea(rax, qword_ptr(sub))?;
    a.call(rax)?;
    a.dec(edx)?;
    a.jne(again)?;
    a.int(0x80)?;
    a.syscall()?;
    asm.assemble(at::USER)
}

/// Back to the main program: the flags of user mode go into a sum.
fn syscall_entry() -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    a.mov(rsp, qword_ptr(at::SAVED + 8))?;
    a.add(r10, r11)?;
    a.sti()?;
    a.jmp(qword_ptr(at::SAVED))?;
    asm.assemble(at::SYSCALL)
}
