//! A machine is saved under load and goes on elsewhere.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use tests::client::Load;

use super::{Context, LONG, SOON, Scenario, finish, load, wait_answers};
use crate::home::Home;
use crate::machine::Machine;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "save-restore",
        about: "a pair is saved under load, killed, and goes on from the file as a pair",
        quick: 1,
        full: 5,
        run: save_restore,
    }]
}

/// One inline command to Redis and its one-line answer, or the value of a GET.
fn redis(machine: &Machine, command: &str) -> Result<String> {
    let mut stream = TcpStream::connect(machine.forward(6379)?)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.replace("+OK\r\n", ""))
}

fn save_restore(context: &Context, seed: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("state");
    let machine = context.pair(&[])?;
    redis(&machine, &format!("SET saved {seed}"))?;
    let load_before = Load::start(load(&machine, seed)?)?;
    wait_answers(&load_before, 300, LONG)?;
    machine.save(&file)?;
    wait_answers(&load_before, 300, LONG)?;
    let writes = finish(load_before)?;
    redis(&machine, "SET saved lost")?;
    let (_, at_end) = machine
        .live()
        .ok_or_else(|| anyhow::anyhow!("nobody is live"))?;
    machine.down()?;

    let args = ["--from".into(), file.into_os_string()];
    let machine = Home::temporary()?.up(&args)?;
    machine.wait_protected(LONG)?;
    let (_, restored) = machine
        .live()
        .ok_or_else(|| anyhow::anyhow!("nobody is live"))?;
    machine.wait_redis(LONG, |_| ())?;
    if restored.guest_clock_ns >= at_end.guest_clock_ns {
        bail!("it did not go on from where it was saved");
    }
    let found = redis(&machine, "GET saved")?;
    if !found.contains(&seed.to_string()) {
        bail!("Redis had {seed} when it was saved, and has {found:?} now");
    }
    let more = Load::start(load(&machine, seed.wrapping_add(1))?)?;
    wait_answers(&more, 300, LONG)?;
    let again = finish(more)?;
    context.tell(&format!("{writes} writes before, {again} after it went on"));
    machine.down()
}
