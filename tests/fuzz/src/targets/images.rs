//! Small kernels of every kind that the loader takes.

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

pub fn bootsector(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 512];
    let len = code.len().min(510);
    put(&mut image, 0, &code[..len]);
    put(&mut image, 510, &[0x55, 0xaa]);
    image
}

/// A bzImage of protocol 2.15, which `packed` may be the content of.
pub fn bzimage(code: &[u8], payload: Option<(u32, u32)>) -> Vec<u8> {
    let mut image = vec![0; 1024];
    put(&mut image, 0, b"MZ");
    put(&mut image, 0x1f1, &[1]);
    put(
        &mut image,
        0x1f4,
        &(code.len().div_ceil(16) as u32).to_le_bytes(),
    );
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x20_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x20_0000u32.to_le_bytes());
    if let Some((at, len)) = payload {
        put(&mut image, 0x248, &at.to_le_bytes());
        put(&mut image, 0x24c, &len.to_le_bytes());
    }
    image.extend(code);
    image
}

/// A bzImage around an ELF in an LZ4 legacy frame of one block of literals.
pub fn packed(kernel: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    block.extend(vec![255; (kernel.len() - 15) / 255]);
    block.push(((kernel.len() - 15) % 255) as u8);
    block.extend(kernel);
    let mut payload = 0x184c_2102u32.to_le_bytes().to_vec();
    payload.extend((block.len() as u32).to_le_bytes());
    payload.extend(block);
    payload.extend((kernel.len() as u32).to_le_bytes());
    let code = [&[0xf4; 32][..], &payload].concat();
    bzimage(&code, Some((32, payload.len() as u32)))
}

/// An ELF file of class 32 or 64 with `code` at 1 MiB, entered there, and a PVH note.
pub fn elf(class: u8, code: &[u8]) -> Vec<u8> {
    let (word, header, entry) = if class == 64 {
        (8, 64, 56)
    } else {
        (4, 52, 32)
    };
    let at: u64 = 0x10_0000;
    let mut note = Vec::new();
    for part in [4u32, word as u32, 18] {
        note.extend(part.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(&at.to_le_bytes()[..word]);
    let note_at = header + 2 * entry;
    let code_at = note_at + note.len();
    let mut image = b"\x7fELF".to_vec();
    image.extend([class / 32, 1, 1]);
    image.resize(16, 0);
    image.extend(2u16.to_le_bytes());
    image.extend((if class == 64 { 62u16 } else { 3 }).to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for part in [at, header as u64, 0] {
        image.extend(&part.to_le_bytes()[..word]);
    }
    image.extend(0u32.to_le_bytes());
    for half in [header, entry, 2, 0, 0, 0] {
        image.extend((half as u16).to_le_bytes());
    }
    for (kind, offset, addr, len, memory) in [
        (4u32, note_at, 0, note.len(), 0),
        (1, code_at, at, code.len(), code.len() + 0x1000),
    ] {
        let words = [offset as u64, addr, addr, len as u64, memory as u64];
        let words = words
            .iter()
            .flat_map(|part| part.to_le_bytes()[..word].to_vec());
        image.extend(kind.to_le_bytes());
        if class == 64 {
            image.extend(7u32.to_le_bytes());
        }
        image.extend(words);
        if class == 32 {
            image.extend(7u32.to_le_bytes());
        }
        image.extend(&4u64.to_le_bytes()[..word]);
    }
    image.extend(note);
    image.extend(code);
    image
}

/// A Multiboot header with its checksum and address fields.
pub fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, sum];
    words
        .iter()
        .chain(fields)
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// A flat Multiboot kernel at 1 MiB.
pub fn flat_multiboot() -> Vec<u8> {
    let base = 0x10_0000;
    let mut image = multiboot_header(1 << 16, &[base, base, base + 100, base + 0x2000, base + 32]);
    image.resize(100, 0xf4);
    image
}
