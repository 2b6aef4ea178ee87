//! Prints what the probe finds on this host. Ends with 1 if the engine cannot be used.

use std::process::ExitCode;

fn main() -> ExitCode {
    let probe = kvm::probe::probe();
    for check in &probe.checks {
        println!(
            "{:8} {}: {}",
            format!("{:?}", check.result),
            check.name,
            check.detail
        );
        if let Some(fix) = &check.fix {
            println!("         -> {fix}");
        }
    }
    println!("{}", probe.why());
    ExitCode::from(u8::from(!probe.works()))
}
