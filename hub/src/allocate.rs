//! Records numbers, before any plan names them.

use kube::{Api, Client};
use serde::Serialize;
use spillway_core::resolve::Allocations;
use spillway_crds::address::PrefixPair;
use spillway_crds::hub::{EgressGateway, IdentityRecord, Member};

use crate::api::{ALLOCATIONS, Failure, Guard, apply_status};
use crate::lease::Leadership;
use crate::snapshot::{Mirrors, Snapshot};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberFields<'a> {
    member_id: u16,
    overlay: &'a PrefixPair,
}

#[derive(Serialize)]
struct GatewayFields<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    identities: &'a [IdentityRecord],
}

/// Writes allocations.
pub(crate) struct Recorder {
    members: Api<Member>,
    gateways: Api<EgressGateway>,
    leadership: Leadership,
}

impl Recorder {
    pub(crate) fn new(client: &Client, leadership: Leadership) -> Self {
        Self {
            members: Api::all(client.clone()),
            gateways: Api::all(client.clone()),
            leadership,
        }
    }

    /// Records all of `allocations`. Each write holds only for the version that was resolved from; what
    /// fails, as it does where somebody else has just written the object, is resolved anew. Returns whether everything was recorded.
    pub(crate) async fn record(
        &self,
        mirrors: &Mirrors,
        snapshot: &Snapshot,
        allocations: &Allocations,
    ) -> bool {
        let mut all = true;
        for (name, allocation) in &allocations.members {
            let Some(member) = snapshot.members.get(name) else {
                continue;
            };
            let fields = MemberFields {
                member_id: allocation.id,
                overlay: &allocation.overlay,
            };
            match self.write(&self.members, &member.metadata, &fields).await {
                Ok(written) => {
                    tracing::info!(cluster = name, id = allocation.id, "member id recorded");
                    mirrors.members.written(written);
                }
                Err(error) => {
                    all = false;
                    if !error.is_conflict() {
                        tracing::warn!(cluster = name, %error, "a member id can't be recorded yet");
                    }
                }
            }
        }
        for (name, identities) in &allocations.gateways {
            let Some(gateway) = snapshot.gateways.get(name) else {
                continue;
            };
            let fields = GatewayFields { identities };
            match self.write(&self.gateways, &gateway.metadata, &fields).await {
                Ok(written) => {
                    tracing::info!(
                        gateway = name,
                        identities = identities.len(),
                        "identities recorded"
                    );
                    mirrors.gateways.written(written);
                }
                Err(error) => {
                    all = false;
                    if !error.is_conflict() {
                        tracing::warn!(gateway = name, %error, "identities can't be recorded yet");
                    }
                }
            }
        }
        all
    }

    async fn write<K>(
        &self,
        api: &Api<K>,
        meta: &kube::core::ObjectMeta,
        fields: &impl Serialize,
    ) -> Result<K, Failure>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let limit = self.leadership.limit()?;
        apply_status(api, ALLOCATIONS, meta, Guard::Version, fields, limit).await
    }
}
