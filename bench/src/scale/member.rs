//! A member without a cluster: its plan is in memory, its ten nodes are made up, its stream is real.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use spillway_core::plan::{Digest, Resource};
use spillway_crds::address::AddressPair;
use spillway_crds::hub::MemberNode;
use spillway_link::MemberReport;
use spillway_link::member::{
    ConnectionState, EnrollParams, Held, Link, LinkHandle, MemberBackend, MemberConfig, RefusedUpdate,
    StoreError, VerifiedUpdate, enroll,
};
use spillway_link::pki::{MemberIdentity, Pin, Token};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Nodes of each.
const NODES: u8 = 10;

/// An update that was stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) at: Instant,
    /// Of its contents.
    pub(crate) bytes: f64,
}

struct Store {
    name: String,
    held: Mutex<Held>,
    stored: watch::Sender<Vec<Stored>>,
    report: watch::Sender<MemberReport>,
}

impl Store {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its nodes are as quick as the agent.
    fn report(&self, overlay: Option<&str>, digest: Digest) {
        self.report.send_modify(|report| {
            if let Some(prefix) = overlay {
                report.nodes = (1..=NODES).map(|n| node(&self.name, prefix, n)).collect();
            }
            report.programmed = Some(digest);
            for node in &mut report.nodes {
                node.programmed = Some(digest.to_string());
            }
        });
    }
}

fn node(member: &str, overlay: &str, number: u8) -> MemberNode {
    MemberNode {
        name: format!("{member}-n{number}"),
        overlay: AddressPair {
            ipv4: overlay.rsplit_once('.').map(|(net, _)| format!("{net}.{number}")),
            ipv6: None,
        },
        underlay: AddressPair {
            ipv4: Some(format!("172.30.1.{number}")),
            ipv6: None,
        },
        ready: true,
        ..MemberNode::default()
    }
}

#[async_trait]
impl MemberBackend for Store {
    fn held(&self) -> Held {
        self.held().clone()
    }

    async fn apply(&self, update: VerifiedUpdate) -> Result<(), RefusedUpdate> {
        let own = update.upserts.values().find_map(|(r, _)| match r {
            Resource::Member(own) => own.overlay.ipv4.clone(),
            _ => None,
        });
        let bytes: usize = update.upserts.values().map(|(r, _)| r.encode().len()).sum();
        {
            let mut held = self.held();
            if update.full {
                held.digests = BTreeMap::new();
            }
            held.digests.retain(|k, _| !update.removes.contains(k));
            held.digests
                .extend(update.upserts.into_iter().map(|(k, (_, d))| (k, d)));
            held.hub_id = update.hub_id;
            held.epoch = update.epoch;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let stored = Stored {
            at: Instant::now(),
            bytes: bytes as f64,
        };
        self.stored.send_modify(|all| all.push(stored));
        self.report(own.as_deref(), update.target);
        Ok(())
    }

    fn reports(&self) -> watch::Receiver<MemberReport> {
        self.report.subscribe()
    }

    async fn store_identity(&self, _: &MemberIdentity) -> Result<(), StoreError> {
        Ok(())
    }
}

pub(crate) struct Member {
    store: Arc<Store>,
    handle: LinkHandle,
    running: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Member {
    /// Joins with the token and keeps a stream.
    pub(crate) async fn join((name, token): (String, Token), endpoint: String, pin: Pin) -> Result<Self> {
        let identity = enroll(EnrollParams {
            endpoints: vec![endpoint.clone()],
            pin,
            token,
            member: name.clone(),
            limit: Duration::from_secs(30),
        })
        .await
        .with_context(|| format!("{name} can't join"))?;
        let store = Arc::new(Store {
            name,
            held: Mutex::default(),
            stored: watch::Sender::new(Vec::new()),
            report: watch::Sender::new(MemberReport::default()),
        });
        let (link, handle) = Link::new(
            MemberConfig::new(vec![endpoint], "scale"),
            identity,
            store.clone(),
        );
        let running = tokio::spawn(link.run(std::future::pending()));
        Ok(Self {
            store,
            handle,
            running,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.store.name
    }

    /// Digest of the plan it holds.
    pub(crate) fn holds(&self) -> Option<Digest> {
        self.store.held().digest()
    }

    /// How many updates it has stored.
    pub(crate) fn mark(&self) -> usize {
        self.store.stored.borrow().len()
    }

    /// The update after `mark`.
    pub(crate) async fn next(&self, mark: usize, limit: Duration) -> Result<Stored> {
        let mut stored = self.store.stored.subscribe();
        let wait = stored.wait_for(|all| all.len() > mark);
        let all = tokio::time::timeout(limit, wait)
            .await
            .with_context(|| format!("{} gets no update", self.name()))??;
        Ok(all[mark])
    }

    async fn until(&self, what: &str, limit: Duration, is: impl Fn(&ConnectionState) -> bool) -> Result<()> {
        let mut state = self.handle.state();
        let wait = state.wait_for(is);
        tokio::time::timeout(limit, wait)
            .await
            .with_context(|| format!("{} isn't {what}", self.name()))??;
        Ok(())
    }

    pub(crate) async fn connected(&self, limit: Duration) -> Result<()> {
        let is = |s: &ConnectionState| matches!(s, ConnectionState::Connected { .. });
        self.until("connected", limit, is).await
    }

    pub(crate) async fn disconnected(&self, limit: Duration) -> Result<()> {
        let is = |s: &ConnectionState| !matches!(s, ConnectionState::Connected { .. });
        self.until("disconnected", limit, is).await
    }
}
