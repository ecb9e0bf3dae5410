//! A member's backend: a disk that outlives it, slow and unreliable on demand.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spillway_crds::hub::MemberNode;
use tokio::sync::watch;

use super::net::{Net, Process};
use super::world::Truth;
use crate::MemberReport;
use crate::member::{Held, MemberBackend, RefusedUpdate, StoreError, VerifiedUpdate};
use crate::pki::MemberIdentity;

pub(super) struct Body {
    name: String,
    process: Process,
    truth: Arc<Truth>,
    net: Arc<Net>,
    report: watch::Sender<MemberReport>,
}

impl Body {
    pub(super) fn new(name: &str, process: &Process, truth: &Arc<Truth>, net: &Arc<Net>) -> Self {
        let body = Self {
            name: name.into(),
            process: process.clone(),
            truth: truth.clone(),
            net: net.clone(),
            report: watch::channel(MemberReport::default()).0,
        };
        body.report();
        body
    }

    /// Nodes are as quick as the agent here.
    pub(super) fn report(&self) {
        let programmed = self.truth.facts().member(&self.name).held.digest();
        self.report.send_replace(MemberReport {
            nodes: vec![MemberNode {
                name: self.name.clone(),
                ..MemberNode::default()
            }],
            programmed,
            agent_version: "1".into(),
            ranges: None,
        });
    }
}

#[async_trait]
impl MemberBackend for Body {
    fn held(&self) -> Held {
        self.truth.facts().member(&self.name).held.clone()
    }

    async fn apply(&self, update: VerifiedUpdate) -> Result<(), RefusedUpdate> {
        let slowness = self.truth.facts().member(&self.name).slowness;
        tokio::time::sleep(slowness.mul_f64(self.net.chance()) + Duration::from_millis(1)).await;
        self.process.alive().await;
        {
            let mut facts = self.truth.facts();
            let member = facts.member(&self.name);
            if member.refuses || std::mem::take(&mut member.fails_once) {
                return Err(RefusedUpdate {
                    resource: None,
                    reason: "not now".into(),
                });
            }
            if !facts.fits(&self.name, &update) {
                return Err(RefusedUpdate {
                    resource: None,
                    reason: "the resources don't add up".into(),
                });
            }
            facts.commit(&self.name, update);
        }
        self.report();
        // A crash between storing and answering.
        tokio::time::sleep(slowness.mul_f64(self.net.chance())).await;
        self.process.alive().await;
        Ok(())
    }

    fn reports(&self) -> watch::Receiver<MemberReport> {
        self.report.subscribe()
    }

    async fn store_identity(&self, _: &MemberIdentity) -> Result<(), StoreError> {
        Ok(())
    }
}
