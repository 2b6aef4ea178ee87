//! Landing and settling in random programs, against the truth of the software CPU.

use std::collections::HashMap;

use engine::Boundary;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use proptest::prelude::*;

use super::*;
use crate::fake::{Lateness, SoftCounter, SoftVcpu, make};
use crate::selftest::{Guest, Subject};
use crate::settle::{Settled, settle};

/// A piece of a program.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Mix(u8),
    LoopHere(u8),
    Store(u8),
    Move(u8),
    Scan(u8),
    Demand(u8),
    Flags,
    StackSegment,
    Undefined,
    Software,
    Debugger,
    Out,
    Calls(u8),
    Inner(u8),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        3 => (1..20u8).prop_map(Piece::Mix),
        1 => (1..30u8).prop_map(Piece::LoopHere),
        1 => (0..100u8).prop_map(Piece::Store),
        1 => (0..30u8).prop_map(Piece::Move),
        1 => (0..100u8).prop_map(Piece::Scan),
        1 => (1..9u8).prop_map(Piece::Demand),
        1 => Just(Piece::Flags),
        1 => Just(Piece::StackSegment),
        1 => Just(Piece::Undefined),
        1 => Just(Piece::Software),
        1 => Just(Piece::Debugger),
        1 => Just(Piece::Out),
        1 => (1..4u8).prop_map(Piece::Calls),
        1 => (1..6u8).prop_map(Piece::Inner),
    ]
}

fn emit(a: &mut CodeAssembler, piece: Piece) -> Result<(), IcedError> {
    let data = Guest::SCRATCH as u32;
    let mut again = a.create_label();
    let mut over = a.create_label();
    match piece {
        Piece::Mix(n) => {
            a.mov(ecx, u32::from(n))?;
            a.set_label(&mut again)?;
            a.imul_3(r8d, r8d, 1_103_515_245)?;
            a.add(r8d, 12345)?;
            a.test(r8d, 0x2_0000)?;
            a.je(over)?;
            a.add(r9, r8)?;
            a.set_label(&mut over)?;
            a.loop_(again)?;
        }
        Piece::LoopHere(n) => {
            a.mov(ecx, u32::from(n))?;
            a.set_label(&mut again)?;
            a.loop_(again)?;
        }
        Piece::Store(n) => {
            a.mov(edi, data)?;
            a.mov(eax, r8d)?;
            a.mov(ecx, u32::from(n))?;
            a.rep().stosb()?;
        }
        Piece::Move(n) => {
            a.mov(esi, data)?;
            a.mov(edi, data + 0x400)?;
            a.mov(ecx, u32::from(n))?;
            a.rep().movsq()?;
        }
        Piece::Scan(n) => {
            a.mov(edi, data)?;
            a.mov(ecx, u32::from(n))?;
            a.repe().scasb()?;
            a.add(r9, rcx)?;
        }
        Piece::Demand(n) => {
            a.and(qword_ptr(Guest::DEMAND_ENTRY), 0)?;
            a.invlpg(byte_ptr(Guest::DEMAND))?;
            a.mov(edi, Guest::DEMAND as u32)?;
            a.mov(ecx, u32::from(n))?;
            a.test(r8d, 0x4000)?;
            a.je(over)?;
            a.set_label(&mut over)?;
            a.rep().stosd()?;
        }
        Piece::Flags => {
            a.pushfq()?;
            a.pop(rax)?;
            a.add(r10, rax)?;
            a.pushfq()?;
            a.popfq()?;
        }
        Piece::StackSegment => {
            a.mov(eax, ss)?;
            a.mov(ss, eax)?;
            a.inc(r11)?;
        }
        Piece::Undefined => a.ud2()?,
        Piece::Software => a.int(0x80)?,
        Piece::Debugger => a.int3()?,
        Piece::Out => a.out(0x80, al)?,
        Piece::Calls(n) => {
            a.jmp(over)?;
            a.set_label(&mut again)?;
            a.inc(rbx)?;
            a.ret()?;
            a.set_label(&mut over)?;
            for _ in 0..n {
                a.call(again)?;
                a.lea(rax, qword_ptr(again))?;
                a.call(rax)?;
            }
        }
        Piece::Inner(n) => {
            a.mov(edx, u32::from(n))?;
            a.set_label(&mut again)?;
            a.mov(edi, data)?;
            a.mov(ecx, 3)?;
            a.rep().stosb()?;
            a.dec(edx)?;
            a.jne(again)?;
        }
    }
    Ok(())
}

