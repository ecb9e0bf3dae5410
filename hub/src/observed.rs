//! What this replica measures. What is a state is read when somebody scrapes it.

use std::collections::BTreeMap;

use spillway_crds::hub::{Member, PolicyStatus};
use spillway_crds::{Condition, ConditionType};
use spillway_link::hub::{EnrollRefusal, LinkEvent};
use spillway_telemetry::hub::HubMetrics;

use crate::lease::Leadership;
use crate::snapshot::{Policy, Snapshot};

/// The metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Observed(pub(crate) HubMetrics);

impl Observed {
    /// Something happened on the members' port.
    pub(crate) fn link(&self, event: LinkEvent) {
        match event {
            LinkEvent::HandshakeFailed => _ = self.0.handshakes_failed.inc(),
            LinkEvent::Displaced(crowd) => self.0.displaced.inc([crowd.as_str()]),
            LinkEvent::UpdateSent => _ = self.0.plans_sent.inc(),
            LinkEvent::Ended(end) => self.0.link_ends.inc([end.as_str()]),
        }
    }

    /// Somebody asked to join.
    pub(crate) fn enrolled(&self, outcome: Result<(), &EnrollRefusal>) {
        let result = match outcome {
            Ok(()) => "enrolled",
            Err(EnrollRefusal::TokenUnknown) => "token_unknown",
            Err(EnrollRefusal::TokenUsed) => "token_used",
            Err(EnrollRefusal::TokenExpired) => "token_expired",
            Err(EnrollRefusal::TokenForOtherMember) => "token_for_other_member",
            Err(EnrollRefusal::NameTaken) => "name_taken",
            Err(EnrollRefusal::Invalid(_)) => "invalid",
            Err(EnrollRefusal::Unavailable(_)) => "unavailable",
        };
        self.0.enrolments.inc([result]);
    }

    /// Brings the states up to date.
    pub(crate) fn refresh(&self, snapshot: &Snapshot, streams: usize, leadership: Option<&Leadership>) {
        let metrics = &self.0;
        let leads = leadership.is_some_and(|l| l.remaining().is_some());
        metrics.leader.set(f64::from(u8::from(leads)));
        metrics.streams.set(count(streams));
        metrics.unreadable_objects.set(count(snapshot.unknown.len()));
        let members = || snapshot.members.iter();
        metrics
            .member_connected
            .replace(members().map(|(name, m)| ([name.clone()], yes(connected(m)))));
        metrics
            .member_programmed
            .replace(members().map(|(name, m)| ([name.clone()], yes(programmed(m)))));
        let gateways = snapshot.gateways.iter().map(|(name, g)| {
            let ready = g.status.as_ref().and_then(|s| s.ready_nodes).unwrap_or(0);
            ([name.clone()], f64::from(ready))
        });
        metrics.gateway_ready_nodes.replace(gateways);
        metrics.objects.replace(objects(snapshot));
    }
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

fn connected(member: &Member) -> bool {
    let conditions = member.status.iter().flat_map(|s| &s.conditions);
    says(conditions, ConditionType::Connected) == "True"
}

fn programmed(member: &Member) -> bool {
    let plan = member.status.as_ref().map(|s| &s.plan);
    plan.is_some_and(|p| p.programmed.is_some() && p.programmed == p.acknowledged)
}

/// The status of a condition, or `Unknown`.
fn says<'a>(conditions: impl IntoIterator<Item = &'a Condition>, kind: ConditionType) -> &'static str {
    let found = conditions.into_iter().find(|c| c.type_ == kind.as_str());
    match found.map(|c| c.status.as_str()) {
        Some("True") => "True",
        Some("False") => "False",
        _ => "Unknown",
    }
}

