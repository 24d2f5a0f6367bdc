//! One pass for one resource: what Kubernetes says in, one status out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};
use nixos_host_api::{FINALIZER, HostKeyPolicy, NixOSHost, REQUESTED_AT, Reason};
use tokio_util::sync::CancellationToken;

use super::Controller;
use super::clients::REQUEST_WITHIN;
use super::events::happened;
use super::finalizer;
use super::hosts::{Newest, key};
use super::next::{self, Next};
use super::reporter::{Context, StatusReporter};
use super::status::{Stored, Writer};
use crate::pipeline::{Findings, Pass, converge};
use crate::report::State;
use crate::stage::{Failure, Records, chain};
use crate::wish::{Given, HostId, SecretData, Wish};
use crate::world::nix::RootName;

/// Runs one pass. Errors in it are in the status; `Err` means that Kubernetes could not be spoken to.
pub(super) async fn run(
    controller: &Controller,
    newest: &Newest,
    stored: &mut Stored,
    cancel: &CancellationToken,
) -> Result<Next, kube::Error> {
    let namespace = newest.metadata().namespace.clone().unwrap_or_default();
    let api: Api<NixOSHost> = Api::namespaced(controller.clients.requests.clone(), &namespace);
    if newest.metadata().deletion_timestamp.is_some() {
        return end(controller, &api, newest.metadata()).await;
    }
    let Some(object) = readable(controller, newest) else { return Ok(Next::Wait) };
    *stored = std::mem::take(stored).newest(object);
    let asked;
    let object = if stored.is_ahead_of(object) {
        // What is wanted now is newer too: an old wish would land what somebody has taken back.
        asked = Arc::new(in_time(api.get(&object.name_any())).await?);
        *stored = Stored::of(&asked);
        if asked.metadata.deletion_timestamp.is_some() {
            return end(controller, &api, &asked.metadata).await;
        }
        &asked
    } else {
        object
    };
    if !object.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        let added = finalizer::add(&api, object).await?;
        *stored = std::mem::take(stored).newest(&added);
    }
    let writer = Writer::new(api, object, stored.clone(), controller.world.lead.clone());
    let (begun, before) = (controller.world.clock.now(), stored.status.clone());
    let reporter = StatusReporter::new(context(controller, object, &before), writer.clone(), controller.brake.clone());
    let mut findings = findings(&before);
    let state = if object.spec.suspend == Some(true) {
        Ok(State::Suspended)
    } else if let Some(why) = controller.brake.stops() {
        Ok(State::Braked(why))
    } else {
        work(controller, object, &before, &reporter, &mut findings, cancel).await?
    };
    let next = next::next(object, &state, &findings, |time| controller.world.jitter(time, 0.1));
    let Ok(state) = state else {
        // Cut off by a change: the next pass reports. What it must know of landings was written down before they began.
        reporter.quit().await;
        *stored = writer.stored().await;
        return Ok(Next::Now);
    };
    let written = reporter.end(&findings, state).await;
    *stored = writer.stored().await;
    if let Err(error) = written {
        controller.complain(error.common(), &chain(&error));
        return Ok(Next::After(Duration::from_secs(5)));
    }
    for landing in &findings.ended {
        let took = controller.world.clock.now().saturating_duration_since(begun);
        controller.world.metrics.landing(landing.failure.as_ref().map(|failure| failure.reason), took);
    }
    controller.events.tell(object, happened(&before, &stored.status));
    Ok(next)
}

/// The resource, if it can be read. What cannot be keeps its status as it was: an Event is where whoever asks what became of it finds an answer.
fn readable<'n>(controller: &Controller, newest: &'n Newest) -> Option<&'n Arc<NixOSHost>> {
    match newest {
        Newest::Decoded(object) => Some(object),
        Newest::Undecodable { undecodable, told, .. } => {
            if !told.swap(true, Ordering::Relaxed) {
                controller.events.undecodable(undecodable);
            }
            None
        }
    }
}

fn context(controller: &Controller, object: &NixOSHost, before: &nixos_host_api::NixOSHostStatus) -> Context {
    Context {
        previous: before.clone(),
        generation: object.metadata.generation.unwrap_or_default(),
        requested_at: requested_at(object),
        trusts_first_use: object.spec.connection.host_key_policy == Some(HostKeyPolicy::TrustOnFirstUse),
        trusts_jump: object.spec.connection.jump.as_ref().is_some_and(|jump| jump.host_key_policy == Some(HostKeyPolicy::TrustOnFirstUse)),
        mode: object.spec.activation.as_ref().and_then(|activation| activation.mode).unwrap_or_default(),
        clock: controller.world.clock.clone(),
    }
}

/// The request for a pass, no longer than status takes it: what is compared is what was written.
fn requested_at(object: &NixOSHost) -> Option<String> {
    object.annotations().get(REQUESTED_AT).map(|token| token.chars().take(256).collect())
}

/// What is remembered from earlier passes.
fn findings(before: &nixos_host_api::NixOSHostStatus) -> Findings {
    Findings {
        records: Records::new(before.stages.clone()),
        landed: before.system.as_ref().and_then(|system| system.landed.as_ref()?.parse().ok()),
        followed: before.flake.as_ref().and_then(|flake| flake.followed.clone()),
        ..Findings::default()
    }
}

