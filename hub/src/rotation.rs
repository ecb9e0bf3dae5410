//! One CA follows another, without a member losing its stream: the next one is given to all members, then it
//! signs, then the one before is forgotten. Each step waits until every member holds what the one before gave it.
//!
//! ```text
//!  Steady ─ asked for: next.* made ─► Distributing ─ all trust it: it signs ─► Retiring ─ all have its
//!    ▲                                                                            │   certificates
//!    └────────────────────────── previous.crt removed ◄───────────────────────────┘
//! ```
//!
//! The Secret says how far it is. Every replica follows the Secret; the leader takes the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt};
use spillway_crds::hub::{Member, MemberStatus};
use spillway_link::pki::{Authorities, CertificateAuthority, TrustState};
use tokio::sync::watch;

use crate::api::{Failure, within};
use crate::authority::{CA_SECRET, INFO, Phase, publish, read};
use crate::lease::Leadership;
use crate::mirror::Mirror;

/// Annotation of the Secret: a new CA is asked for. Its value says who isn't waited for, names with commas between.
const ASKED: &str = "hub.spillway.io/rotate-ca";
/// Annotation of the Secret while a rotation runs: who isn't waited for.
const WITHOUT: &str = "hub.spillway.io/rotate-ca-without";
/// Field manager of the progress in the ConfigMap.
const MANAGER: &str = "spillway-hub-rotation";
/// Wait after something failed.
const RETRY: Duration = Duration::from_secs(2);
/// Names of members in the ConfigMap at most.
const MOST_NAMES: usize = 50;

/// What to do now.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    /// Nothing is under way.
    Rest,
    /// Make the next CA.
    Begin,
    /// Let the next CA sign.
    Switch,
    /// Forget the CA before.
    Retire,
    /// These members don't hold yet what they must.
    Wait(Vec<String>),
}

/// True where the member uses a certificate that came with exactly this trust.
fn holds(status: &MemberStatus, wanted: &TrustState) -> bool {
    let pins: BTreeSet<_> = wanted.trusted.iter().map(ToString::to_string).collect();
    status.serial_in_use.is_some()
        && status.serial_in_use == status.certificate_serial
        && status.certificate_issuer == Some(wanted.issuer.to_string())
        && status
            .trusted_authorities
            .iter()
            .cloned()
            .collect::<BTreeSet<_>>()
            == pins
}

/// True where a member with this certificate should renew it now, since what it holds isn't `now`.
pub(crate) fn outdated(member: &Member, serial: &str, now: &TrustState) -> bool {
    let Some(status) = &member.status else {
        return false;
    };
    let mut as_if = status.clone();
    as_if.serial_in_use = Some(serial.to_owned());
    !holds(&as_if, now)
}

fn decide<'a>(
    phase: Phase,
    asked: bool,
    without: &BTreeSet<String>,
    now: &TrustState,
    members: impl Iterator<Item = &'a Member>,
) -> Step {
    let done = match phase {
        Phase::Steady if asked => return Step::Begin,
        Phase::Steady => return Step::Rest,
        Phase::Distributing => Step::Switch,
        Phase::Retiring => Step::Retire,
    };
    let late: Vec<_> = members
        .filter(|m| !without.contains(&m.name_any()))
        .filter(|m| {
            // Who never joined holds nothing.
            let status = m.status.as_ref().filter(|s| s.certificate_serial.is_some());
            status.is_some_and(|s| !holds(s, now))
        })
        .map(ResourceExt::name_any)
        .collect();
    if late.is_empty() { done } else { Step::Wait(late) }
}

fn names(text: Option<&String>) -> BTreeSet<String> {
    let text = text.map(String::as_str).unwrap_or_default();
    let all = text.split(',').map(str::trim);
    all.filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

/// The Secret after a step.
fn stepped(mut secret: Secret, step: &Step, hub_id: &str) -> anyhow::Result<Secret> {
    let annotations = secret.metadata.annotations.get_or_insert_default();
    let data = secret.data.get_or_insert_default();
    match step {
        Step::Begin => {
            let next = CertificateAuthority::generate(hub_id)?;
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            data.insert("next.crt".into(), bytes(next.certificate_pem()));
            data.insert("next.key".into(), bytes(next.key_pem().expose()));
            let without = annotations.remove(ASKED).unwrap_or_default();
            annotations.insert(WITHOUT.into(), without);
        }
        Step::Switch => {
            for (next, signing) in [("next.crt", "ca.crt"), ("next.key", "ca.key")] {
                let new = data.remove(next).with_context(|| format!("it has no {next}"))?;
                let old = data.insert(signing.into(), new);
                if signing == "ca.crt" {
                    data.insert("previous.crt".into(), old.context("it has no ca.crt")?);
                }
            }
        }
        Step::Retire => {
            data.remove("previous.crt");
            annotations.remove(WITHOUT);
        }
        Step::Rest | Step::Wait(_) => {}
    }
    Ok(secret)
}

/// How far it is, for `spillway hub rotate-ca` and `spillway status`.
fn progress(phase: Phase, step: &Step) -> BTreeMap<&'static str, String> {
    let phase = match phase {
        Phase::Steady => return BTreeMap::new(),
        Phase::Distributing => "Distributing",
        Phase::Retiring => "Retiring",
    };
    let mut told = BTreeMap::from([("ca_rotation", phase.to_owned())]);
    if let Step::Wait(names) = step {
        let shown: Vec<_> = names.iter().take(MOST_NAMES).map(String::as_str).collect();
        told.insert("ca_rotation_waits_for", shown.join(","));
        told.insert("ca_rotation_waits_for_count", names.len().to_string());
    }
    told
}

