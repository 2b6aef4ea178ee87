//! What a kernel finds in memory and in the registers when it is entered.

use super::images::{FlatAddresses, bzimage, flat_multiboot, multiboot_elf, pvh_elf};
use super::{MIB, boot_sector, ram, spec};
use crate::boot::{BootError, BootMode, load};
use crate::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

fn bytes(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.memory()
        .read_slice(&mut bytes, GuestAddress(at))
        .unwrap();
    bytes
}

fn u32_at(ram: &GuestRam, at: u64) -> u32 {
    ram.memory().read_obj(GuestAddress(at)).unwrap()
}

fn u64_at(ram: &GuestRam, at: u64) -> u64 {
    ram.memory().read_obj(GuestAddress(at)).unwrap()
}

fn text(ram: &GuestRam, at: u64) -> String {
    let bytes = bytes(ram, at, 100);
    let end = bytes.iter().position(|b| *b == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

/// Walks the boot page tables.
fn translate(ram: &GuestRam, cr3: u64, linear: u64) -> Option<u64> {
    let mut table = cr3;
    for shift in [39, 30, 21] {
        let entry = u64_at(ram, table + (linear >> shift & 511) * 8);
        if entry & 1 == 0 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if shift == 21 {
            assert_ne!(entry & 1 << 7, 0, "a large page");
            return Some(table | linear & 0x1f_ffff);
        }
    }
    None
}

/// The descriptor that a selector names agrees with the segment register's hidden part.
fn check_gdt(ram: &GuestRam, cpu: &engine::CpuState) {
    for segment in [&cpu.segments[1], &cpu.segments[3], &cpu.tr] {
        let descriptor = u64_at(ram, cpu.gdtr.base + u64::from(segment.selector));
        let access = (descriptor >> 40) as u32 & 0xf0ff;
        assert_eq!(access, segment.access, "selector {:#x}", segment.selector);
        let mut limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        if access & 0x8000 != 0 {
            limit = limit << 12 | 0xfff;
        }
        assert_eq!(limit, segment.limit);
        assert!(segment.selector < cpu.gdtr.limit);
    }
}

#[test]
fn bzimage_by_the_64_bit_protocol() {
    let ram = ram();
    let mut spec = spec(bzimage(0x20f, 1, &[0xf4; 700]));
    spec.initrd = Some(b"initrd".repeat(1000));
    let cpu = load(&ram, &spec).unwrap();
    assert_eq!(cpu.rip, 0x100_0200);
    assert_eq!(bytes(&ram, 0x100_0000, 700), [0xf4; 700]);
    assert_eq!(
        (cpu.segments[1].selector, cpu.segments[3].selector),
        (0x10, 0x18)
    );
    assert_eq!(cpu.segments[1].access & 1 << 13, 1 << 13, "64-bit code");
    assert_eq!(cpu.msrs.efer, 0x500);
    assert_eq!(cpu.cr0 & 0x8000_0001, 0x8000_0001);
    check_gdt(&ram, &cpu);
    for linear in [
        0,
        0x1234,
        0x100_0200,
        0xffff_ffff,
        cpu.gpr[6],
        cpu.gdtr.base,
    ] {
        assert_eq!(translate(&ram, cpu.cr3, linear), Some(linear));
    }
    assert_eq!(translate(&ram, cpu.cr3, 1 << 32), None);

    let zero_page = cpu.gpr[6];
    assert_eq!(bytes(&ram, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(bytes(&ram, zero_page + 0x210, 1), [0xff]);
    assert_eq!(u32_at(&ram, zero_page + 0x214), 0x100_0000);
    let cmdline = u32_at(&ram, zero_page + 0x228);
    assert_eq!(text(&ram, u64::from(cmdline)), spec.cmdline);
    let (initrd, size) = (
        u32_at(&ram, zero_page + 0x218),
        u32_at(&ram, zero_page + 0x21c),
    );
    assert_eq!(size, 6000);
    assert_eq!(
        u64::from(initrd),
        62 * MIB + 2 * MIB - 8192,
        "as high as possible"
    );
    assert_eq!(bytes(&ram, initrd.into(), 6000), spec.initrd.unwrap());
    let entries = bytes(&ram, zero_page + 0x1e8, 1)[0];
    assert_eq!(usize::from(entries), ram.e820().len());
    for (i, entry) in ram.e820().iter().enumerate() {
        let at = zero_page + 0x2d0 + i as u64 * 20;
        assert_eq!(u64_at(&ram, at), entry.start);
        assert_eq!(u64_at(&ram, at + 8), entry.len);
        assert_eq!(u32_at(&ram, at + 16), entry.kind as u32);
    }
    // Nothing lies in what the map reserves, or in the first frame.
    assert_eq!(ram.hash_frames([0].into_iter().chain(0x9f..0x100)), 0);
}

#[test]
fn bzimage_initrd_stays_below_the_headers_limit() {
    let mut kernel = bzimage(0x20f, 1, &[0xf4; 700]);
    kernel[0x22c..0x230].copy_from_slice(&0x37f_ffffu32.to_le_bytes());
    let ram = ram();
    let mut spec = spec(kernel);
    spec.initrd = Some(vec![1; 100]);
    let cpu = load(&ram, &spec).unwrap();
    assert_eq!(u32_at(&ram, cpu.gpr[6] + 0x218), 0x37f_f000);
    // There is room between 1 MiB and the kernel too, but not for this.
    spec.initrd = Some(vec![1; 16 << 20]);
    assert!(matches!(
        load(&ram, &spec),
        Err(BootError::InitrdTooBig { .. })
    ));
}

#[test]
fn bzimage_by_the_32_bit_protocol() {
    let ram = ram();
    let cpu = load(&ram, &spec(bzimage(0x205, 0, &[0xf4; 700]))).unwrap();
    assert_eq!(cpu.rip, 0x10_0000);
    assert_eq!(bytes(&ram, 0x10_0000, 700), [0xf4; 700]);
    assert_eq!(cpu.cr0 & 0x8000_0001, 1);
    assert_eq!((cpu.cr4, cpu.msrs.efer), (0, 0));
    assert_eq!(
        (cpu.segments[1].selector, cpu.segments[3].selector),
        (0x10, 0x18)
    );
    // EBP, EDI and EBX must be zero.
    assert_eq!((cpu.gpr[3], cpu.gpr[5], cpu.gpr[7]), (0, 0, 0));
    assert_eq!(bytes(&ram, cpu.gpr[6] + 0x202, 4), b"HdrS");
    check_gdt(&ram, &cpu);
}

#[test]
fn pvh_start_info() {
    for class in [32, 64] {
        let ram = ram();
        let mut spec = spec(pvh_elf(class));
        spec.initrd = Some(vec![9; 5000]);
        let cpu = load(&ram, &spec).unwrap();
        assert_eq!(cpu.rip, 0x10_0010);
        assert_eq!(
            bytes(&ram, 0x10_0000, 101),
            [vec![0xf4; 100], vec![0]].concat()
        );
        assert_eq!(cpu.cr0 & 0x8000_0001, 1);
        assert_eq!((cpu.cr4, cpu.tr.limit, cpu.tr.access), (0, 0x67, 0x8b));
        check_gdt(&ram, &cpu);

        let info = cpu.gpr[3];
        let header: Vec<u32> = (0..4).map(|i| u32_at(&ram, info + i * 4)).collect();
        assert_eq!(header, [0x336e_c578, 1, 0, 1]);
        let (modules, cmdline) = (u64_at(&ram, info + 16), u64_at(&ram, info + 24));
        assert_eq!(u64_at(&ram, info + 32), 0, "no RSDP");
        assert_eq!(text(&ram, cmdline), spec.cmdline);
        let initrd = u64_at(&ram, modules);
        assert_eq!(u64_at(&ram, modules + 8), 5000);
        assert_eq!(bytes(&ram, initrd, 5000), [9; 5000]);
        let (map, entries) = (u64_at(&ram, info + 40), u32_at(&ram, info + 48));
        assert_eq!(entries as usize, ram.e820().len());
        for (i, entry) in ram.e820().iter().enumerate() {
            let at = map + i as u64 * 24;
            assert_eq!(u64_at(&ram, at), entry.start);
            assert_eq!(u64_at(&ram, at + 8), entry.len);
            assert_eq!(u32_at(&ram, at + 16), entry.kind as u32);
        }
    }
}

#[test]
fn multiboot_information() {
    for (kernel, entry) in [
        (multiboot_elf(32), 0x10_0004),
        (multiboot_elf(64), 0x10_0004),
        (flat_multiboot(FlatAddresses::default()), 0x10_0028),
    ] {
        let ram = ram();
        let mut spec = spec(kernel);
        spec.initrd = Some(vec![9; 5000]);
        let cpu = load(&ram, &spec).unwrap();
        assert_eq!((cpu.rip, cpu.gpr[0]), (entry, 0x2bad_b002));
        assert_eq!(cpu.cr0 & 0x8000_0001, 1);
        check_gdt(&ram, &cpu);

        let info = cpu.gpr[3];
        let field = |at| u32_at(&ram, info + at);
        assert_eq!(field(0), 0b10_0100_1101);
        assert_eq!((field(4), field(8)), (639, 63 * 1024));
        assert_eq!(text(&ram, field(16).into()), spec.cmdline);
        assert_eq!(text(&ram, field(64).into()), "Lockstep");
        assert_eq!(field(20), 1);
        let module = u64::from(field(24));
        let (start, end) = (u32_at(&ram, module), u32_at(&ram, module + 4));
        assert_eq!((start % 4096, end - start), (0, 5000));
        assert_eq!(text(&ram, u32_at(&ram, module + 8).into()), "");
        assert!(start >= 0x10_1064, "behind the BSS");
        assert_eq!(bytes(&ram, start.into(), 5000), [9; 5000]);
        let (len, map) = (field(44), u64::from(field(48)));
        assert_eq!(len as usize, ram.e820().len() * 24);
        for (i, entry) in ram.e820().iter().enumerate() {
            let at = map + i as u64 * 24;
            assert_eq!(u32_at(&ram, at), 20);
            assert_eq!(u64_at(&ram, at + 4), entry.start);
            assert_eq!(u64_at(&ram, at + 12), entry.len);
            assert_eq!(u32_at(&ram, at + 20), entry.kind as u32);
        }
    }
}

#[test]
fn flat_multiboot_addresses_are_used_and_checked() {
    let ram = ram();
    load(&ram, &spec(flat_multiboot(FlatAddresses::default()))).unwrap();
    assert_eq!(
        bytes(&ram, 0x10_0000, 9),
        [&[0x90; 8][..], &[0x02]].concat()
    );
    assert_eq!(bytes(&ram, 0x10_0063, 2), [0xf4, 0]);
    let whole = FlatAddresses {
        load_end: 0,
        bss_end: 0,
        ..FlatAddresses::default()
    };
    assert!(load(&ram, &spec(flat_multiboot(whole))).is_ok());
    let broken = [
        FlatAddresses {
            header: 0x0f_0000,
            ..FlatAddresses::default()
        },
        FlatAddresses {
            load: 0x0f_0000,
            ..FlatAddresses::default()
        },
        FlatAddresses {
            load_end: 0x0f_0000,
            ..FlatAddresses::default()
        },
        FlatAddresses {
            bss_end: 0x10_0010,
            ..FlatAddresses::default()
        },
    ];
    for addresses in broken {
        let error = load(&ram, &spec(flat_multiboot(addresses))).unwrap_err();
        assert!(matches!(error, BootError::Malformed(_)), "{error}");
    }
    let far = FlatAddresses {
        bss_end: u32::MAX,
        ..FlatAddresses::default()
    };
    let error = load(&ram, &spec(flat_multiboot(far))).unwrap_err();
    assert!(matches!(error, BootError::KernelTooBig { .. }), "{error}");
}

#[test]
fn multiboot_needs_that_nobody_knows_are_refused() {
    let mut kernel = flat_multiboot(FlatAddresses::default());
    let flags = 1u32 << 16 | 1 << 5;
    kernel[16..20].copy_from_slice(&flags.to_le_bytes());
    let sum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    kernel[20..24].copy_from_slice(&sum.to_le_bytes());
    assert!(matches!(
        load(&ram(), &spec(kernel)),
        Err(BootError::Unsupported(_))
    ));
}

#[test]
fn boot_sectors_start_in_real_mode() {
    let ram = ram();
    let mut spec = spec(boot_sector(2048));
    assert!(matches!(
        load(&ram, &spec),
        Err(BootError::WrongMode { .. })
    ));
    spec.cmdline.clear();
    let cpu = load(&ram, &spec).unwrap();
    assert_eq!(
        (cpu.rip, cpu.segments[1].base, cpu.segments[1].selector),
        (0x7c00, 0, 0)
    );
    assert_eq!(
        (cpu.cr0 & 0x8000_0001, cpu.gpr[2], cpu.gpr[4]),
        (0, 0x80, 0x7c00)
    );
    assert_eq!(bytes(&ram, 0x7c00, 2048), boot_sector(2048));
    spec.kernel = boot_sector(640 << 10);
    spec.mode = BootMode::Bootsector;
    let said = load(&ram, &spec).unwrap_err().to_string();
    assert!(said.contains("655360"), "{said}");
}
