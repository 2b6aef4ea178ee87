//! The test's loop: makes cases, runs them on both sides, compares, shrinks what differs.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use iced_x86::{Code, Instruction};
use vm_memory::GuestMemoryMmap;

use crate::case::{End, Input, Mode, Output};
use crate::catalog::catalog;
use crate::compare::{Strictness, differences};
use crate::freedom::{Site, sites, take_exception};
use crate::generate::Generator;
use crate::guest::Guest;
use crate::native::{BATCH, Native, SLOTS};
use crate::sequence::{Encoded, Item, Sequence};

/// What to test.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub mode: Mode,
    /// Number of the first case.
    pub first: u64,
    pub cases: u64,
    /// Part of the op codes' names (iced's `Code`, lower case); empty: all.
    pub filter: String,
    pub strictness: Strictness,
    /// Stop after so many differing cases.
    pub failures: usize,
}

/// A case that differs.
#[derive(Clone, Debug)]
pub struct Failure {
    pub case: u64,
    /// The shortest sequence found that still differs.
    pub listing: String,
    pub differences: String,
    /// Names of the instruction that is at fault, as far as can be told: the last one.
    pub code: String,
    /// State before, for the report.
    pub input: Box<Input>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub cases: u64,
    pub skipped: u64,
    pub exceptions: u64,
    /// Cases that differ where this host's CPU is free to.
    pub free: u64,
    pub failures: Vec<Failure>,
    pub time: Duration,
}

/// Both sides of the test.
pub struct Tester {
    native: Native,
    /// For single cases, while batches are on their way.
    single: Native,
    guest: Guest,
    options: Options,
    generator: Generator,
    /// The engine's side of a batch.
    outputs: Vec<Output>,
}

impl Tester {
    /// A tester for the engine that `make` makes.
    pub fn new(
        options: Options,
        make: impl FnOnce(
            &std::sync::Arc<GuestMemoryMmap<()>>,
        ) -> Result<Box<dyn engine::Engine>, engine::EngineError>,
    ) -> anyhow::Result<Self> {
        let codes = catalog(&options.filter, options.mode);
        if codes.is_empty() {
            bail!("no instruction's name contains {:?}", options.filter);
        }
        Ok(Self {
            native: Native::new(options.mode).context("the native side")?,
            single: Native::new(options.mode).context("the native side")?,
            guest: Guest::new(options.mode, make).context("the engine's side")?,
            generator: Generator::new(options.seed, options.mode, codes),
            options,
            outputs: Vec::new(),
        })
    }

    /// Runs all cases; `progress` is told now and then how many are done.
    pub fn run(&mut self, mut progress: impl FnMut(&Summary)) -> anyhow::Result<Summary> {
        let begin = Instant::now();
        let mut summary = Summary::default();
        let batches = self.options.cases.div_ceil(BATCH as u64);
        let mut sequences: [Vec<Sequence>; SLOTS] = Default::default();
        for batch in 0..=batches {
            // One batch ahead, so that both sides work at the same time.
            if batch < batches {
                let slot = batch as usize % SLOTS;
                sequences[slot] = self.prepare(batch)?;
            }
            let Some(done) = batch.checked_sub(1) else {
                continue;
            };
            let slot = done as usize % SLOTS;
            let sequences = std::mem::take(&mut sequences[slot]);
            self.check(slot, done, &sequences, &mut summary)?;
            if summary.failures.len() >= self.options.failures {
                break;
            }
            summary.time = begin.elapsed();
            if done % 64 == 0 {
                progress(&summary);
            }
        }
        summary.time = begin.elapsed();
        Ok(summary)
    }

    fn number(&self, batch: u64, i: usize) -> u64 {
        self.options.first + batch * BATCH as u64 + i as u64
    }

    fn prepare(&mut self, batch: u64) -> anyhow::Result<Vec<Sequence>> {
        let slot = batch as usize % SLOTS;
        let left = self.options.cases - batch * BATCH as u64;
        let len = left.min(BATCH as u64) as usize;
        let mut sequences = Vec::with_capacity(len);
        for i in 0..len {
            let number = self.number(batch, i);
            let input = &mut self.native.inputs(slot)[i];
            sequences.push(self.generator.case(number, input));
        }
        self.native.start(slot, len)?;
        Ok(sequences)
    }

    fn check(
        &mut self,
        slot: usize,
        batch: u64,
        sequences: &[Sequence],
        summary: &mut Summary,
    ) -> anyhow::Result<()> {
        self.outputs.resize_with(sequences.len(), Output::default);
        for (i, output) in self.outputs.iter_mut().enumerate() {
            self.guest.run(&self.native.inputs(slot)[i], output)?;
        }
        let native = self.native.finish(slot)?;
        let mut different = Vec::new();
        for (i, sequence) in sequences.iter().enumerate() {
            summary.cases += 1;
            summary.skipped += u64::from(native[i].end == End::Skipped);
            summary.exceptions += u64::from(native[i].end == End::Exception);
            let Some(encoded) = sequence.encode() else {
                continue;
            };
            let strictness = self.options.strictness;
            let guest = &self.outputs[i];
            let found = differences(sequence, &encoded, strictness, &native[i], guest);
            if !found.is_empty() {
                different.push((i, found));
            }
        }
        for (i, found) in different {
            if summary.failures.len() < self.options.failures {
                let case = self.number(batch, i);
                let input = Box::new(self.native.inputs(slot)[i].clone());
                if self.is_free(&sequences[i], &input)? {
                    summary.free += 1;
                    continue;
                }
                let failure = self.shrink(case, &sequences[i], input, found)?;
                summary.failures.push(failure);
            }
        }
        Ok(())
    }

