//! Where breakpoints do not strike, those behind are found.

use super::*;
use crate::fake::{Lateness, SoftVcpu, make};
use crate::selftest::Guest;

const PROMPT: Lateness = Lateness {
    bound: 0,
    branches: 0,
    instructions: 0,
};
const FRAME: usize = 0x80;
const BACK: usize = 0x100;

/// A vCPU at this code, with RSP at the frame behind it.
fn at(code: &[u8], frame: &[u64], back: &[u8]) -> (SoftVcpu, CpuState) {
    let mut all = vec![0x90; 0x200];
    all[..code.len()].copy_from_slice(code);
    for (i, word) in frame.iter().enumerate() {
        all[FRAME + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
    }
    all[BACK..][..back.len()].copy_from_slice(back);
    let mut guest = Guest::with_main(all).expect("it assembles");
    guest.state.gpr[RSP] = Guest::MAIN + FRAME as u64;
    let state = guest.state.clone();
    (make(&guest, PROMPT, 1).0, state)
}

fn found(vcpu: &mut SoftVcpu, state: &CpuState) -> Vec<u64> {
    let current = decode(vcpu, state, state.rip).expect("an instruction");
    successors(vcpu, state, &current).expect("known")
}

#[test]
fn an_iret_with_rf_passes_what_it_returns_to() {
    let back = Guest::MAIN + BACK as u64;
    // IRETQ; at the other end JE +2.
    for (flags, expected) in [
        (2, vec![back]),
        (2 | RFLAGS_RF, vec![back + 2, back + 4, back]),
    ] {
        let frame = [back, 8, flags, Guest::MAIN, 16];
        let (mut vcpu, state) = at(&[0x48, 0xcf], &frame, &[0x74, 0x02]);
        assert_eq!(found(&mut vcpu, &state), expected, "flags {flags:#x}");
    }
}

#[test]
fn a_chain_of_them_is_not_followed() {
    // MOV SS, EAX; over and over.
    let (mut vcpu, state) = at(&[0x8e, 0xd0].repeat(64), &[], &[]);
    let rip = state.rip;
    assert_eq!(found(&mut vcpu, &state), [rip + 4, rip + 2]);
    // An IRET whose frame leads to itself.
    let frame = [
        Guest::MAIN,
        8,
        2 | RFLAGS_RF,
        Guest::MAIN + FRAME as u64,
        16,
    ];
    let (mut vcpu, state) = at(&[0x48, 0xcf], &frame, &[]);
    assert_eq!(found(&mut vcpu, &state), [rip, rip]);
}
