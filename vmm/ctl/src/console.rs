//! The guest's serial console in this terminal, until Ctrl-] or the end of either side.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use cli::eprintln;
use wire::control::{ControlAddr, ControlClient};

/// What ends the connection from this side, as with telnet.
const ESCAPE: u8 = 0x1d;
const CONNECT: Duration = Duration::from_secs(2);

/// Connects stdin and stdout to the console of the replica at `control`.
pub fn attach(control: &ControlAddr) -> Result<()> {
    let stream = ControlClient::connect(control, CONNECT)?.console()?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("[console of the guest; Ctrl-] leaves]");
        crossterm::terminal::enable_raw_mode().context("the terminal cannot be made raw")?;
    }
    let outcome = converse(stream);
    if terminal {
        crossterm::terminal::disable_raw_mode()?;
        eprintln!();
    }
    outcome
}

fn converse(mut stream: std::io::BufReader<wire::control::client::ControlStream>) -> Result<()> {
    let mut writer = stream.get_ref().try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            let typed = &buffer[..length];
            if typed.contains(&ESCAPE) || writer.write_all(typed).is_err() {
                break;
            }
        }
        writer.close();
    });
    let mut stdout = std::io::stdout();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => {
                stdout.write_all(&buffer[..length])?;
                stdout.flush()?;
            }
        }
    }
}
