//! What depends on the engine that runs the guest most: clocks, computing without exits, and who may
//! pair with whom.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use tests::client::Load;
use wire::control::{Protection, Status};

use super::{Context, LONG, Scenario, finish, load, wait_answers};
use crate::home::Home;
use crate::machine::Machine;
use crate::rig::{self, Layout};
use crate::wait;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "solo",
            about: "the guest boots alone, is saved, goes on from the file, and works",
            quick: 0,
            full: 1,
            run: solo,
        },
        Scenario {
            name: "load-compared",
            about: "Redis load on a pair; registers compared on the way, all of memory at the end",
            quick: 0,
            full: 1,
            run: load_compared,
        },
        Scenario {
            name: "rdtsc",
            about: "RDTSC in the guest's programs and kernel: the same on both replicas",
            quick: 1,
            full: 3,
            run: rdtsc,
        },
        Scenario {
            name: "busy-guest",
            about: "the guest computes without an exit: it gets its timer, and memory is the same",
            quick: 1,
            full: 3,
            run: busy_guest,
        },
        Scenario {
            name: "busy-kill",
            about: "the primary is killed while the guest computes without an exit",
            quick: 1,
            full: 5,
            run: busy_kill,
        },
        Scenario {
            name: "engines-differ",
            about: "a backup with the engine soft is refused by a primary with another one",
            quick: 0,
            full: 0,
            run: engines_differ,
        },
    ]
}

fn solo(context: &Context, _seed: u64) -> Result<()> {
    let begun = Instant::now();
    let state = context.base()?.state();
    context.tell(&format!(
        "booted and saved within {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    let mut args = vec!["--from".into(), state.into_os_string()];
    args.extend(["--ft", "false"].map(Into::into));
    let machine = Home::temporary()?.up(&args)?;
    machine.wait_redis(LONG, |_| ())?;
    let (_, status) = machine.live().context("no replica is live")?;
    let said = machine.shell("uname -a; grep -m1 'model name' /proc/cpuinfo", LONG)?;
    ensure!(said.contains("Linux guest "), "the guest said: {said}");
    context.tell(&format!("engine {}: {}", status.engine, one_line(&said)));
    machine.down()
}

/// What a command said, without what was typed for it.
fn one_line(said: &str) -> String {
    let lines = said.lines().filter(|line| !line.contains("; echo "));
    let lines: Vec<&str> = lines.map(str::trim).collect();
    // The shell turns bracketed paste on and off.
    let text = lines.join(" ").replace("\u{1b}[?2004l", "");
    text.replace("\u{1b}[?2004h", "").trim().to_owned()
}

/// All of memory, now, on both; an error if it differs or the backup does not say.
fn compare_memory(machine: &Machine) -> Result<()> {
    let (_, backup) = machine.backup().context("there is no backup")?;
    machine.hash_memory()?;
    wait::until("the backup compares memory", LONG, || {
        let (_, live) = machine.live().context("no replica is live")?;
        if live.state != Protection::Protected {
            bail!("the pair is not protected any more: {}", live.state);
        }
        let (_, now) = machine.backup().context("the backup is gone")?;
        Ok((now.hashes_compared > backup.hashes_compared).then_some(()))
    })
}

fn load_compared(context: &Context, seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let before = live(&machine)?;
    let load = Load::start(load(&machine, seed)?)?;
    wait_answers(&load, 500, LONG)?;
    let writes = finish(load)?;
    let after = live(&machine)?;
    compare_memory(&machine)?;
    let (_, backup) = machine.backup().context("the backup is gone")?;
    context.tell(&format!(
        "{writes} writes; {} comparisons, the last with all of memory: no difference",
        backup.hashes_compared
    ));
    context.tell(&format!(
        "in {:.1} s: exits: {}; bytes of the log: {}; stretches closed: {}",
        (after.uptime_ms - before.uptime_ms) as f64 / 1e3,
        grown(&before.exits, &after.exits),
        grown(&before.log_bytes, &after.log_bytes),
        after.stretches.closed - before.stretches.closed
    ));
    machine.down()
}

/// An ELF program of one page: stores the results of 64 RDTSCs, then of 64 RDTSCPs, and writes them
/// to standard output.
fn rdtsc_program() -> Vec<u8> {
    const BASE: u32 = 0x40_0000;
    const HEADERS: u32 = 64 + 56;
    const RESULTS: u32 = BASE + 0x800;
    let mut code = vec![0xbf]; // mov edi, RESULTS
    code.extend(RESULTS.to_le_bytes());
    for counter in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xf9]] {
        code.extend([0xbb, 64, 0, 0, 0]); // mov ebx, 64
        let again = code.len();
        code.extend(counter); // rdtsc or rdtscp
        code.extend([0x89, 0x07, 0x89, 0x57, 0x04]); // mov [rdi], eax; mov [rdi+4], edx
        code.extend([0x83, 0xc7, 0x08, 0xff, 0xcb, 0x75]); // add edi, 8; dec ebx; jnz again
        let back = again as isize - (code.len() as isize + 1);
        code.push(back as i8 as u8);
    }
    code.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe]); // mov eax, write; mov edi, 1; mov esi,
    code.extend(RESULTS.to_le_bytes());
    code.extend([0xba, 0, 4, 0, 0, 0x0f, 0x05]); // mov edx, 1024; syscall
    code.extend([0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]); // mov eax, exit; xor edi, edi; syscall

    // ELF64, one segment (read, write, execute) of the whole file and the results behind it.
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend(u64::from(BASE + HEADERS).to_le_bytes());
    elf.extend(64_u64.to_le_bytes()); // program headers
    elf.extend([0; 12]); // no section headers, no flags
    for field in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let length = u64::from(HEADERS) + code.len() as u64;
    for field in [0, u64::from(BASE), u64::from(BASE), length, 0x1000, 0x1000] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// The numbers behind `n=`; a terminal also shows what was typed, and codes of its own.
