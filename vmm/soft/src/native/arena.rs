//! Memory for generated code that is never writable and executable through one mapping.
//!
//! An anonymous file is mapped twice: once to write, once to run. Code is only appended.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapMut, MmapOptions};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Each piece of code begins at a multiple of this, in bytes.
const ALIGN: usize = 16;

/// An append-only area for generated code.
pub struct Arena {
    write: MmapMut,
    run: Mmap,
    used: usize,
}

impl Arena {
    /// An arena for `size` bytes of code. Memory is taken only for what is used.
    pub fn new(size: usize) -> io::Result<Self> {
        let file = File::from(memfd_create(c"ft-soft-native", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(size as u64)?;
        let mut options = MmapOptions::new();
        let options = options.len(size);
        // SAFETY: the file has no name and no other owner, so nobody else can change or truncate
        // it; the writable mapping is written only by `append`, and only past what was handed out.
        let (write, run) = unsafe { (options.map_mut(&file)?, options.map_exec(&file)?) };
        Ok(Self {
            write,
            run,
            used: 0,
        })
    }

    /// Where the next piece of code will run.
    pub fn next(&self) -> *const u8 {
        self.run.as_ptr().wrapping_add(self.used)
    }

    /// Adds a piece of code and says where it runs; `None` if there is no room left.
    pub fn append(&mut self, code: &[u8]) -> Option<*const u8> {
        let at = self.next();
        let end = self.used.checked_add(code.len())?;
        self.write.get_mut(self.used..end)?.copy_from_slice(code);
        self.used = end.next_multiple_of(ALIGN);
        Some(at)
    }
}
