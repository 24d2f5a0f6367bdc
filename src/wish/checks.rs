//! `spec.healthChecks` as typed values. PURE.

use std::time::Duration;

use nixos_host_api::{CheckFailurePolicy, CheckFrom, HealthCheck as Spec, HttpCheck, HttpScheme, Reason};
use serde::Serialize;

use super::{Activation, time_of};
use crate::clock::human;
use crate::stage::Failure;
use crate::world::probe::{Endpoint, Get};

/// Something that has to hold of a new system before it is committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// Its name in messages.
    pub name: String,
    /// What is asked.
    pub question: Question,
    /// For one try.
    pub timeout: Duration,
    /// Tries after the first one.
    pub retries: u8,
    /// Before each of them.
    pub interval: Duration,
    /// What it means when all of them failed.
    pub on_failure: CheckFailurePolicy,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Question {
    /// Whether these units are active.
    Units(Vec<String>),
    /// Whether a port accepts connections.
    Tcp(Endpoint),
    /// Whether a request is answered well.
    Http {
        /// By whom.
        endpoint: Endpoint,
        /// The request.
        request: Get,
        /// The status codes that are good; none: 200 to 399.
        statuses: Vec<u16>,
        /// What has to be in the body.
        body_contains: Option<String>,
    },
    /// Whether a program ends with exit status 0.
    Command(Vec<String>),
}

/// Checks `spec.healthChecks`; in the order of their names, since theirs means nothing.
pub(super) fn checks(specs: &[Spec], activation: &Activation) -> Result<Vec<HealthCheck>, Failure> {
    let mut checks = specs.iter().map(|spec| check(spec, activation)).collect::<Result<Vec<_>, _>>()?;
    checks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(checks)
}

fn check(spec: &Spec, activation: &Activation) -> Result<HealthCheck, Failure> {
    let field = |field: &str| format!("healthChecks[{}].{field}", spec.name);
    let timeout = time_of(&field("timeout"), spec.timeout.as_ref(), 5)?;
    let left = super::for_checks(activation.commit_within, activation.settle);
    if timeout >= left {
        let problem = format!(
            "is not less than what activation.commitWithin ({}) leaves after activation.settle ({}) and for the commit: {}",
            human(activation.commit_within),
            human(activation.settle),
            human(left)
        );
        return Err(super::invalid(&field("timeout"), &human(timeout), &problem));
    }
    Ok(HealthCheck {
        name: spec.name.clone(),
        question: question(spec)?,
        timeout,
        retries: spec.retries.unwrap_or(3),
        interval: time_of(&field("interval"), spec.interval.as_ref(), 2)?,
        on_failure: spec.on_failure.unwrap_or_default(),
    })
}

fn question(spec: &Spec) -> Result<Question, Failure> {
    let wrong = |problem: &str| Failure::new(Reason::InvalidSpec, format!("spec.healthChecks[{}]: {problem}", spec.name));
    let from = spec.from.unwrap_or_default();
    let endpoint = |address: &Option<String>, port: u16| match (from, address) {
        (CheckFrom::Host, address) => Ok(Endpoint::Host { address: address.clone().unwrap_or_else(|| "localhost".into()), port }),
        (CheckFrom::Controller, None) => Ok(Endpoint::Controller { port }),
        (CheckFrom::Controller, Some(_)) => {
            Err(wrong("from the Controller a check goes to the address that SSH reached: leave address out"))
        }
    };
    match (&spec.units, &spec.tcp, &spec.http, &spec.command) {
        (Some(units), None, None, None) if from == CheckFrom::Host => Ok(Question::Units(units.clone())),
        (None, Some(tcp), None, None) => Ok(Question::Tcp(endpoint(&tcp.address, tcp.port)?)),
        (None, None, Some(http), None) => Ok(http_question(http, endpoint(&http.address, port(http))?)),
        (None, None, None, Some(words)) if from == CheckFrom::Host => match words.iter().any(|word| word.contains('\0')) {
            false if words.first().is_some_and(|program| !program.is_empty()) => Ok(Question::Command(words.clone())),
            false => Err(wrong("command: the program has no name")),
            true => Err(wrong("command: an argument has a NUL character, which no command line can carry")),
        },
        (Some(_), None, None, None) | (None, None, None, Some(_)) => Err(wrong("units and command are asked from the Host only")),
        _ => Err(wrong("needs exactly one of units, tcp, http and command")),
    }
}

