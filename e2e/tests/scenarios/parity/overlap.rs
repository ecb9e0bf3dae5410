//! Many policies for the same pods and destinations: who wins is as the documentation says, and stays so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use spillway_e2e::eventually;
use spillway_e2e::federation::{Federation, PATIENCE, Story, StoryPod};

/// As many as the two gateways have egress IPs, so that each policy has one of its own.
const POLICIES: u8 = 20;
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(198, 51, 100, 11)];
/// Ports that answer with whom they saw.
const PORTS: [u16; 2] = [7000, 7005];

/// Numbers out of one seed (a linear congruential generator with Knuth's constants).
struct Dice(u64);

impl Dice {
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let n = usize::try_from(self.0 >> 33).unwrap_or_default();
        list[n % list.len()]
    }
}

/// A policy in words of the oracle's own.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    cluster_wide: bool,
    member: Option<&'static str>,
    app: Option<&'static str>,
    tier: Option<&'static str>,
    /// Network and prefix length.
    to: Option<(Ipv4Addr, u8)>,
    except: Option<Ipv4Addr>,
    /// TCP ports, both ends included.
    ports: Option<(u16, u16)>,
    priority: i32,
    egress_ip: String,
    /// As the API server says.
    created: String,
}

fn rule(dice: &mut Dice, n: u8) -> Rule {
    let to = dice.of(&[
        None,
        Some((Ipv4Addr::new(198, 51, 100, 0), 24)),
        Some((Ipv4Addr::new(198, 51, 100, 0), 24)),
        Some((Ipv4Addr::new(198, 51, 100, 8), 29)),
        Some((SERVERS[0], 32)),
        Some((SERVERS[1], 32)),
    ]);
    let broad = to.is_none_or(|(_, length)| length < 32);
    Rule {
        // Names that sort otherwise than by age.
        name: format!("p{:02}", (u32::from(n) * 7 + 3) % u32::from(POLICIES)),
        cluster_wide: dice.of(&[true, false, false]),
        member: dice.of(&[None, None, Some("a"), Some("b")]),
        app: dice.of(&[None, Some("x"), Some("y")]),
        tier: dice.of(&[None, None, Some("p"), Some("q")]),
        to,
        except: dice.of(&[None, None, Some(SERVERS[1])]).filter(|_| broad),
        ports: dice.of(&[
            None,
            None,
            Some((7000, 7000)),
            Some((7000, 7009)),
            Some((1, 65535)),
        ]),
        priority: dice.of(&[0, 0, 1, -1]),
        egress_ip: format!("203.0.113.{}", 10 + n),
        created: String::new(),
    }
}

impl Rule {
    fn kind(&self) -> &'static str {
        if self.cluster_wide {
            "FederatedClusterEgressPolicy"
        } else {
            "FederatedEgressPolicy"
        }
    }

    fn object(&self) -> Value {
        let labels = |pairs: &[(&str, Option<&str>)]| -> Value {
            let given = pairs
                .iter()
                .filter_map(|(k, v)| Some(((*k).to_owned(), (*v)?.into())));
            Value::Object(given.collect())
        };
        let mut to = serde_json::json!({});
        if let Some((network, length)) = self.to {
            to["cidrs"] = serde_json::json!([format!("{network}/{length}")]);
        }
        if let Some(except) = self.except {
            to["except"] = serde_json::json!([format!("{except}/32")]);
        }
        if let Some((first, last)) = self.ports {
            to["ports"] = serde_json::json!([{"protocol": "TCP", "port": first, "endPort": last}]);
        }
        let last: u8 = self
            .egress_ip
            .rsplit('.')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let gateway = if last < 20 { "frankfurt" } else { "vienna" };
        let mut object = serde_json::json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": self.kind(),
            "metadata": {"name": self.name},
            "spec": {
                "members": {"matchLabels": labels(&[("overlap", self.member)])},
                "pods": {"matchLabels": labels(&[("app", self.app), ("tier", self.tier)])},
                "to": to,
                "priority": self.priority,
                "through": [{"gateway": gateway, "egressIP": {"ipv4": self.egress_ip}}],
            },
        });
        if self.cluster_wide {
            object["spec"]["namespaces"] =
                serde_json::json!({"matchLabels": {"kubernetes.io/metadata.name": "overlap"}});
        }
        object
    }

    /// For a packet that it takes: how long its prefix is and how many ports it names; `None` for one that it doesn't.
    fn takes(&self, pod: &Subject<'_>, to: Ipv4Addr, port: u16) -> Option<(u8, u32)> {
        let asks = |wanted: Option<&str>, has: &str| wanted.is_none_or(|w| w == has);
        if !asks(self.member, pod.member) || !asks(self.app, pod.app) || !asks(self.tier, pod.tier) {
            return None;
        }
        let length = self.to.map_or(Some(0), |(network, length)| {
            let host = 32 - u32::from(length);
            let same = u32::from(network) ^ u32::from(to);
            (same.checked_shr(host).unwrap_or(0) == 0).then_some(length)
        })?;
        let ports = match self.ports {
            None => u32::MAX,
            Some((first, last)) if (first..=last).contains(&port) => u32::from(last - first) + 1,
            Some(_) => return None,
        };
        (self.except != Some(to)).then_some((length, ports))
    }
}

struct Subject<'a> {
    member: &'static str,
    app: &'static str,
    tier: &'static str,
    pod: StoryPod<'a>,
}

