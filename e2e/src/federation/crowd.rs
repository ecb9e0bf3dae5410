//! Many pods whose first act is to send.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

use super::{Federation, OUTSIDE, Story};
use crate::image::PROBE;
use crate::scenario::{Mark, Protocol, eventually};

/// Label that all pods of a crowd have.
const CROWD: &str = "crowd";

/// A crowd on its way: the pods exist, no more is known of them.
pub struct Crowd<'a> {
    federation: &'a Federation,
    namespace: String,
    name: String,
    members: BTreeSet<String>,
    count: usize,
    mark: Mark,
}

/// What the outside server saw of anybody since a crowd began, by source.
#[derive(Debug, Default)]
pub struct Arrivals(BTreeMap<IpAddr, Vec<String>>);

/// A pod that sends to `to` by UDP and TCP the moment it runs, `times` times each, and then ends.
fn object(
    namespace: &str,
    crowd: &str,
    n: usize,
    (key, value): (&str, &str),
    node: &str,
    times: u32,
) -> Value {
    let name = format!("{crowd}-{n}");
    let tag = format!("{namespace}/{name}.");
    // One by one in turn which protocol is first, so that both are a first packet.
    let [first, second] = if n.is_multiple_of(2) {
        ["udp", "tcp"]
    } else {
        ["tcp", "udp"]
    };
    let send = |protocol: &str| {
        format!(
            "probe watch {protocol} {OUTSIDE} --count {times} --interval 20ms --timeout 200ms --tag {tag}"
        )
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {key: value, CROWD: crowd}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "probe",
                "image": PROBE,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", format!("{} & {}; wait", send(first), send(second))],
            }],
        },
    })
}

impl<'a> Story<'a> {
    /// Creates `count` pods with a label, spread over `nodes`, each of which sends `times` times. Returns at once.
    pub async fn crowd(
        &self,
        name: &str,
        label: &str,
        count: usize,
        nodes: &[&str],
        times: u32,
    ) -> Result<Crowd<'a>> {
        let label = label.split_once('=').context("a label is key=value")?;
        let mark = self.federation().outside_mark()?;
        let mut members = BTreeSet::new();
        let mut created = Vec::new();
        for n in 0..count {
            let node = nodes[n % nodes.len()];
            let cluster = self.federation().member_of(node)?;
            members.insert(cluster.name().to_owned());
            let object = object(self.namespace(), name, n, label, node, times);
            let pod: KubePod = serde_json::from_value(object)?;
            let api: Api<KubePod> = Api::namespaced(cluster.client(), self.namespace());
            created.push(async move { api.create(&PostParams::default(), &pod).await });
        }
        try_join_all(created).await?;
        Ok(Crowd {
            federation: self.federation(),
            namespace: self.namespace().to_owned(),
            name: name.to_owned(),
            members,
            count,
            mark,
        })
    }
}

impl Crowd<'_> {
    async fn pods(&self) -> Result<Vec<KubePod>> {
        let select = ListParams::default().labels(&format!("{CROWD}={}", self.name));
        let mut pods = Vec::new();
        for member in &self.members {
            let client = self.federation.cluster(member)?.client();
            let api: Api<KubePod> = Api::namespaced(client, &self.namespace);
            pods.extend(api.list(&select).await?);
        }
        Ok(pods)
    }

    /// Waits until all have sent and ended.
    pub async fn ended(&self, limit: Duration) -> Result<()> {
        eventually(
            limit,
            &format!("all of crowd {} have sent and ended", self.name),
            || async {
                let pods = self.pods().await?;
                let phase = |p: &KubePod| {
                    p.status
                        .as_ref()
                        .and_then(|s| s.phase.clone())
                        .unwrap_or_default()
                };
                let mut others = BTreeMap::<String, usize>::new();
                for phase in pods.iter().map(phase).filter(|p| p != "Succeeded") {
                    *others.entry(phase).or_default() += 1;
                }
                ensure!(
                    others.is_empty() && pods.len() == self.count,
                    "of {}: {others:?}",
                    pods.len()
                );
                Ok(())
            },
        )
        .await
    }

    /// How many have got a network so far.
    pub async fn started(&self) -> Result<usize> {
        let has_address = |p: &KubePod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        Ok(self.pods().await?.iter().filter(|p| has_address(p)).count())
    }

    /// Addresses that its pods got.
    pub async fn addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let pods = self.pods().await?;
        let of = |p: &KubePod| p.status.as_ref()?.pod_ip.as_ref()?.parse().ok();
        Ok(pods.iter().filter_map(of).collect())
    }

    /// Messages of the events of the crowd's pods with a reason.
    pub async fn events(&self, reason: &str) -> Result<Vec<String>> {
        let mut messages = Vec::new();
        for member in &self.members {
            let text = self
                .federation
                .cluster(member)?
                .kubectl(&["-n", &self.namespace, "get", "events", "-o", "json"])
                .await?;
            let events: Value = serde_json::from_str(&text)?;
            for event in events["items"].as_array().into_iter().flatten() {
                if event["reason"] == reason {
                    messages.push(event["message"].as_str().unwrap_or_default().to_owned());
                }
            }
        }
        Ok(messages)
    }

    /// All that arrived at the outside server's first address since the crowd began, whoever sent it: a leaked
    /// SYN carries no tag, and no reply reaches a source that isn't routed.
    pub fn arrivals(&self) -> Result<Arrivals> {
        let outside: IpAddr = OUTSIDE.rsplit_once(':').context("HOST:PORT")?.0.parse()?;
        let mut arrivals = Arrivals::default();
        for record in self.federation.arena().outside().records_since(self.mark)? {
            if record.dst == outside {
                let what = match record.proto {
                    Protocol::TcpSyn => "SYN".to_owned(),
                    _ => record.payload,
                };
                arrivals.0.entry(record.src).or_default().push(what);
            }
        }
        Ok(arrivals)
    }

    /// Waits until something of every pod arrived from `source`.
    pub async fn all_arrive_from(&self, source: &str, limit: Duration) -> Result<()> {
        let source: IpAddr = source.parse()?;
        eventually(
            limit,
            &format!("all of crowd {} arrive from {source}", self.name),
            || async {
                let arrivals = self.arrivals()?;
                let heard = arrivals.0.get(&source).map_or(&[][..], Vec::as_slice);
                let missing: Vec<_> = (0..self.count)
                    .map(|n| format!("{}/{}-{n}.", self.namespace, self.name))
                    .filter(|tag| !heard.iter().any(|h| h.starts_with(tag.as_str())))
                    .collect();
                ensure!(
                    missing.is_empty(),
                    "{} are missing, such as {:?}",
                    missing.len(),
                    missing.first()
                );
                Ok(())
            },
        )
        .await
    }
}

impl Arrivals {
    /// Nothing came from any address but these.
    pub fn only_from(&self, allowed: &[&str]) -> Result<()> {
        let wrong: Vec<String> = self
            .0
            .iter()
            .filter(|(source, _)| !allowed.contains(&source.to_string().as_str()))
            .map(|(source, what)| {
                let pods: BTreeSet<_> = what.iter().collect();
                format!("{source}: {} packets of {pods:?}", what.len())
            })
            .collect();
        ensure!(
            wrong.is_empty(),
            "wrong sources arrived outside: {}",
            wrong.join("; ")
        );
        Ok(())
    }

    /// Distinct sources.
    pub fn sources(&self) -> Vec<IpAddr> {
        self.0.keys().copied().collect()
    }
}