    /// Runs one sequence alone on both sides. `None`: no difference.
    fn again(&mut self, sequence: &Sequence, input: &mut Input) -> anyhow::Result<Option<String>> {
        let Some(encoded) = sequence.encode() else {
            return Ok(None);
        };
        input.code.fill(0xcc);
        input.code[..encoded.bytes.len()].copy_from_slice(&encoded.bytes);
        let (native, guest) = self.both(input)?;
        let strictness = self.options.strictness;
        let found = differences(sequence, &encoded, strictness, &native, &guest);
        Ok((!found.is_empty() && !self.is_free(sequence, input)?).then_some(found))
    }

    /// One case alone on both sides.
    fn both(&mut self, input: &Input) -> anyhow::Result<(Output, Output)> {
        self.single.inputs(0)[0] = input.clone();
        self.single.start(0, 1)?;
        let mut guest = Output::default();
        self.guest.run(input, &mut guest)?;
        Ok((self.single.finish(0)?[0].clone(), guest))
    }

    /// Whether a case that differs does so where this host's CPU is free to.
    fn is_free(&mut self, sequence: &Sequence, input: &Input) -> anyhow::Result<bool> {
        let strictness = self.options.strictness;
        if !strictness.amd {
            return Ok(false);
        }
        let Some(encoded) = sequence.encode() else {
            return Ok(false);
        };
        let agree = |sequence: &Sequence, native: &Output, guest: &Output| {
            differences(sequence, &encoded, strictness, native, guest).is_empty()
        };
        let (native, guest) = self.both(input)?;
        let back = Strictness {
            back: true,
            ..strictness
        };
        if differences(sequence, &encoded, back, &native, &guest).is_empty() {
            return Ok(true);
        }
        let sites = sites(&mut self.guest, self.options.mode, input)?;
        // A case can be cut where an instruction runs first, not where it runs again.
        let mut again = false;
        for site in &sites {
            let (cut, shorter) = cut(sequence, &encoded, input, site.ins.next_ip());
            let ends = site.first && self.is_alike(site.position, input, &shorter)?;
            let (cut, shorter) = match ends {
                true => (cut, shorter),
                false => (sequence.clone(), Box::new(input.clone())),
            };
            let (mut native, guest) = self.both(&shorter)?;
            if agree(&cut, &native, &guest) {
                // It has done what it does on the engine; the difference comes later.
                again |= site.again;
                continue;
            }
            site.settle(&mut native, &guest);
            return Ok(again
                || agree(&cut, &native, &guest)
                || self.is_free_before(sequence, &encoded, input, site, ends)?);
        }
        Ok(again)
    }

    /// Where the host does something else altogether: whether both sides come there alike.
    fn is_free_before(
        &mut self,
        sequence: &Sequence,
        encoded: &Encoded,
        input: &Input,
        site: &Site,
        ends: bool,
    ) -> anyhow::Result<bool> {
        let strictness = self.options.strictness;
        let (mut native, _) = self.both(input)?;
        if site.raised(&native) && site.freedom.raises.contains(&native.vector) {
            let mut guest = Output::default();
            self.guest.run_to(site.position, input, &mut guest)?;
            guest.end = End::Exception;
            take_exception(&mut native, &guest);
            return Ok(differences(sequence, encoded, strictness, &native, &guest).is_empty());
        }
        // What it left cannot be told from what follows, if the case could not be made to end there.
        if !site.freedom.anything && (ends || site.last) {
            return Ok(false);
        }
        let (cut, shorter) = cut(sequence, encoded, input, site.ins.ip());
        let (native, guest) = self.both(&shorter)?;
        Ok(differences(&cut, encoded, strictness, &native, &guest).is_empty())
    }

    /// Whether the engine comes to a position alike in two cases.
    fn is_alike(&mut self, position: u64, one: &Input, other: &Input) -> anyhow::Result<bool> {
        let mut sides = [Output::default(), Output::default()];
        for (input, output) in [one, other].into_iter().zip(&mut sides) {
            self.guest.run_to(position, input, output)?;
        }
        let [a, b] = sides;
        let registers = |o: &Output| (o.rip, o.gpr, o.rflags, o.fx);
        Ok(registers(&a) == registers(&b) && (a.data, a.stack) == (b.data, b.stack))
    }

    fn shrink(
        &mut self,
        case: u64,
        sequence: &Sequence,
        mut input: Box<Input>,
        found: String,
    ) -> anyhow::Result<Failure> {
        let (mut sequence, mut found) = (sequence.clone(), found);
        let mut i = sequence.items.len();
        while i > 0 {
            i -= 1;
            let shorter = sequence.without(i);
            if let Some(still) = self.again(&shorter, &mut input)? {
                (sequence, found) = (shorter, still);
            }
        }
        if let Some(encoded) = sequence.encode() {
            input.code.fill(0xcc);
            input.code[..encoded.bytes.len()].copy_from_slice(&encoded.bytes);
        }
        Ok(Failure {
            case,
            listing: sequence.listing(),
            differences: found,
            code: sequence
                .items
                .last()
                .map_or_else(String::new, |i| format!("{:?}", i.effective().code())),
            input,
        })
    }
}

/// The case with HLT, which user code may not run, at an address.
fn cut(sequence: &Sequence, encoded: &Encoded, input: &Input, at: u64) -> (Sequence, Box<Input>) {
    const HLT: u8 = 0xf4;
    let (mut sequence, mut input) = (sequence.clone(), Box::new(input.clone()));
    if let Some(byte) = input.code.get_mut(at.wrapping_sub(input.code_at) as usize) {
        *byte = HLT;
    }
    let item = encoded.starts.iter().position(|&start| start == at);
    if let Some(item) = item.and_then(|i| sequence.items.get_mut(i)) {
        *item = Item::new(Instruction::with(Code::Hlt), item.mode);
    }
    (sequence, input)
}