fn program(pieces: &[Piece], passes: u8) -> Guest {
    let code = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut pass = a.create_label();
        a.mov(ebp, u32::from(passes))?;
        a.set_label(&mut pass)?;
        // A handler of one's own may end in the middle: no interrupts come here.
        for piece in pieces {
            emit(&mut a, *piece)?;
        }
        a.dec(ebp)?;
        a.jne(pass)?;
        a.hlt()?;
        a.assemble(Guest::MAIN)
    };
    let code = code().expect("a program");
    assert!(code.len() < 0x1000, "the program fits its page");
    Guest::with_main(code).expect("a guest")
}

/// An instant of the true run.
#[derive(Clone, Copy, Debug)]
struct Instant {
    /// Instructions and exceptions until then.
    steps: usize,
    position: Position,
    instructions: u64,
    /// The first one with its position.
    first: bool,
    /// The first one with its count.
    fresh: bool,
    /// In the middle of a string instruction.
    within: bool,
    /// No breakpoint strikes here.
    hidden: bool,
}

const PUNCTUAL: Lateness = Lateness {
    bound: 0,
    branches: 0,
    instructions: 0,
};

/// The guest's whole run, instant by instant.
fn trace(guest: &Guest) -> Vec<Instant> {
    let (mut vcpu, _) = make(guest, PUNCTUAL, 0);
    let mut seen = HashMap::new();
    let mut all: Vec<Instant> = Vec::new();
    loop {
        let place = vcpu.place().expect("a place");
        let position = Position::new(vcpu.branches(), place.rip, place.rcx);
        let last = all.last().map(|last| last.position);
        let same_rip = last.is_some_and(|last| last.rip == place.rip);
        all.push(Instant {
            steps: all.len(),
            position,
            instructions: vcpu.instructions(),
            first: seen.insert(position, ()).is_none(),
            fresh: last.is_none_or(|last| last.count < position.count),
            within: same_rip && last.is_some_and(|last| last.count == position.count),
            hidden: vcpu.is_hidden(),
        });
        if let Some(Exit::Boundary(Boundary::Halt { .. })) = vcpu.truth() {
            return all;
        }
        assert!(all.len() < 1_000_000, "the program ends");
    }
}

/// Lands, and goes on over exits and kicks.
fn arrive(
    vcpu: &mut SoftVcpu,
    counter: &mut SoftCounter,
    target: &Position,
) -> Result<Landing, LandError> {
    for _ in 0..1_000_000 {
        match land(vcpu, counter, target)? {
            Landing::Kicked | Landing::Exit(Exit::Boundary(Boundary::IoWrite { .. })) => {}
            end => return Ok(end),
        }
    }
    panic!("a landing that never ends");
}

/// Registers and memory after so many steps.
fn truth_at(guest: &Guest, steps: usize) -> (u64, u64) {
    let (mut vcpu, _) = make(guest, PUNCTUAL, 0);
    for _ in 0..steps {
        vcpu.truth();
    }
    looks(&mut vcpu)
}

fn looks(vcpu: &mut SoftVcpu) -> (u64, u64) {
    (vcpu.state().expect("a state").hash(), vcpu.memory_hash())
}

