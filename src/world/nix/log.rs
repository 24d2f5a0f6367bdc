//! Nix's `--log-format internal-json`: one object a line, behind `@nix `. PURE.
//!
//! A line without that prefix is git's, ssh's or the garbage collector's. Unknown numbers and fields are ignored:
//! newer versions add some.

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;

use super::message::{MESSAGE_LIMIT, clean};

/// Kinds of activities; the same numbers in 2.26 and 2.34.
pub(super) mod activity {
    pub(in super::super) const FILE_TRANSFER: u64 = 101;
    pub(in super::super) const REALISE: u64 = 102;
    pub(in super::super) const BUILDS: u64 = 104;
    pub(in super::super) const BUILD: u64 = 105;
    pub(in super::super) const SUBSTITUTE: u64 = 108;
    pub(in super::super) const WAITING: u64 = 111;
}

/// Kinds of results.
pub(super) mod result {
    pub(in super::super) const BUILD_LOG_LINE: u64 = 101;
    pub(in super::super) const PROGRESS: u64 = 105;
    pub(in super::super) const SET_EXPECTED: u64 = 106;
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// Something begins.
    Start {
        /// Names it until it stops.
        id: u64,
        /// One of [`activity`].
        kind: u64,
        /// What it is about, by its kind.
        fields: Vec<Value>,
    },
    /// It ends.
    Stop {
        /// Its name.
        id: u64,
    },
    /// It says something.
    Result {
        /// Its name.
        id: u64,
        /// One of [`result`].
        kind: u64,
        /// What it says.
        fields: Vec<Value>,
    },
    /// An error.
    Error(Error),
    /// What `builtins.trace` was given; also other messages of the highest level that are no errors.
    Message(String),
}

/// An error, as Nix tells it. All texts may hold colours.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Error {
    #[serde(default)]
    raw_msg: Option<String>,
    #[serde(default)]
    msg: String,
    #[serde(flatten)]
    place: Place,
    /// The way to it, innermost first.
    #[serde(default)]
    trace: Vec<Place>,
}

/// A place in a file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
struct Place {
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    line: Option<u64>,
    #[serde(default)]
    column: Option<u64>,
}

#[derive(Deserialize)]
struct Raw {
    action: String,
    #[serde(default)]
    id: u64,
    #[serde(default, rename = "type")]
    kind: u64,
    #[serde(default)]
    fields: Vec<Value>,
    #[serde(default)]
    level: u64,
    #[serde(flatten)]
    error: Error,
}

/// Reads one line; `None` for what is not Nix's, or of no interest.
pub(super) fn parse(line: &str) -> Option<Event> {
    let raw: Raw = serde_json::from_str(line.strip_prefix("@nix ")?).ok()?;
    match raw.action.as_str() {
        "start" => Some(Event::Start { id: raw.id, kind: raw.kind, fields: raw.fields }),
        "stop" => Some(Event::Stop { id: raw.id }),
        "result" => Some(Event::Result { id: raw.id, kind: raw.kind, fields: raw.fields }),
        // Both have level 0. Errors have a raw message, but for the last words of a process out of memory.
        "msg" if raw.level == 0 && (raw.error.raw_msg.is_some() || clean(&raw.error.msg, MESSAGE_LIMIT).starts_with("error:")) => {
            Some(Event::Error(raw.error))
        }
        "msg" if raw.level == 0 => Some(Event::Message(raw.error.msg)),
        _ => None,
    }
}

/// The first error among these lines; what follows it are its consequences.
pub(super) fn first_error(lines: &[String]) -> Option<Error> {
    lines.iter().find_map(|line| match parse(line) {
        Some(Event::Error(error)) => Some(error),
        _ => None,
    })
}

impl Error {
    /// The message for people: clean, and without the advice of several paragraphs that nixpkgs adds to some.
    pub(super) fn text(&self) -> String {
        let text = clean(self.raw_msg.as_deref().unwrap_or(&self.msg), MESSAGE_LIMIT);
        let text = text.strip_prefix("error:").map_or(text.as_str(), str::trim_start).to_owned();
        match text.split_once("\n\n") {
            Some((first, _)) if first.contains("refusing to evaluate") => first.to_owned(),
            _ => text,
        }
    }

