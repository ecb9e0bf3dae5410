//! What this replica has seen recorded. Somebody may wipe a status by hand; nobody may be given another
//! number by that, nor lose what runs.
//!
//! A member's status is put back as it was. Of gateways the numbers and port slices are remembered: plans wait for
//! their being recorded again.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde::Serialize;
use spillway_core::address::Addresses;
use spillway_core::alloc::{self, Egress};
use spillway_crds::hub::{AddressSlices, EgressGateway, Member, MemberStatus, ResolvedEgress};
use spillway_crds::member::PolicyRef;
use tokio::time::Instant;

use crate::absent::Absent;
use crate::allocate::MemberFields;
use crate::api::{ALLOCATIONS, ENROLMENT, Failure, Guard, LINK, apply_status};
use crate::enroll::Certificates;
use crate::lease::Leadership;
use crate::mirror::Mirror;
use crate::report::LinkStatus;
use crate::snapshot::{Policy, Snapshot};

/// Remembers.
#[derive(Default)]
pub(crate) struct Memory {
    numbers: Arc<alloc::Memory>,
    /// Members with a number, as they were seen last.
    members: BTreeMap<String, Arc<Member>>,
    /// Port slices of gateways as they were recorded last, with the object's uid.
    slices: BTreeMap<String, (Option<String>, Vec<AddressSlices>)>,
    /// What policies leave with as it was recorded last, with the object's uid.
    egress: BTreeMap<PolicyRef, (Option<String>, Vec<ResolvedEgress>)>,
    absent: Absent,
    /// Objects for which plans are held, as the log was told.
    pub(crate) missed: Vec<String>,
}

impl Memory {
    /// Learns what `snapshot` has and gives it what was wiped from it. Returns the members whose statuses
    /// are to be written again; they are in the snapshot as they were.
    pub(crate) fn mend(&mut self, snapshot: &mut Snapshot) -> Vec<Arc<Member>> {
        let mut wiped = Vec::new();
        self.members.retain(|name, _| snapshot.members.contains_key(name));
        for (name, member) in &mut snapshot.members {
            let id = member.status.as_ref().and_then(|s| s.member_id);
            let known = self.members.get(name);
            let same = known.filter(|k| k.metadata.uid == member.metadata.uid);
            match (id, same) {
                (Some(id), _) => {
                    if known.is_none_or(|k| !Arc::ptr_eq(k, member)) {
                        self.members.insert(name.clone(), member.clone());
                        if !self.numbers.knows_member(id, name) {
                            Arc::make_mut(&mut self.numbers).member(id, name);
                        }
                    }
                }
                (None, Some(known)) => {
                    let mut mended = (**member).clone();
                    mended.status.clone_from(&known.status);
                    *member = Arc::new(mended);
                    wiped.push(member.clone());
                }
                (None, None) => {}
            }
        }
        self.slices.retain(|name, _| snapshot.gateways.contains_key(name));
        for (name, gateway) in &snapshot.gateways {
            self.learn_identities(name, gateway);
            if let Some(lost) = self.slices(name, gateway) {
                snapshot.lost.insert(name.clone(), lost);
            }
        }
        self.egress
            .retain(|source, _| snapshot.policies.contains_key(source));
        for (source, policy) in &snapshot.policies {
            if let Some(lost) = self.egress(source, policy) {
                snapshot.lost_egress.insert(source.clone(), lost);
            }
        }
        snapshot.numbers = self.numbers.clone();
        snapshot.gone = self.absent.look(snapshot, Instant::now());
        wiped
    }

    /// When a node that is missing now will count as gone, if nothing changes before.
    pub(crate) fn next_gone(&self) -> Option<Instant> {
        self.absent.next()
    }

    /// Learns a gateway's slices, or returns what they were where the whole status was wiped: slices that ended
    /// regularly leave the conditions behind.
    fn slices(&mut self, name: &str, gateway: &EgressGateway) -> Option<Vec<AddressSlices>> {
        let uid = &gateway.metadata.uid;
        let status = gateway.status.as_ref();
        let wiped = status.is_none_or(|s| {
            s.conditions.is_empty()
                && s.identities.is_empty()
                && s.slices.is_empty()
                && s.ready_nodes.is_none()
        });
        if wiped {
            let (known, slices) = self.slices.get(name)?;
            return (known == uid).then(|| slices.clone());
        }
        let recorded = status.map_or(&[][..], |s| &s.slices);
        let same = |(u, s): &(Option<String>, Vec<AddressSlices>)| u == uid && s == recorded;
        if !self.slices.get(name).is_some_and(same) {
            let known = (uid.clone(), recorded.to_vec());
            self.slices.insert(name.to_owned(), known);
        }
        None
    }

    /// Learns what a policy leaves with, or returns what it was where the whole status was wiped.
    fn egress(&mut self, source: &PolicyRef, policy: &Policy) -> Option<Vec<ResolvedEgress>> {
        let (uid, status) = policy.record();
        let known = self.egress.get(source);
        if status.is_none_or(|s| s.conditions.is_empty() && s.egress.is_empty()) {
            let (of, egress) = known?;
            return (of.as_ref() == uid).then(|| egress.clone());
        }
        let recorded = status.map_or(&[][..], |s| &s.egress);
        if known.is_none_or(|(of, egress)| of.as_ref() != uid || egress != recorded) {
            self.egress
                .insert(source.clone(), (uid.cloned(), recorded.to_vec()));
        }
        None
    }

    fn learn_identities(&mut self, name: &str, gateway: &EgressGateway) {
        for record in gateway.status.iter().flat_map(|s| &s.identities) {
            let Ok(addresses) = Addresses::parse(&record.egress_ip) else {
                continue;
            };
            let egress = Egress {
                gateway: name.to_owned(),
                addresses,
            };
            if !self.numbers.knows_identity(record.id, &egress) {
                Arc::make_mut(&mut self.numbers).identity(record.id, &egress);
            }
        }
    }
}