/// The Secret as it was taken over.
struct Standing {
    secret: Secret,
    hub_id: String,
    phase: Phase,
    now: TrustState,
}

/// Follows the Secret, and takes the steps while this replica leads.
pub(crate) struct Rotation {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) endpoints: Vec<String>,
    pub(crate) members: Mirror<Member>,
    pub(crate) leadership: Leadership,
    pub(crate) authorities: watch::Sender<Arc<Authorities>>,
}

impl Rotation {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let only = watcher::Config::default()
            .fields(&format!("metadata.name={CA_SECRET}"))
            .timeout(30);
        let mut seen = std::pin::pin!(watcher(secrets, only).default_backoff().applied_objects());
        let mut members = self.members.changes();
        let mut unread: Option<Secret> = None;
        let mut standing: Option<Standing> = None;
        let mut told: Option<BTreeMap<&'static str, String>> = None;
        let (mut again, mut leads) = (false, false);
        let mut gained = self.leadership.clone();
        loop {
            tokio::select! {
                object = seen.next() => match object {
                    Some(Ok(object)) => unread = Some(object),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the watch of the CA's Secret begins anew");
                        continue;
                    }
                    None => std::future::pending().await,
                },
                _ = members.changed() => {}
                () = gained.gained(), if !leads => told = None,
                () = tokio::time::sleep(RETRY), if again => {}
            }
            leads = self.leadership.remaining().is_some();
            let acted = async {
                // Members change all the time, keys and certificates hardly ever.
                if let Some(secret) = &unread {
                    standing = Some(self.take_over(secret).await?);
                    unread = None;
                }
                match &standing {
                    Some(standing) => self.act(standing, &mut told).await,
                    None => Ok(()),
                }
            };
            again = match acted.await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the rotation of the CA can't go on; trying again"
                    );
                    true
                }
            };
        }
    }

    async fn act(
        &self,
        standing: &Standing,
        told: &mut Option<BTreeMap<&'static str, String>>,
    ) -> anyhow::Result<()> {
        let Standing {
            secret,
            hub_id,
            phase,
            now,
        } = standing;
        if self.leadership.remaining().is_none() {
            *told = None;
            return Ok(());
        }
        let annotations = secret.annotations();
        let asked = annotations.get(ASKED);
        let without = names(annotations.get(WITHOUT));
        let members = self.members.objects();
        let step = decide(
            *phase,
            asked.is_some(),
            &without,
            now,
            members.values().map(AsRef::as_ref),
        );
        let progress = progress(*phase, &step);
        if told.as_ref() != Some(&progress) {
            self.tell(&progress).await?;
            *told = Some(progress);
        }
        if matches!(step, Step::Rest | Step::Wait(_)) {
            return Ok(());
        }
        // Exactly the version that was looked at; whoever was faster is seen by the watch.
        let next = stepped(secret.clone(), &step, hub_id)?;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let (limit, params) = (self.leadership.limit()?, PostParams::default());
        match within(limit, api.replace(CA_SECRET, &params, &next)).await {
            Ok(_) => tracing::info!(step = ?step, "rotation of the CA: step taken"),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Signs and verifies by what the Secret says from now on.
    async fn take_over(&self, secret: &Secret) -> anyhow::Result<Standing> {
        let identity =
            read(secret).with_context(|| format!("Secret {}/{CA_SECRET}; restore it", self.namespace))?;
        let standing = Standing {
            secret: secret.clone(),
            hub_id: identity.hub_id.clone(),
            phase: identity.phase,
            now: identity.authorities.state().clone(),
        };
        if *self.authorities.borrow().state() != standing.now {
            tracing::info!(phase = ?identity.phase, authorities = ?identity.authorities, "the hub's CAs have changed");
            publish(&self.client, &self.namespace, &identity, &self.endpoints).await?;
            self.authorities.send_replace(Arc::new(identity.authorities));
        }
        Ok(standing)
    }

    async fn tell(&self, progress: &BTreeMap<&'static str, String>) -> Result<(), Failure> {
        let info = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": INFO},
            "data": progress,
        });
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = PatchParams::apply(MANAGER).force();
        within(
            self.leadership.limit()?,
            api.patch(INFO, &params, &Patch::Apply(&info)),
        )
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use spillway_crds::hub::MemberSpec;

    use super::*;
    use crate::authority;

    fn secret(ca: &CertificateAuthority) -> Secret {
        authority::tests::secret(&[
            ("hub_id", "h"),
            ("epoch", "1"),
            ("ca.crt", ca.certificate_pem()),
            ("ca.key", ca.key_pem().expose()),
        ])
    }

    fn member(name: &str, holding: Option<&TrustState>) -> Member {
        let mut member = Member::new(name, MemberSpec::default());
        member.status = holding.map(|trust| MemberStatus {
            certificate_serial: Some("2".into()),
            previous_certificate_serial: Some("1".into()),
            serial_in_use: Some("2".into()),
            certificate_issuer: Some(trust.issuer.to_string()),
            trusted_authorities: trust.trusted.iter().map(ToString::to_string).collect(),
            ..MemberStatus::default()
        });
        member
    }

    #[test]
    fn each_step_waits_for_all_and_the_last_leaves_one_ca() {
        let first = CertificateAuthority::generate("h").expect("a CA");
        let none = BTreeSet::new();
        let mut current = secret(&first);
        let before = read(&current).expect("whole").authorities.state().clone();
        let mut fleet = vec![
            member("a", Some(&before)),
            member("b", Some(&before)),
            member("made-by-hand", None),
        ];
        assert_eq!(
            decide(Phase::Steady, false, &none, &before, fleet.iter()),
            Step::Rest
        );
        assert_eq!(
            decide(Phase::Steady, true, &none, &before, fleet.iter()),
            Step::Begin
        );
        let mut step = Step::Begin;
        for (phase, done) in [
            (Phase::Distributing, Step::Switch),
            (Phase::Retiring, Step::Retire),
        ] {
            current = stepped(current, &step, "h").expect("can be done");
            let identity = read(&current).expect("whole");
            assert_eq!(identity.phase, phase);
            let now = identity.authorities.state().clone();
            let ask = |fleet: &[Member]| decide(phase, false, &none, &now, fleet.iter());
            assert_eq!(ask(&fleet), Step::Wait(vec!["a".into(), "b".into()]));
            fleet[0] = member("a", Some(&now));
            assert_eq!(ask(&fleet), Step::Wait(vec!["b".into()]));
            let skipped = BTreeSet::from(["b".to_owned()]);
            assert_eq!(decide(phase, false, &skipped, &now, fleet.iter()), done);
            fleet[1] = member("b", Some(&now));
            assert_eq!(ask(&fleet), done);
            step = done;
        }
        let last = read(&stepped(current, &step, "h").expect("can be done")).expect("whole");
        assert_eq!(last.phase, Phase::Steady);
        assert_ne!(last.authorities.signing().pin(), first.pin());
        assert_eq!(last.authorities.state().trusted.len(), 1);
    }

    #[test]
    fn a_certificate_that_was_made_but_never_used_counts_for_nothing() {
        let ca = CertificateAuthority::generate("h").expect("a CA");
        let now = Authorities::from(ca).state().clone();
        let mut member = member("a", Some(&now));
        assert!(!outdated(&member, "2", &now));
        assert!(outdated(&member, "1", &now), "the answer to its renewal got lost");
        if let Some(status) = &mut member.status {
            status.serial_in_use = Some("1".into());
        }
        assert_eq!(
            decide(
                Phase::Distributing,
                false,
                &BTreeSet::new(),
                &now,
                std::iter::once(&member)
            ),
            Step::Wait(vec!["a".into()])
        );
    }

    #[test]
    fn who_isnt_waited_for_is_named_by_the_request() {
        let ca = CertificateAuthority::generate("h").expect("a CA");
        let mut asked = secret(&ca);
        asked.metadata.annotations = Some(BTreeMap::from([(ASKED.into(), "b, c".into())]));
        let begun = stepped(asked, &Step::Begin, "h").expect("can be done");
        assert_eq!(
            begun.annotations().get(ASKED),
            None,
            "one request is one rotation"
        );
        assert_eq!(
            names(begun.annotations().get(WITHOUT)),
            BTreeSet::from(["b".into(), "c".into()])
        );
    }
}
