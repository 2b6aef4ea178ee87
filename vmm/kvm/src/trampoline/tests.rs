use super::*;

/// The programs' operands and jumps, worked out again.
#[test]
fn programs_refer_to_where_they_should() {
    let program = [&VMX_ENTER[..], &VMX_LEAVE[..]].concat();
    // Displacements are from the next instruction.
    assert_eq!(7 + usize::from(program[3]), VMX_POINTER);
    assert_eq!(18 + usize::from(program[14]), VMX_POINTER);
    assert!(VMX_POINTER.is_multiple_of(8));
    assert_eq!(22 + i32::from(program[21] as i8), 0);
    assert_eq!(program[18..20], [0xe6, PORT]);
    let vmx = Trampoline::new(Kind::Vmx).expect("memory");
    assert_eq!(vmx.out() - CODE, 18);
    let back = SVM_PROGRAM.len() as i32 + i32::from(SVM_PROGRAM[6] as i8);
    assert_eq!(back, 0);
}

/// Walks the second-level tables for addresses all over.
#[test]
fn every_address_is_mapped_to_itself() {
    let t = Trampoline::new(Kind::Vmx).expect("memory");
    let entry = |table: u64, index: u64| {
        let at = (table - BASE + 8 * index) as usize;
        u64::from_le_bytes(t.pages[at..at + 8].try_into().expect("8 bytes"))
    };
    let top = (1u64 << ::engine::cpuid::PHYSICAL_BITS) - 1;
    for gpa in [
        0,
        0x1234_5678,
        BASE,
        1 << 32,
        0x7f_ffff_ffff,
        0x80_0000_0000,
        top,
    ] {
        let table = entry(EPT_PML4, gpa >> 39 & 0x1ff);
        assert_eq!(table & 0xfff, 7);
        let page = entry(table & !0xfff, gpa >> 30 & 0x1ff);
        assert_eq!(page, gpa & !0x3fff_ffff | 0xb7, "{gpa:#x}");
    }
}
