//! Hosts, what they hold on disk, and what must be true of it at every moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use spillway_core::plan::{Digest, Plan, Resource, ResourceKey, digest_of};
use spillway_crds::member::{PeerNode, PlannedMemberSpec, PlannedPeerSpec};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::hub::Mind;
use super::member::Body;
use super::net::{Net, Process};
use crate::hub::{HubConfig, PublishedPlan, Refusal, serve_on};
use crate::member::{Held, Link, LinkHandle, MemberConfig, VerifiedUpdate};
use crate::pki::{Authorities, CertificateAuthority, KeyAndCsr, MemberIdentity, RequestedKey, Serial};

pub(super) const HUB: &str = "hub";
pub(super) const HUB_ID: &str = "h";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Losing more than half of the resources needs the hub's word if it is more than this many.
const MASS: usize = 10;

/// What survives crashes, and what an all-seeing observer noticed.
#[derive(Default)]
pub(super) struct Truth(Mutex<Facts>);

#[derive(Default)]
pub(super) struct Facts {
    pub(super) members: BTreeMap<String, MemberFacts>,
    /// What must not be.
    pub(super) violations: Vec<String>,
    /// The hub's caches are read.
    pub(super) synced: bool,
    /// Removals are judged, too; not where a relay may change the hub's words.
    pub(super) judge_removals: bool,
    /// What else must hold whenever a member has stored something.
    pub(super) rule: Option<Arc<Rule>>,
}

/// Says what is wrong.
pub(super) type Rule = dyn Fn(&Facts) -> Result<(), String> + Send + Sync;

#[derive(Default)]
pub(super) struct MemberFacts {
    pub(super) held: Held,
    pub(super) contents: BTreeMap<ResourceKey, Resource>,
    /// Objects were lost behind the agent's back since the last update.
    pub(super) damaged: bool,
    /// Everything ever published for it, newest last.
    pub(super) published: Vec<(Digest, Arc<PublishedPlan>)>,
    pub(super) newest: Option<watch::Sender<Option<Arc<PublishedPlan>>>>,
    /// What the hub was told last that it holds.
    pub(super) acknowledged: Option<Digest>,
    pub(super) programmed: Option<Digest>,
    pub(super) refusals: Vec<Refusal>,
    pub(super) refuses: bool,
    pub(super) fails_once: bool,
    /// How long its storage takes.
    pub(super) slowness: Duration,
    pub(super) applied: usize,
}

impl Truth {
    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().expect("no test panics with it")
    }
}

impl Facts {
    pub(super) fn member(&mut self, name: &str) -> &mut MemberFacts {
        self.members.entry(name.into()).or_default()
    }

    pub(super) fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    pub(super) fn plans(&mut self, name: &str) -> watch::Receiver<Option<Arc<PublishedPlan>>> {
        let newest = self
            .member(name)
            .newest
            .get_or_insert_with(|| watch::channel(None).0);
        newest.subscribe()
    }

    /// Whether the update adds up where objects were lost since it was checked, as the agent looks once more.
    pub(super) fn fits(&mut self, name: &str, update: &VerifiedUpdate) -> bool {
        let member = self.member(name);
        let mut after = BTreeMap::new();
        if !update.full {
            after.clone_from(&member.held.digests);
        }
        after.retain(|k, _| !update.removes.contains(k));
        after.extend(update.upserts.iter().map(|(k, (_, digest))| (k.clone(), *digest)));
        !member.damaged || digest_of(&after) == update.target
    }

    /// The member stores an update: was it right to?
    pub(super) fn commit(&mut self, name: &str, update: VerifiedUpdate) {
        let mut wrong = Vec::new();
        let judge_removals = self.judge_removals;
        let member = self.member(name);
        let same_hub = member.held.hub_id == update.hub_id;
        if same_hub && update.epoch < member.held.epoch {
            wrong.push(format!(
                "went back from epoch {} to {}",
                member.held.epoch, update.epoch
            ));
        }
        let fits = update.full || (same_hub && member.held.epoch == update.epoch);
        if !fits {
            wrong.push("took a delta of another hub or epoch".into());
        }
        let published: Vec<_> = member
            .published
            .iter()
            .filter(|(digest, _)| *digest == update.target)
            .collect();
        if published.is_empty() {
            wrong.push(format!(
                "took {}, which was never its plan",
                update.target.short()
            ));
        }
        let before = member.held.digests.len();
        if update.full {
            let keep = |k: &ResourceKey| update.upserts.contains_key(k);
            member.held.digests.retain(|k, _| keep(k));
            member.contents.retain(|k, _| keep(k));
        }
        for key in &update.removes {
            member.held.digests.remove(key);
            member.contents.remove(key);
        }
        let gone = before - member.held.digests.len();
        let mass = (gone == before && gone > 0) || (gone > MASS && gone * 2 > before);
        if judge_removals && mass && !published.iter().any(|(_, p)| p.removal_intended) {
            wrong.push(format!("lost {gone} of {before} without the hub's word"));
        }
        for (key, (resource, digest)) in update.upserts {
            member.held.digests.insert(key.clone(), digest);
            member.contents.insert(key, resource);
        }
        member.held.hub_id = update.hub_id;
        member.held.epoch = update.epoch;
        member.damaged = false;
        member.applied += 1;
        if member.held.digest() != Some(update.target) {
            wrong.push("holds something else than the update announced".into());
        }
        let is_plan = |p: &Arc<PublishedPlan>| {
            p.plan.len() == member.contents.len()
                && p.plan
                    .resources()
                    .all(|(k, r, _)| member.contents.get(k) == Some(r))
        };
        if !member.published.iter().any(|(_, p)| is_plan(p)) {
            wrong.push("holds a mixture".into());
        }
        for what in wrong {
            self.violate(format!("{name} {what}"));
        }
        if let Some(rule) = self.rule.clone()
            && let Err(what) = rule(self)
        {
            self.violate(format!("after {name} stored its plan: {what}"));
        }
    }
}

