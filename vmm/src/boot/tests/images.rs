//! Builders of kernel images.

/// Copies bytes into an image at an offset.
fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of a protocol version with `setup_sects` real-mode sectors. From 2.10 on it wants
/// 0x100_0000 and 32 MiB of memory there; from 2.12 on it has a 64-bit entry.
pub fn bzimage(version: u16, setup_sects: u8, code: &[u8]) -> Vec<u8> {
    let sectors = if setup_sects == 0 { 4 } else { setup_sects };
    let mut image = vec![0; (usize::from(sectors) + 1) * 512];
    put(&mut image, 0, b"MZ");
    put(&mut image, 0x1f1, &[setup_sects]);
    let units = code.len().div_ceil(16) as u32;
    put(&mut image, 0x1f4, &units.to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    // A jump over the header, which ends at 0x26c.
    put(&mut image, 0x200, &[0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &version.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    if version >= 0x206 {
        put(&mut image, 0x238, &2047u32.to_le_bytes());
    }
    if version >= 0x20a {
        put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
        put(&mut image, 0x260, &0x200_0000u32.to_le_bytes());
    }
    if version >= 0x20c {
        put(&mut image, 0x236, &1u16.to_le_bytes());
    }
    image.extend(code);
    image
}

/// A program header as the builder takes it.
struct Header {
    kind: u32,
    offset: usize,
    vaddr: u64,
    paddr: u64,
    file_size: usize,
    memory_size: u64,
}

/// An ELF file of class 32 or 64 with its code at `paddr` (and 0x1000 bytes of BSS behind it), its
/// entry 4 bytes into it, and a PVH note that names `pvh_entry`. The file's last bytes are the
/// code's.
pub fn elf(class: u32, paddr: u64, code: &[u8], pvh_entry: Option<u64>) -> Vec<u8> {
    let mut note = Vec::new();
    if let Some(entry) = pvh_entry {
        // A note of somebody else's in front.
        for word in [4u32, 5, 1] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"GNU\0\x01\x02\x03\x04\x05\0\0\0");
        for word in [4, class / 8, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(&entry.to_le_bytes()[..class as usize / 8]);
    }
    let (header_len, entry_len) = if class == 64 { (64, 56) } else { (52, 32) };
    let note_at = header_len + 2 * entry_len;
    let code_at = note_at + note.len();
    let headers = [
        Header {
            kind: 4,
            offset: note_at,
            vaddr: 0,
            paddr: 0,
            file_size: note.len(),
            memory_size: 0,
        },
        Header {
            kind: 1,
            offset: code_at,
            vaddr: paddr.wrapping_add(0x4000_0000),
            paddr,
            file_size: code.len(),
            memory_size: code.len() as u64 + 0x1000,
        },
    ];
    let entry = headers[1].vaddr.wrapping_add(4);
    let mut image = b"\x7fELF".to_vec();
    image.extend([if class == 64 { 2 } else { 1 }, 1, 1]);
    image.resize(16, 0);
    let machine: u16 = if class == 64 { 62 } else { 3 };
    image.extend(2u16.to_le_bytes());
    image.extend(machine.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for word in [entry, header_len as u64, 0] {
        image.extend(&word.to_le_bytes()[..class as usize / 8]);
    }
    image.extend(0u32.to_le_bytes());
    for half in [header_len, entry_len, headers.len(), 0, 0, 0] {
        image.extend((half as u16).to_le_bytes());
    }
    for header in headers {
        push_header(&mut image, class, &header);
    }
    image.extend(note);
    image.extend(code);
    image
}

fn push_header(image: &mut Vec<u8>, class: u32, header: &Header) {
    let words = [
        header.offset as u64,
        header.vaddr,
        header.paddr,
        header.file_size as u64,
        header.memory_size,
    ];
    image.extend(header.kind.to_le_bytes());
    if class == 64 {
        image.extend(7u32.to_le_bytes());
        image.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        image.extend(4u64.to_le_bytes());
    } else {
        image.extend(words.iter().flat_map(|w| (*w as u32).to_le_bytes()));
        image.extend(7u32.to_le_bytes());
        image.extend(4u32.to_le_bytes());
    }
}

pub fn pvh_elf(class: u32) -> Vec<u8> {
    elf(class, 0x10_0000, &[0xf4; 100], Some(0x10_0010))
}

/// A Multiboot header with its checksum, and address fields if given.
fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, sum];
    words
        .iter()
        .chain(fields)
        .flat_map(|w| w.to_le_bytes())
        .collect()
}

/// An ELF whose code at 1 MiB begins with a Multiboot header.
pub fn multiboot_elf(class: u32) -> Vec<u8> {
    let mut code = multiboot_header(3, &[]);
    code.resize(100, 0xf4);
    // The header must lie at a multiple of 4 in the file.
    elf(class, 0x10_0000, &code, None)
}

/// The address fields of a flat Multiboot kernel.
pub struct FlatAddresses {
    pub header: u32,
    pub load: u32,
    pub load_end: u32,
    pub bss_end: u32,
    pub entry: u32,
}

impl Default for FlatAddresses {
    fn default() -> Self {
        Self {
            header: 0x10_0008,
            load: 0x10_0000,
            load_end: 0x10_0064,
            bss_end: 0x10_2000,
            entry: 0x10_0028,
        }
    }
}

/// A flat kernel of 100 bytes at 1 MiB, after 4 bytes that are not loaded, with its header 8 bytes
/// into it.
pub fn flat_multiboot(addresses: FlatAddresses) -> Vec<u8> {
    let FlatAddresses {
        header,
        load,
        load_end,
        bss_end,
        entry,
    } = addresses;
    let mut image = vec![0xcc; 4];
    image.extend([0x90; 8]);
    image.extend(multiboot_header(
        1 << 16,
        &[header, load, load_end, bss_end, entry],
    ));
    image.resize(104, 0xf4);
    image
}

/// A bzImage with an LZ4 legacy frame of two blocks around `kernel`, all of it literals.
pub fn packed(kernel: &[u8]) -> Vec<u8> {
    let block = |content: &[u8]| {
        // A token of 15 literals and more, the rest of their number, the literals.
        let mut bytes = vec![0xf0];
        bytes.extend(vec![255; (content.len() - 15) / 255]);
        bytes.push(((content.len() - 15) % 255) as u8);
        bytes.extend(content);
        [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat()
    };
    let (first, second) = kernel.split_at(kernel.len() / 2);
    let mut payload = 0x184c_2102u32.to_le_bytes().to_vec();
    payload.extend(block(first));
    payload.extend(block(second));
    payload.extend((kernel.len() as u32).to_le_bytes());
    let code = [&[0xf4; 32][..], &payload].concat();
    let mut image = bzimage(0x20f, 1, &code);
    put(&mut image, 0x248, &32u32.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    image
}
