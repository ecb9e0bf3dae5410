//! Joined or not: follows the HubConnection and the token, enrols, and keeps the link running.
//!
//! ```text
//!  no HubConnection ──► token? ──► enrol ──► session ──► leaving: tell the hub, tear down, forget the identity
//!        ▲                  └─ refused: wait for another token ─┘ │
//!        └────────────── any input changed: from the start ───────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use spillway_crds::condition::Verdict;
use spillway_crds::member::{HubConnection, HubConnectionSpec};
use spillway_crds::{ConditionType, SINGLETON};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::control::Wake;
use crate::enrol;
use crate::identity::{IdentityStore, Stored, TOKEN_SECRET, token_in};
use crate::leave;
use crate::mirror::Mirror;
use crate::observed::Observed;
use crate::plan::Store;
use crate::progress::{Progress, enrolled, not_enrolled};
use crate::published::Published;
use crate::uplink::{self, ConnectionState, LinkHandle, MemberReport, Token};

/// Wait before the API server is asked again for what it refused.
const RETRY: Duration = Duration::from_secs(5);

/// What decides about the connection. When it changes, everything starts over with the new values.
#[derive(Clone, PartialEq)]
struct Inputs {
    /// Without `leaving`, which a running session handles itself.
    spec: HubConnectionSpec,
    /// A token that wasn't used yet.
    token: Option<String>,
    /// UID of the object: one that was deleted and made again is another one.
    uid: Option<String>,
}

/// The connection to the hub.
pub(crate) struct Connection {
    pub(crate) hub: Mirror<HubConnection>,
    pub(crate) tokens: Mirror<Secret>,
    pub(crate) identities: IdentityStore,
    pub(crate) store: Arc<Store>,
    pub(crate) reports: watch::Receiver<MemberReport>,
    pub(crate) progress: Published<Progress>,
    pub(crate) observed: Observed,
}