/// A member's agent that runs.
struct Member {
    process: Process,
    body: Arc<Body>,
    handle: LinkHandle,
    task: JoinHandle<()>,
}

/// The simulation of one case.
pub(super) struct World {
    pub(super) net: Arc<Net>,
    pub(super) truth: Arc<Truth>,
    authority: CertificateAuthority,
    pub(super) identities: BTreeMap<String, MemberIdentity>,
    epoch: u64,
    /// The highest epoch there was: a member may still be storing a plan of it.
    highest: u64,
    hub: Option<(Process, JoinHandle<()>)>,
    members: BTreeMap<String, Member>,
    /// Whom members dial.
    endpoint: String,
}

impl World {
    /// Nobody runs yet.
    pub(super) fn new(seed: u64, names: &[&str]) -> Self {
        let authority = CertificateAuthority::generate(HUB_ID).expect("a CA");
        let identities = names.iter().map(|n| ((*n).to_owned(), identity(&authority, n)));
        let truth = Truth::default();
        truth.facts().judge_removals = true;
        Self {
            net: Net::new(seed),
            truth: Arc::new(truth),
            identities: identities.collect(),
            authority,
            epoch: 5,
            highest: 5,
            hub: None,
            members: BTreeMap::new(),
            endpoint: format!("{HUB}:1"),
        }
    }

    /// Members dial the relay from now on.
    pub(super) fn through(&mut self, relay: &str) {
        self.endpoint = format!("{relay}:1");
    }

    /// The CA as it is in a file.
    pub(super) fn authority(&self) -> CertificateAuthority {
        CertificateAuthority::load(self.authority.certificate_pem(), self.authority.key_pem())
            .expect("its own files")
    }

    /// Starts the hub at an epoch so much higher; its caches are read after a while.
    pub(super) fn start_hub(&mut self, epochs: i64, sync: Duration) {
        self.crash_hub();
        self.epoch = self.epoch.saturating_add_signed(epochs).max(1);
        self.highest = self.highest.max(self.epoch);
        let process = Process::new(HUB);
        let listener = self.net.listen(&process);
        let (_, authorities) = watch::channel(Arc::new(Authorities::from(self.authority())));
        let mind = Arc::new(Mind {
            process: process.clone(),
            truth: self.truth.clone(),
        });
        self.truth.facts().synced = false;
        let truth = self.truth.clone();
        let in_sync = async move {
            tokio::time::sleep(sync).await;
            truth.facts().synced = true;
        };
        let serving = Box::pin(serve_on(
            listener,
            authorities,
            HubConfig::new(HUB_ID, self.epoch),
            mind,
            in_sync,
            std::future::pending(),
        ));
        let task = tokio::spawn(async move { serving.await.expect("the endpoint lasts") });
        self.hub = Some((process, task));
    }

    pub(super) fn crash_hub(&mut self) {
        if let Some((process, task)) = self.hub.take() {
            process.end.cancel();
            task.abort();
        }
    }

    pub(super) fn start_member(&mut self, name: &str) {
        self.crash_member(name);
        let process = Process::new(name);
        let body = Arc::new(Body::new(name, &process, &self.truth, &self.net));
        let config = MemberConfig::new(vec![self.endpoint.clone()], "1");
        let (link, handle) = Link::new(config, self.identities[name].clone(), body.clone());
        let link = link.by(Arc::new(self.net.dialer(&process)));
        let task = tokio::spawn(link.run(std::future::pending()));
        let member = Member {
            process,
            body,
            handle,
            task,
        };
        self.members.insert(name.into(), member);
    }

    pub(super) fn crash_member(&mut self, name: &str) {
        if let Some(member) = self.members.remove(name) {
            member.process.end.cancel();
            member.task.abort();
        }
    }

