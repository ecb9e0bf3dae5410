//! Whether anybody writes while nothing changes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use spillway_crds::NAMESPACE;

use super::{Federation, PATIENCE};
use crate::scenario::{Cluster, eventually};

const HUB_KINDS: &str = "members,egressgateways,federatedegresspolicies,federatedclusteregresspolicies";
const MEMBER_KINDS: &str = "hubconnections,egressplans,plannedmembers,plannedpolicies,plannedgateways,plannedpeers,egressnodes,clusternetworks";
/// What is ours in namespace `spillway-system`. The Lease is missing: holding it is writing it.
const OWN_KINDS: &str = "deployments,daemonsets,pods,services,secrets,configmaps,serviceaccounts";

const VERSIONS: &str = r#"jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}={.metadata.resourceVersion}{"\n"}{end}"#;

/// What every API server of the federation holds of ours, and how often it was asked to write such a thing.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Snapshot(BTreeMap<String, String>);

impl Federation {
    /// Waits until nothing is written any more, then holds it to that for `span`: no object of ours may change,
    /// no write of one may even be asked for, and no node's kernel may be told anything of ours.
    pub async fn stays_at_rest(&self, span: Duration) -> Result<()> {
        let settled = Duration::from_secs(3);
        let before = eventually(PATIENCE, "the federation comes to rest", || async {
            let before = self.snapshot().await?;
            tokio::time::sleep(settled).await;
            before.same_as(&self.snapshot().await?)?;
            Ok(before)
        })
        .await?;
        let mut nodes = Vec::new();
        for cluster in self.clusters.values() {
            nodes.extend(cluster.nodes()?.into_iter().map(|n| n.name().to_owned()));
        }
        let watches = nodes.iter().map(|node| self.kernel_is_silent(node, span));
        futures::future::try_join_all(watches).await?;
        before.same_as(&self.snapshot().await?)
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let clusters = self.clusters.iter().map(|(name, cluster)| of_one(name, cluster));
        let all: BTreeMap<String, String> = futures::future::try_join_all(clusters)
            .await?
            .into_iter()
            .flatten()
            .collect();
        ensure!(
            ["hub: Member /a", "a: EgressNode /a-n1", "b: EgressPlan /current"]
                .iter()
                .all(|wanted| all.contains_key(*wanted)),
            "the list of objects lacks some that exist: {:?}",
            all.keys()
        );
        Ok(Snapshot(all))
    }

    /// Listens to a node's kernel for `span`. Its own noise is let pass: neighbours on the uplink and on the
    /// CNI's bridge come and go. The kernel tells nobody of proxy neighbours, so writes of those go unnoticed.
    /// A route and a table of the listener's own show that it hears at all.
    async fn kernel_is_silent(&self, node: &str, span: Duration) -> Result<()> {
        let seconds = span.as_secs();
        let script = format!(
            "timeout {seconds} ip monitor route rule link neigh & timeout {seconds} nft monitor &
             sleep 1
             ip route add 192.0.2.255 dev lo table 77 && ip route del 192.0.2.255 dev lo table 77
             nft add table inet sentinel && nft delete table inet sentinel
             wait; true"
        );
        let heard = self
            .node(node)?
            .exec(&["sh", "-c", &script])
            .await?
            .success()
            .with_context(|| format!("listening on {node}"))?;
        for sentinel in ["192.0.2.255", "add table inet sentinel"] {
            ensure!(
                heard.contains(sentinel),
                "the listener on {node} is deaf: {heard}"
            );
        }
        let told: Vec<String> = events(&heard).into_iter().filter(|e| is_a_write(e)).collect();
        ensure!(
            told.is_empty(),
            "{node}'s kernel was told, though nothing changed: {told:#?}"
        );
        Ok(())
    }
}

/// What the monitors told, an event each: `ip monitor` breaks some into lines.
fn events(heard: &str) -> Vec<String> {
    let mut events: Vec<String> = Vec::new();
    for line in heard.lines() {
        match events.last_mut() {
            Some(event) if line.starts_with(char::is_whitespace) => event.push_str(line),
            _ => events.push(line.to_owned()),
        }
    }
    events
}