/// The policy that has a packet: the longest prefix, then the fewest ports, then the highest priority, then the oldest, then
/// cluster-wide ones, then by name.
fn oracle<'r>(rules: &'r [Rule], pod: &Subject<'_>, to: Ipv4Addr, port: u16) -> Option<&'r Rule> {
    let mut best: Option<(&Rule, (u8, u32))> = None;
    for rule in rules {
        let Some((length, ports)) = rule.takes(pod, to, port) else {
            continue;
        };
        let wins = best.is_none_or(|(other, (others_length, others_ports))| {
            if length != others_length {
                length > others_length
            } else if ports != others_ports {
                ports < others_ports
            } else if rule.priority != other.priority {
                rule.priority > other.priority
            } else if rule.created != other.created {
                rule.created < other.created
            } else if rule.cluster_wide == other.cluster_wide {
                rule.name < other.name
            } else {
                rule.cluster_wide
            }
        });
        if wins {
            best = Some((rule, (length, ports)));
        }
    }
    best.map(|(rule, _)| rule)
}

/// Twenty random policies over eight pods in both members, each with an egress IP of its own: whom the outside server sees is
/// whom the oracle names, before and after every daemon started anew. Who is said to win nothing wins nothing.
pub(crate) async fn whoever_wins_is_whom_the_documentation_names(fed: &Federation) -> Result<()> {
    let story = fed.story("overlap").await?;
    for member in ["a", "b"] {
        let label = format!("overlap={member}");
        fed.hub()
            .kubectl(&["label", "member", member, &label, "--overwrite"])
            .await?;
    }
    let mut subjects = Vec::new();
    for member in ["a", "b"] {
        for (app, tier) in [("x", "p"), ("x", "q"), ("y", "p"), ("y", "q")] {
            let name = format!("{app}-{tier}");
            let pod = story.pod(member, &name, &format!("app={app}")).await?;
            pod.label(&format!("tier={tier}")).await?;
            subjects.push(Subject {
                member,
                app,
                tier,
                pod,
            });
        }
    }
    let mut dice = Dice(0x5917_1a7e);
    let mut rules: Vec<Rule> = (0..POLICIES).map(|n| rule(&mut dice, n)).collect();
    let programmed = ("Programmed", "True", "Programmed");
    // In two goes, so that some are older: times of creation have whole seconds.
    let (older, younger) = rules.split_at(rules.len() / 2);
    for part in [older, younger] {
        let objects: Vec<String> = part.iter().map(|r| r.object().to_string()).collect();
        story.apply(&objects.join("\n---\n")).await?;
        for rule in part {
            story.says(rule.kind(), &rule.name, programmed, "").await?;
        }
    }
    for rule in &mut rules {
        let object = fed
            .hub_object(&[rule.kind(), "-n", story.namespace(), &rule.name])
            .await?;
        let created = object["metadata"]["creationTimestamp"].as_str();
        created
            .context("no time of creation")?
            .clone_into(&mut rule.created);
    }
    let winners = agrees(fed, &rules, &subjects).await?;
    ensure!(
        winners.len() > 4,
        "only {winners:?} win anything: the seed tells little"
    );
    for rule in &rules {
        let object = fed
            .hub_object(&[rule.kind(), "-n", story.namespace(), &rule.name])
            .await?;
        let conditions = object["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let nothing = conditions
            .iter()
            .any(|c| c["type"] == "Effective" && c["status"] == "False");
        ensure!(
            !(nothing && winners.contains(&rule.egress_ip)),
            "{} is said to win nothing, and does: {conditions:?}",
            rule.name
        );
    }

    let leader = fed.hub_leader().await?;
    fed.kill_hub_replica(&leader).await?;
    fed.hub_leader_other_than(&leader).await?;
    for member in ["a", "b"] {
        fed.restart_member_agent(member).await?;
        fed.roll_node_agents(member).await?;
    }
    let again = agrees(fed, &rules, &subjects).await?;
    ensure!(again == winners, "{again:?} win instead of {winners:?}");
    end(fed, story, &rules).await
}

/// Compares what the outside server saw of each pod at each server and port; the egress IPs of who won anything.
async fn agrees(fed: &Federation, rules: &[Rule], subjects: &[Subject<'_>]) -> Result<BTreeSet<String>> {
    let mut winners = BTreeSet::new();
    let mut expected = BTreeMap::new();
    for (n, subject) in subjects.iter().enumerate() {
        let node = fed.node(subject.pod.node())?.plan().ipv4.to_string();
        for to in SERVERS {
            for port in PORTS {
                let winner = oracle(rules, subject, to, port);
                winners.extend(winner.map(|r| r.egress_ip.clone()));
                let address = winner.map_or_else(|| node.clone(), |r| r.egress_ip.clone());
                expected.insert((n, format!("{to}:{port}")), address);
            }
        }
    }
    for ((n, to), address) in expected {
        let subject = &subjects[n];
        let what = format!(
            "{} of {} reaches {to} from {address}",
            subject.pod.pod().name(),
            subject.member
        );
        eventually(PATIENCE, &what, || async {
            let seen = subject.pod.source(&to).await?;
            ensure!(seen == address, "the outside server saw {seen}");
            Ok(())
        })
        .await?;
    }
    Ok(winners)
}

async fn end(fed: &Federation, story: Story<'_>, rules: &[Rule]) -> Result<()> {
    for rule in rules.iter().filter(|r| r.cluster_wide) {
        fed.hub().kubectl(&["delete", rule.kind(), &rule.name]).await?;
    }
    for member in ["a", "b"] {
        fed.hub()
            .kubectl(&["label", "member", member, "overlap-"])
            .await?;
    }
    story.end().await
}
