//! The table, against signatures of CPUs in the field.

use super::*;

/// A CPU by the EAX of its leaf 1.
fn id(vendor: &[u8; 12], eax: u32) -> CpuId {
    let word =
        |i: usize| u32::from_le_bytes([vendor[i], vendor[i + 1], vendor[i + 2], vendor[i + 3]]);
    let leaf = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
    CpuId::from_leaves(
        &leaf(0x20, word(0), word(8), word(4)),
        &leaf(eax, 0, 1 << 31, 0),
    )
}

#[test]
fn signatures_find_their_event() {
    let intel = b"GenuineIntel";
    let amd = b"AuthenticAMD";
    let table: &[(&[u8; 12], u32, &str, u64, u64)] = &[
        (intel, 0x0001_06a5, "Intel Nehalem", 0x01c4, 100),
        (intel, 0x0003_06c3, "Intel Haswell", 0x01c4, 100),
        (
            intel,
            0x0005_0654,
            "Intel Skylake or Cascade Lake",
            0x01c4,
            100,
        ),
        (intel, 0x000a_0655, "Intel Comet Lake", 0x01c4, 100),
        (intel, 0x0006_06a6, "Intel Ice Lake", 0x11c4, 100),
        (intel, 0x0008_06f8, "Intel Sapphire Rapids", 0x11c4, 125),
        (intel, 0x0009_06a3, "Intel Alder Lake", 0x11c4, 125),
        (intel, 0x0005_06f1, "Intel Goldmont", 0x7ec4, 100),
        (amd, 0x0080_0f12, "AMD Zen 1 or 2", 0x00d1, 10_000),
        (amd, 0x00a1_0f11, "AMD Zen 3 or 4", 0x00d1, 10_000),
        (amd, 0x00b4_0f40, "AMD Zen 5", 0x00d1, 10_000),
    ];
    for (vendor, eax, name, config, skid) in table {
        let id = id(vendor, *eax);
        let cpu = Cpu::of(&id).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (cpu.name, cpu.event.config, cpu.event.skid),
            (*name, *config, *skid)
        );
        assert!(id.in_vm);
    }
}

#[test]
fn only_zen_overshoots_by_nature() {
    let zen = Cpu::of(&id(b"AuthenticAMD", 0x00a1_0f11)).expect("known");
    assert!(zen.event.unbounded);
    assert_eq!(zen.errata, [Erratum::SpecLockMap]);
    let intel = Cpu::of(&id(b"GenuineIntel", 0x0005_0654)).expect("known");
    assert!(!intel.event.unbounded);
    assert_eq!(intel.errata, [Erratum::CountsInSmm]);
}

#[test]
fn hybrid_parts_have_two_events() {
    let cpu = Cpu::of(&id(b"GenuineIntel", 0x0009_06a3)).expect("known");
    assert!(cpu.hybrid);
    assert_eq!(cpu.for_core(false).event.config, 0x11c4);
    assert_eq!(cpu.for_core(true).event.config, 0x7ec4);
    let plain = Cpu::of(&id(b"GenuineIntel", 0x0005_0654)).expect("known");
    assert_eq!(plain.for_core(true).event.config, 0x01c4);
}

#[test]
fn others_are_refused_by_name() {
    for (vendor, eax) in [
        (b"GenuineIntel", 0x0000_06f6), // Merom: before the table
        (b"AuthenticAMD", 0x0060_0f12), // family 15h
        (b"CentaurHauls", 0x0000_06f0),
    ] {
        let refused = Cpu::of(&id(vendor, eax)).expect_err("not in the table");
        assert_eq!(refused.vendor.as_bytes(), vendor);
    }
}

#[test]
fn no_model_is_listed_twice() {
    let mut all: Vec<u32> = INTEL
        .iter()
        .flat_map(|(models, ..)| models.iter().copied())
        .collect();
    let len = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), len);
}