fn numbers(said: &str) -> Vec<u64> {
    let number = |line: &str| line.rsplit_once("n=")?.1.trim().parse().ok();
    said.lines().filter_map(number).collect()
}

fn rdtsc(context: &Context, _seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let octal: String = rdtsc_program()
        .iter()
        .map(|byte| format!("\\0{byte:o}"))
        .collect();
    machine.shell(&format!("printf %b '{octal}' >/root/rdtsc"), LONG)?;
    let run = "chmod +x /root/rdtsc; /root/rdtsc >/root/counts && od -A n -v -t u8 -w8 /root/counts | sed 's/^ */n=/'";
    let said = machine.shell(run, LONG)?;
    let counts = numbers(&said);
    ensure!(counts.len() == 128, "128 counts were due: {said}");
    ensure!(
        counts.is_sorted() && counts[0] > 0,
        "the counter ran backwards: {counts:?}"
    );
    // The kernel's own RDTSC: all of its clock.
    let source = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    let said = machine.shell(source, LONG)?;
    ensure!(said.contains("tsc"), "the kernel's clock is: {said}");
    let said = machine.shell("for i in 1 2 3 4 5 6 7 8; do date +n=%s%N; done", LONG)?;
    let times = numbers(&said);
    ensure!(
        times.len() == 8 && times.is_sorted(),
        "the kernel's clock said: {said}"
    );
    compare_memory(&machine)?;
    context.tell(&format!(
        "{} RDTSCs and RDTSCPs over {} ticks, {} readings of the kernel's clock: memory is the same",
        counts.len(),
        counts[127] - counts[0],
        times.len()
    ));
    machine.down()
}

/// A loop of the shell, which makes no system call, until `timeout` ends it by the guest's timer.
const BUSY: &str = "timeout 4 sh -c 'while :; do :; done'; echo ended with $?.";

fn busy_guest(context: &Context, _seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let before = live(&machine)?;
    let said = machine.shell(BUSY, LONG)?;
    ensure!(said.contains("ended with 124."), "the loop: {said}");
    compare_memory(&machine)?;
    let after = live(&machine)?;
    let (closed, pages) = (
        after.stretches.closed - before.stretches.closed,
        after.stretches.pages - before.stretches.pages,
    );
    // The loop has no exit, and such an engine can stop the guest only there.
    ensure!(
        closed > 0 || after.counts != "exits",
        "no stretch was closed by its state: {:?}",
        after.stretches
    );
    context.tell(&format!(
        "the timer ended the loop, memory is the same; {closed} stretches closed with {pages} pages; \
         bytes of the log: {}",
        grown(&before.log_bytes, &after.log_bytes)
    ));
    machine.down()
}

fn live(machine: &Machine) -> Result<Status> {
    let (_, status) = machine.live().context("no replica is live")?;
    Ok(status)
}

/// What was added by kind, in words.
fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> String {
    let added = |(kind, now): (&String, &u64)| {
        let more = now.saturating_sub(before.get(kind).copied().unwrap_or(0));
        (more > 0).then(|| format!("{kind} {more}"))
    };
    after
        .iter()
        .filter_map(added)
        .collect::<Vec<_>>()
        .join(", ")
}

fn busy_kill(context: &Context, _seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let (primary, _) = machine.pair()?;
    machine.wait_shell(LONG)?;
    let file = "/root/busy";
    machine.type_line(&format!("({BUSY}) >{file} 2>&1"))?;
    wait::pass(Duration::from_secs(2))?;
    primary.process.signal(Signal::SIGKILL)?;
    let alone = machine.wait_alone(Some(primary.id), LONG)?;
    // Not through the shell, which the loop's end may be before or behind.
    let said = wait::until("the loop ends on the survivor", LONG, || {
        let said = machine.shell(&format!("cat {file}"), LONG)?;
        Ok(said.contains("ended with").then_some(said))
    })?;
    ensure!(said.contains("ended with 124."), "the loop: {said}");
    let load = Load::start(load(&machine, 1)?)?;
    wait_answers(&load, 100, LONG)?;
    let writes = finish(load)?;
    context.tell(&format!(
        "replica {} went on in {}; the loop ended by its timer, then {writes} writes",
        alone.replica, alone.view
    ));
    machine.down()
}

fn engines_differ(context: &Context, _seed: u64) -> Result<()> {
    let base = context.base()?;
    let layout = Layout {
        boot: true,
        backup_flags: &["--engine", "soft"],
        ..Layout::default()
    };
    let rig = rig::start(base, layout)?;
    let machine = &rig.machine;
    for replica in machine.replicas() {
        crate::process::wait_end(replica.process, LONG)
            .context("is the other replica's engine soft, too? This needs another one")?;
        let said = machine.log(&format!("replica-{}", replica.id));
        let names_both =
            |line: &&str| line.contains("runs engine \"soft\"") && line.contains("made by engine");
        match said.lines().find(names_both) {
            Some(line) if !said.contains("panicked") => context.tell(line),
            _ => bail!("replica {} does not say what differs:\n{said}", replica.id),
        }
    }
    Ok(())
}
