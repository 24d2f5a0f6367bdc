//! What is to run on a host: a list of arguments, never a line.

use super::quote::{self, QuoteError};

/// What a user other than root becomes root with: sudo, or doas where there is no sudo. Neither may ask for a password.
/// NixOS keeps both among its wrappers, which a bare PATH lacks.
const AS_ROOT: &str = r#"PATH="${PATH:-/usr/bin:/bin}:/run/wrappers/bin"
export PATH
if command -v sudo >/dev/null; then exec sudo -n -- "$@"; fi
if command -v doas >/dev/null; then exec doas -n -- "$@"; fi
echo "there is neither sudo nor doas" >&2
exit 127"#;

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

    /// Run as root: through `sudo -n`, or `doas -n` where there is no sudo, if the user who logs in is somebody else.
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
        let become_root: &[&str] = if self.as_root && user != "root" { &["/bin/sh", "-c", AS_ROOT, "sh"] } else { &[] };
        quote::line(become_root.iter().copied().chain(self.words.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_runs_as_it_is_and_others_only_when_asked_otherwise() {
        let plain = Command::new("id").arg("-u");
        assert_eq!(plain.line("ops").unwrap(), "id -u");
        assert_eq!(plain.clone().as_root().line("root").unwrap(), "id -u");
        assert!(plain.as_root().line("ops").unwrap().ends_with(" sh id -u"));
    }

    /// What a login shell makes of the line where only `tools` become root: each says who it is, and what it was given.
    #[expect(clippy::disallowed_methods, reason = "a shell is the only judge of this")]
    fn ran(tools: &[&str]) -> (String, Option<i32>) {
        let bin = tempfile::tempdir().unwrap();
        // Written by another process: what this one has open for writing, a child of another test may hold a moment longer, and it does not run.
        let write = r#"for file; do printf '%s\n' '#!/bin/sh' 'printf "%s|" "${0##*/}" "$@"' > "$file" && chmod +x "$file"; done"#;
        let files = tools.iter().map(|tool| bin.path().join(tool));
        assert!(std::process::Command::new("/bin/sh").args(["-euc", write, "sh"]).args(files).status().unwrap().success());
        let line = Command::new("printf").arg("a b").arg("$(x)").as_root().line("ops").unwrap();
        let output = std::process::Command::new("/bin/sh").arg("-c").arg(line).env("PATH", bin.path()).output().unwrap();
        let said = if output.status.success() { output.stdout } else { output.stderr };
        (String::from_utf8(said).unwrap(), output.status.code())
    }

    #[test]
    fn sudo_comes_first_doas_where_there_is_no_sudo_and_neither_is_said() {
        assert_eq!(ran(&["sudo", "doas"]), ("sudo|-n|--|printf|a b|$(x)|".into(), Some(0)));
        assert_eq!(ran(&["doas"]), ("doas|-n|--|printf|a b|$(x)|".into(), Some(0)));
        assert_eq!(ran(&[]), ("there is neither sudo nor doas\n".into(), Some(127)));
    }

    #[test]
    fn a_script_takes_its_values_as_arguments() {
        let script = Command::script(r#"echo "$1""#).arg("a b");
        assert_eq!(script.line("root").unwrap(), r#"/bin/sh -c 'echo "$1"' sh 'a b'"#);
    }
}
