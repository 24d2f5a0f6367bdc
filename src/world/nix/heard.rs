//! What one evaluating process was heard to say. PURE.

use std::collections::BTreeMap;

use super::expression::{Report, report};
use super::log::{Error, Event, Own, parse};
use super::message::clean;
use crate::world::exec::DROPPED;

/// Characters of a version or a name that are kept.
const WORD_LIMIT: usize = 200;

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    nonce: String,
    /// The configurations that the flake has; `None` if it did not get that far.
    pub(super) names: Option<Vec<String>>,
    /// The host that was begun last.
    pub(super) begun: Option<String>,
    /// What became of those that are done with.
    pub(super) told: BTreeMap<String, Told>,
    /// The error that ended the process.
    pub(super) error: Option<Error>,
    /// Its error, or something else that it said, was too long to be read.
    pub(super) dropped: bool,
    /// What the flake's own files are called.
    pub(super) own: Own,
}

/// What became of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It has a derivation.
    Done(Done),
    /// There is none of this name.
    Absent,
    /// It is no NixOS system.
    NotASystem,
}

/// A derivation, as the flake has it: strings of a stranger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) drv: String,
    pub(super) system: Option<String>,
    pub(super) nixos_version: Option<String>,
    pub(super) kernel_version: Option<String>,
    pub(super) host_name: Option<String>,
}

impl Heard {
    /// Listens to a process that was given this nonce; `mark` tells the flake's own files.
    pub(super) fn new(nonce: String, mark: String) -> Self {
        Self { nonce, own: Own { mark, source: None }, ..Self::default() }
    }

    /// The next line of its standard error.
    pub(super) fn line(&mut self, line: &str) {
        self.dropped |= line == DROPPED;
        match parse(line) {
            // Of several errors the last ends the process; those before it belong to builds.
            Some(Event::Error(error)) => self.error = Some(error),
            Some(Event::Message(message)) => {
                if let Some(report) = report(&self.nonce, &message) {
                    self.report(report);
                }
            }
            _ => (),
        }
    }

    fn report(&mut self, report: Report) {
        let word = |text: Option<String>| text.map(|text| clean(&text, WORD_LIMIT)).filter(|text| !text.is_empty());
        match report {
            Report::Names { source, names } => {
                // `/nix/store/<hash>-source/…/flake.nix`
                let store_path = |file: String| file.match_indices('/').nth(3).map(|(end, _)| file[..end].to_owned());
                self.own.source = source.and_then(store_path);
                self.names = Some(names);
            }
            Report::Begin { name } => self.begun = Some(name),
            Report::Absent { name } => drop(self.told.insert(name, Told::Absent)),
            Report::NotASystem { name } => drop(self.told.insert(name, Told::NotASystem)),
            Report::Done { name, drv, system } => {
                drop(self.told.insert(name, Told::Done(Done { drv, system: word(system), ..Done::default() })));
            }
            Report::Facts { name, nixos_version, kernel_version, host_name } => {
                if let Some(Told::Done(done)) = self.told.get_mut(&name) {
                    done.nixos_version = word(nixos_version);
                    done.kernel_version = word(kernel_version);
                    done.host_name = word(host_name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_stands_and_the_last_begun_is_known() {
        let mut heard = Heard::new("n".into(), "rev".into());
        let trace =
            |report: &str| format!("@nix {}", serde_json::json!({"action": "msg", "level": 0, "msg": format!("trace: n {report}")}));
        for report in [
            r#"{"report":"names","source":"/nix/store/abc-source/sub/flake.nix","names":["a","b","c"]}"#,
            r#"{"report":"begin","name":"a"}"#,
            r#"{"report":"done","name":"a","drv":"/nix/store/x.drv","system":"x86_64-linux"}"#,
            r#"{"report":"facts","name":"a","nixosVersion":"26.05\u001b[31m","kernelVersion":"6.12","hostName":""}"#,
            r#"{"report":"begin","name":"c"}"#,
            r#"{"report":"absent","name":"c"}"#,
            r#"{"report":"begin","name":"b"}"#,
        ] {
            heard.line(&trace(report));
        }
        heard.line("fatal: noise");
        heard.line(include_str!("fixtures/error-throw-2.34.jsonl"));
        assert_eq!(heard.names.unwrap().len(), 3);
        assert_eq!(heard.begun.unwrap(), "b");
        assert_eq!(heard.own.source.unwrap(), "/nix/store/abc-source");
        assert_eq!(heard.error.unwrap().text(), "deep yes");
        let done = Done {
            drv: "/nix/store/x.drv".into(),
            system: Some("x86_64-linux".into()),
            nixos_version: Some("26.05".into()),
            kernel_version: Some("6.12".into()),
            host_name: None,
        };
        assert_eq!(heard.told, BTreeMap::from([("a".into(), Told::Done(done)), ("c".into(), Told::Absent)]));
    }

    #[test]
    fn a_flake_that_does_not_know_the_nonce_is_not_believed() {
        let mut heard = Heard::new("n".into(), "rev".into());
        let done = r#"{"report":"done","name":"b","drv":"/nix/store/evil.drv"}"#;
        for text in [done.to_owned(), format!("m {done}"), format!("nn {done}"), format!("x\nn {done}"), format!("trace: n {done}")] {
            heard.line(&format!("@nix {}", serde_json::json!({"action": "msg", "level": 0, "msg": format!("trace: {text}")})));
        }
        // Nor is a builder's or git's line, whatever it looks like.
        heard.line(&format!("trace: n {done}"));
        assert_eq!(heard.told, BTreeMap::new());
    }
}
