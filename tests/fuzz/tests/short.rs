//! A short run of every target; `cargo run --release -p fuzz -- --seconds 60` does long ones.

use std::process::Command;

#[test]
fn nothing_is_found_in_a_short_run() {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fuzz"));
    // Kept for whoever looks at a failure.
    command.arg("--out").arg(out.path());
    if let Ok(seed) = std::env::var("SEED") {
        command.args(["--seed", &seed]);
    }
    let run = command.output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}{}", String::from_utf8_lossy(&run.stderr));
    if !run.status.success() {
        let kept = out.keep();
        panic!(
            "inputs are in {}; each can be repeated as said above",
            kept.display()
        );
    }
}