/// All of one kind of instants, or those at which `pick` points.
fn picked(all: &[Instant], pick: u32, fits: impl Fn(&Instant) -> bool) -> Option<Instant> {
    let fitting: Vec<_> = all.iter().filter(|i| fits(i)).collect();
    (!fitting.is_empty()).then(|| *fitting[pick as usize % fitting.len()])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// A failure prints the program; PROPTEST_RNG_SEED and the regression file repeat it.
    #[test]
    fn lands_exactly_whatever_the_skid(
        pieces in prop::collection::vec(piece(), 1..12),
        passes in 1..6u8,
        bound in 0..120u64,
        late in 0..120u64,
        instructions in 0..6u64,
        picks in prop::collection::vec(any::<u32>(), 3),
        seed in any::<u64>(),
    ) {
        let guest = program(&pieces, passes);
        let all = trace(&guest);
        // Instructions after the kick may be branches.
        let lateness = Lateness { bound, branches: late.min(bound), instructions };
        let lateness = Lateness {
            branches: lateness.branches.saturating_sub(instructions),
            instructions: instructions.min(bound),
            ..lateness
        };
        for pick in picks {
            let fits = |i: &Instant| i.first && !i.within && !i.hidden;
            let Some(target) = picked(&all, pick, fits) else { continue };
            let (mut vcpu, mut counter) = make(&guest, lateness, seed);
            let landing = arrive(&mut vcpu, &mut counter, &target.position)
                .unwrap_or_else(|e| panic!("{target:?}: {e}"));
            prop_assert_eq!(landing, Landing::Landed);
            prop_assert_eq!(vcpu.instructions(), target.instructions, "{:?}", target);
            prop_assert_eq!(looks(&mut vcpu), truth_at(&guest, target.steps));
        }
    }

    #[test]
    fn a_kick_that_is_too_late_never_lands_elsewhere(
        pieces in prop::collection::vec(piece(), 1..12),
        passes in 1..6u8,
        bound in 0..20u64,
        late in 20..300u64,
        pick in any::<u32>(),
        seed in any::<u64>(),
    ) {
        let guest = program(&pieces, passes);
        let all = trace(&guest);
        let lateness = Lateness { bound, branches: late, instructions: 3 };
        let target = picked(&all, pick, |i| i.first && !i.within && !i.hidden);
        let target = target.expect("the first instant");
        let (mut vcpu, mut counter) = make(&guest, lateness, seed);
        match arrive(&mut vcpu, &mut counter, &target.position) {
            Ok(Landing::Landed) => {
                prop_assert_eq!(vcpu.instructions(), target.instructions);
                prop_assert_eq!(looks(&mut vcpu), truth_at(&guest, target.steps));
            }
            Err(LandError::Overshot { count, .. }) => {
                prop_assert!(count > target.position.count);
            }
            // Past it without another branch, and the program is at its end.
            Ok(Landing::Exit(Exit::Boundary(Boundary::Halt { .. }))) => {
                prop_assert!(vcpu.instructions() > target.instructions);
                prop_assert_eq!(vcpu.branches(), target.position.count);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn settles_at_the_first_instant_of_a_count(
        pieces in prop::collection::vec(piece(), 1..12),
        passes in 1..6u8,
        micros in prop::collection::vec(0..60u64, 1..8),
        seed in any::<u64>(),
    ) {
        let guest = program(&pieces, passes);
        let all = trace(&guest);
        let lateness = Lateness { bound: 50, branches: 40, instructions: 3 };
        let (mut vcpu, mut counter) = make(&guest, lateness, seed);
        let mut log = Vec::new();
        for time in micros {
            vcpu.kick_after(std::time::Duration::from_micros(time)).expect("a kick");
            if let Stop::Exit(_) = vcpu.go(Motion::Run, &[]).expect("a run") {
                continue;
            }
            match settle(&mut vcpu, &mut counter).expect("a position") {
                Settled::At(position) => {
                    let n = vcpu.instructions();
                    let instant = all.iter().find(|i| i.fresh && i.position == position);
                    let instant = instant.expect("the first of its count");
                    prop_assert_eq!(instant.instructions, n);
                    prop_assert_eq!(looks(&mut vcpu), truth_at(&guest, instant.steps));
                    log.push((position, n));
                }
                Settled::Exit(_) => {}
                Settled::Nowhere => prop_assert!(false, "there are branches"),
            }
        }
        // A second vCPU goes from one to the next.
        let (mut vcpu, mut counter) = make(&guest, lateness, seed ^ 1);
        for (position, n) in log {
            let landing = arrive(&mut vcpu, &mut counter, &position).expect("a landing");
            prop_assert_eq!(landing, Landing::Landed);
            prop_assert_eq!(vcpu.instructions(), n);
        }
    }

    #[test]
    fn lands_in_the_middle_of_a_string(
        pieces in prop::collection::vec(
            prop_oneof![(2..100u8).prop_map(Piece::Store), (2..30u8).prop_map(Piece::Move),
                (2..100u8).prop_map(Piece::Scan), (1..9u8).prop_map(Piece::Mix)], 1..8),
        pick in any::<u32>(),
        seed in any::<u64>(),
    ) {
        let guest = program(&pieces, 3);
        let all = trace(&guest);
        let lateness = Lateness { bound: 8, branches: 6, instructions: 2 };
        if let Some(target) = picked(&all, pick, |i| i.first && i.within) {
            let (mut vcpu, mut counter) = make(&guest, lateness, seed);
            let landing = arrive(&mut vcpu, &mut counter, &target.position).expect("a landing");
            prop_assert_eq!(landing, Landing::Landed);
            prop_assert_eq!(vcpu.instructions(), target.instructions);
            prop_assert_eq!(looks(&mut vcpu), truth_at(&guest, target.steps));
        }
    }
}

/// A guest whose program is `code`.
fn guest(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let assembled = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        code(&mut a)?;
        a.assemble(Guest::MAIN)
    };
    Guest::with_main(assembled().expect("a program")).expect("a guest")
}

const LATE: Lateness = Lateness {
    bound: 50,
    branches: 40,
    instructions: 5,
};

/// Kicks the vCPU after `micros` and settles it.
fn kicked(vcpu: &mut SoftVcpu, counter: &mut SoftCounter, micros: u64) -> Settled {
    let time = std::time::Duration::from_micros(micros);
    vcpu.kick_after(time).expect("a kick");
    assert_eq!(vcpu.go(Motion::Run, &[]).expect("a run"), Stop::Kicked);
    settle(vcpu, counter).expect("settled or not")
}

#[test]
fn an_endless_jump_is_a_position() {
    let guest = guest(|a| {
        let mut here = a.create_label();
        let mut again = a.create_label();
        a.sti()?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.loop_(again)?;
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    let (mut vcpu, mut counter) = make(&guest, LATE, 1);
    let Settled::At(position) = kicked(&mut vcpu, &mut counter, 1000) else {
        panic!("not settled");
    };
    assert_eq!((position.count, position.rcx), (1000, 0));
    vcpu.inject(0x20).expect("interrupts are on");
    // The handler has three branches.
    let Settled::At(second) = kicked(&mut vcpu, &mut counter, 1000) else {
        panic!("not settled");
    };
    assert_eq!((second.count, second.rip), (1003, position.rip));
    let (mut replay, mut counter) = make(&guest, LATE, 2);
    let landing = arrive(&mut replay, &mut counter, &position).expect("a landing");
    assert_eq!(landing, Landing::Landed);
    replay.inject(0x20).expect("interrupts are on");
    let landing = arrive(&mut replay, &mut counter, &second).expect("a landing");
    assert_eq!(landing, Landing::Landed);
    let same = |vcpu: &mut SoftVcpu| {
        let mut state = vcpu.state().expect("a state");
        state.count = 0;
        (state.hash(), vcpu.memory_hash())
    };
    assert_eq!(same(&mut vcpu), same(&mut replay));
    // A log that is not this guest's.
    let wrong = Position::new(1003, Guest::MAIN, 0);
    assert!(matches!(
        arrive(&mut replay, &mut counter, &wrong),
        Err(LandError::Stuck { .. })
    ));
}

#[test]
fn a_loop_without_branches_is_nowhere() {
    let guest = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(again)
    });
    let (mut vcpu, mut counter) = make(&guest, LATE, 1);
    assert_eq!(kicked(&mut vcpu, &mut counter, 100), Settled::Nowhere);
}

#[test]
fn a_position_that_is_none_is_overshot() {
    let guest = program(&[Piece::Mix(50), Piece::Store(9)], 20);
    let all = trace(&guest);
    let middle = all[all.len() / 2].position;
    for wrong in [
        Position::new(middle.count, Guest::MAIN, middle.rcx),
        Position::new(middle.count, middle.rip, u64::MAX),
    ] {
        let (mut vcpu, mut counter) = make(&guest, LATE, 3);
        let result = arrive(&mut vcpu, &mut counter, &wrong);
        assert!(
            matches!(result, Err(LandError::Overshot { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn a_single_step_would_have_been_seen() {
    // What `advance` is for: the fake's TF leaves the traces that a processor's leaves.
    let guest = guest(|a| {
        a.pushfq()?;
        a.pop(rax)?;
        a.ud2()?;
        a.hlt()
    });
    let (mut vcpu, _) = make(&guest, LATE, 1);
    assert_eq!(vcpu.go(Motion::Step, &[]).expect("a step"), Stop::Stepped);
    let top = vcpu.state().expect("a state").gpr[4];
    let mut flags = [0; 8];
    assert_eq!(vcpu.read(top, &mut flags), 8);
    assert_ne!(u64::from_le_bytes(flags) & 0x100, 0);
    // UD2 as a step: its handler runs whole, and the trap comes after the instruction behind it.
    vcpu.go(Motion::Step, &[]).expect("a step");
    let stop = vcpu.go(Motion::Step, &[]).expect("a step");
    assert!(
        matches!(stop, Stop::Exit(Exit::Boundary(Boundary::Halt { .. }))),
        "{stop:?}"
    );
}
