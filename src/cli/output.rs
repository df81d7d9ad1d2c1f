//! What commands print. The standard macros panic where nobody reads any more (`starling peers | head -1`), and SIGPIPE
//! would end an agent or a command that is half done. So these take their place in all of `cli/`: output that nobody
//! reads is dropped, the command finishes its work, and its exit code tells how that went.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::OnceLock;

/// The first failure to print that is no closed pipe, such as a full disk behind a redirection.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

/// Standard output, for what writes piece by piece: it takes everything once nobody reads any more.
pub(super) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_closed(io::stdout().write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_closed(io::stdout().flush(), ())
    }
}

fn unless_closed<T>(result: io::Result<T>, taken: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(taken),
        other => other,
    }
}

/// Why something could not be printed; a closed pipe is no reason.
pub(super) fn failure() -> Option<&'static io::Error> {
    FAILURE.get()
}

pub(super) fn print(text: Arguments<'_>, end: &str) {
    let printed = Output.write_fmt(text).and_then(|()| Output.write_all(end.as_bytes()));
    if let Err(error) = printed.and_then(|()| Output.flush()) {
        // Later failures say the same.
        let _ = FAILURE.set(error);
    }
}

/// Whoever closed standard error has nowhere to be told of it.
pub(super) fn say(text: Arguments<'_>, end: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_fmt(text).and_then(|()| out.write_all(end.as_bytes()));
}

#[cfg(feature = "node")]
macro_rules! print {
    ($($part:tt)+) => { $crate::cli::output::print(format_args!($($part)+), "") };
}
macro_rules! println {
    ($($part:tt)+) => { $crate::cli::output::print(format_args!($($part)+), "\n") };
}
macro_rules! eprint {
    ($($part:tt)+) => { $crate::cli::output::say(format_args!($($part)+), "") };
}
macro_rules! eprintln {
    ($($part:tt)+) => { $crate::cli::output::say(format_args!($($part)+), "\n") };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_passed_over() {
        assert_eq!(unless_closed(Err(io::ErrorKind::BrokenPipe.into()), 5).unwrap(), 5);
        assert_eq!(unless_closed(Ok(3), 5).unwrap(), 3);
        let full = unless_closed(Err(io::ErrorKind::StorageFull.into()), 5);
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
