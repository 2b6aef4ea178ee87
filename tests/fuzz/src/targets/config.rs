//! Configuration files, and the values of flags.

use std::str::FromStr;

use vmm::config::{Address, ByteSize, Config, Forward, Mac, NetMode, RamSize, Seed};
use wire::control::ControlAddr;
use wire::nbd::ExportName;

use crate::Target;

pub const TARGET: Target = Target {
    name: "config",
    about: "configuration files and the values of flags; what is read is written and read the same",
    run,
    samples,
    cases: 10_000,
};

fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Config::parse(&text) {
        Ok(config) => {
            crate::findings::accepted();
            let again = config.to_toml().expect("a configuration can be written");
            let again = Config::parse(&again).expect("what was written can be read");
            assert_eq!(config, again);
            let _ = (
                config.mac(),
                config.protocol(),
                config.kernel_cmdline("quiet"),
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // The values, each on its own line too.
    for line in text.lines() {
        let value = line.split_once('=').map_or(line, |(_, value)| value);
        let value = value.trim().trim_matches('"');
        again::<ByteSize>(value);
        again::<RamSize>(value);
        again::<Address>(value);
        again::<Mac>(value);
        again::<NetMode>(value);
        let _ = Forward::from_str(value);
        again::<ControlAddr>(value);
        again::<ExportName>(value);
        again::<wire::netport::Mac>(value);
        again::<ftlog::VmId>(value);
        again::<ft_netd::Outside>(value);
        again::<ft_netd::Forward>(value);
        let _ = Seed::from_str(value);
        let _ = ft_diskd::DiskConfig::from_str(value);
    }
}

/// A value that can be read is written so that it is read as the same.
fn again<T: FromStr<Err: std::fmt::Display> + PartialEq + std::fmt::Display>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            let same = written.parse::<T>().is_ok_and(|read| read == value);
            assert!(same, "{text:?} is written as {written:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn samples() -> Vec<Vec<u8>> {
    let example = include_str!("../../../../docs/lockstep.example.toml");
    // Without its comments, and with the keys that have no default.
    let bare: String = example
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| format!("{line}\n"))
        .collect();
    let values = "512MiB\n0x1000\n64KiB\n127.0.0.1:80\n[::1]:443\nhost.example:1\nunix:/tmp/x\n\
        52:54:00:12:34:56\nuser\ntap=ft0,bridge=br0\n127.0.0.1:8080:80\n8080:80\n80\n\
        disk?vm=07070707-0707-0707-0707-070707070707&view=3&replica=a\n\
        name=disk0,path=/tmp/a,readonly=on\n";
    let minimal = "vm.name = \"a\"\nvm.memory = \"16MiB\"\nnet.forward = [\"127.0.0.1:0:80\"]\n";
    [example, &bare, values, minimal]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}
