//! Commit: the verified system becomes the boot default, and the way back is disarmed.
//!
//! Input: the verified system. Effect, all on the host: profile, boot default, disarm; read back. Output: the verdict.

use nixos_host_api::Reason;
use serde::Serialize;

use super::order::{self, Order};
use super::verify::Verified;
use crate::landing::HostStatus;
use crate::pipeline::{Pass, Reporter, Stop, Verdict};
use crate::stage::{Failure, Stage};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Commit(pub Order);

impl Stage for Commit {
    const NAME: &'static str = "Commit";
    const DOING: Reason = Reason::Committing;

    fn key(&self) -> String {
        self.0.key()
    }
}

/// Makes the system stay, and says what was read back.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, verified: Verified) -> Result<Verdict, Stop> {
    let stage = Commit(verified.order.clone());
    pass.reporter.doing(&pass.findings, Commit::DOING, format!("making {} the boot default", verified.toplevel.name()));
    let (landing, toplevel, note) = (verified.landing.clone(), verified.toplevel.clone(), verified.note.clone());
    let committed = pass.world.timed(Commit::NAME, commit(pass, verified)).await;
    // A host that has not done it, or listens to another controller, may land it all the same.
    let known = committed.as_ref().err().is_none_or(|failure| !order::is_unknown(failure));
    let result = committed.and_then(|host| {
        pass.saw(host.clone());
        if order::committed_by_boot(&host, &landing) {
            return Ok(host);
        }
        order::end(&host, &landing, "").map(|()| host)
    });
    if known {
        pass.findings.records.landing("Activate", None);
        pass.findings.ended.extend(order::ended(pass.wish, &landing, result.as_ref().err().cloned()));
    }
    let host = pass.ended(&stage, result.map_err(Stop::Failed), |_| note.clone())?;
    pass.landed(toplevel.clone());
    Ok(if host.current.as_ref() == Some(&toplevel) { Verdict::UpToDate(note) } else { Verdict::RebootPending })
}

async fn commit<R: Reporter>(pass: &Pass<'_, R>, verified: Verified) -> Result<HostStatus, Failure> {
    let Verified { landing, session, committed, .. } = verified;
    if let Some(host) = committed {
        return Ok(host);
    }
    order::settle(pass, &session, &landing, order::End::Commit).await
}
