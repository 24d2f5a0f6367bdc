//! What the answers to health checks mean, in words. PURE.

use std::time::Duration;

use crate::clock::human;
use crate::stage::bounded;
use crate::wish::Question;
use crate::world::probe::{Answer, Endpoint};
use crate::world::ssh::Exit;

/// What is asked, and from where, for a message; `address` is the one that SSH reached.
pub(super) fn asked(question: &Question, address: &str) -> String {
    let place = |endpoint: &Endpoint| {
        let (name, port, from) = match endpoint {
            Endpoint::Host { address, port } => (address.as_str(), port, "the host"),
            Endpoint::Controller { port } => (address, port, "the controller"),
        };
        let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
        (format!("{name}:{port}"), from)
    };
    match question {
        Question::Units(units) => format!("units {}", bounded(&units.join(", "), 200)),
        Question::Command(words) => format!("command {}", bounded(&words.join(" "), 200)),
        Question::Tcp(endpoint) => {
            let (place, from) = place(endpoint);
            format!("connecting to {place} from {from}")
        }
        Question::Http { endpoint, request, .. } => {
            let (place, from) = place(endpoint);
            let scheme = if request.tls { "https" } else { "http" };
            format!("GET {scheme}://{place}{} from {from}", bounded(&request.path, 200))
        }
    }
}

/// Whether a status code is good: one of these, or without any from 200 to 399.
pub(super) fn good(status: u16, statuses: &[u16]) -> bool {
    if statuses.is_empty() { (200..400).contains(&status) } else { statuses.contains(&status) }
}

/// Whether an answer is good, or what is wrong with it.
pub(super) fn answer(answer: &Answer, statuses: &[u16], body_contains: Option<&str>) -> Result<(), String> {
    if !good(answer.status, statuses) {
        let expected = if statuses.is_empty() {
            "from 200 to 399".into()
        } else {
            statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ")
        };
        return Err(format!("status {}, expected {expected}", answer.status));
    }
    let contains = |text: &str| answer.body.windows(text.len().max(1)).any(|part| part == text.as_bytes());
    match body_contains {
        Some(text) if !contains(text) => Err(format!("status {}, but its body has no {text:?}", answer.status)),
        _ => Ok(()),
    }
}

/// Whether a program ended well under `timeout`, or how else.
pub(super) fn exit(exit: &Exit, timeout: Duration) -> Result<(), String> {
    match exit {
        Exit::Status(0) => Ok(()),
        // timeout(1): 124 if TERM was enough, 137 if it took KILL; busybox's gives what TERM leaves.
        Exit::Status(124 | 137 | 143) => Err(format!("{exit}: it did not end within {}, and was killed", human(timeout))),
        other => Err(other.to_string()),
    }
}

/// Whether all units are active, by `systemctl show` of their LoadState, ActiveState and SubState; otherwise which are not.
pub(super) fn units(units: &[String], shown: &str) -> Result<(), String> {
    let mut blocks = shown.split("\n\n");
    let inactive: Vec<String> = units.iter().filter_map(|unit| inactive(unit, blocks.next().unwrap_or_default())).collect();
    if inactive.is_empty() { Ok(()) } else { Err(inactive.join(", ")) }
}

fn inactive(unit: &str, block: &str) -> Option<String> {
    let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("unknown");
    match value("ActiveState") {
        "active" | "reloading" | "refreshing" => None,
        _ if value("LoadState") == "not-found" => Some(format!("{unit} does not exist")),
        state => Some(format!("{unit} is {state} ({})", value("SubState"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::probe::Get;

    /// Of systemd 252, for nginx.service, nope.service and db.service.
    const SHOWN: &str = "LoadState=loaded\nActiveState=active\nSubState=running\n\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n\n\
        LoadState=loaded\nActiveState=activating\nSubState=auto-restart";

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn units_that_are_not_active_are_named() {
        let said = units(&names(&["nginx.service", "nope.service", "db.service"]), SHOWN);
        assert_eq!(said.unwrap_err(), "nope.service does not exist, db.service is activating (auto-restart)");
        assert_eq!(units(&names(&["nginx.service"]), SHOWN), Ok(()));
        assert_eq!(units(&names(&["nginx.service"]), "").unwrap_err(), "nginx.service is unknown (unknown)");
    }

    #[test]
    fn answers_are_held_against_what_was_expected() {
        let said = |status, body: &str, statuses: &[u16], text| answer(&Answer { status, body: body.into() }, statuses, text);
        for status in [200, 204, 301, 399] {
            assert_eq!(said(status, "", &[], None), Ok(()));
        }
        assert_eq!(said(404, "", &[], None).unwrap_err(), "status 404, expected from 200 to 399");
        assert_eq!(said(200, "", &[401, 403], None).unwrap_err(), "status 200, expected 401 or 403");
        assert_eq!(said(401, "", &[401, 403], None), Ok(()));
        assert_eq!(said(200, "all is well", &[], Some("is w")), Ok(()));
        assert_eq!(said(200, "all", &[], Some("all is well")).unwrap_err(), "status 200, but its body has no \"all is well\"");
    }

    #[test]
    fn programs_end_well_or_not_or_not_in_time() {
        let said = |status| exit(&Exit::Status(status), Duration::from_secs(5));
        assert_eq!(said(0), Ok(()));
        assert_eq!(said(3).unwrap_err(), "exit status 3");
        assert!(said(124).unwrap_err().contains("did not end within 5s"));
        assert_eq!(exit(&Exit::Signal("SEGV".into()), Duration::from_secs(5)).unwrap_err(), "signal SEGV");
    }

    #[test]
    fn what_is_asked_is_said_as_a_person_would_try_it() {
        let request = Get { tls: true, host: None, path: "/healthz".into() };
        let endpoint = Endpoint::Controller { port: 8443 };
        let http = Question::Http { endpoint, request, statuses: vec![], body_contains: None };
        assert_eq!(asked(&http, "fd00::1"), "GET https://[fd00::1]:8443/healthz from the controller");
        let tcp = Question::Tcp(Endpoint::Host { address: "localhost".into(), port: 5432 });
        assert_eq!(asked(&tcp, "10.0.0.1"), "connecting to localhost:5432 from the host");
        assert_eq!(asked(&Question::Command(names(&["smoke-test", "--fast"])), ""), "command smoke-test --fast");
    }
}
