//! Small guests that show whether code runs, traps and stops as the engine needs it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    Boundary, ClockBase, CpuState, DescriptorTable, Engine, EngineError, Entry, Exit, Segment,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Check, Outcome};
use crate::KvmEngine;

/// Name of the check that gives the speed.
pub const SPEED: &str = "kvm speed";

const RAM: u64 = 0x20_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const HANDLER: u64 = 0x6000;
const STACK: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
/// The interrupt used.
const VECTOR: u64 = 0x20;
/// Where guests report to.
const PORT: u16 = 0x10;
/// How long a guest may run without an exit.
const LIMIT: Duration = Duration::from_secs(2);

/// Iterations of the loop that is timed, and exits.
const LOOPS: u32 = 2_000_000;
const EXITS: u32 = 500;

type Try = Result<String, String>;
type Named = (&'static str, fn() -> Try);

pub fn checks() -> Vec<Check> {
    let tries: [Named; 5] = [
        ("kvm code and SSE", code),
        ("kvm RDTSC", rdtsc),
        ("kvm interrupts", interrupts),
        ("kvm kick", kick),
        (SPEED, speed),
    ];
    let mut checks = Vec::new();
    for (name, run) in tries {
        let check = match run() {
            Ok(detail) => Check::new(name, Outcome::Ok, detail),
            Err(detail) => Check::new(name, Outcome::Fail, detail)
                .fix("use engine = \"soft\" here; look into the kernel's log for KVM's own words"),
        };
        let failed = check.result == Outcome::Fail;
        checks.push(check);
        if failed {
            break;
        }
    }
    checks
}

/// A guest in 64-bit mode at the privilege level, IOPL 3, about to run `code`.
struct Guest {
    engine: KvmEngine,
}

fn words(e: EngineError) -> String {
    e.to_string()
}

impl Guest {
    fn new(cpl: u8, code: &[u8]) -> Result<Self, String> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM as usize)])
            .map_err(|e| format!("no memory for a guest: {e}"))?;
        let write = |at: u64, bytes: &[u8]| {
            memory
                .write_slice(bytes, GuestAddress(at))
                .map_err(|e| format!("the guest's memory: {e}"))
        };
        // Everything accessible to CPL 3.
        write(PML4, &(PDPT | 7).to_le_bytes())?;
        write(PDPT, &(PD | 7).to_le_bytes())?;
        write(PD, &0x87u64.to_le_bytes())?;
        write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes())?;
        write(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes())?;
        let gate = HANDLER | 8 << 16 | 0x8e00 << 32;
        write(IDT + 16 * VECTOR, &gate.to_le_bytes())?;
        // INC R15; IRETQ.
        write(HANDLER, &[0x49, 0xff, 0xc7, 0x48, 0xcf])?;
        write(CODE, code)?;
        let mut engine = KvmEngine::new(&Arc::new(memory)).map_err(words)?;
        engine.set_state(&state(cpl)).map_err(words)?;
        engine.set_stretch_limit(Some(LIMIT));
        Ok(Self { engine })
    }

    fn run(&mut self) -> Result<Exit, String> {
        self.engine.run(None, Entry::Resume).map_err(words)
    }

    /// Runs to a write to `PORT`, and gives what was written.
    fn report(&mut self) -> Result<u32, String> {
        match self.run()? {
            Exit::Boundary(Boundary::IoWrite {
                port: PORT, value, ..
            }) => Ok(value),
            Exit::Adrift => Err(format!(
                "a guest of a few instructions did not end within {} s",
                LIMIT.as_secs()
            )),
            other => Err(format!("a port write was due, {other:?} came")),
        }
    }

    fn expect(&mut self, want: Boundary) -> Result<(), String> {
        match self.run()? {
            Exit::Boundary(got) if got == want => Ok(()),
            other => Err(format!("{want:?} was due, {other:?} came")),
        }
    }
}

fn state(cpl: u8) -> CpuState {
    let dpl = u32::from(cpl) << 5;
    let flat = |access: u32| Segment {
        selector: u16::from(cpl),
        access: access | dpl,
        base: 0,
        limit: u32::MAX,
    };
    let mut s = CpuState::at_reset();
    s.segments = [flat(0xc093); 6];
    s.segments[1] = Segment {
        selector: 8 | u16::from(cpl),
        ..flat(0xa09b)
    };
    s.segments[2].selector |= 16;
    s.cpl = cpl;
    s.cr0 = 0x8001_0033;
    s.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT.
    s.cr4 = 0x620;
    s.msrs.efer = 0xd01;
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0xff,
    };
    s.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    s.rflags = 0x3002;
    s.rip = CODE;
    s.gpr[4] = STACK;
    s
}

