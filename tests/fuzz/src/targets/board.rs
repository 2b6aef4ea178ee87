//! The board and a hostile guest: ports, PCI configuration, virtio registers and queues, inputs from
//! outside, time. Two boards get the same; one of them is saved and restored on the way. Whatever
//! the guest does, both read the same, put out the same and leave the same memory.

mod script;

use devices::{Board, BoardSpec, DiskStatus, Input as Event, Output};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Target;
use crate::input::Input;

pub const TARGET: Target = Target {
    name: "board",
    about: "all devices: ports, PCI, virtio queues, inputs, time; saved and restored on the way",
    run,
    samples: script::samples,
    cases: 3_000,
};

const RAM: usize = 1 << 19;
/// Disk of the board, in sectors.
const SECTORS: u64 = 2048;

// Steps.
const OUT: u8 = 0;
const IN: u8 = 1;
const WRITE: u8 = 2;
const READ: u8 = 3;
const POKE: u8 = 4;
const CONFIG_WRITE: u8 = 5;
const CONFIG_READ: u8 = 6;
const FRAME: u8 = 7;
const DISK_DONE: u8 = 8;
const CONSOLE: u8 = 9;
const SERIAL: u8 = 10;
const PASS: u8 = 11;
const INTERRUPT: u8 = 12;
const OUTPUTS: u8 = 13;
const SAVE: u8 = 14;
const RESET: u8 = 15;
const ANYWHERE: u8 = 16;
const JUMP: u8 = 17;
const STEPS: u8 = 18;

type Memory = GuestMemoryMmap<()>;

fn spec() -> BoardSpec {
    BoardSpec {
        memory_bytes: RAM as u64,
        net: true,
        mac: [0x52, 0x54, 0, 1, 2, 3],
        disk_sectors: Some(SECTORS),
        disk_id: "disk".into(),
        unix_epoch_ns: 1_795_264_496_000_000_000,
        rng_seed: [7; 32],
        exit_port: true,
    }
}

/// A board with memory of its own.
struct Side {
    board: Board,
    mem: Memory,
}

impl Side {
    fn new() -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory for a guest");
        Self {
            board: Board::new(&spec()),
            mem,
        }
    }

    fn save_and_restore(&mut self) {
        let saved = postcard::to_stdvec(&self.board).expect("a board can be saved");
        self.board = postcard::from_bytes(&saved).expect("what was saved can be restored");
    }
}

struct Pair {
    sides: [Side; 2],
    now: u64,
    bars: [u64; 6],
    requests: Vec<devices::DiskRequest>,
    outputs: usize,
}

/// Input: steps.
fn run(bytes: &[u8]) {
    let mut pair = Pair {
        sides: [Side::new(), Side::new()],
        now: 0,
        bars: [0; 6],
        requests: Vec::new(),
        outputs: 0,
    };
    for slot in 0..6 {
        let low = pair.config_read(slot, 0x10) & !0xf;
        let high = pair.config_read(slot, 0x14);
        pair.bars[slot as usize] = u64::from(low) | u64::from(high) << 32;
    }
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        pair.step(&mut input);
    }
    if pair.requests.len() + pair.outputs > 0 {
        crate::findings::accepted();
    }
    pair.check();
}

