//! How the instructions of a block follow each other without a loop.
//!
//! The ops of a block lie in one array. Running the first runs them all: each op's code ends by
//! jumping to the next one's (the compiler makes a jump of a call in tail position; where it does
//! not, the stack grows by at most a block's length). A handler becomes such code by [`chained`], or
//! by [`ending`] if it is the last of its block. Handlers of other modules, which are plain
//! functions, are called from an op of their own that precedes theirs.
#![allow(unsafe_code)]

use crate::cpu::{Cpu, seg};
use crate::op::{Chain, Handler, NONE, Op};
use crate::stop::Stop;

/// Code for an op, and whether the instruction must be the last of its block.
#[derive(Clone, Copy)]
pub struct Link {
    pub run: Chain,
    pub ends: bool,
}

/// Code that runs a handler and goes on with the next op.
pub fn chained<F>(handler: F) -> Link
where
    F: Fn(&mut Cpu, &Op) -> Result<(), Stop> + Copy + 'static,
{
    let _ = handler;
    Link {
        run: run_chained::<F>,
        ends: false,
    }
}

/// Code that runs a handler which ends its block: it has set `cpu.rip`.
pub fn ending<F>(handler: F) -> Link
where
    F: Fn(&mut Cpu, &Op) -> Result<(), Stop> + Copy + 'static,
{
    let _ = handler;
    Link {
        run: run_ending::<F>,
        ends: true,
    }
}

/// The value of the type of a function item, which is all that there is to know of it.
#[inline(always)]
fn item<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "a handler must be a function item") };
    // SAFETY: F has no bytes, and a value of it was given to `chained` or `ending`.
    unsafe { std::mem::zeroed() }
}

unsafe fn run_chained<F>(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop>
where
    F: Fn(&mut Cpu, &Op) -> Result<(), Stop> + Copy,
{
    // SAFETY: the caller gives an op of a block.
    let this = unsafe { &*op };
    match item::<F>()(cpu, this) {
        // SAFETY: every block ends with an op that is not chained (`push_end`).
        Ok(()) => unsafe { follow(cpu, op.add(1)) },
        Err(stop) => Err(cpu.stopped_in(this, stop)),
    }
}

unsafe fn run_ending<F>(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop>
where
    F: Fn(&mut Cpu, &Op) -> Result<(), Stop> + Copy,
{
    // SAFETY: the caller gives an op of a block.
    let this = unsafe { &*op };
    item::<F>()(cpu, this).map_err(|stop| cpu.stopped_in(this, stop))
}

/// Runs an op and those behind it.
///
/// # Safety
/// `op` is part of a block's array of ops.
#[inline(always)]
pub unsafe fn follow(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop> {
    // SAFETY: by the caller's promise.
    unsafe { ((*op).run)(cpu, op) }
}

/// Calls the plain handler of the next op, and goes on behind that.
unsafe fn run_plain(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop> {
    // SAFETY: `push_op` puts the two one behind the other, and every block has an end.
    unsafe {
        call_plain(cpu, op)?;
        follow(cpu, op.add(2))
    }
}

/// Calls the plain handler of the next op, which ends its block.
unsafe fn run_plain_ending(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop> {
    // SAFETY: as in `run_plain`.
    unsafe { call_plain(cpu, op) }
}

/// # Safety
/// `op` is one of those that `push_op` puts before ones with a plain handler.
#[inline(always)]
unsafe fn call_plain(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop> {
    // SAFETY: `push_op` has put the op of the handler behind this one, and the handler into `imm`.
    let (handler, plain) = unsafe {
        let handler = std::mem::transmute::<usize, Handler>((*op).imm as usize);
        (handler, &*op.add(1))
    };
    handler(cpu, plain).map_err(|stop| cpu.stopped_in(plain, stop))
}

/// Runs behind the last op of a block that no instruction ended.
unsafe fn end(cpu: &mut Cpu, op: *const Op) -> Result<(), Stop> {
    // SAFETY: the caller gives an op of a block.
    cpu.rip = cpu.ip(unsafe { &*op });
    Ok(())
}

/// `Op::scale` of the op before one with a plain handler; no memory operand has it.
const CALLER: u8 = 0xff;

/// How an op is run.
#[derive(Clone, Copy)]
pub enum Code {
    Linked(Link),
    /// A plain handler, and whether it ends its block.
    Plain(Handler, bool),
}

impl Code {
    pub fn ends(self) -> bool {
        match self {
            Self::Linked(link) => link.ends,
            Self::Plain(_, ends) => ends,
        }
    }
}

/// Appends an instruction to a block.
pub fn push_op(ops: &mut Vec<Op>, op: Op, code: Code) {
    match code {
        Code::Linked(link) => ops.push(Op {
            run: link.run,
            ..op
        }),
        Code::Plain(handler, ends) => {
            ops.push(Op {
                run: if ends { run_plain_ending } else { run_plain },
                imm: handler as usize as u64,
                scale: CALLER,
                ..op
            });
            ops.push(op);
        }
    }
}

/// Ends a block of `bytes` bytes. Needed whether an instruction ends it or not: it is what no op can
/// run past.
pub fn push_end(ops: &mut Vec<Op>, bytes: u16) {
    ops.push(Op {
        offset: bytes,
        len: 0,
        ..NOTHING
    });
}

/// An op that ends its block and does nothing else.
pub const NOTHING: Op = Op {
    run: end,
    imm: 0,
    disp: 0,
    offset: 0,
    len: 1,
    index: 0,
    dst: NONE,
    src: NONE,
    base: NONE,
    idx: NONE,
    scale: 0,
    seg: seg::DS,
    sizes: 0x44,
    extra: 0,
};

/// One instruction to run alone.
#[derive(Clone, Copy)]
pub struct Single {
    ops: [Op; 3],
    len: u8,
}

impl Single {
    /// No instruction.
    pub const NOTHING: Self = Self {
        ops: [NOTHING; 3],
        len: 1,
    };

    /// The first instruction of a block.
    ///
    /// # Safety
    /// `ops` points to the ops of a block.
    pub unsafe fn first_of(ops: *const Op) -> Self {
        // SAFETY: a block has at least one instruction, and one with a plain handler has two ops.
        let (first, second) = unsafe {
            let first = *ops;
            let second = if first.scale == CALLER {
                *ops.add(1)
            } else {
                NOTHING
            };
            (first, second)
        };
        Self::new(first, second)
    }

    /// An instruction by itself.
    pub fn of(op: Op, code: Code) -> Self {
        let mut ops = Vec::with_capacity(2);
        push_op(&mut ops, op, code);
        Self::new(ops[0], ops.get(1).copied().unwrap_or(NOTHING))
    }

    fn new(first: Op, second: Op) -> Self {
        let end = Op {
            offset: first.offset + u16::from(first.len),
            len: 0,
            ..NOTHING
        };
        let second = if first.scale == CALLER { second } else { end };
        Self {
            ops: [first, second, end],
            len: first.len,
        }
    }

    /// Length of the instruction in bytes.
    pub fn len(&self) -> u64 {
        u64::from(self.len)
    }

    /// Runs it.
    pub fn run(&self, cpu: &mut Cpu) -> Result<(), Stop> {
        // SAFETY: the ops are those of a block of one instruction.
        unsafe { follow(cpu, self.ops.as_ptr()) }
    }
}

impl Cpu {
    /// Notes which op of the block stopped.
    #[cold]
    fn stopped_in(&mut self, op: &Op, stop: Stop) -> Stop {
        self.stop_offset = op.offset;
        self.stop_index = op.index;
        self.stop_segment = op.seg;
        stop
    }
}
