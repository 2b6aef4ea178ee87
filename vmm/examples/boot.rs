//! Boots a guest on an engine (`BOOT_ENGINE=soft` or `kvm`) without any server, with its disk image opened directly, and
//! says how fast it ran: the shortest way to see a kernel start.
//!
//!     cargo run --release -p vmm --example boot -- KERNEL [INITRD] [DISK] [-- CMDLINE…]
//!
//! Ends when the guest is off, or says the text in `BOOT_UNTIL`. The disk is not written to: what
//! the guest writes is kept in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devices::{BoardSpec, DiskOp, DiskRequest, DiskStatus, Input, Output};
use engine::Engine;
use ftlog::CountUnit;
use vmm::boot::{BootMode, BootSpec};
use vmm::machine::{Machine, Stop};
use vmm::memory::GuestRam;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let files: Vec<String> = args.by_ref().take_while(|arg| arg != "--").collect();
    let cmdline = args.collect::<Vec<_>>().join(" ");
    let memory: u64 = std::env::var("BOOT_MEMORY_MB").map_or(Ok(512), |mb| mb.parse())?;
    let ram = GuestRam::new(memory << 20)?;
    let engine: Box<dyn Engine> = match std::env::var("BOOT_ENGINE").as_deref() {
        Ok("kvm") => Box::new(kvm::KvmEngine::new(ram.memory())?),
        _ => Box::new(soft::SoftEngine::new(ram.memory())?),
    };
    let disk = files.get(2).map(Disk::open).transpose()?;
    let spec = BoardSpec {
        memory_bytes: memory << 20,
        net: true,
        mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        disk_sectors: disk.as_ref().map(|disk| disk.sectors),
        disk_id: "boot".into(),
        unix_epoch_ns: 1_790_000_000_000_000_000,
        rng_seed: [7; 32],
        exit_port: true,
    };
    let boot = BootSpec {
        kernel: std::fs::read(files.first().context("name a kernel")?)?,
        initrd: files.get(1).map(std::fs::read).transpose()?,
        cmdline,
        mode: BootMode::Auto,
    };
    let machine = Machine::power_on(engine, ram, boot, &spec)?;
    run(machine, disk)
}

fn run(mut machine: Machine, mut disk: Option<Disk>) -> Result<()> {
    let until = std::env::var("BOOT_UNTIL").unwrap_or_default();
    let stretch: u64 = std::env::var("BOOT_STRETCH_MS").map_or(Ok(4), |ms| ms.parse())?;
    machine.set_stretch_limit(Some(Duration::from_millis(stretch)));
    let by_exits = machine.engine_info().counts == CountUnit::Exits;
    let slice = if by_exits { 20 } else { 50_000 };
    let started = Instant::now();
    let mut stretches = 0;
    let mut console = String::new();
    let (mut last, mut idle) = ((Instant::now(), 0), Duration::ZERO);
    loop {
        let stop = machine.run(machine.position().count + slice)?;
        if stop == Stop::Adrift {
            machine.close_stretch(false)?;
            stretches += 1;
        }
        for output in machine.take_outputs()? {
            match output {
                Output::Console { bytes, .. } => {
                    std::io::stdout().write_all(&bytes)?;
                    std::io::stdout().flush()?;
                    console.push_str(&String::from_utf8_lossy(&bytes));
                }
                Output::Disk(request) => {
                    let done = disk
                        .as_mut()
                        .context("a disk request without a disk")?
                        .serve(request)?;
                    machine.deliver(machine.now(), Some(done));
                }
                _ => {}
            }
        }
        let count = machine.position().count;
        let ready = !until.is_empty() && console.contains(&until);
        if matches!(stop, Stop::Off(_)) || ready {
            let seconds = started.elapsed().as_secs_f64();
            let busy = seconds - idle.as_secs_f64();
            println!(
                "\n{stop:?} after {count} counts, {stretches} stretches, {seconds:.2} s ({busy:.2} s \
                 busy), {:.3} M counts/s",
                count as f64 / busy / 1e6
            );
            return Ok(());
        }
        if last.0.elapsed() > Duration::from_secs(5) {
            eprintln!(
                "[{} {stretches} stretches {:?} {:.3} M counts/s]",
                count,
                machine.position(),
                (count - last.1) as f64 / last.0.elapsed().as_secs_f64() / 1e6
            );
            last = (Instant::now(), count);
        }
        if console.len() > 1 << 16 {
            console.drain(..console.floor_char_boundary(1 << 15));
        }
        let host = u64::try_from(started.elapsed().as_nanos())?;
        let deadline = machine.next_deadline();
        if stop == Stop::Idle {
            let wait =
                Duration::from_nanos(deadline.unwrap_or(host + 1_000_000).saturating_sub(host));
            std::thread::sleep(wait.min(Duration::from_millis(100)));
            idle += wait.min(Duration::from_millis(100));
        }
        machine.deliver(u64::try_from(started.elapsed().as_nanos())?, None);
    }
}

struct Disk {
    file: File,
    sectors: u64,
    /// What the guest wrote, by sector.
    written: HashMap<u64, [u8; 512]>,
}

impl Disk {
    fn open(path: &String) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("open {path}"))?;
        // A block device has no length of its own.
        let sectors = file.seek(SeekFrom::End(0))? / 512;
        Ok(Self {
            file,
            sectors,
            written: HashMap::new(),
        })
    }

    fn serve(&mut self, request: DiskRequest) -> Result<Input> {
        let mut data = Vec::new();
        match &request.op {
            DiskOp::Read => {
                data.resize(request.len as usize, 0);
                self.file.read_exact_at(&mut data, request.sector * 512)?;
                for (sector, chunk) in (request.sector..).zip(data.chunks_mut(512)) {
                    if let Some(written) = self.written.get(&sector) {
                        chunk.copy_from_slice(written);
                    }
                }
            }
            DiskOp::Write(bytes) => {
                for (sector, chunk) in (request.sector..).zip(bytes.chunks_exact(512)) {
                    self.written.insert(sector, chunk.try_into()?);
                }
            }
            DiskOp::WriteZeroes => {
                for sector in request.sector..request.sector + u64::from(request.len) / 512 {
                    self.written.insert(sector, [0; 512]);
                }
            }
            DiskOp::Flush | DiskOp::Discard => {}
        }
        Ok(Input::DiskDone {
            id: request.id,
            status: DiskStatus::Ok,
            data,
        })
    }
}
