//! Gateways as their neighbours and their own kernels see them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, ensure};

use super::{Federation, PATIENCE};
use crate::scenario::eventually;
use crate::wire::netns;

impl Federation {
    /// Waits until the plan of the node's own cluster calls it that (`Ready`, `NotReady`, `Draining`), as a node of
    /// `gateway`.
    pub async fn planned_as(&self, gateway: &str, node: &str, state: &str) -> Result<()> {
        let cluster = self.member_of(node)?;
        eventually(PATIENCE, "the plan says so", || async {
            let text = cluster
                .kubectl(&["get", "plannedgateway", gateway, "-o", "json"])
                .await?;
            let object: serde_json::Value = serde_json::from_str(&text)?;
            let nodes = object["spec"]["nodes"].as_array().cloned().unwrap_or_default();
            ensure!(
                nodes.iter().any(|n| n["node"] == node && n["state"] == state),
                "{node} isn't {state} in {nodes:?}"
            );
            Ok(())
        })
        .await
    }

    /// The node that answers for an egress IP, as the router on its segment believes.
    pub fn answers_for(&self, address: &str) -> Result<Option<String>> {
        let output = netns::command(&self.arena.plan().router_netns(), "ip")?
            .args(["-o", "neigh", "show", address])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace().skip_while(|word| *word != "lladdr");
        let Some(hardware) = words.nth(1) else {
            return Ok(None);
        };
        let bytes: Vec<u8> = hardware
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()?;
        // A machine's hardware address holds its IPv4 address.
        let octets: [u8; 4] = bytes.get(2..6).context("six bytes")?.try_into()?;
        let node = Ipv4Addr::from(octets);
        Ok(self
            .arena
            .plan()
            .machines()
            .find(|machine| machine.ipv4 == node)
            .map(|machine| machine.name.clone()))
    }

    /// Since [`Arena::watch_sources`](crate::Arena::watch_sources), nothing reached the outside from another address.
    pub fn nothing_came_but_from(&self, addresses: &[&str]) -> Result<()> {
        let strange: Vec<_> = self
            .arena
            .sources()?
            .into_iter()
            .map(|source| source.to_string())
            .filter(|source| !addresses.contains(&source.as_str()))
            .collect();
        ensure!(strange.is_empty(), "packets reached the outside from {strange:?}");
        Ok(())
    }

    /// The nodes whose kernels answer for an egress IP.
    pub async fn holders_of(&self, address: &str, nodes: &[&str]) -> Result<BTreeSet<String>> {
        let wanted: IpAddr = address.parse()?;
        let mut holders = BTreeSet::new();
        for node in nodes {
            let node = self.node(node)?;
            if !node.is_on() {
                continue;
            }
            let family = if wanted.is_ipv4() { "-4" } else { "-6" };
            let said = node
                .exec(&["ip", family, "neigh", "show", "proxy"])
                .await?
                .success()?;
            if said
                .lines()
                .filter_map(|line| line.split_whitespace().next()?.parse().ok())
                .any(|held: IpAddr| held == wanted)
            {
                holders.insert(node.name().to_owned());
            }
        }
        Ok(holders)
    }

    /// Waits until exactly one of these nodes answers for an egress IP; gives its name.
    pub async fn one_holder_of(&self, address: &str, nodes: &[&str]) -> Result<String> {
        let what = format!("one of {} holds {address}", nodes.join(", "));
        eventually(PATIENCE, &what, || async {
            let holders = self.holders_of(address, nodes).await?;
            ensure!(holders.len() == 1, "{holders:?} do");
            holders.into_iter().next().context("none")
        })
        .await
    }

    /// The gateway's nodes keep nothing about connections to the outside: neither family has a conntrack entry with one
    /// of its addresses.
    pub async fn no_connection_state_on(&self, nodes: &[&str]) -> Result<()> {
        for node in nodes {
            let node = self.node(node)?;
            if !node.is_on() {
                continue;
            }
            for (family, outside) in [("ipv4", "198.51.100."), ("ipv6", "2001:db8:51::")] {
                let said = node.exec(&["conntrack", "-L", "-f", family]).await?.success()?;
                let found: Vec<_> = said.lines().filter(|line| line.contains(outside)).collect();
                ensure!(
                    found.is_empty(),
                    "{} tracks {} connections to the outside, such as {}",
                    node.name(),
                    found.len(),
                    found[0]
                );
            }
        }
        Ok(())
    }
}