    pub(super) fn publish(&self, name: &str, plan: &Plan, removal_intended: bool) {
        let published = Arc::new(PublishedPlan {
            plan: Arc::new(plan.clone()),
            removal_intended,
        });
        let mut facts = self.truth.facts();
        facts.plans(name);
        let member = facts.member(name);
        member.published.push((plan.digest(), published.clone()));
        if let Some(newest) = &member.newest {
            newest.send_replace(Some(published));
        }
    }

    /// Somebody deletes an object of the member, and its agent notices.
    pub(super) fn lose(&self, name: &str) {
        let lost = {
            let mut facts = self.truth.facts();
            let member = facts.member(name);
            let lost = member.held.digests.pop_last();
            if let Some((key, _)) = &lost {
                member.contents.remove(key);
                member.damaged = true;
            }
            lost
        };
        if let (Some(_), Some(member)) = (lost, self.members.get(name)) {
            member.body.report();
            member.handle.resync();
        }
    }

    /// Nothing goes wrong any more: everybody runs, every way is open, nobody refuses.
    pub(super) fn heal(&mut self) {
        self.net.open_all();
        self.net.delay(Duration::from_millis(5));
        for member in self.truth.facts().members.values_mut() {
            member.refuses = false;
            member.fails_once = false;
            member.slowness = Duration::from_millis(1);
        }
        if self.epoch < self.highest {
            // What the refusal tells the administrator to do.
            self.epoch = self.highest;
            self.start_hub(1, Duration::ZERO);
        } else if self.hub.is_none() {
            self.start_hub(0, Duration::ZERO);
        }
        for name in self.identities.keys().cloned().collect::<Vec<_>>() {
            if !self.members.contains_key(&name) {
                self.start_member(&name);
            }
        }
    }

    /// Who doesn't hold the newest plan, or holds it without the hub's knowing.
    pub(super) fn behind(&self) -> Vec<String> {
        let facts = self.truth.facts();
        let behind = facts.members.iter().filter_map(|(name, m)| {
            let (digest, newest) = m.published.last()?;
            let digest = Some(*digest);
            let right = m.held.digest() == digest
                && m.acknowledged == digest
                && m.programmed == digest
                && newest
                    .plan
                    .resources()
                    .all(|(k, r, _)| m.contents.get(k) == Some(r));
            (!right).then(|| {
                let short = |d: Option<Digest>| d.map_or_else(|| "nothing".into(), |d| d.short());
                format!(
                    "{name} holds {}, acknowledged {}, reported {}; the newest is {}",
                    short(m.held.digest()),
                    short(m.acknowledged),
                    short(m.programmed),
                    short(digest),
                )
            })
        });
        behind.collect()
    }

    /// Waits until everybody holds the newest plan; says who doesn't after `limit`.
    pub(super) async fn come_to_rest(&self, limit: Duration) -> Result<(), String> {
        let begun = tokio::time::Instant::now();
        loop {
            let behind = self.behind();
            if behind.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > limit {
                return Err(format!("after {limit:?}: {}", behind.join("; ")));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(super) fn verdict(&self) -> Result<(), String> {
        let violations = self.truth.facts().violations.join("; ");
        if violations.is_empty() {
            Ok(())
        } else {
            Err(violations)
        }
    }
}

fn identity(authority: &CertificateAuthority, member: &str) -> MemberIdentity {
    let key = KeyAndCsr::generate().expect("a key");
    let requested = RequestedKey::from_csr(&key.csr_der).expect("its own request");
    let issued = authority
        .issue_member(&requested, member, Serial::random(), DAY)
        .expect("a certificate");
    MemberIdentity {
        key_pem: key.key_pem,
        chain_pem: issued.chain_pem,
        ca_pem: authority.certificate_pem().into(),
    }
}

/// A plan of this member with these peers, of so many nodes.
pub(super) fn plan(member: &str, peers: &BTreeMap<String, usize>) -> Plan {
    let own = Resource::Member(PlannedMemberSpec {
        member: member.into(),
        member_id: 1,
        ..PlannedMemberSpec::default()
    });
    Plan::new(std::iter::once(own).chain(peers.iter().map(|(name, nodes)| peer(name, *nodes))))
}

pub(super) fn peer(name: &str, nodes: usize) -> Resource {
    Resource::Peer(PlannedPeerSpec {
        member: name.into(),
        partition: "default".into(),
        encrypted: false,
        nodes: (0..nodes)
            .map(|i| PeerNode {
                name: format!("node-{i}"),
                ..PeerNode::default()
            })
            .collect(),
    })
}

/// So many cases, unless `PROPTEST_CASES` says how many.
pub(super) fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(usual),
        // A case takes a while.
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

/// Runs one case in time of its own.
pub(super) fn simulate<T>(case: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(case)
}
