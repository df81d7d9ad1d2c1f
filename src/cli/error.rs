//! What a command says when it fails.

use std::fmt;

/// A failure as the user sees it: what went wrong, what to do about it, and the exit code.
#[derive(Debug)]
pub struct CliError {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl CliError {
    /// The command could not do its work (exit code 1).
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), hint: None, code: 1 }
    }

    /// The command was called wrongly (exit code 2, as for wrong options).
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), hint: None, code: 2 }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Exits with this code: that of another command, which is passed on.
    #[cfg(feature = "node")]
    #[must_use]
    pub(super) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

#[cfg(feature = "node")]
impl From<crate::lab::ProcessError> for CliError {
    fn from(error: crate::lab::ProcessError) -> Self {
        let failed = Self::failed(&error);
        match error.hint() {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }
}
