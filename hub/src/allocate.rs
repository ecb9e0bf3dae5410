//! Records numbers, before any plan names them.

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use kube::{Api, Client};
use serde::Serialize;
use spillway_core::resolve::{Allocations, GatewayAllocation, MemberAllocation};
use spillway_crds::address::PrefixPair;
use spillway_crds::hub::{AddressSlices, EgressGateway, IdentityRecord, Member};

use crate::api::{ALLOCATIONS, Failure, Guard, apply_status};
use crate::lease::Leadership;
use crate::snapshot::{Mirrors, Snapshot};

/// Writes under way at the same time.
const PARALLEL: usize = 8;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberFields<'a> {
    pub(crate) member_id: u16,
    pub(crate) overlay: &'a PrefixPair,
}

#[derive(Serialize)]
struct GatewayFields<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    identities: &'a [IdentityRecord],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    slices: &'a [AddressSlices],
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
        let mut writes: Vec<BoxFuture<'_, bool>> = Vec::new();
        for (name, allocation) in &allocations.members {
            if let Some(member) = snapshot.members.get(name) {
                writes.push(self.member(mirrors, name, member, allocation).boxed());
            }
        }
        for (name, given) in &allocations.gateways {
            if let Some(gateway) = snapshot.gateways.get(name) {
                writes.push(self.gateway(mirrors, name, gateway, given).boxed());
            }
        }
        let mut writes = futures::stream::iter(writes).buffer_unordered(PARALLEL);
        let mut all = true;
        while let Some(recorded) = writes.next().await {
            all &= recorded;
        }
        all
    }

    async fn member(
        &self,
        mirrors: &Mirrors,
        name: &str,
        member: &Member,
        allocation: &MemberAllocation,
    ) -> bool {
        let fields = MemberFields {
            member_id: allocation.id,
            overlay: &allocation.overlay,
        };
        match self.write(&self.members, &member.metadata, &fields).await {
            Ok(written) => {
                tracing::info!(cluster = name, id = allocation.id, "member id recorded");
                mirrors.members.written(written);
                true
            }
            Err(error) => {
                if !error.is_conflict() {
                    tracing::warn!(cluster = name, %error, "a member id can't be recorded yet");
                }
                false
            }
        }
    }

    async fn gateway(
        &self,
        mirrors: &Mirrors,
        name: &str,
        gateway: &EgressGateway,
        given: &GatewayAllocation,
    ) -> bool {
        let fields = GatewayFields {
            identities: &given.identities,
            slices: &given.slices,
        };
        match self.write(&self.gateways, &gateway.metadata, &fields).await {
            Ok(written) => {
                tracing::info!(
                    gateway = name,
                    identities = given.identities.len(),
                    addresses = given.slices.len(),
                    "identities and port slices recorded"
                );
                mirrors.gateways.written(written);
                true
            }
            Err(error) => {
                if !error.is_conflict() {
                    tracing::warn!(gateway = name, %error, "identities and port slices can't be recorded yet");
                }
                false
            }
        }
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
