//! Kicks leave no trace: a guest that exits, faults and is interrupted is kicked at random times at
//! full speed, looked at, set to the very state that it is in, stepped; and ends as one that was left
//! alone.

use std::time::{Duration, Instant};

use engine::{Boundary, CpuState, Engine, Exit};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm::KvmEngine;
use landing::{Guest, Motion, Stepper, Stop, Subject, advance};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PASSES: u32 = 40;
const RUNS: u64 = 30;
/// Longest time between two kicks.
const MAX_MICROS: u64 = 1500;
/// The self-test's guest has a handler for it that counts in R13 and R14.
const TIMER: u8 = 0x20;
const COUNTERS: [usize; 2] = [13, 14];
const IF: u64 = 0x200;

/// What was done to the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    kicks: u32,
    restored: u32,
    passed: u32,
    interrupts: u32,
}

/// Whether all runs end alike. Without `breakpoints` it is only kicked and restored.
pub fn run(seed: u64, breakpoints: bool) -> bool {
    let begun = Instant::now();
    match test(seed, breakpoints) {
        Ok(done) => {
            let took = begun.elapsed().as_secs_f64();
            println!("ok   kicks leave no trace: {RUNS} runs, {done:?}, {took:.1} s");
            true
        }
        Err(what) => {
            println!("FAIL kicks leave no trace: {what}");
            false
        }
    }
}

fn test(seed: u64, breakpoints: bool) -> Result<Done, String> {
    let mut done = Done::default();
    let mut alone = start()?;
    let end = loop {
        if let Stop::Exit(exit) = go(&mut alone)? {
            break ended(&mut alone, exit)?;
        }
    };
    for run in 0..RUNS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed << 32 | run);
        let got =
            disturbed(&mut rng, breakpoints, &mut done).map_err(|e| format!("run {run}: {e}"))?;
        if got != end {
            return Err(format!(
                "run {run} of seed {seed}: it ended with {got:x?}, alone with {end:x?}"
            ));
        }
    }
    match (done.kicks, done.restored) {
        (0, _) | (_, 0) => Err(format!("it was not disturbed: {done:?}")),
        _ => Ok(done),
    }
}

fn disturbed(rng: &mut ChaCha8Rng, breakpoints: bool, done: &mut Done) -> Result<CpuState, String> {
    let mut vcpu = start()?;
    loop {
        let micros = rng.random_range(0..=MAX_MICROS);
        vcpu.kick_after(Duration::from_micros(micros))
            .map_err(|e| e.to_string())?;
        match go(&mut vcpu)? {
            Stop::Exit(exit) => return ended(&mut vcpu, exit),
            Stop::Kicked => done.kicks += 1,
            other => return Err(format!("stopped by {other:?}")),
        }
        match rng.random_range(0..4) {
            0 => {
                let state = Engine::state(&vcpu);
                vcpu.set_state(&state).map_err(|e| e.to_string())?;
                done.restored += 1;
            }
            1 if breakpoints => {
                for _ in 0..rng.random_range(1..20) {
                    let stop = advance(&mut vcpu, None).map_err(|e| e.to_string())?.stop;
                    if let Stop::Exit(exit) = stop {
                        return ended(&mut vcpu, exit);
                    }
                    done.passed += 1;
                }
            }
            2 if breakpoints => {
                let state = Engine::state(&vcpu);
                if state.rflags & IF != 0 && !state.interrupt_shadow {
                    Subject::inject(&mut vcpu, TIMER).map_err(|e| e.to_string())?;
                    done.interrupts += 1;
                }
            }
            _ => {}
        }
    }
}

fn go(vcpu: &mut KvmEngine) -> Result<Stop, String> {
    vcpu.go(Motion::Run, &[]).map_err(|e| e.to_string())
}

/// The state at the end, but for what interrupts count.
fn ended(vcpu: &mut KvmEngine, exit: Exit) -> Result<CpuState, String> {
    if !matches!(exit, Exit::Boundary(Boundary::Halt { .. })) {
        return Err(format!("it must not exit with {exit:?}"));
    }
    let mut state = Engine::state(vcpu);
    for register in COUNTERS {
        state.gpr[register] = 0;
    }
    Ok(state)
}

fn start() -> Result<KvmEngine, String> {
    let mut guest = Guest::for_self_test(1).map_err(|e| e.to_string())?;
    let code = program(guest.state.rip).map_err(|e| e.to_string())?;
    let at = guest.state.rip as usize;
    guest.memory[at..at + code.len()].copy_from_slice(&code);
    kvm::counted::subject(&guest).map_err(|e| e.to_string())
}

/// Intercepted instructions, branches, strings, faults, software interrupts.
fn program(at: u64) -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let (mut pass, mut spin) = (a.create_label(), a.create_label());
    a.mov(ebp, PASSES)?;
    a.sti()?;
    a.set_label(&mut pass)?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.add(r8, rbx)?;
    a.rdtsc()?;
    a.add(r9, rax)?;
    a.mov(ecx, 3000)?;
    a.set_label(&mut spin)?;
    a.imul_3(r10, r10, 13)?;
    a.add(r10, rcx)?;
    a.dec(ecx)?;
    a.jne(spin)?;
    a.mov(edi, 0x9000)?;
    a.mov(ecx, 100)?;
    a.rep().stosb()?;
    a.ud2()?;
    a.int(0x80)?;
    a.dec(ebp)?;
    a.jne(pass)?;
    a.cli()?;
    a.hlt()?;
    asm.assemble(at)
}
