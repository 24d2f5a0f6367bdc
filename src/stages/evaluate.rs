//! Evaluate: the locked flake and an attribute become a derivation.
//!
//! Input: the flake's fingerprint and the attribute. Effect: one evaluation for all hosts that share the flake; none for what is
//! remembered. Output: the derivation and the store path that it will have.

use std::time::Duration;

use nixos_host_api::Reason;
use serde::Serialize;

use crate::nix::LockedFlake;
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, chain};
use crate::wish::Wish;
use crate::world::nix::{self, EvaluateError, Evaluated};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Evaluate {
    fingerprint: String,
    attribute: String,
}

impl Stage for Evaluate {
    const NAME: &'static str = "Evaluate";
    const DOING: Reason = Reason::Evaluating;
}

/// What is remembered is there by then, and is no work worth a status.
const REMEMBERED_WITHIN: Duration = Duration::from_millis(100);

/// Evaluates the host's configuration.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, locked: &LockedFlake) -> Result<Evaluated, Stop> {
    let stage = Evaluate { fingerprint: locked.fingerprint.clone(), attribute: pass.wish.attribute.clone() };
    let request = nix::Evaluate {
        flake: locked.clone(),
        attribute: pass.wish.attribute.clone(),
        credentials: pass.wish.credentials.clone(),
        retry: pass.retry,
        namespace: pass.wish.id.namespace.clone(),
    };
    pass.allowed(&stage)?;
    let doing = format!("evaluating nixosConfigurations.{} of {}", stage.attribute, locked.short());
    let evaluated = {
        let evaluating = pass.world.timed(Evaluate::NAME, pass.world.effects.evaluate(request, pass.cancel));
        tokio::pin!(evaluating);
        tokio::select! {
            biased;
            evaluated = &mut evaluating => evaluated,
            () = tokio::time::sleep(REMEMBERED_WITHIN) => {
                pass.reporter.doing(&pass.findings, Evaluate::DOING, doing);
                evaluating.await
            }
        }
    };
    let evaluated = evaluated.map_err(|error| failure(&error, pass.wish, locked));
    let evaluated = pass.ended(&stage, evaluated, |evaluated| evaluated.drv.to_string())?;
    pass.findings.evaluated = Some(evaluated.clone());
    Ok(evaluated)
}

fn failure(error: &EvaluateError, wish: &Wish, locked: &LockedFlake) -> Stop {
    let reason = match error {
        EvaluateError::Cancelled => return Stop::Cancelled,
        EvaluateError::AttributeMissing { .. } => Reason::AttributeNotFound,
        EvaluateError::NotASystem { .. } => Reason::NotANixOSSystem,
        EvaluateError::Failed { .. } | EvaluateError::FlakeBroken { .. } => Reason::EvaluationFailed,
        EvaluateError::OutOfMemory { .. } => Reason::EvaluationOutOfMemory,
        EvaluateError::TimedOut { .. } => Reason::EvaluationTimedOut,
        EvaluateError::ImportFromDerivation { .. } | EvaluateError::Forbidden { .. } => Reason::EvaluationForbidden,
        EvaluateError::FetchFailed { .. } | EvaluateError::Process(_) | EvaluateError::Other { .. } => Reason::ResolveFailed,
    };
    let what = match reason {
        // These name the attribute themselves.
        Reason::AttributeNotFound | Reason::NotANixOSSystem => "spec.flake.attribute:".to_owned(),
        _ => format!("nixosConfigurations.{} of", wish.attribute),
    };
    Failure::new(reason, format!("{what} {} at {}: {}", wish.flake.reference(None), locked.short(), chain(error))).into()
}