/// Whether an event is more than the kernel's own noise and the listener's sentinels.
fn is_a_write(event: &str) -> bool {
    const STATES: [&str; 6] = ["REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "INCOMPLETE"];
    let words: Vec<&str> = event.split_whitespace().collect();
    let neighbour = STATES.iter().any(|state| words.contains(state));
    // "5: name: <FLAGS>"
    let link = words.get(2).is_some_and(|flags| flags.starts_with('<'));
    let noise = words.is_empty()
        || event.contains("192.0.2.255")
        || event.contains("sentinel")
        // Says only that a transaction took place; its content is told by events of its own.
        || event.starts_with("# new generation")
        || ((neighbour || link) && !event.contains("spillway0"));
    !noise
}

/// One cluster's part of a snapshot.
async fn of_one(name: &str, cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let kinds = if name == "hub" { HUB_KINDS } else { MEMBER_KINDS };
    let planned = ["get", "-A", kinds, "-o", VERSIONS];
    let own = ["get", "-n", NAMESPACE, OWN_KINDS, "-o", VERSIONS];
    let (planned, own, writes) =
        futures::try_join!(cluster.kubectl(&planned), cluster.kubectl(&own), writes(cluster))?;
    let objects = planned.lines().chain(own.lines());
    let versions = objects
        .filter_map(|line| line.split_once('='))
        .map(|(object, version)| (object.to_owned(), version.to_owned()));
    Ok(versions
        .chain(writes)
        .map(|(what, value)| (format!("{name}: {what}"), value))
        .collect())
}

/// How often the API server was asked to write objects of our groups, by group, resource and verb.
async fn writes(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await?;
    let mut counts = BTreeMap::new();
    for line in metrics
        .lines()
        .filter(|l| l.starts_with("apiserver_request_total{"))
    {
        let label = |name: &str| {
            let rest = line.split_once(&format!("{name}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value)
        };
        let (Some(group), Some(verb), Some(resource)) = (label("group"), label("verb"), label("resource"))
        else {
            continue;
        };
        if group.ends_with("spillway.io") && !["GET", "LIST", "WATCH"].contains(&verb) {
            // Labels that tell codes and scopes apart stay in the key.
            let (labels, count) = line.rsplit_once(' ').context("a metric without a value")?;
            counts.insert(format!("{verb} {resource}: {labels}"), count.to_owned());
        }
    }
    ensure!(!counts.is_empty(), "the API server counts no writes of ours");
    Ok(counts)
}

impl Snapshot {
    fn same_as(&self, later: &Self) -> Result<()> {
        let keys = self.0.keys().chain(later.0.keys());
        let changed: Vec<String> = keys
            .filter(|key| self.0.get(*key) != later.0.get(*key))
            .map(|key| format!("{key}: {:?} -> {:?}", self.0.get(key), later.0.get(key)))
            .collect();
        ensure!(
            changed.is_empty(),
            "written, though nothing changed: {changed:#?}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{events, is_a_write};

    #[test]
    fn noise_is_told_from_writes() {
        for noise in [
            "172.30.1.1 dev eth0 lladdr 02:00:00:00:00:01 STALE",
            "10.244.0.7 dev cni0 FAILED",
            "# new generation 33 by process 812 (nft)",
            "Deleted 192.0.2.255 dev lo table 77 scope link",
            "24: veth7d98@eth0: <BROADCAST,UP> mtu 1500 master cni0 state UP\n    link/ether f6:74:61:9f:14:12",
        ] {
            let noise = events(noise);
            assert!(noise.len() == 1 && !is_a_write(&noise[0]), "{noise:?}");
        }
        for write in [
            "100.64.0.9 dev spillway0 lladdr 02:00:00:00:00:01 STALE",
            "20001:\tfrom all fwmark 0x1000000/0xff000000 lookup 20001",
            "add element inet spillway pods4 { 10.244.0.7 : 0x1 }",
            "default via 100.64.0.9 dev spillway0 table 20001 proto 87",
            "5: spillway0: <BROADCAST,UP> mtu 1450",
        ] {
            assert!(is_a_write(write), "{write}");
        }
    }
}