impl Connection {
    /// Follows the inputs for ever.
    pub(crate) async fn run(self) {
        let mut identity = self.identities.load().await;
        let mut wake = self.wake();
        // A token that the hub refused for these inputs isn't shown to it again.
        let mut refused: Option<Inputs> = None;
        loop {
            let Some(inputs) = self.inputs(identity.as_ref()) else {
                self.progress.edit(|p| *p = Progress::default());
                wake.changed().await;
                continue;
            };
            // Before anything that the hub says is done.
            if let Err(error) = self.store.set_grants(&inputs.spec.grants).await {
                tracing::error!(%error, "what the owner grants can't be told to the nodes; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let generation = self.generation();
            if let Some(token) = inputs.token.clone()
                && refused.as_ref() != Some(&inputs)
                && !self.leaving()
            {
                self.progress.edit(|p| {
                    p.generation = generation;
                    p.released = false;
                });
                let outcome = tokio::select! {
                    outcome = enrol::enrol(&inputs.spec, &token, &self.identities, &self.progress) => Some(outcome),
                    () = self.differ(&inputs, identity.as_ref()) => None,
                    () = self.asked_to_leave() => None,
                };
                match outcome {
                    Some(Ok(stored)) => identity = Some(stored),
                    Some(Err(_)) => refused = Some(inputs),
                    // The inputs differ also by the used token's deletion, which may be seen before the
                    // enrolment returns. The identity is stored by then.
                    None => identity = self.identities.load().await,
                }
                continue;
            }
            // Where a new token was refused, the condition keeps saying so, while the old certificate serves on.
            let token_refused = inputs.token.is_some() && refused.as_ref() == Some(&inputs);
            let usable = match &identity {
                None => Err(None),
                Some(stored) => stored
                    .check(&inputs.spec.member, &inputs.spec.ca_pin)
                    .map_err(Some)
                    .map(|()| stored.clone()),
            };
            match usable {
                Ok(stored) => {
                    self.progress.edit(|p| {
                        p.generation = generation;
                        p.expires = stored.expires();
                        p.connected = uplink::connected(
                            &ConnectionState::Connecting { reason: None },
                            &inputs.spec.member,
                        );
                        if !token_refused {
                            p.enrolled = enrolled(&inputs.spec.member);
                        }
                    });
                    tokio::select! {
                        () = self.session(&inputs.spec, &stored) => identity = None,
                        () = self.differ(&inputs, identity.as_ref()) => {
                            // The link may have renewed the certificate meanwhile.
                            identity = self.identities.load().await;
                        }
                    }
                }
                // Nobody knows this cluster by an identity that it doesn't have.
                Err(_) if identity.is_none() && self.leaving() => {
                    self.released(generation);
                    leave::alone(&self.store).await;
                    wake.changed().await;
                }
                Err(why) => {
                    self.progress.edit(|p| {
                        p.generation = generation;
                        p.connected = not_enrolled();
                        p.endpoint = None;
                        p.released = false;
                        if !token_refused {
                            p.enrolled = unusable(why.as_deref());
                        }
                    });
                    wake.changed().await;
                }
            }
        }
    }

    fn wake(&self) -> Wake {
        Wake::on([self.hub.changes(), self.tokens.changes()])
    }

    fn leaving(&self) -> bool {
        self.hub.get(SINGLETON).is_some_and(|c| c.spec.leaving)
    }

    /// `None` where this cluster isn't to be a member, or nothing is known yet.
    fn inputs(&self, identity: Option<&Stored>) -> Option<Inputs> {
        if !self.hub.synced() || !self.tokens.synced() {
            return None;
        }
        let connection = self.hub.get(SINGLETON)?;
        let token = self.tokens.get(TOKEN_SECRET).and_then(|s| token_in(&s));
        // The token that the identity was got with is only there because it wasn't deleted yet.
        let used = |text: &String| {
            let id = text.parse::<Token>().ok().map(|t| t.id().to_owned());
            id.is_some() && id.as_deref() == identity.map(|i| i.token_id.as_str())
        };
        Some(Inputs {
            spec: HubConnectionSpec {
                leaving: false,
                ..connection.spec.clone()
            },
            token: token.filter(|t| !used(t)),
            uid: connection.metadata.uid.clone(),
        })
    }

    /// Waits until `spillway leave` was typed.
    async fn asked_to_leave(&self) {
        let mut wake = self.wake();
        while !self.leaving() {
            wake.changed().await;
        }
    }

    /// Waits until the inputs aren't `inputs` any more.
    async fn differ(&self, inputs: &Inputs, identity: Option<&Stored>) {
        let mut wake = self.wake();
        loop {
            if self.inputs(identity).as_ref() != Some(inputs) {
                return;
            }
            let generation = self.generation();
            self.progress.edit(|p| p.generation = generation);
            wake.changed().await;
        }
    }

    fn generation(&self) -> Option<i64> {
        self.hub.get(SINGLETON).and_then(|c| c.metadata.generation)
    }

    /// Keeps the link running. Ends only once the hub has let this member go.
    async fn session(&self, spec: &HubConnectionSpec, stored: &Stored) {
        // A report made before this cluster's nodes were read would tell the hub that there are none.
        let mut first = self.reports.clone();
        if first.wait_for(|r| *r != MemberReport::default()).await.is_err() {
            std::future::pending::<()>().await;
        }
        let (link, handle) = uplink::link(
            spec,
            stored,
            self.store.clone(),
            self.reports.clone(),
            self.identities.clone(),
            self.progress.clone(),
            self.observed.clone(),
        );
        if !self.leaving() {
            self.store.expect_no_teardown().await;
        }
        let mut running = JoinSet::new();
        running.spawn(link.run(std::future::pending()));
        let ended = async {
            // The link returns once the member has left; a panic in it must not leave a silent agent behind.
            if let Some(Err(error)) = running.join_next().await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        };
        let leaving = leave::when_asked(&self.hub, &handle, &self.store, &self.identities);
        let left = async {
            tokio::select! {
                () = leaving => {}
                () = async { ended.await; std::future::pending::<()>().await } => {}
            }
        };
        tokio::select! {
            () = left => {}
            () = self.observe(&spec.member, &handle) => {}
        }
        self.released(self.generation());
    }

    /// This cluster isn't a member any more.
    fn released(&self, generation: Option<i64>) {
        let why = "this cluster has left the federation";
        self.progress.edit(|p| {
            *p = Progress {
                generation,
                enrolled: Verdict::no(ConditionType::Enrolled, "Left", why),
                connected: Verdict::no(ConditionType::Connected, "Left", why),
                released: true,
                ..Progress::default()
            };
        });
    }

    /// Shows how the link goes, for ever.
    async fn observe(&self, member: &str, handle: &LinkHandle) {
        let mut states = handle.state();
        loop {
            let state = states.borrow_and_update().clone();
            let verdict = uplink::connected(&state, member);
            if let ConnectionState::Connecting { reason: Some(reason) } = &state {
                self.observed.disconnected(reason);
            }
            let (endpoint, refused, current) = match &state {
                ConnectionState::Connected {
                    endpoint,
                    refused,
                    acknowledged,
                    ..
                } => (Some(endpoint.clone()), refused.clone(), acknowledged.is_some()),
                _ => (None, None, false),
            };
            if self.progress.get().connected != verdict {
                tracing::info!(member, reason = verdict.reason, message = verdict.message, "link");
            }
            self.progress.edit(|p| {
                p.connected = verdict;
                p.endpoint = endpoint;
                p.refused = refused;
            });
            // Only a member whose plan the hub stands for takes a teardown back.
            if current
                && !self.leaving()
                && let Err(error) = self.store.set_teardown(false).await
            {
                tracing::error!(%error, "the teardown can't be taken back");
            }
            if states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The `Enrolled` condition of a cluster without a usable identity and without a token to get one.
fn unusable(why: Option<&str>) -> Verdict {
    let why = why.unwrap_or("there is no join token");
    let advice = "make a token on the hub (spillway token create) and run the join command that it prints";
    Verdict::no(
        ConditionType::Enrolled,
        "TokenMissing",
        format!("{why}; {advice}"),
    )
}
