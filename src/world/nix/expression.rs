//! The expression that evaluates many hosts of a flake in one process, each for itself: the nonce fold. PURE.
//!
//! `builtins.tryEval` catches only `throw` and `assert`, and loses the message. So each host is announced before it is
//! forced and reported after it, by traces that begin with a random word: whatever kills the process, the host last
//! announced is the culprit, and what was reported stands. The flake cannot know the word, so it cannot report itself.

use serde::Deserialize;

use super::driver::hex;

/// What a trace of ours reports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", tag = "report")]
pub(super) enum Report {
    /// The configurations that the flake has.
    Names {
        /// The file that has them: older versions name files in error messages by their store path.
        source: Option<String>,
        /// Their names.
        names: Vec<String>,
    },
    /// A host is being evaluated from now on.
    Begin {
        /// Its name.
        name: String,
    },
    /// There is no such host.
    Absent {
        /// Its name.
        name: String,
    },
    /// It is no NixOS system.
    NotASystem {
        /// Its name.
        name: String,
    },
    /// Its derivation is in the store.
    Done {
        /// Its name.
        name: String,
        /// The derivation, as the flake has it: not to be trusted.
        drv: String,
        /// What it is built on.
        system: Option<String>,
    },
    /// What people want to know of it.
    #[serde(rename_all = "camelCase")]
    Facts {
        /// Its name.
        name: String,
        /// `config.system.nixos.version`, or its label.
        nixos_version: Option<String>,
        /// The kernel's version.
        kernel_version: Option<String>,
        /// `config.networking.hostName`.
        host_name: Option<String>,
    },
}

/// The function that is applied to the flake's outputs. Facts come after `done`: if they kill the process, it is done all the same.
const FOLD: &str = r#"
flake: let
  say = report: value: builtins.trace ("@NONCE@ " + builtins.unsafeDiscardStringContext (builtins.toJSON report)) value;
  soft = value: let tried = builtins.tryEval value; in if tried.success && builtins.isString tried.value then tried.value else null;
  configurations = flake.nixosConfigurations or { };
  finish = name: config: toplevel:
    builtins.seq toplevel.drvPath (say { report = "done"; inherit name; drv = toplevel.drvPath; system = soft (toplevel.system or null); }
      (say {
        report = "facts"; inherit name;
        nixosVersion = soft (config.system.nixos.version or config.system.nixos.label or null);
        kernelVersion = soft (config.boot.kernelPackages.kernel.version or null);
        hostName = soft (config.networking.hostName or null);
      } null));
  one = name: say { report = "begin"; inherit name; } (
    if !(configurations ? ${name}) then say { report = "absent"; inherit name; } null
    else let configuration = configurations.${name}; toplevel = configuration.config.system.build.toplevel; in
      if !(configuration ? config.system.build.toplevel) || !(builtins.isAttrs toplevel) || (toplevel.type or null) != "derivation" || !(toplevel ? drvPath)
      then say { report = "notASystem"; inherit name; } null
      else finish name configuration.config toplevel);
in say { report = "names"; source = soft ((builtins.unsafeGetAttrPos "nixosConfigurations" flake).file or null); names = builtins.attrNames configurations; }
  (builtins.foldl' (before: name: builtins.seq before (one name)) null (builtins.fromJSON "@NAMES@"))
"#;

/// The expression for these hosts.
pub(super) fn expression(nonce: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote(name)).collect();
    FOLD.trim().replace("@NONCE@", nonce).replace("@NAMES@", &format!("[{}]", names.join(",")))
}

/// A JSON string inside a Nix string: all but the plainest characters as `\\uXXXX`, so that nothing is Nix code.
fn quote(name: &str) -> String {
    let mut quoted = String::from("\\\"");
    for unit in name.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' => quoted.push(byte.into()),
            _ => quoted.extend(["\\\\u", &hex(&unit.to_be_bytes())]),
        }
    }
    quoted + "\\\""
}

/// Reads a trace of ours; `None` for any other message.
pub(super) fn report(nonce: &str, message: &str) -> Option<Report> {
    serde_json::from_str(message.strip_prefix("trace: ")?.strip_prefix(nonce)?.strip_prefix(' ')?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_can_be_nix_code() {
        assert_eq!(quote("web-01"), r#"\"web-01\""#);
        assert_eq!(quote(r#"${x}"\"#), r#"\"\\u0024\\u007bx\\u007d\\u0022\\u005c\""#);
        assert_eq!(quote("ä\u{1f600}"), r#"\"\\u00e4\\ud83d\\ude00\""#);
        assert!(expression("n", &["a".into(), "b".into()]).contains(r#"(builtins.fromJSON "[\"a\",\"b\"]")"#));
    }

    #[test]
    fn only_traces_with_the_nonce_are_ours() {
        let done = r#"{"drv":"/nix/store/x.drv","name":"a","report":"done","system":null}"#;
        assert_eq!(
            report("n1", &format!("trace: n1 {done}")),
            Some(Report::Done { name: "a".into(), drv: "/nix/store/x.drv".into(), system: None })
        );
        assert_eq!(report("n1", &format!("trace: n2 {done}")), None);
        assert_eq!(report("n1", &format!("n1 {done}")), None);
        assert_eq!(report("n1", "trace: n1 {}"), None);
        let facts = r#"trace: n {"hostName":"h","kernelVersion":null,"name":"a","nixosVersion":"26.05","report":"facts"}"#;
        let Some(Report::Facts { nixos_version, host_name, .. }) = report("n", facts) else { panic!() };
        assert_eq!((nixos_version.unwrap(), host_name.unwrap()), ("26.05".into(), "h".into()));
    }
}
