//! Two backends that keep everything in memory and tell the test what happened.
pub mod raw;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use spillway_core::plan::{Digest, Plan, Resource, ResourceKey};
use spillway_crds::member::{PeerNode, PlannedPeerSpec};
use spillway_link::MemberReport;
use spillway_link::hub::{
    Crowd, EnrollRefusal, EnrollRequest, Enrolled, HubBackend, HubConfig, LinkEvent, PublishedPlan, Refusal,
    Renewal, SessionInfo, Unavailable, serve,
};
use spillway_link::member::{
    ConnectionState, Held, Link, LinkHandle, MemberBackend, MemberConfig, RefusedUpdate, StoreError,
    VerifiedUpdate,
};
use spillway_link::pki::{
    Authorities, CertificateAuthority, KeyAndCsr, MemberIdentity, RequestedKey, Serial, Token, TrustState,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub const LIMIT: Duration = Duration::from_secs(20);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Waits for something; a test that waits in vain says for what.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(LIMIT, future).await else {
        panic!("waited {LIMIT:?} in vain for {what}")
    };
    value
}

/// Takes events until one is of interest.
pub async fn next<E: Debug, T>(
    events: &mut mpsc::UnboundedReceiver<E>,
    what: &str,
    mut wanted: impl FnMut(&E) -> Option<T>,
) -> T {
    within(what, async {
        loop {
            let event = events.recv().await.expect("the sender lives");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    })
    .await
}

pub fn peer(name: &str, nodes: usize) -> Resource {
    Resource::Peer(PlannedPeerSpec {
        member: name.into(),
        partition: "default".into(),
        encrypted: false,
        nodes: (0..nodes)
            .map(|i| PeerNode {
                name: format!("node-{i}-{}", "x".repeat(100)),
                ..PeerNode::default()
            })
            .collect(),
    })
}

pub fn plan(names: &[&str]) -> Plan {
    Plan::new(names.iter().map(|n| peer(n, 0)))
}

#[derive(Debug)]
pub enum HubEvent {
    Connected(SessionInfo),
    Disconnected(SessionInfo, String),
    Acknowledged(String, Digest),
    Refused(String, Refusal),
    Reported(String, MemberReport),
    Left(String),
    Renewed(String, String),
    Happened(LinkEvent),
}

/// For whom a token is, and what its user is told.
type TokenState = (String, Result<(), EnrollRefusal>);

pub struct HubStore {
    pub tokens: Mutex<HashMap<Digest, TokenState>>,
    pub plans: Mutex<HashMap<String, watch::Sender<Option<Arc<PublishedPlan>>>>>,
    pub revoked: Mutex<HashSet<String>>,
    /// What the holders of renewed certificates hold, by serial number.
    pub trust: Mutex<HashMap<String, TrustState>>,
    /// Connections that had to go.
    pub displaced: Mutex<HashMap<Crowd, usize>>,
    pub events: mpsc::UnboundedSender<HubEvent>,
}

impl HubStore {
    fn tell(&self, event: HubEvent) {
        let _ = self.events.send(event);
    }

    fn sender(&self, member: &str) -> watch::Sender<Option<Arc<PublishedPlan>>> {
        let mut plans = self.plans.lock().unwrap();
        plans
            .entry(member.into())
            .or_insert_with(|| watch::channel(None).0)
            .clone()
    }

    pub fn publish(&self, member: &str, plan: &Plan) -> Digest {
        self.publish_as(member, plan, false)
    }

    pub fn publish_as(&self, member: &str, plan: &Plan, removal_intended: bool) -> Digest {
        self.sender(member).send_replace(Some(Arc::new(PublishedPlan {
            plan: Arc::new(plan.clone()),
            removal_intended,
        })));
        plan.digest()
    }

    pub fn token(&self, member: &str, state: Result<(), EnrollRefusal>) -> Token {
        let token = Token::generate();
        self.tokens
            .lock()
            .unwrap()
            .insert(token.hash(), (member.into(), state));
        token
    }
}

#[async_trait]
impl HubBackend for HubStore {
    async fn enroll(&self, request: EnrollRequest) -> Result<Enrolled, EnrollRefusal> {
        let mut tokens = self.tokens.lock().unwrap();
        let (member, state) = tokens
            .get_mut(&request.token.hash())
            .ok_or(EnrollRefusal::TokenUnknown)?;
        if *member != request.member {
            return Err(EnrollRefusal::TokenForOtherMember);
        }
        std::mem::replace(state, Err(EnrollRefusal::TokenUsed)).map(|()| Enrolled)
    }

    async fn renewed(&self, renewal: &Renewal) -> Result<(), Unavailable> {
        let new = renewal.new_serial.to_string();
        self.trust
            .lock()
            .unwrap()
            .insert(new.clone(), renewal.trust.clone());
        self.tell(HubEvent::Renewed(renewal.old.serial.clone(), new));
        Ok(())
    }

    /// Of certificates that the test made itself nothing is on record; they hold what was there first.
    fn outdated(&self, _: &str, serial: &str, now: &TrustState) -> bool {
        match self.trust.lock().unwrap().get(serial) {
            Some(held) => held != now,
            None => now.trusted.len() > 1,
        }
    }

    fn revoked(&self, session: &SessionInfo) -> bool {
        self.revoked.lock().unwrap().contains(&session.serial)
    }

    fn plan(&self, member: &str) -> watch::Receiver<Option<Arc<PublishedPlan>>> {
        self.sender(member).subscribe()
    }

    async fn connected(&self, session: &SessionInfo) {
        self.tell(HubEvent::Connected(session.clone()));
    }

    async fn disconnected(&self, session: &SessionInfo, why: &str) {
        self.tell(HubEvent::Disconnected(session.clone(), why.into()));
    }

    async fn acknowledged(&self, session: &SessionInfo, digest: Digest) {
        self.tell(HubEvent::Acknowledged(session.member.clone(), digest));
    }

    async fn refused(&self, session: &SessionInfo, refusal: Refusal) {
        self.tell(HubEvent::Refused(session.member.clone(), refusal));
    }

    async fn reported(&self, session: &SessionInfo, report: MemberReport) {
        self.tell(HubEvent::Reported(session.member.clone(), report));
    }

    fn happened(&self, event: LinkEvent) {
        if let LinkEvent::Displaced(crowd) = event {
            *self.displaced.lock().unwrap().entry(crowd).or_default() += 1;
        } else {
            self.tell(HubEvent::Happened(event));
        }
    }

    async fn leave(&self, session: &SessionInfo) -> Result<(), Unavailable> {
        // As a hub does that deletes the member: its certificate is no good from here on.
        self.revoked.lock().unwrap().insert(session.serial.clone());
        self.tell(HubEvent::Left(session.member.clone()));
        Ok(())
    }
}

/// A hub that listens.
pub struct Hub {
    pub authority: Arc<CertificateAuthority>,
    pub authorities: watch::Sender<Arc<Authorities>>,
    pub store: Arc<HubStore>,
    pub events: mpsc::UnboundedReceiver<HubEvent>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub fn quick_config() -> HubConfig {
    HubConfig {
        revocation_interval: Duration::from_millis(20),
        retry_refused: Duration::from_millis(50),
        renewal_spread: Duration::ZERO,
        retry_renewal: Duration::from_secs(1),
        ..HubConfig::new("hub-1", 5)
    }
}

impl Hub {
    pub async fn start() -> Self {
        Self::start_with(quick_config()).await
    }

    pub async fn start_with(config: HubConfig) -> Self {
        let authority = Arc::new(CertificateAuthority::generate("hub-1").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (events, _) = mpsc::unbounded_channel();
        let store = Arc::new(HubStore {
            tokens: Mutex::default(),
            plans: Mutex::default(),
            revoked: Mutex::default(),
            trust: Mutex::default(),
            displaced: Mutex::default(),
            events,
        });
        Self::on(listener, authority, &store, config)
    }

    fn on(
        listener: TcpListener,
        authority: Arc<CertificateAuthority>,
        old: &HubStore,
        config: HubConfig,
    ) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let store = Arc::new(HubStore {
            tokens: Mutex::default(),
            plans: Mutex::new(old.plans.lock().unwrap().clone()),
            revoked: Mutex::new(old.revoked.lock().unwrap().clone()),
            trust: Mutex::new(old.trust.lock().unwrap().clone()),
            displaced: Mutex::default(),
            events: sender,
        });
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (authorities, newest) = watch::channel(Arc::new(Authorities::from(reload(&authority))));
        let serving = Box::pin(serve(listener, newest, config, store.clone(), async {}, async {
            let _ = stopped.await;
        }));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            authority,
            authorities,
            store,
            events,
            address,
            stop: Some(stop),
            task,
        }
    }

    /// Stops the hub and starts another process of it at the same address, with another configuration.
    pub async fn restart_with(mut self, config: HubConfig) -> Self {
        self.stop.take().unwrap().send(()).unwrap();
        within("the hub's end", &mut self.task).await.unwrap();
        let listener = TcpListener::bind(self.address).await.unwrap();
        Self::on(listener, self.authority.clone(), &self.store, config)
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    pub fn identity(&self, member: &str) -> MemberIdentity {
        identity(&self.authority, member, DAY)
    }

    pub async fn next<T>(&mut self, what: &str, wanted: impl FnMut(&HubEvent) -> Option<T>) -> T {
        next(&mut self.events, what, wanted).await
    }

    pub async fn connected(&mut self, member: &str) -> SessionInfo {
        self.next("a connection", |e| match e {
            HubEvent::Connected(info) if info.member == member => Some(info.clone()),
            _ => None,
        })
        .await
    }

    pub async fn disconnected(&mut self, member: &str) -> String {
        self.next("a disconnection", |e| match e {
            HubEvent::Disconnected(info, why) if info.member == member => Some(why.clone()),
            _ => None,
        })
        .await
    }

    pub async fn acknowledged(&mut self, member: &str, digest: Digest) {
        self.next("an acknowledgement", |e| match e {
            HubEvent::Acknowledged(m, d) if m == member && *d == digest => Some(()),
            _ => None,
        })
        .await;
    }

    pub async fn refused(&mut self, member: &str) -> Refusal {
        self.next("a refusal", |e| match e {
            HubEvent::Refused(m, refusal) if m == member => Some(refusal.clone()),
            _ => None,
        })
        .await
    }
}

/// The same CA once more, as after a restart.
pub fn reload(authority: &CertificateAuthority) -> CertificateAuthority {
    CertificateAuthority::load(authority.certificate_pem(), authority.key_pem()).unwrap()
}

pub fn identity(authority: &CertificateAuthority, member: &str, life: Duration) -> MemberIdentity {
    let key = KeyAndCsr::generate().unwrap();
    let requested = RequestedKey::from_csr(&key.csr_der).unwrap();
    let issued = authority
        .issue_member(&requested, member, Serial::random(), life)
        .unwrap();
    MemberIdentity {
        key_pem: key.key_pem,
        chain_pem: issued.chain_pem,
        ca_pem: authority.certificate_pem().into(),
    }
}

type Verdict = dyn Fn(&VerifiedUpdate) -> Result<(), RefusedUpdate> + Send + Sync;

/// A member's storage.
pub struct MemberStore {
    pub held: Mutex<Held>,
    pub contents: Mutex<BTreeMap<ResourceKey, Resource>>,
    pub identities: Mutex<Vec<MemberIdentity>>,
    pub report: watch::Sender<MemberReport>,
    pub verdict: Mutex<Box<Verdict>>,
    /// While set, `apply` waits for it.
    pub gate: Mutex<Option<Arc<Notify>>>,
    pub applied: mpsc::UnboundedSender<VerifiedUpdate>,
}

#[async_trait]
impl MemberBackend for MemberStore {
    fn held(&self) -> Held {
        self.held.lock().unwrap().clone()
    }

    async fn apply(&self, update: VerifiedUpdate) -> Result<(), RefusedUpdate> {
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        (self.verdict.lock().unwrap())(&update)?;
        let mut held = self.held.lock().unwrap();
        let mut contents = self.contents.lock().unwrap();
        if update.full {
            held.digests.clear();
            contents.clear();
        }
        for key in &update.removes {
            held.digests.remove(key);
            contents.remove(key);
        }
        for (key, (resource, digest)) in &update.upserts {
            held.digests.insert(key.clone(), *digest);
            contents.insert(key.clone(), resource.clone());
        }
        held.hub_id.clone_from(&update.hub_id);
        held.epoch = update.epoch;
        let _ = self.applied.send(update);
        Ok(())
    }

    fn reports(&self) -> watch::Receiver<MemberReport> {
        self.report.subscribe()
    }

    async fn store_identity(&self, identity: &MemberIdentity) -> Result<(), StoreError> {
        self.identities.lock().unwrap().push(identity.clone());
        Ok(())
    }
}

/// A member whose link runs.
pub struct Member {
    pub store: Arc<MemberStore>,
    pub handle: LinkHandle,
    pub applied: mpsc::UnboundedReceiver<VerifiedUpdate>,
    pub task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    pub fn start(endpoints: Vec<String>, identity: MemberIdentity) -> Self {
        Self::start_holding(endpoints, identity, Held::default())
    }

    pub fn start_holding(endpoints: Vec<String>, identity: MemberIdentity, held: Held) -> Self {
        let (applied, updates) = mpsc::unbounded_channel();
        let store = Arc::new(MemberStore {
            held: Mutex::new(held),
            contents: Mutex::default(),
            identities: Mutex::default(),
            report: watch::channel(MemberReport::default()).0,
            verdict: Mutex::new(Box::new(|_| Ok(()))),
            gate: Mutex::default(),
            applied,
        });
        let config = MemberConfig {
            backoff_start: Duration::from_millis(20),
            backoff_limit: Duration::from_millis(200),
            ..MemberConfig::new(endpoints, "test")
        };
        let (link, handle) = Link::new(config, identity, store.clone());
        let task = tokio::spawn(link.run(std::future::pending()));
        Self {
            store,
            handle,
            applied: updates,
            task,
        }
    }

    pub async fn state<T>(&self, what: &str, wanted: impl Fn(&ConnectionState) -> Option<T>) -> T {
        let mut state = self.handle.state();
        within(what, async {
            loop {
                if let Some(found) = wanted(&state.borrow_and_update()) {
                    return found;
                }
                state.changed().await.expect("the link runs");
            }
        })
        .await
    }

    pub async fn update(&mut self) -> VerifiedUpdate {
        within("an update", self.applied.recv()).await.unwrap()
    }
}