/// Writes statuses that were wiped again. The number comes last: it tells that all is back.
pub(crate) async fn restore(
    client: &Client,
    mirror: &Mirror<Member>,
    leadership: &Leadership,
    wiped: &[Arc<Member>],
) {
    for member in wiped {
        let name = member.metadata.name.as_deref().unwrap_or_default();
        match restore_one(client, leadership, member).await {
            Ok(whole) => {
                tracing::warn!(cluster = name, "somebody wiped the member's status; it is back");
                mirror.written(whole);
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                tracing::error!(cluster = name, %error, "the member's wiped status can't be written yet");
            }
        }
    }
}

async fn restore_one(client: &Client, leadership: &Leadership, member: &Member) -> Result<Member, Failure> {
    let api: Api<Member> = Api::all(client.clone());
    let status = member.status.clone().unwrap_or_default();
    let told = LinkStatus::recorded(Some(&status)).wanted(member, Timestamp::now());
    write(&api, LINK, member, &told, leadership).await?;
    if let Some(certificates) = Certificates::recorded(&status) {
        write(&api, ENROLMENT, member, &certificates, leadership).await?;
    }
    let MemberStatus {
        member_id: Some(member_id),
        overlay: Some(overlay),
        ..
    } = &status
    else {
        return Ok(member.clone());
    };
    let numbers = MemberFields {
        member_id: *member_id,
        overlay,
    };
    write(&api, ALLOCATIONS, member, &numbers, leadership).await
}

async fn write(
    api: &Api<Member>,
    manager: &str,
    member: &Member,
    fields: &impl Serialize,
    leadership: &Leadership,
) -> Result<Member, Failure> {
    let limit = leadership.limit()?;
    apply_status(api, manager, &member.metadata, Guard::Object, fields, limit).await
}

#[cfg(test)]
mod tests {
    use spillway_crds::address::AddressPair;
    use spillway_crds::hub::{EgressGatewaySpec, IdentityRecord, MemberSpec};

    use super::*;

    fn member(uid: &str, id: Option<u16>) -> Arc<Member> {
        let mut member = Member::new("a", MemberSpec::default());
        member.metadata.uid = Some(uid.into());
        member.status = Some(MemberStatus {
            member_id: id,
            certificate_serial: id.map(|_| "s".into()),
            ..MemberStatus::default()
        });
        Arc::new(member)
    }

    fn snapshot(member: Arc<Member>) -> Snapshot {
        Snapshot {
            members: BTreeMap::from([("a".to_owned(), member)]),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_wiped_status_is_as_it_was_and_another_object_of_that_name_is_itself() {
        let mut memory = Memory::default();
        assert!(memory.mend(&mut snapshot(member("1", None))).is_empty(), "new");
        assert!(memory.mend(&mut snapshot(member("1", Some(7)))).is_empty());
        let mut wiped = snapshot(member("1", None));
        assert_eq!(memory.mend(&mut wiped), [member("1", Some(7))]);
        assert_eq!(wiped.members["a"], member("1", Some(7)));
        let mut other = snapshot(member("2", None));
        assert!(memory.mend(&mut other).is_empty());
        assert_eq!(other.members["a"], member("2", None));
        assert!(other.numbers.knows_member(7, "a"), "it will get the same number");
    }

    #[test]
    fn identities_are_remembered_beyond_their_gateway() {
        let mut gateway = EgressGateway::new("g", EgressGatewaySpec::default());
        let egress_ip = AddressPair {
            ipv4: Some("203.0.113.1".into()),
            ipv6: None,
        };
        let egress = Egress {
            gateway: "g".into(),
            addresses: Addresses::parse(&egress_ip).expect("an address"),
        };
        gateway.status.get_or_insert_default().identities = vec![IdentityRecord { id: 9, egress_ip }];
        let mut before = Snapshot::default();
        before.gateways.insert("g".into(), Arc::new(gateway));
        let mut memory = Memory::default();
        memory.mend(&mut before);
        let mut after = Snapshot::default();
        memory.mend(&mut after);
        assert!(after.numbers.knows_identity(9, &egress));
    }

    #[test]
    fn slices_of_a_wiped_status_are_known_and_those_that_ended_are_not() {
        let slices = vec![AddressSlices {
            address: "203.0.113.1".into(),
            slices: vec![],
        }];
        let gateway = |uid: &str, slices: &[AddressSlices], ready: Option<u32>| {
            let mut gateway = EgressGateway::new("g", EgressGatewaySpec::default());
            gateway.metadata.uid = Some(uid.into());
            let status = gateway.status.get_or_insert_default();
            status.slices = slices.to_vec();
            status.ready_nodes = ready;
            let mut snapshot = Snapshot::default();
            snapshot.gateways.insert("g".into(), Arc::new(gateway));
            snapshot
        };
        let mut memory = Memory::default();
        let mut lost = |mut snapshot: Snapshot| {
            memory.mend(&mut snapshot);
            snapshot.lost.remove("g")
        };
        assert_eq!(lost(gateway("1", &[], None)), None, "new");
        assert_eq!(lost(gateway("1", &slices, Some(1))), None);
        assert_eq!(lost(gateway("2", &[], None)), None, "another object");
        assert_eq!(lost(gateway("1", &[], None)), Some(slices.clone()));
        assert_eq!(lost(gateway("1", &[], Some(1))), None, "they ended");
        assert_eq!(lost(gateway("1", &[], None)), Some(vec![]));
    }
}