/// How many objects say what.
fn objects(snapshot: &Snapshot) -> impl Iterator<Item = ([String; 3], f64)> {
    let mut counts: BTreeMap<[&'static str; 3], u32> = BTreeMap::new();
    let mut add = |kind, conditions: &[Condition], types: &[ConditionType]| {
        for wanted in types {
            let key = [kind, wanted.as_str(), says(conditions, *wanted)];
            *counts.entry(key).or_default() += 1;
        }
    };
    let both = [ConditionType::Accepted, ConditionType::Programmed];
    for member in snapshot.members.values() {
        let conditions = member.status.as_ref().map_or(&[][..], |s| &s.conditions);
        add(
            "member",
            conditions,
            &[ConditionType::Connected, ConditionType::Programmed],
        );
    }
    for gateway in snapshot.gateways.values() {
        let conditions = gateway.status.as_ref().map_or(&[][..], |s| &s.conditions);
        add(
            "gateway",
            conditions,
            &[both[0], both[1], ConditionType::PortsAvailable],
        );
    }
    for policy in snapshot.policies.values() {
        let status: Option<&PolicyStatus> = match policy {
            Policy::Namespaced(p) => p.status.as_ref(),
            Policy::Cluster(p) => p.status.as_ref(),
        };
        add("policy", status.map_or(&[][..], |s| &s.conditions), &both);
    }
    counts
        .into_iter()
        .map(|(key, n)| (key.map(str::to_owned), f64::from(n)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_crds::hub::{EgressGateway, EgressGatewaySpec, MemberSpec};
    use spillway_crds::member::PolicyRef;
    use spillway_link::hub::StreamEnd;
    use spillway_telemetry::hub::{ENROLMENTS, LINK_ENDS};
    use spillway_telemetry::{Book, Health, Metrics, bind, get, routes, serve, text};

    use super::*;

    /// A federation at its limits, scraped and read back.
    #[tokio::test]
    async fn a_scrape_says_what_there_is_and_its_series_are_bounded() {
        let mut snapshot = Snapshot::default();
        for n in 0..5_000 {
            let name = format!("m{n}");
            snapshot
                .members
                .insert(name.clone(), Arc::new(Member::new(&name, MemberSpec::default())));
            let policy = PolicyRef {
                namespace: Some("n".into()),
                name,
            };
            let object = spillway_crds::hub::FederatedEgressPolicy::new(
                "p",
                spillway_crds::hub::FederatedEgressPolicySpec::default(),
            );
            snapshot
                .policies
                .insert(policy, Policy::Namespaced(Arc::new(object)));
        }
        let gateway = EgressGateway::new("g", EgressGatewaySpec::default());
        snapshot.gateways.insert("g".into(), Arc::new(gateway));
        let mut book = Book::default();
        let observed = Observed(HubMetrics::new(&mut book));
        observed.link(LinkEvent::Ended(StreamEnd::Revoked));
        observed.enrolled(Err(&EnrollRefusal::TokenUsed));
        let metrics = Metrics::new(book, move || {
            observed.refresh(&snapshot, 3, None);
            std::future::ready(())
        });
        let listener = bind("127.0.0.1:0".parse().expect("address"))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("address");
        tokio::spawn(serve(listener, routes(Health::new(), metrics)));
        let read = text::parse(&get(address, "/metrics").await.expect("metrics")).expect("well-formed");
        let value = |name: &str, labels: &[(&str, &str)]| read.value(name, labels);
        assert_eq!(value("spillway_hub_streams", &[]), Some(3.0));
        assert_eq!(
            value("spillway_hub_stream_ends_total", &[("reason", "revoked")]),
            Some(1.0)
        );
        assert_eq!(
            value("spillway_hub_enrolments_total", &[("result", "token_used")]),
            Some(1.0)
        );
        let unknown = [
            ("kind", "policy"),
            ("condition", "Accepted"),
            ("status", "Unknown"),
        ];
        assert_eq!(
            value("spillway_hub_objects", &unknown),
            Some(5_000.0),
            "policies are counted, not named"
        );
        assert_eq!(read.samples("spillway_hub_member_connected").count(), 4_096);
        assert!(read.all().len() < 8_400, "{} series", read.all().len());
    }

    #[test]
    fn every_reason_is_declared() {
        use StreamEnd::{Closed, Expired, Left, Protocol, Replaced, Revoked, Shutdown, Silent, StaleHub};
        for end in [
            Left, Closed, Replaced, Silent, Revoked, Expired, StaleHub, Shutdown, Protocol,
        ] {
            assert!(LINK_ENDS.contains(&end.as_str()));
        }
        let mut book = Book::default();
        let observed = Observed(HubMetrics::new(&mut book));
        for refusal in [
            EnrollRefusal::TokenUnknown,
            EnrollRefusal::TokenExpired,
            EnrollRefusal::TokenForOtherMember,
            EnrollRefusal::NameTaken,
            EnrollRefusal::Invalid(String::new()),
            EnrollRefusal::Unavailable(String::new()),
        ] {
            observed.enrolled(Err(&refusal));
        }
        observed.enrolled(Ok(()));
        let metrics = Metrics::new(book, || std::future::ready(()));
        let read = text::parse(&metrics.encode()).expect("well-formed");
        assert_eq!(
            read.samples("spillway_hub_enrolments_total").count(),
            ENROLMENTS.len()
        );
    }
}