fn port(http: &HttpCheck) -> u16 {
    http.port.unwrap_or(if http.scheme == Some(HttpScheme::Https) { 443 } else { 80 })
}

fn http_question(http: &HttpCheck, endpoint: Endpoint) -> Question {
    Question::Http {
        endpoint,
        request: Get {
            tls: http.scheme == Some(HttpScheme::Https),
            host: http.host.clone(),
            path: http.path.clone().unwrap_or_else(|| "/".into()),
        },
        statuses: http.statuses.clone().unwrap_or_default(),
        body_contains: http.body_contains.clone(),
    }
}

#[cfg(test)]
mod tests {
    use nixos_host_api::{FailedUnitsPolicy, Mode, RebootPolicy};
    use serde_json::{Value, json};

    use super::*;

    fn read(check: Value) -> Result<HealthCheck, String> {
        let activation = Activation {
            mode: Mode::Switch,
            activate_within: Duration::from_secs(600),
            commit_within: Duration::from_secs(60),
            settle: Duration::from_secs(5),
            on_failed_units: FailedUnitsPolicy::Revert,
            reboot: RebootPolicy::Never,
            reboot_within: Duration::from_secs(600),
        };
        let spec: Spec = serde_json::from_value(check).unwrap();
        checks(&[spec], &activation).map(|mut checks| checks.remove(0)).map_err(|failure| failure.message)
    }

    #[test]
    fn what_is_left_out_has_a_value() {
        let found = read(json!({"name": "web", "http": {}})).unwrap();
        let Question::Http { endpoint, request, statuses, body_contains } = found.question else { panic!("{found:?}") };
        assert_eq!(endpoint, Endpoint::Host { address: "localhost".into(), port: 80 });
        assert_eq!(request, Get { tls: false, host: None, path: "/".into() });
        assert_eq!((statuses, body_contains), (vec![], None));
        assert_eq!((found.timeout, found.retries, found.interval), (Duration::from_secs(5), 3, Duration::from_secs(2)));
        assert_eq!(found.on_failure, CheckFailurePolicy::Revert);
        let secure = read(json!({"name": "web", "from": "Controller", "http": {"scheme": "HTTPS"}})).unwrap();
        assert!(matches!(secure.question, Question::Http { endpoint: Endpoint::Controller { port: 443 }, .. }), "{secure:?}");
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_here_too() {
        for (check, says) in [
            (json!({}), "spec.healthChecks[x]: needs exactly one of units, tcp, http and command"),
            (json!({"tcp": {"port": 1}, "units": ["a.service"]}), "needs exactly one of"),
            (json!({"from": "Controller", "units": ["a.service"]}), "from the Host only"),
            (json!({"from": "Controller", "command": ["true"]}), "from the Host only"),
            (json!({"from": "Controller", "tcp": {"port": 1, "address": "10.0.0.1"}}), "leave address out"),
            (json!({"command": [""]}), "no name"),
            (json!({"command": ["a\0b"]}), "NUL"),
            (json!({"tcp": {"port": 1}, "timeout": "soon"}), "spec.healthChecks[x].timeout: \"soon\" is not a duration"),
            (
                json!({"tcp": {"port": 1}, "timeout": "50s"}),
                "spec.healthChecks[x].timeout: \"50s\" is not less than what activation.commitWithin (1m)",
            ),
        ] {
            let mut check = check;
            check["name"] = "x".into();
            let refused = read(check.clone()).unwrap_err();
            assert!(refused.contains(says), "{check}: {refused}");
        }
    }
}