    /// Where in the flake it is: `file:line:column`, below the flake's root. Assertions and throws have no place of
    /// their own: then the innermost one on the way to them that is the flake's.
    pub(super) fn position(&self, own: &Own) -> Option<String> {
        std::iter::once(&self.place).chain(&self.trace).find_map(|place| place.inside(own))
    }
}

/// What tells a flake's own files from those of its inputs.
#[derive(Debug, Clone, Default)]
pub(super) struct Own {
    /// Its revision, or the hash of its source: newer versions name files `«reference»/file`, with this in it.
    pub(super) mark: String,
    /// Its store path: what older versions begin names of files with.
    pub(super) source: Option<String>,
}

impl Place {
    fn inside(&self, own: &Own) -> Option<String> {
        let file = clean(self.file.as_deref()?, MESSAGE_LIMIT);
        // Nix repeats line and column in the name of the file.
        let suffix = format!(":{}:{}", self.line?, self.column.unwrap_or(1));
        let file = file.strip_suffix(&suffix).unwrap_or(&file);
        let inside = match file.strip_prefix('«').and_then(|rest| rest.split_once("»/")) {
            Some((reference, inside)) => {
                let reference = percent_decode_str(reference).decode_utf8_lossy();
                (!own.mark.is_empty() && reference.contains(&own.mark)).then_some(inside)?
            }
            None => file.strip_prefix(own.source.as_deref()?)?.strip_prefix('/')?,
        };
        Some(format!("{inside}{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> Error {
        let Some(Event::Error(error)) = parse(line) else { panic!("{line}") };
        error
    }

    fn own() -> Own {
        Own {
            mark: "04e3d98944f13d2f9d7c004c88c4aacde0a93d38".into(),
            source: Some("/nix/store/dr05s8vl3h0hak7gpyf57fzf7gnnh1s4-source".into()),
        }
    }

    #[test]
    fn an_error_of_2_34_has_its_message_and_its_place() {
        let missing = error(include_str!("fixtures/error-missing-2.34.jsonl"));
        assert_eq!(missing.text(), "attribute 'nope' missing");
        assert_eq!(missing.position(&own()).unwrap(), "flake.nix:2:89");
        let throw = error(include_str!("fixtures/error-throw-2.34.jsonl"));
        assert_eq!(throw.text(), "deep yes");
        assert_eq!(throw.position(&own()).unwrap(), "thr.nix:2:3", "the innermost place on the way");
        assert_eq!(throw.position(&Own::default()), None, "somebody else's file");
    }

    #[test]
    fn an_error_of_2_26_names_the_store_path() {
        let missing = error(include_str!("fixtures/error-missing-2.26.jsonl"));
        let source = missing.place.file.as_deref().unwrap().split("/flake.nix").next().unwrap();
        let own = Own { mark: String::new(), source: Some(source.to_owned()) };
        assert_eq!((missing.text().as_str(), missing.position(&own).as_deref()), ("attribute 'nope' missing", Some("flake.nix:2:89")));
        let throw = error(include_str!("fixtures/error-throw-2.26.jsonl"));
        assert_eq!((throw.text().as_str(), throw.position(&own).as_deref()), ("deep yes", Some("thr.nix:2:3")));
    }

    #[test]
    fn long_advice_is_left_out() {
        let line = r#"@nix {"action":"msg","column":null,"file":null,"level":0,"line":null,"msg":"x","raw_msg":"Package ‘unrar’ in /nix/store/x:39 has an unfree license (‘unfree’), refusing to evaluate.\n\na) To temporarily allow unfree packages…"}"#;
        assert_eq!(error(line).text(), "Package ‘unrar’ in /nix/store/x:39 has an unfree license (‘unfree’), refusing to evaluate.");
    }

    #[test]
    fn lines_that_are_not_nixs_or_not_known_are_passed_over() {
        for line in ["fatal: x", "@nix", "@nix {", "@nix []", r#"@nix {"action":"dance"}"#, r#"@nix {"action":"msg","level":3,"msg":"x"}"#]
        {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(error(r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m out of memory"}"#).text(), "out of memory");
        assert_eq!(parse(r#"@nix {"action":"msg","level":0,"msg":"trace: x"}"#), Some(Event::Message("trace: x".into())));
        let start = r#"@nix {"action":"start","id":7,"level":3,"parent":0,"text":"","type":105,"fields":["a",1],"new":{}}"#;
        assert_eq!(parse(start), Some(Event::Start { id: 7, kind: 105, fields: vec!["a".into(), 1.into()] }));
    }
}
