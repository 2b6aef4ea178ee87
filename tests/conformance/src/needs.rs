//! What a case asks of an engine, beyond what the architecture asks of every processor.

/// What a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: every engine has to pass.
    Nothing,
    /// Positions that count instructions: the case stops at one, or looks at the count.
    Instructions,
    /// Positions between exits, whatever they count.
    Positions,
    /// What Lockstep's own processor does where the SDM leaves a choice: a TLB that is coherent with
    /// the tables, 40 bits of physical addresses, accesses outside RAM in naturally aligned pieces;
    /// and where AMD and Intel differ (SYSENTER in 64-bit code, SYSCALL in 32-bit code).
    Model,
}

/// The processor that an engine runs its guests on, for what it does not do itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// The engine's own, or AMD's.
    Any,
    /// Intel's, where the engine lets no hardware task switch through.
    Intel,
    /// QEMU's TCG: no RF, no #AC, no breakpoints of a nested guest, no unmasked SSE exceptions …
    Qemu,
    /// Bochs 2.7 with VMX.
    Bochs,
}

const INSTRUCTIONS: &[&str] = &[
    "faults: software interrupts",
    "faults: single step",
    "faults: data breakpoints",
    "events: an interrupt's frame",
    "events: HLT and wake",
    "events: window",
    "events: STI shadow",
    "events: MOV SS shadow",
    "events: interrupts between REP iterations",
    "events: from user mode",
    "events: in real mode",
    "outside: ports",
    "outside: strings over ports",
    "outside: state while a read is pending",
    "modes: real, protected, long",
    "system: the clock is a function of the position",
];

const POSITIONS: &[&str] = &[
    "positions: stop everywhere",
    "positions: stop everywhere in real mode",
    "positions: save and restore everywhere",
    "positions: not into the past",
];

const MODEL: &[&str] = &[
    "paging: reserved bits",
    "paging: accessed and dirty bits",
    "paging: edits are seen at once",
    "paging: edits of upper levels",
    "paging: changes by devices",
    "faults: triple fault",
    "outside: wide and unaligned accesses",
    "outside: faults come before reads",
    "code: the page is mapped to other code",
    "code: instructions across two pages",
    "calls: SYSRET to 32-bit code",
    "calls: SYSENTER and SYSEXIT",
    "legacy: 32-bit paging",
    "system: state round trip",
];

const NOT_ON_INTEL: &[&str] = &["segments: task switch"];

const NOT_ON_BOCHS: &[&str] = &[
    "segments: task switch",
    // RSP has changed when ENTER faults.
    "faults: state is as before the instruction",
    // The frame has no RF: the breakpoint strikes for ever.
    "faults: instruction breakpoints",
    // An exit in the middle of a stepped instruction, for a page that KVM has not mapped yet, leaves a
    // pending step behind: one #DB too many.
    "steps: over every exit",
];

const NOT_ON_QEMU: &[&str] = &[
    "paging: canonical addresses",
    "faults: frames",
    "faults: state is as before the instruction",
    "faults: interrupt stack table",
    "faults: gates",
    "faults: double faults",
    "faults: undefined and too long instructions",
    "faults: instruction breakpoints",
    "faults: alignment check",
    "floating: enabling",
    "floating: pending x87 exceptions",
    "floating: SSE exceptions",
    "segments: loads in long mode",
    "segments: limits in protected mode",
    "segments: IRET to other modes and levels",
    // With npt=0 the guest runs on for ever; with npt=1 it passes. Not understood yet.
    "segments: task switch",
    "calls: SYSCALL and SYSRET",
    "calls: SWAPGS and segment bases",
    "legacy: PAE paging",
    "modes: real mode addressing",
    "modes: control register rules",
    "code: the next instruction is overwritten",
    "code: overwritten through another mapping",
    // It forgets what it has set a nested guest's breakpoint up as: its own memory is overwritten
    // when that is taken away, and it ends with SIGSEGV at some time after.
    "exits: breakpoints survive",
];

/// What the case of this name needs.
pub fn needs(name: &str) -> Needs {
    let lists = [
        (INSTRUCTIONS, Needs::Instructions),
        (POSITIONS, Needs::Positions),
        (MODEL, Needs::Model),
    ];
    lists
        .iter()
        .find(|(list, _)| list.contains(&name))
        .map_or(Needs::Nothing, |(_, needs)| *needs)
}

/// Whether the processor does what the case of this name looks at.
pub fn does(processor: Processor, name: &str) -> bool {
    let lacks = match processor {
        Processor::Any => &[],
        Processor::Intel => NOT_ON_INTEL,
        Processor::Qemu => NOT_ON_QEMU,
        Processor::Bochs => NOT_ON_BOCHS,
    };
    !lacks.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_case() {
        let cases = crate::cases();
        let lists = [
            INSTRUCTIONS,
            POSITIONS,
            MODEL,
            NOT_ON_INTEL,
            NOT_ON_QEMU,
            NOT_ON_BOCHS,
        ];
        for name in lists.concat() {
            assert!(cases.iter().any(|case| case.name == name), "{name}");
        }
    }
}