/// An API server that has just started, or a right that was just granted: for a moment it refuses what it then allows. Nobody is called for that.
const RIGHTS_WITHIN: Duration = Duration::from_secs(3);

/// The pass itself. `Ok(Err)` if it was cut off.
async fn work(
    controller: &Controller,
    object: &NixOSHost,
    before: &nixos_host_api::NixOSHostStatus,
    reporter: &StatusReporter,
    findings: &mut Findings,
    cancel: &CancellationToken,
) -> Result<Result<State, ()>, kube::Error> {
    let mut read = wish(controller, object, before).await?;
    if let Err(refused) = &read
        && refused.reason == Reason::Forbidden
        && findings.records.get("Read").is_none_or(|record| record.reason.as_deref() != Some(Reason::Forbidden.as_str()))
    {
        tracing::info!("asking once more: {}", refused.message);
        if cancel.run_until_cancelled(tokio::time::sleep(RIGHTS_WITHIN)).await.is_none() {
            return Ok(Err(()));
        }
        read = wish(controller, object, before).await?;
    }
    let wish = match read {
        Ok(wish) => wish,
        Err(failure) => {
            findings.records.failed("Read", String::new(), &failure);
            return Ok(Ok(next::failed(failure, object, findings)));
        }
    };
    findings.records.forget("Read");
    if wish.target.trusts_anybody() {
        // Whoever takes the key out of the status asks to trust anew, whatever was seen earlier.
        controller.world.peers.forget(&wish.id.uid);
    }
    let token = requested_at(object);
    let retry = token.is_some() && token != before.last_handled_reconcile_at;
    let new = before.observed_generation != object.metadata.generation;
    let mut pass = Pass { wish: &wish, world: &controller.world, reporter, cancel, retry, new, findings: std::mem::take(findings) };
    let result = Box::pin(converge(&mut pass)).await;
    *findings = pass.findings;
    Ok(next::state(result, cancel.is_cancelled(), object, findings))
}

async fn wish(
    controller: &Controller,
    object: &NixOSHost,
    before: &nixos_host_api::NixOSHostStatus,
) -> Result<Result<Wish, Failure>, kube::Error> {
    let id = HostId {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        created: object.creation_timestamp().map(|time| time.0.as_second()).unwrap_or_default(),
    };
    let ssh_key = secret(controller, &id.namespace, "connection.sshKeyRef", &object.spec.connection.ssh_key_ref.name).await?;
    let jump_key = match &object.spec.connection.jump {
        Some(jump) => Some(secret(controller, &id.namespace, "connection.jump.sshKeyRef", &jump.ssh_key_ref.name).await?),
        None => None,
    };
    let credentials = match &object.spec.flake.credentials_ref {
        Some(reference) => Some(secret(controller, &id.namespace, "flake.credentialsRef", &reference.name).await?),
        None => None,
    };
    let gpg_keys = match object.spec.flake.verify.as_ref().and_then(|verify| verify.gpg_keys_ref.as_ref()) {
        Some(reference) => Some(secret(controller, &id.namespace, "flake.verify.gpgKeysRef", &reference.name).await?),
        None => None,
    };
    let given = Given {
        ssh_key: &ssh_key,
        jump_key: jump_key.as_ref(),
        credentials: credentials.as_ref(),
        gpg_keys: gpg_keys.as_ref(),
        host_key: before.host_key.as_deref(),
        jump_host_key: before.jump_host_key.as_deref(),
    };
    Ok(Wish::new(id, &object.spec, given, controller.args.allow_local_flakes))
}

async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    tokio::time::timeout(REQUEST_WITHIN, call).await.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
}

/// The content of a Secret, by a single get: Secrets are never cached. `Err` if the API server does not say: that is no fault of the resource.
async fn secret(controller: &Controller, namespace: &str, field: &str, name: &str) -> Result<Result<SecretData, Failure>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(controller.clients.requests.clone(), namespace);
    let got = in_time(api.get(name)).await;
    let failure = |reason, problem: &str| Failure::new(reason, format!("spec.{field}: Secret {name:?} {problem}"));
    Ok(match got {
        Ok(secret) => Ok(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Err(failure(Reason::SecretNotFound, &format!("does not exist in namespace {namespace:?}")))
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Err(failure(Reason::Forbidden, &format!("may not be read by the controller: {}", status.message)))
        }
        Err(error) => return Err(error),
    })
}

/// The resource is being deleted, and no pass of it is in flight: GC roots are dropped, the machine stays as it is.
async fn end(controller: &Controller, api: &Api<NixOSHost>, metadata: &ObjectMeta) -> Result<Next, kube::Error> {
    let (namespace, name) = key(metadata);
    let dropped = RootName::new(&namespace, &name).and_then(|root| controller.world.effects.drop_roots(&root));
    if let Err(error) = dropped {
        tracing::warn!("GC roots of a deleted host could not be dropped: {}", chain(&error));
    }
    controller.world.forget(metadata.uid.as_deref().unwrap_or_default());
    finalizer::remove(api, metadata).await?;
    tracing::info!("deleted; the machine stays as it is");
    Ok(Next::Wait)
}
