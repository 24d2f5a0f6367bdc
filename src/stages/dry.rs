//! DryActivate: what a switch would do, and nothing else.
//!
//! Input: the toplevel. Effect: none that stays; the closure was copied. Output: the host's own words.

use nixos_host_api::Reason;
use serde::Serialize;

use super::copy::Copied;
use crate::landing::Client;
use crate::observe::{Observed, landing_failure};
use crate::pipeline::{Pass, Reporter, Stop, Verdict};
use crate::stage::{Stage, bounded};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct DryActivate {
    toplevel: String,
}

impl Stage for DryActivate {
    const NAME: &'static str = "DryActivate";
    const DOING: Reason = Reason::Activating;
}

/// Lets the host say what a switch to the system would do.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, observed: &Observed, copied: &Copied) -> Result<Verdict, Stop> {
    let stage = DryActivate { toplevel: copied.toplevel.to_string() };
    pass.begin(&stage, "asking the machine what a switch would do")?;
    let user = &pass.wish.target.user;
    let client = Client::new(&observed.session, user);
    let asking = pass.cancel.run_until_cancelled(client.dry_activate(&copied.toplevel));
    let Some(answer) = asking.await else { return Err(Stop::Cancelled) };
    let text = answer.map(|text| bounded(&text, 4000)).map_err(|error| Stop::Failed(landing_failure(&error)));
    let text = pass.ended(&stage, text, String::clone)?;
    Ok(Verdict::DryRun(text))
}

/// What the host said the last time, if it was asked about this system.
pub fn known<R>(pass: &Pass<'_, R>, toplevel: &crate::nix::StorePath) -> Option<Verdict> {
    let key = DryActivate { toplevel: toplevel.to_string() }.key();
    let record = pass.findings.records.get(DryActivate::NAME).filter(|record| record.key == key)?;
    (record.outcome == nixos_host_api::Outcome::Succeeded).then(|| Verdict::DryRun(record.message.clone().unwrap_or_default()))
}
