//! Closing a stretch of execution that no position names, and taking one over.
//!
//! An engine whose positions are exits may stop its vCPU between two of them ([`Stop::Adrift`]).
//! What has become of the guest since the last position is then its state plus the memory that it
//! wrote; with the count one higher that is a position again. The primary sets its own vCPU to
//! that state as well, so that both replicas go on from the same in every detail. Devices have no
//! part in it, but for the interrupt controller: interrupts may have entered on the way.
//!
//! [`Stop::Adrift`]: super::Stop::Adrift

use bytes::Bytes;
use engine::{CpuState, EngineError};
use ftlog::stretch::{BLOCK_PAGES_MAX, PAGE_BYTES};
use ftlog::{BadPages, CountUnit, Entry, PageBlock, Position};
use vm_memory::{Bytes as _, GuestAddress};

use super::{Machine, MachineError};

/// Bytes of an FXSAVE image.
const FXSAVE: usize = 512;

/// What a stretch has made of the guest.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The vCPU behind it; its count is that of the position before, plus one.
    cpu: CpuState,
    /// Interrupts that entered on the way.
    interrupts: u32,
    /// Every page that may have been written since the position before.
    pages: Vec<PageBlock>,
}

/// What the log says of a stretch cannot be.
#[derive(Debug, thiserror::Error)]
pub enum BadStretch {
    #[error("the vCPU's state is not understood: {0}")]
    Cpu(String),
    #[error(transparent)]
    Pages(#[from] BadPages),
    #[error("page {frame:#x} lies outside RAM")]
    Outside { frame: u64 },
    #[error("the vCPU took interrupts on the way that the interrupt controller does not have")]
    Interrupts,
    #[error("the engine does not take the vCPU's state")]
    Engine(#[from] EngineError),
}

impl Stretch {
    /// The position behind it.
    pub fn at(&self) -> Position {
        Position {
            count: self.cpu.count,
            rip: self.cpu.rip,
            rcx: self.cpu.gpr[1],
        }
    }

    pub fn interrupts(&self) -> u32 {
        self.interrupts
    }

    pub fn page_count(&self) -> u64 {
        self.pages.iter().map(|block| block.len() as u64).sum()
    }

    /// The log's entries for it: its pages, at least one block of them, and what closes it.
    pub fn into_entries(self) -> impl Iterator<Item = Entry> {
        let at = self.at();
        let begun = Position {
            count: at.count - 1,
            ..at
        };
        let closing = Entry::Stretch {
            at,
            interrupts: self.interrupts,
            cpu: encode(&self.cpu),
        };
        let pages = self.pages.into_iter();
        pages
            .map(move |pages| Entry::Pages { at: begun, pages })
            .chain([closing])
    }

    /// From the log's entries.
    pub fn decode(interrupts: u32, cpu: &[u8], pages: Vec<PageBlock>) -> Result<Self, BadStretch> {
        let (cpu, rest): (CpuState, _) =
            postcard::take_from_bytes(cpu).map_err(|why| BadStretch::Cpu(why.to_string()))?;
        if !rest.is_empty() {
            return Err(BadStretch::Cpu("bytes are left over".to_owned()));
        }
        if cpu.fxsave.len() != FXSAVE {
            return Err(BadStretch::Cpu("its FPU state has a wrong size".to_owned()));
        }
        Ok(Self {
            cpu,
            interrupts,
            pages,
        })
    }
}

fn encode(cpu: &CpuState) -> Bytes {
    let bytes = postcard::to_stdvec(cpu).expect("a vCPU's state is plain data");
    bytes.into()
}

impl Machine {
    /// Whether the engine cannot be stopped everywhere, so that stretches have to be closed.
    pub fn goes_adrift(&self) -> bool {
        self.engine.info().counts != CountUnit::Instructions
    }

    /// How long the vCPU may run without an exit before `run` says that it is adrift.
    pub fn set_stretch_limit(&mut self, limit: Option<std::time::Duration>) {
        self.engine.set_stretch_limit(limit);
    }

    /// Forgets which pages the vCPU has written: only those written from this position on are part
    /// of the next stretch. Gives how many there were.
    pub fn forget_dirty(&mut self) -> usize {
        debug_assert!(!self.adrift, "only at a position");
        self.engine.take_dirty().len()
    }

    /// Makes a position of the place where the vCPU is adrift (or, if it is not, another one).
    /// `with_pages`: for a replica that has to follow.
    pub fn close_stretch(&mut self, with_pages: bool) -> Result<Stretch, MachineError> {
        let mut cpu = self.engine.state();
        let interrupts = match self.entered {
            (since, number) if since == cpu.count => number,
            _ => 0,
        };
        cpu.count += 1;
        let frames = self.engine.take_dirty();
        let pages = if with_pages {
            self.pack(&frames)
        } else {
            Vec::new()
        };
        self.stand(&cpu)?;
        Ok(Stretch {
            cpu,
            interrupts,
            pages,
        })
    }

    /// Takes over what a stretch has made of the guest; the machine stands at the position before.
    pub fn jump(&mut self, stretch: &Stretch) -> Result<(), BadStretch> {
        for _ in 0..stretch.interrupts {
            if !self.core.board.interrupt_pending() {
                return Err(BadStretch::Interrupts);
            }
            self.core.board.acknowledge_interrupt();
        }
        for block in &stretch.pages {
            let content = block.unpack()?;
            for (frame, page) in block.frames().zip(content.chunks_exact(PAGE_BYTES)) {
                let at = GuestAddress(frame.saturating_mul(PAGE_BYTES as u64));
                self.ram
                    .memory()
                    .write_slice(page, at)
                    .map_err(|_| BadStretch::Outside { frame })?;
            }
        }
        self.tell_engine();
        self.stand(&stretch.cpu)?;
        Ok(())
    }

    /// Both replicas go on from this state, set in the same way.
    fn stand(&mut self, cpu: &CpuState) -> Result<(), EngineError> {
        self.engine.set_state(cpu)?;
        self.engine.set_clock(self.core.clock);
        self.adrift = false;
        Ok(())
    }

    fn pack(&self, frames: &[u64]) -> Vec<PageBlock> {
        let mut content = vec![0; BLOCK_PAGES_MAX * PAGE_BYTES];
        let block = |frames: &[u64]| {
            let content = &mut content[..frames.len() * PAGE_BYTES];
            for (frame, page) in frames.iter().zip(content.chunks_exact_mut(PAGE_BYTES)) {
                let read = self
                    .ram
                    .memory()
                    .read_slice(page, GuestAddress(frame * PAGE_BYTES as u64));
                read.expect("the vCPU writes to RAM");
            }
            PageBlock::pack(frames, content)
        };
        if frames.is_empty() {
            return vec![PageBlock::pack(&[], &[])];
        }
        frames.chunks(BLOCK_PAGES_MAX).map(block).collect()
    }
}
