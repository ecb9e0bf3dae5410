//! A member without a cluster: it keeps its plan in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use spillway_core::plan::{Resource, ResourceKey, ResourceKind};
use spillway_crds::address::AddressPair;
use spillway_crds::hub::MemberNode;
use spillway_link::MemberReport;
use spillway_link::member::{
    self, ConnectionState, EnrollError, EnrollParams, Held, Link, LinkHandle, MemberBackend, MemberConfig,
    RefusedUpdate, StoreError, VerifiedUpdate,
};
use spillway_link::pki::{MemberIdentity, Pin, Token};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::story::object;

/// Makes a token as the command line does.
pub(crate) async fn token(client: &Client, member: &str, run: &str) -> Result<Token> {
    let token = Token::generate();
    let expires = Timestamp::now() + SignedDuration::from_mins(5);
    let secret: Secret = object(json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": format!("spillway-token-{}", token.id()), "labels": {"spillway.io/join-token": "true"}},
        "stringData": {
            "hash": token.hash().to_string(), "member": member, "expires": expires.to_string(),
            "labels": json!({"run": run}).to_string(), "partition": "default",
        },
    }))?;
    let api: Api<Secret> = Api::namespaced(client.clone(), spillway_crds::NAMESPACE);
    api.create(&PostParams::default(), &secret).await?;
    Ok(token)
}

pub(crate) async fn enroll(
    endpoints: &[String],
    pin: Pin,
    token: &Token,
    member: &str,
) -> Result<MemberIdentity, EnrollError> {
    member::enroll(EnrollParams {
        endpoints: endpoints.to_vec(),
        pin,
        token: token.clone(),
        member: member.into(),
        limit: Duration::from_secs(5),
    })
    .await
}

#[derive(Default)]
struct Kept {
    held: Held,
    plan: BTreeMap<ResourceKey, Resource>,
}

struct Store {
    kept: Mutex<Kept>,
    applied: watch::Sender<u64>,
    report: watch::Sender<MemberReport>,
}

impl Store {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MemberBackend for Store {
    fn held(&self) -> Held {
        self.kept().held.clone()
    }

    async fn apply(&self, update: VerifiedUpdate) -> Result<(), RefusedUpdate> {
        let mut kept = self.kept();
        for key in &update.removes {
            kept.held.digests.remove(key);
            kept.plan.remove(key);
        }
        for (key, (resource, digest)) in update.upserts {
            kept.held.digests.insert(key.clone(), digest);
            kept.plan.insert(key, resource);
        }
        kept.held.hub_id = update.hub_id;
        kept.held.epoch = update.epoch;
        drop(kept);
        self.applied.send_modify(|n| *n += 1);
        Ok(())
    }

    fn reports(&self) -> watch::Receiver<MemberReport> {
        self.report.subscribe()
    }

    async fn store_identity(&self, _: &MemberIdentity) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The member's agent.
pub(crate) struct FakeMember {
    name: String,
    store: Arc<Store>,
    handle: LinkHandle,
    running: JoinHandle<()>,
}

impl Drop for FakeMember {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl FakeMember {
    pub(crate) fn connect(identity: MemberIdentity, endpoints: &[String], name: &str) -> Self {
        let store = Arc::new(Store {
            kept: Mutex::default(),
            applied: watch::Sender::new(0),
            report: watch::Sender::new(MemberReport::default()),
        });
        let config = MemberConfig::new(endpoints.to_vec(), "test");
        let (link, handle) = Link::new(config, identity, store.clone());
        let running = tokio::spawn(link.run(std::future::pending()));
        Self {
            name: name.into(),
            store,
            handle,
            running,
        }
    }

    pub(crate) fn resource(&self, key: &ResourceKey) -> Option<Resource> {
        self.store.kept().plan.get(key).cloned()
    }

    pub(crate) fn state(&self) -> ConnectionState {
        self.handle.state().borrow().clone()
    }

    /// Waits for an applied update after which `check` holds.
    pub(crate) async fn until(&self, check: impl Fn() -> bool) -> Result<()> {
        let mut applied = self.store.applied.subscribe();
        let all = async {
            while !check() {
                applied.changed().await?;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .context("no update in time")?
    }

    /// True once the plan says which overlay prefix is the member's.
    pub(crate) fn node_from_plan(&self) -> bool {
        self.overlay().is_some()
    }

    fn overlay(&self) -> Option<String> {
        let key = ResourceKey {
            kind: ResourceKind::Member,
            name: spillway_crds::SINGLETON.into(),
        };
        match self.resource(&key)? {
            Resource::Member(m) => {
                let prefix = m.overlay.ipv4?;
                Some(prefix.split_once(".0/")?.0.to_owned() + ".1")
            }
            _ => None,
        }
    }

    /// Reports one ready node.
    pub(crate) fn report(&self) {
        let node = MemberNode {
            name: format!("{}-n1", self.name),
            overlay: AddressPair {
                ipv4: self.overlay(),
                ipv6: None,
            },
            underlay: AddressPair {
                ipv4: Some("172.30.1.20".into()),
                ipv6: None,
            },
            ready: true,
            ..MemberNode::default()
        };
        self.store.report.send_modify(|r| r.nodes = vec![node]);
    }

    /// Reports that the held plan is in every kernel.
    pub(crate) fn programmed(&self) {
        let digest = self.store.held().digest();
        self.store.report.send_modify(|r| {
            r.programmed = digest;
            for node in &mut r.nodes {
                node.programmed = digest.map(|d| d.to_string());
            }
        });
    }

    pub(crate) async fn leave(&self) -> Result<()> {
        self.handle
            .leave(Duration::from_secs(10))
            .await
            .map_err(|err| anyhow::anyhow!("the hub doesn't let it go: {err:?}"))
    }
}