/// MOV ECX, n; PXOR XMM0, XMM0; PADDD XMM0, XMM0 … in a loop; OUT 10h, EAX with the sum.
fn loop_of(n: u32) -> Vec<u8> {
    let mut code = vec![0x31, 0xc0, 0xb9];
    code.extend(n.to_le_bytes());
    // again: MOVD XMM0, ECX; PADDD XMM0, XMM0; MOVD EDX, XMM0; ADD EAX, EDX; DEC ECX; JNZ again
    code.extend([0x66, 0x0f, 0x6e, 0xc1, 0x66, 0x0f, 0xfe, 0xc0]);
    code.extend([0x66, 0x0f, 0x7e, 0xc2, 0x01, 0xd0, 0xff, 0xc9, 0x75, 0xee]);
    code.extend([0xe7, 0x10, 0xf4]);
    code
}

fn code() -> Try {
    for cpl in [0, 3] {
        let mut guest = Guest::new(cpl, &loop_of(1000))?;
        let sum = guest.report()?;
        // Twice the sum of 1 to 1000.
        if sum != 1_001_000 {
            return Err(format!(
                "at CPL {cpl} a loop with SSE computed {sum}, not 1001000"
            ));
        }
    }
    let mut guest = Guest::new(0, &[0xf4])?;
    guest.expect(Boundary::Halt {
        interrupts_enabled: false,
    })?;
    Ok("integer and SSE code ran at CPL 0 and 3; port writes and HLT exit".to_owned())
}

fn rdtsc() -> Try {
    const CLOCK: u64 = 0x1234_5678_9abc;
    // RDTSC; OUT 10h, EAX; MOV EAX, EDX; OUT 10h, EAX.
    let code = [0x0f, 0x31, 0xe7, 0x10, 0x89, 0xd0, 0xe7, 0x10];
    for cpl in [0, 3] {
        let mut guest = Guest::new(cpl, &code)?;
        guest.engine.set_clock(ClockBase {
            at_count: 0,
            ns: CLOCK,
            ns_per_count: 1,
        });
        let low = guest.report()?;
        let high = guest.report()?;
        let got = u64::from(high) << 32 | u64::from(low);
        if got != CLOCK {
            return Err(format!(
                "at CPL {cpl} RDTSC gave {got:#x}, not the {CLOCK:#x} that it was answered with"
            ));
        }
    }
    Ok("trapped at CPL 0 and 3, the guest got the answered value".to_owned())
}

fn interrupts() -> Try {
    // OUT 10h, AL; STI; HLT; CLI; STI; NOP; OUT 10h, EAX.
    let code = [0xe6, 0x10, 0xfb, 0xf4, 0xfa, 0xfb, 0x90, 0xe7, 0x10];
    let mut guest = Guest::new(0, &code)?;
    guest.report()?;
    if guest.engine.can_interrupt() {
        return Err("an interrupt could be put in although the guest's are off".to_owned());
    }
    guest.expect(Boundary::Halt {
        interrupts_enabled: true,
    })?;
    guest.engine.inject(VECTOR as u8).map_err(words)?;
    guest.engine.request_window(true);
    guest.expect(Boundary::Window)?;
    guest.engine.request_window(false);
    guest.report()?;
    let handled = guest.engine.state().gpr[15];
    if handled != 1 {
        return Err(format!("the handler of one interrupt ran {handled} times"));
    }
    Ok("an interrupt woke the guest from HLT, and the window opened where it must".to_owned())
}

fn kick() -> Try {
    // STI; NOP; JMP to itself. (With interrupts off Bochs, which the rig for VT-x is, never looks at the
    // host's timer again.)
    let mut guest = Guest::new(0, &[0xfb, 0x90, 0xeb, 0xfe])?;
    guest
        .engine
        .set_stretch_limit(Some(Duration::from_millis(10)));
    let started = Instant::now();
    match guest.run()? {
        Exit::Adrift => Ok(format!(
            "a guest without exits was stopped after {:.1} ms (asked for: 10)",
            started.elapsed().as_secs_f64() * 1e3
        )),
        other => Err(format!("a guest that loops for ever gave {other:?}")),
    }
}

fn speed() -> Try {
    let mut guest = Guest::new(0, &loop_of(LOOPS))?;
    let started = Instant::now();
    guest.report()?;
    let rate = f64::from(LOOPS) * 6.0 / started.elapsed().as_secs_f64() / 1e6;
    // again: OUT 10h, AL; JMP again.
    let mut guest = Guest::new(0, &[0xe6, 0x10, 0xeb, 0xfc])?;
    let started = Instant::now();
    for _ in 0..EXITS {
        guest.report()?;
    }
    let port = started.elapsed().as_secs_f64() * 1e6 / f64::from(EXITS);
    // MOV ECX, 500; again: RDTSC; DEC ECX; JNZ again; OUT 10h, AL.
    let mut code = vec![0xb9];
    code.extend(EXITS.to_le_bytes());
    code.extend([0x0f, 0x31, 0xff, 0xc9, 0x75, 0xfa, 0xe6, 0x10]);
    let mut guest = Guest::new(0, &code)?;
    let started = Instant::now();
    guest.report()?;
    let rdtsc = started.elapsed().as_secs_f64() * 1e6 / f64::from(EXITS);
    Ok(format!(
        "{rate:.0} million instructions/s, {port:.1} us a port write, {rdtsc:.1} us an RDTSC"
    ))
}
