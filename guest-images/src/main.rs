//! `guest-images build`: makes the guest, or finds it in the cache, and prints
//! where its files are.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use cli::{eprintln, println};
use guest_images::{GuestImage, Options, Progress};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Builds Lockstep's guest from Debian packages.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest, or find it in the cache.
    Build(Build),
}

#[derive(Args)]
struct Build {
    /// Where downloads and images are kept [default: $LOCKSTEP_CACHE, else
    /// $XDG_CACHE_HOME/lockstep, else ~/.cache/lockstep].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Size of the root disk, with M or G for MiB or GiB.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    size: u64,
    /// More Debian packages to install, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    packages: Vec<String>,
    /// The guest's host name.
    #[arg(long, default_value = "guest")]
    hostname: String,
    /// A public key file; its line goes into root's authorized_keys, and sshd
    /// starts in the guest.
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Take newer packages from the mirror even if the cache has some.
    #[arg(long)]
    refresh: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('M' | 'm') => (&text[..text.len() - 1], 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a size such as 512M or 2G"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is too large"))
}

/// Shows progress as a bar on a terminal and as plain lines elsewhere.
struct Display {
    bar: ProgressBar,
    terminal: bool,
}

impl Display {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if terminal {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self { bar, terminal }
    }

    fn show(&self, progress: Progress<'_>) {
        match progress {
            Progress::Step(name) => {
                if !self.terminal {
                    eprintln!("{name}");
                }
                self.bar.set_style(ProgressStyle::default_spinner());
                self.bar.set_message(name.to_string());
            }
            Progress::Amount { done, total, what } => {
                let template = if what == "bytes" {
                    "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"
                } else {
                    "{spinner} {msg} [{bar:30}] {pos}/{len}"
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    self.bar.set_style(style.progress_chars("=> "));
                }
                self.bar.set_length(total.max(done));
                self.bar.set_position(done);
            }
            Progress::Note(text) if self.terminal => self.bar.println(format!("  {text}")),
            Progress::Note(text) => eprintln!("  {text}"),
        }
    }
}

fn build(arguments: Build) -> anyhow::Result<()> {
    let ssh_key = match &arguments.ssh_key {
        None => None,
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("read the public key {}", path.display()))?,
        ),
    };
    let options = Options {
        cache: arguments.cache,
        disk_bytes: arguments.size,
        packages: arguments.packages,
        hostname: arguments.hostname,
        ssh_key,
        refresh: arguments.refresh,
    };
    let display = Display::new();
    let image = guest_images::build(&options, &mut |p| display.show(p))?;
    display.bar.finish_and_clear();
    if arguments.json {
        println!("{}", as_json(&image)?);
    } else {
        print_image(&image);
    }
    Ok(())
}

fn as_json(image: &GuestImage) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&serde_json::json!({
        "kernel": image.kernel,
        "initrd": image.initrd,
        "disk": image.disk,
        "cmdline": image.cmdline,
        "manifest": image.manifest,
    }))?)
}

fn print_image(image: &GuestImage) {
    let bytes = |path: &PathBuf| HumanBytes(std::fs::metadata(path).map_or(0, |m| m.len()));
    println!(
        "Debian 12, kernel {}, {} packages",
        image.manifest.kernel_release,
        image.manifest.packages.len()
    );
    println!(
        "kernel   {} ({})",
        image.kernel.display(),
        bytes(&image.kernel)
    );
    println!(
        "initrd   {} ({})",
        image.initrd.display(),
        bytes(&image.initrd)
    );
    println!(
        "disk     {} ({}; give the guest a copy)",
        image.disk.display(),
        bytes(&image.disk)
    );
    println!("cmdline  {}", image.cmdline);
}

fn main() -> ExitCode {
    let Command::Build(arguments) = Cli::parse().command;
    match build(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}
