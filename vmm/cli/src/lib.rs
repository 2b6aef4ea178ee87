//! Printing for a reader that may leave: [`println!`], [`print!`] and [`eprintln!`] that go by the
//! standard ones' names and, where those panic, go on.
//!
//! A program whose stdout is a pipe that nobody reads any more (`ft-ctl status --json | head -1`)
//! does its work to the end all the same, and ends with the status of that work. The usual way out,
//! SIGPIPE, would end it wherever it is: with a machine half started, or because of a socket whose
//! other end was killed on purpose.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

static LOST: AtomicBool = AtomicBool::new(false);

/// Writes to stdout. That the reader has left is no error; anything else is told once on stderr.
pub fn out(text: Arguments<'_>) {
    let written = io::stdout().lock().write_fmt(text);
    if let Err(why) = written
        && why.kind() != ErrorKind::BrokenPipe
        && !LOST.swap(true, Ordering::Relaxed)
    {
        err(format_args!("what it says cannot be written: {why}\n"));
    }
}

/// Writes to stderr. If that fails there is nobody to tell.
pub fn err(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Whether something could not be written to stdout though somebody may want it, such as to a file
/// on a full disk.
pub fn output_lost() -> bool {
    let flushed = io::stdout().lock().flush();
    LOST.load(Ordering::Relaxed) || flushed.is_err_and(|why| why.kind() != ErrorKind::BrokenPipe)
}

/// [`std::println!`] by [`out`].
#[macro_export]
macro_rules! println {
    () => { $crate::out(::std::format_args!("\n")) };
    ($($text:tt)+) => {
        $crate::out(::std::format_args!("{}\n", ::std::format_args!($($text)+)))
    };
}

/// [`std::print!`] by [`out`].
#[macro_export]
macro_rules! print {
    ($($text:tt)+) => { $crate::out(::std::format_args!($($text)+)) };
}

/// [`std::eprintln!`] by [`err`].
#[macro_export]
macro_rules! eprintln {
    () => { $crate::err(::std::format_args!("\n")) };
    ($($text:tt)+) => {
        $crate::err(::std::format_args!("{}\n", ::std::format_args!($($text)+)))
    };
}
