//! Execution of pure instructions by the host.

/// Compiled stubs.
#[derive(Default)]
pub struct Native {}