impl Pair {
    /// Does the same on both sides and compares.
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, mut act: impl FnMut(&mut Side) -> T) -> T {
        let [a, b] = &mut self.sides;
        let (first, second) = (act(a), act(b));
        assert_eq!(first, second, "the restored board differs");
        first
    }

    fn config_read(&mut self, slot: u32, offset: u32) -> u32 {
        let now = self.now;
        self.both(|side| {
            let Side { board, mem } = side;
            board.io_write(mem, now, 0xcf8, 4, 1 << 31 | slot << 11 | offset);
            board.io_read(mem, now, 0xcfc, 4)
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let now = self.now;
        match input.u8() % STEPS {
            OUT => {
                let (port, size, value) = (input.u16(), io_size(input.u8()), input.u32());
                self.both(|s| s.board.io_write(&s.mem, now, port, size, value));
            }
            IN => {
                let (port, size) = (input.u16(), io_size(input.u8()));
                self.both(|s| s.board.io_read(&s.mem, now, port, size));
            }
            WRITE => {
                let (slot, at, size, value) = (input.u8(), input.u16(), input.u8(), input.u64());
                let addr = self.bars[usize::from(slot % 6)] + u64::from(at);
                self.both(|s| {
                    s.board
                        .mmio_write(&s.mem, now, addr, mmio_size(size), value)
                });
            }
            READ => {
                let (slot, at, size) = (input.u8(), input.u16(), mmio_size(input.u8()));
                let addr = self.bars[usize::from(slot % 6)] + u64::from(at);
                self.both(|s| s.board.mmio_read(&s.mem, now, addr, size));
            }
            ANYWHERE => {
                let (addr, size, value) = (input.u64(), mmio_size(input.u8()), input.u64());
                self.both(|s| {
                    s.board.mmio_write(&s.mem, now, addr, size, value);
                    s.board.mmio_read(&s.mem, now, addr, size)
                });
            }
            POKE => {
                let at = u64::from(input.u32()) % RAM as u64;
                let block = input.block();
                let room = block.len().min(RAM - at as usize);
                self.both(|s| s.mem.write_slice(&block[..room], GuestAddress(at)).is_ok());
            }
            CONFIG_WRITE => {
                let (slot, at, size) = (input.u8(), input.u8(), io_size(input.u8()));
                let (value, port) = (input.u32(), 0xcfc + u16::from(at & 3));
                let address = 1 << 31 | u32::from(slot % 8) << 11 | u32::from(at & !3);
                self.both(|s| {
                    s.board.io_write(&s.mem, now, 0xcf8, 4, address);
                    s.board.io_write(&s.mem, now, port, size, value);
                });
            }
            CONFIG_READ => {
                let (slot, at) = (input.u8(), input.u8());
                self.config_read(u32::from(slot % 8), u32::from(at & !3));
            }
            FRAME => {
                let frame = input.block().to_vec();
                self.deliver(&Event::NetReceive(frame));
            }
            CONSOLE => {
                let bytes = input.block().to_vec();
                self.deliver(&Event::ConsoleInput(bytes));
            }
            SERIAL => {
                let bytes = input.block().to_vec();
                self.deliver(&Event::SerialInput(bytes));
            }
            DISK_DONE => self.disk_done(input),
            PASS => {
                self.now = now.saturating_add(u64::from(input.u32()));
                let now = self.now;
                self.both(|s| {
                    s.board.advance(now);
                    s.board.next_deadline()
                });
            }
            // A log that jumps; not too often, since centuries take their time in a calendar.
            JUMP => {
                self.now = now.max(input.u64());
                let now = self.now;
                self.both(|s| s.board.advance(now));
            }
            INTERRUPT => {
                self.both(|s| {
                    s.board
                        .interrupt_pending()
                        .then(|| s.board.acknowledge_interrupt())
                });
            }
            OUTPUTS => self.outputs(),
            SAVE => self.sides[1].save_and_restore(),
            _ => self.both(|s| s.board.reset()),
        }
    }

    fn deliver(&mut self, event: &Event) {
        // Refused alike on both sides, or taken alike.
        let _ = self.both(|s| s.board.deliver(&s.mem, event.clone()));
    }

    fn outputs(&mut self) {
        for output in self.both(|s| s.board.take_outputs()) {
            self.outputs += 1;
            let Output::Disk(request) = output else {
                continue;
            };
            let end = request.sector + u64::from(request.len) / 512;
            assert!(end <= SECTORS, "{request:?} is outside of the disk");
            self.requests.push(request);
        }
    }

    /// Completes a request that is in flight, or one that is not.
    fn disk_done(&mut self, input: &mut Input<'_>) {
        let (which, status, odd) = (input.u8(), input.u8(), input.u8());
        self.outputs();
        let status =
            [DiskStatus::Ok, DiskStatus::IoError, DiskStatus::Unsupported][usize::from(status % 3)];
        let mut event = (which.into(), vec![0x5a; odd.into()]);
        if odd < 200 && !self.requests.is_empty() {
            let index = usize::from(which) % self.requests.len();
            let request = self.requests.swap_remove(index);
            let reads = request.op == devices::DiskOp::Read && status == DiskStatus::Ok;
            let len = if reads { request.len as usize } else { 0 };
            event = (request.id, vec![odd; len]);
        }
        let (id, data) = event;
        self.deliver(&Event::DiskDone { id, status, data });
    }

    fn check(&mut self) {
        self.outputs();
        self.sides[1].save_and_restore();
        let mem = &self.sides[0].mem;
        let live = (
            self.sides[0].board.can_receive(mem),
            self.sides[0].board.counters(),
        );
        let mem = &self.sides[1].mem;
        let same = (
            self.sides[1].board.can_receive(mem),
            self.sides[1].board.counters(),
        );
        assert_eq!(live, same);
        assert_eq!(self.sides[0].board, self.sides[1].board);
        let memory = |side: &Side| {
            let mut bytes = vec![0; RAM];
            let read = side.mem.read_slice(&mut bytes, GuestAddress(0));
            read.expect("all of memory can be read");
            bytes
        };
        assert!(
            memory(&self.sides[0]) == memory(&self.sides[1]),
            "memory differs"
        );
    }
}

fn io_size(byte: u8) -> u8 {
    [1, 2, 4][usize::from(byte % 3)]
}

fn mmio_size(byte: u8) -> u8 {
    1 + byte % 8
}
