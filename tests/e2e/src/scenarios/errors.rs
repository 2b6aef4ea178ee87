//! What is wrong with the input is said, and the command fails.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cli::eprintln;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Context, LONG, Scenario};
use crate::home::{self, Home};
use crate::rig::{self, Layout};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "bad-input",
            about: "files, flags and ports that cannot be used: each a clear error",
            quick: 1,
            full: 1,
            run: bad_input,
        },
        Scenario {
            name: "full-disk",
            about: "the disk with the machine's folder is full: a clear error",
            quick: 1,
            full: 1,
            run: full_disk,
        },
        Scenario {
            name: "replicas-differ",
            about: "a backup with another memory size is refused",
            quick: 1,
            full: 1,
            run: replicas_differ,
        },
    ]
}

/// `ft-ctl up` with these arguments must fail and say all of `words`; nothing may be left.
fn must_fail(context: &Context, what: &str, args: &[&str], words: &[&str]) -> Result<()> {
    let home = Home::temporary()?;
    let output = home.run(&[&["up"], args].concat())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        home::end(&home)?;
        bail!("{what}: `ft-ctl up` succeeded");
    }
    if said.contains("panicked") {
        bail!("{what}: a panic: {said}");
    }
    let lower = said.to_lowercase();
    if let Some(word) = words
        .iter()
        .find(|word| !lower.contains(&word.to_lowercase()))
    {
        bail!("{what}: the error does not say {word:?}:\n{said}");
    }
    if !home::names(&home).is_empty() {
        home::end(&home)?;
        bail!("{what}: a machine was left behind");
    }
    let error = said.lines().find(|line| !line.starts_with('['));
    context.tell(&format!("{what}: {}", error.unwrap_or_default()));
    Ok(())
}

fn bad_input(context: &Context, _seed: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path.display().to_string())
    };
    let base = context.base()?;
    let kernel = std::fs::read(base.setting("kernel")?).context("the guest's kernel")?;
    let cut = write("vmlinuz", &kernel[..kernel.len() / 3])?;
    let text = write(
        "notes.txt",
        b"This is no kernel and no machine.\n"
            .repeat(100)
            .as_slice(),
    )?;
    let state = std::fs::read(base.state())?;
    let half = write("state", &state[..state.len() / 2])?;
    let mut flipped = state;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let flipped = write("flipped", &flipped)?;
    let toml = write("wrong.toml", b"[vm]\nmemroy = \"512MiB\"\n")?;
    let odd = write("odd.img", &[0; 700])?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let forward = format!("{}:6379", taken.local_addr()?);
    let port = taken.local_addr()?.port().to_string();

    let fail = |what: &str, args: &[&str], words: &[&str]| must_fail(context, what, args, words);
    fail(
        "truncated kernel",
        &["--kernel", &cut],
        &["kernel", "truncated"],
    )?;
    fail("a text as kernel", &["--kernel", &text], &["text file"])?;
    fail(
        "no such kernel",
        &["--kernel", "/nowhere/vmlinuz"],
        &["/nowhere/vmlinuz", "No such file"],
    )?;
    fail(
        "missing disk",
        &["--disk", "/nowhere/disk.img"],
        &["/nowhere/disk.img"],
    )?;
    fail("disk of an odd size", &["--disk", &odd], &["odd.img"])?;
    fail("half a saved state", &["--from", &half], &["state"])?;
    fail(
        "a flipped bit in a saved state",
        &["--from", &flipped],
        &["flipped"],
    )?;
    fail("a text as saved state", &["--from", &text], &["notes.txt"])?;
    fail("an unknown key", &[&toml], &["memroy"])?;
    fail(
        "no such configuration",
        &["/nowhere/vm.toml"],
        &["/nowhere/vm.toml"],
    )?;
    fail("too little memory", &["--memory", "1MiB"], &["memory"])?;
    fail("port in use", &["--forward", &forward], &[&port, "in use"])
}

/// A small file system of its own.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path) -> Result<Self> {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=8m"),
        )
        .context("mounting a tmpfs needs root; run this scenario with sudo")?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(why) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {why}", self.0.display());
        }
    }
}

fn full_disk(context: &Context, _seed: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _mounted = Tmpfs::mount(folder.path())?;
    let home = Home::at(folder.path());
    let output = home.run(&["up"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        home::end(&home)?;
        bail!("`ft-ctl up` succeeded on a disk of 8 MiB");
    }
    if !said.contains("No space left") || said.contains("panicked") {
        bail!("the error does not say that there is no space left:\n{said}");
    }
    context.tell(said.lines().last().unwrap_or_default().trim());
    Ok(())
}

fn replicas_differ(context: &Context, _seed: u64) -> Result<()> {
    let layout = Layout {
        boot: true,
        backup_flags: &["--memory", "256MiB"],
        ..Layout::default()
    };
    let rig = rig::start(context.base()?, layout)?;
    let machine = &rig.machine;
    // A pair that does not match does not start: neither replica may go on without the other.
    for replica in machine.replicas() {
        crate::process::wait_end(replica.process, LONG)?;
        let said = machine.log(&format!("replica-{}", replica.id));
        if !said.contains("the memory layouts differ") || said.contains("panicked") {
            bail!("replica {} does not say what differs:\n{said}", replica.id);
        }
        context.tell(said.lines().last().unwrap_or_default());
    }
    Ok(())
}
