//! A page that KVM writes while the vCPU runs, and so may the guest: all access is volatile.
#![allow(unsafe_code)]

/// Bytes of a page.
const SIZE: usize = 4096;

/// The page.
pub struct Page {
    bytes: *mut u8,
}

// SAFETY: `Page` is the only one in this process that touches the page, through `&mut self` or
// volatile reads.
unsafe impl Send for Page {}

/// What is read and written in one access.
pub trait Word: Copy {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl Page {
    /// # Safety
    /// `bytes` is the start of 4096 mapped, writable bytes, aligned to 4096, that stay mapped as long
    /// as the result is in use.
    pub unsafe fn new(bytes: *mut u8) -> Self {
        Self { bytes }
    }

    pub fn get<T: Word>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= SIZE && at.is_multiple_of(size_of::<T>()));
        // SAFETY: inside the page, by the assertion, and aligned.
        unsafe { self.bytes.add(at).cast::<T>().read_volatile() }
    }

    pub fn put<T: Word>(&mut self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= SIZE && at.is_multiple_of(size_of::<T>()));
        // SAFETY: as in `get`.
        unsafe { self.bytes.add(at).cast::<T>().write_volatile(value) }
    }

    pub fn u64(&self, at: usize) -> u64 {
        self.get(at)
    }

    pub fn u32(&self, at: usize) -> u32 {
        self.get(at)
    }

    pub fn set_u64(&mut self, at: usize, value: u64) {
        self.put(at, value);
    }

    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.put(at, value);
    }
}
