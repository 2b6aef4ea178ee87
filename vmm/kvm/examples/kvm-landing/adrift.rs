//! The engine that counts branches where it cannot stop: in a loop without any, and with a counter
//! that is later than it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance::Rig;
use conformance::rig::at;
use engine::{Boundary, Engine, Entry, Exit};
use kvm::KvmEngine;
use kvm::counted::CountedEngine;
use vm_memory::GuestMemoryMmap;

use crate::truth::{self, Lateness};

const LIMIT: Duration = Duration::from_millis(20);
const BRANCHES: u32 = 600;

/// MOV ECX, BRANCHES; DEC ECX; JNZ back; INC RAX; JMP back.
fn program() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(BRANCHES.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    code
}

/// Whether both end as they should.
pub fn run() -> bool {
    let mut passed = true;
    for (name, test) in [
        ("adrift: a loop without branches", silent as fn() -> _),
        ("adrift: a counter later than it says", late),
    ] {
        let begun = Instant::now();
        match test() {
            Ok(()) => println!("ok   {name}, {:.1} s", begun.elapsed().as_secs_f64()),
            Err(what) => {
                passed = false;
                println!("FAIL {name}: {what}");
            }
        }
    }
    passed
}

type Tested = Result<(), String>;

fn with(lateness: Lateness, test: fn(&mut dyn Engine) -> Tested) -> Tested {
    let make = move |memory: &Arc<GuestMemoryMmap>| -> Box<dyn Engine> {
        let engine = KvmEngine::new(memory).and_then(|vcpu| {
            let (walked, counter) = truth::of(vcpu, lateness, 1);
            CountedEngine::new(walked, counter)
        });
        match engine {
            Ok(engine) => Box::new(engine),
            Err(why) => {
                eprintln!("no engine: {why}");
                std::process::exit(2)
            }
        }
    };
    let mut rig = Rig::new(&make, 0, &program())?;
    test(rig.engine.as_mut())
}

fn go(engine: &mut dyn Engine, until: u64) -> Result<Exit, String> {
    engine
        .run(Some(until), Entry::Resume)
        .map_err(|e| e.to_string())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Tested {
    if got == want {
        return Ok(());
    }
    Err(format!("{what}: got {got:?}, want {want:?}"))
}

/// Stopped in time, and made a position of.
fn silent() -> Tested {
    let prompt = Lateness {
        bound: 10,
        branches: 10,
        instructions: 0,
    };
    const ALL: u64 = BRANCHES as u64;
    with(prompt, |engine| {
        engine.set_stretch_limit(Some(LIMIT));
        let reached = Exit::Boundary(Boundary::Reached);
        expect("half way", go(engine, ALL / 2)?, reached)?;
        expect("its count", engine.position().count, ALL / 2)?;
        expect("behind all branches", go(engine, ALL + 1)?, Exit::Adrift)?;
        let mut state = engine.state();
        expect("its count", state.count, ALL)?;
        if state.gpr[0] == 0 || !(at::CODE..at::CODE + 20).contains(&state.rip) {
            return Err(format!("it is not in the loop: {state:x?}"));
        }
        state.count += 1;
        engine.set_state(&state).map_err(|e| e.to_string())?;
        expect("closed", go(engine, ALL + 1)?, reached)?;
        expect("its state", &engine.state(), &state)?;
        expect("again", go(engine, ALL + 2)?, Exit::Adrift)
    })
}

/// Never said to be where it is not. (No limit: its kicks would bring the vCPU there in small steps.)
fn late() -> Tested {
    let late = Lateness {
        bound: 2,
        branches: 90,
        instructions: 0,
    };
    with(late, |engine| {
        let mut overshot = 0;
        let mut until = 0;
        while until < u64::from(BRANCHES) - 150 {
            until = engine.position().count + 50;
            match go(engine, until)? {
                Exit::Boundary(Boundary::Reached) => {
                    expect("reached", engine.position().count, until)?;
                }
                Exit::Adrift if engine.position().count > until => overshot += 1,
                other => return Err(format!("{other:?} at {:?}", engine.position())),
            }
        }
        match overshot {
            0 => Err("the counter was never late".to_owned()),
            _ => Ok(()),
        }
    })
}
