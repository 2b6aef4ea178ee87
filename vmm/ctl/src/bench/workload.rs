//! The workloads: a fixed amount of work each, whose time is taken on the host.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ::tests::http::KeepAlive;
use anyhow::{Context, Result, bail, ensure};
use e2e::machine::Machine;
use e2e::wait;

use super::shell::Shell;

/// Where the guest's counting sink listens.
pub const SINK_PORT: u16 = 5001;
/// Length of the web server's large file.
pub const FILE_MIB: u64 = 8;
const MIB: usize = 1 << 20;

/// It bounds hangs only.
const BOUND: Duration = Duration::from_secs(900);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Nothing but the guest's own timers
    Idle,
    /// From power-on until Redis answers
    Boot,
    /// A loop in Python
    Compute,
    /// SET and GET over four connections, one at a time on each
    Redis,
    /// dd with O_DIRECT
    DiskRead,
    /// dd with O_DIRECT and fsync
    DiskWrite,
    /// TCP to the guest
    NetReceive,
    /// HTTP from the guest's nginx
    NetTransmit,
}

pub const ALL: [Workload; 8] = [
    Workload::Idle,
    Workload::Boot,
    Workload::Compute,
    Workload::Redis,
    Workload::DiskRead,
    Workload::DiskWrite,
    Workload::NetReceive,
    Workload::NetTransmit,
];

/// An amount of work, and what it is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Work {
    pub amount: u64,
    pub unit: &'static str,
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Workload::Idle => "idle",
            Workload::Boot => "boot",
            Workload::Compute => "compute",
            Workload::Redis => "redis",
            Workload::DiskRead => "disk-read",
            Workload::DiskWrite => "disk-write",
            Workload::NetReceive => "net-receive",
            Workload::NetTransmit => "net-transmit",
        }
    }

    pub fn work(self, quick: bool) -> Work {
        let (unit, quick_amount, amount) = match self {
            Workload::Idle => ("s", 4, 20),
            Workload::Boot => ("boots", 1, 1),
            Workload::Compute => ("iterations", 200_000, 2_000_000),
            Workload::Redis => ("operations", 2_000, 20_000),
            Workload::DiskRead | Workload::DiskWrite => ("MiB", 128, 512),
            Workload::NetReceive | Workload::NetTransmit => ("MiB", 32, 128),
        };
        let amount = if quick { quick_amount } else { amount };
        Work { amount, unit }
    }

    /// Whether its time says anything: an idle guest is never slower.
    pub fn has_ratio(self) -> bool {
        self != Workload::Idle
    }

    /// Does the work on a machine that has been resumed; gives the time that it took. A boot has
    /// happened by then and is not done here.
    pub fn run(self, machine: &Machine, work: Work) -> Result<Duration> {
        let amount = work.amount;
        match self {
            Workload::Idle => timed(|| wait::pass(Duration::from_secs(amount))),
            Workload::Boot => bail!("a boot is not run on a machine that is up"),
            Workload::Compute => {
                let program = "t = 0\nfor i in range(AMOUNT):\n    t += i * i\nprint(t)\n";
                let program = program.replace("AMOUNT", &amount.to_string());
                let expected = sum_of_squares(amount).to_string();
                let mut shell = Shell::open(machine)?;
                let command = format!("python3 - <<'END'\n{program}END");
                timed(|| {
                    let said = shell.run(&command, BOUND)?;
                    ensure!(
                        said == expected,
                        "the guest computed {said}, not {expected}"
                    );
                    Ok(())
                })
            }
            Workload::Redis => redis(machine.forward(6379)?, amount),
            Workload::DiskRead => in_shell(
                machine,
                &format!(
                    "dd if=/dev/vda of=/dev/null bs=256k count={} iflag=direct 2>&1",
                    amount * 4
                ),
            ),
            Workload::DiskWrite => in_shell(
                machine,
                &format!(
                    "dd if=/dev/zero of=/root/bench.dat bs=256k count={} oflag=direct conv=fsync 2>&1",
                    amount * 4
                ),
            ),
            Workload::NetReceive => net_receive(machine.forward(SINK_PORT)?, amount),
            Workload::NetTransmit => net_transmit(machine.forward(80)?, amount),
        }
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

fn in_shell(machine: &Machine, command: &str) -> Result<Duration> {
    let mut shell = Shell::open(machine)?;
    timed(|| shell.run(command, BOUND).map(drop))
}

/// The sum of the squares of 0 to n - 1.
fn sum_of_squares(n: u64) -> u128 {
    let n = u128::from(n);
    n.saturating_sub(1) * n * (2 * n).saturating_sub(1) / 6
}

fn redis(address: SocketAddr, operations: u64) -> Result<Duration> {
    const CLIENTS: u64 = 4;
    let mut links = (0..CLIENTS)
        .map(|_| {
            let client = redis::Client::open(format!("redis://{address}/"))?;
            let link = client.get_connection_with_timeout(BOUND)?;
            link.set_read_timeout(Some(BOUND))?;
            Ok(link)
        })
        .collect::<redis::RedisResult<Vec<_>>>()
        .context("Redis in the guest")?;
    timed(|| {
        let done: Vec<redis::RedisResult<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = links
                .iter_mut()
                .enumerate()
                .map(|(client, link)| {
                    scope.spawn(move || client_operations(link, client, operations / CLIENTS))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|why| std::panic::resume_unwind(why))
                })
                .collect()
        });
        done.into_iter()
            .collect::<redis::RedisResult<()>>()
            .context("Redis in the guest")?;
        wait::interrupted()
    })
}

fn client_operations(
    link: &mut redis::Connection,
    client: usize,
    operations: u64,
) -> redis::RedisResult<()> {
    for number in 0..operations / 2 {
        if wait::interrupted().is_err() {
            break;
        }
        let key = format!("bench:{client}:{}", number % 100);
        let value = format!("{number:064}");
        redis::cmd("SET").arg(&key).arg(&value).exec(link)?;
        let read: String = redis::cmd("GET").arg(&key).query(link)?;
        if read != value {
            let text = format!("{key} is {read}, not {value}");
            return Err((redis::ErrorKind::Client, "a wrong answer", text).into());
        }
    }
    Ok(())
}

fn net_receive(address: SocketAddr, mib: u64) -> Result<Duration> {
    let mut stream = TcpStream::connect_timeout(&address, BOUND)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    let block = vec![0x5a; MIB];
    timed(|| {
        for _ in 0..mib {
            wait::interrupted()?;
            stream.write_all(&block)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut counted = String::new();
        stream.read_to_string(&mut counted)?;
        let sent = mib * MIB as u64;
        ensure!(
            counted == sent.to_string(),
            "the guest received {counted:?} bytes of {sent}"
        );
        Ok(())
    })
}

fn net_transmit(address: SocketAddr, mib: u64) -> Result<Duration> {
    let mut web = KeepAlive::connect(address, BOUND)?;
    timed(|| {
        for _ in 0..mib.div_ceil(FILE_MIB) {
            wait::interrupted()?;
            let page = web.get("/big")?;
            let length = page.body.len() as u64;
            ensure!(
                page.status == 200 && length == FILE_MIB * MIB as u64,
                "the guest's web server answered {} with {length} bytes",
                page.status
            );
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares() {
        assert_eq!(sum_of_squares(0), 0);
        assert_eq!(sum_of_squares(4), 1 + 4 + 9);
        let long: u128 = (0..1000u128).map(|i| i * i).sum();
        assert_eq!(sum_of_squares(1000), long);
    }
}
