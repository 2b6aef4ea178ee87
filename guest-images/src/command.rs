//! Runs the host's and the guest's programs: output collected, a failure
//! turned into an error with the last lines of it.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::BuildError;

/// Lines of output that an error shows.
const TAIL_LINES: usize = 25;

/// Runs `command` to its end and hands each line of its standard output to
/// `line`. `package` is the Debian package named when the program is missing.
pub fn run_lines(
    command: &mut Command,
    package: &'static str,
    line: &mut dyn FnMut(&str),
) -> Result<String, BuildError> {
    let mut child = spawn(command, package)?;
    let errors = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut text = Vec::new();
            // A pipe that breaks only shortens the text shown in an error.
            let _ = pipe.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let mut output = String::new();
    if let Some(pipe) = child.stdout.take() {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&bytes);
            line(text.trim_end());
            output.push_str(&text);
            bytes.clear();
        }
    }
    let errors = errors.and_then(|t| t.join().ok()).unwrap_or_default();
    finish(command, &mut child, &output, &errors)?;
    Ok(output)
}

/// Runs `command` to its end and returns its standard output.
pub fn run(command: &mut Command, package: &'static str) -> Result<String, BuildError> {
    run_lines(command, package, &mut |_| ())
}

fn spawn(command: &mut Command, package: &'static str) -> Result<Child, BuildError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().map_err(|cause| {
        let program = command.get_program().to_string_lossy().into_owned();
        if cause.kind() == ErrorKind::NotFound {
            BuildError::MissingProgram { program, package }
        } else {
            BuildError::Io {
                action: "run",
                path: program.into(),
                cause,
            }
        }
    })
}

fn finish(
    command: &Command,
    child: &mut Child,
    output: &str,
    errors: &str,
) -> Result<(), BuildError> {
    let status = child.wait().map_err(|cause| BuildError::Io {
        action: "wait for",
        path: command.get_program().into(),
        cause,
    })?;
    if status.success() {
        return Ok(());
    }
    let all: Vec<&str> = output.lines().chain(errors.lines()).collect();
    let tail = &all[all.len().saturating_sub(TAIL_LINES)..];
    Err(BuildError::Command {
        command: shown(command),
        status: status.to_string(),
        output: tail.iter().map(|l| format!("    {l}\n")).collect(),
    })
}

/// The command line, shortened where it is very long.
fn shown(command: &Command) -> String {
    const LIMIT: usize = 300;
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
        if text.chars().count() > LIMIT {
            text = text.chars().take(LIMIT).collect();
            text.push_str(" …");
            break;
        }
    }
    text
}
