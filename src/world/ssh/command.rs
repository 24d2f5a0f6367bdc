//! What is to run on a host: a list of arguments, never a line.

use super::quote::{self, QuoteError};

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    words: Vec<String>,
    as_root: bool,
}

impl Command {
    /// `program` without arguments, run as the user who logs in.
    pub fn new(program: impl Into<String>) -> Self {
        Self { words: vec![program.into()], as_root: false }
    }

    /// A POSIX shell that runs `script`; arguments added from here on are its `$1`, `$2` and so forth.
    pub fn script(script: impl Into<String>) -> Self {
        Self { words: vec!["/bin/sh".into(), "-c".into(), script.into(), "sh".into()], as_root: false }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.words.push(argument.into());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.words.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Run as root: through `sudo -n` if the user who logs in is somebody else.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.as_root = true;
        self
    }

    /// The program and its arguments.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Whether it must run as root.
    pub fn is_as_root(&self) -> bool {
        self.as_root
    }

    /// The line for the login shell of `user`.
    pub fn line(&self, user: &str) -> Result<String, QuoteError> {
        let sudo: &[&str] = if self.as_root && user != "root" { &["sudo", "-n", "--"] } else { &[] };
        quote::line(sudo.iter().copied().chain(self.words.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_needs_no_sudo_and_others_only_when_asked() {
        let plain = Command::new("id").arg("-u");
        assert_eq!(plain.line("ops").unwrap(), "id -u");
        assert_eq!(plain.clone().as_root().line("root").unwrap(), "id -u");
        assert_eq!(plain.as_root().line("ops").unwrap(), "sudo -n -- id -u");
    }

    #[test]
    fn a_script_takes_its_values_as_arguments() {
        let script = Command::script(r#"echo "$1""#).arg("a b");
        assert_eq!(script.line("root").unwrap(), r#"/bin/sh -c 'echo "$1"' sh 'a b'"#);
    }
}
