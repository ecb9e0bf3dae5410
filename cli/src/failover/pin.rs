//! `spillway failover pin` and `unpin`: an entry of the gateway's `spec.pins`, and waiting until the node holds the address.

use std::net::IpAddr;

use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use spillway_crds::hub::{AddressPin, EgressGateway, Member};
use spillway_crds::member::NodeRef;
use tokio::time::Instant;

use crate::args::{FailoverPin, FailoverUnpin, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::ui::Ui;
use crate::{FIELD_MANAGER, wait};

/// Has a node answer for an egress IP.
pub async fn pin(target: &Target, pin: &FailoverPin, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let api: Api<EgressGateway> = Api::all(cluster.client.clone());
    let (address, node) = (pin.address, &pin.node);
    let gateway = find(&cluster, &api, address, pin.gateway.as_deref()).await?;
    let members: Vec<Member> = cluster.list(Api::all(cluster.client.clone()), "members").await?;
    can_hold(&gateway, &members, node)?;
    let name = gateway.metadata.name.clone().unwrap_or_default();
    write(&cluster, &api, gateway.clone(), address, Some(node)).await?;
    ui.say(format!("{address} of gateway {name} is pinned to {node}"));
    if !in_use(&gateway, address) {
        ui.say("no policy leaves with it yet, so nobody answers for it");
        return Ok(());
    }
    let deadline = Instant::now() + pin.timeout;
    let mut last = String::from("nobody");
    let moved = async || {
        let now = cluster.get(api.clone(), &name, "gateway").await?;
        let holder = now.as_ref().and_then(|g| holder(g, address));
        last = holder
            .as_ref()
            .map_or_else(|| "nobody".into(), ToString::to_string);
        Ok((holder.as_ref() == Some(node)).then_some(()))
    };
    let late = || Failure::new(Exit::TimedOut, String::new());
    match wait::until(deadline, moved, late).await {
        Ok(()) => {
            ui.say(format!("{node} answers for {address}"));
            Ok(())
        }
        Err(failure) if failure.exit == Exit::TimedOut => Err(Failure::new(
            Exit::TimedOut,
            format!("{last} still answers for {address}"),
        )
        .fix(format!(
            "condition PinsHeld says why: kubectl describe egressgateway {name}"
        ))
        .fix(format!(
            "the pin stays and counts once the node can; to take it back: spillway failover unpin {address}"
        ))),
        Err(failure) => Err(failure),
    }
}

/// Lets the gateway's nodes decide about an egress IP again.
pub async fn unpin(target: &Target, unpin: &FailoverUnpin, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let api: Api<EgressGateway> = Api::all(cluster.client.clone());
    let address = unpin.address;
    let gateways = cluster.list(api.clone(), "gateways").await?;
    let pinned = |g: &&EgressGateway| g.spec.pins.iter().any(|p| p.address.parse() == Ok(address));
    let Some(gateway) = gateways.iter().find(pinned) else {
        return Err(
            Failure::new(Exit::NotFound, format!("{address} is pinned in no gateway")).fix(
                "name the hub's cluster with --kubeconfig or --context; spec.pins of its EgressGateways has them",
            ),
        );
    };
    write(&cluster, &api, gateway.clone(), address, None).await?;
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    ui.say(format!("{address} of gateway {name} is pinned no more"));
    Ok(())
}

/// The gateway that leaves with `address`, or the one that was named.
async fn find(
    cluster: &Cluster,
    api: &Api<EgressGateway>,
    address: IpAddr,
    named: Option<&str>,
) -> Result<EgressGateway, Failure> {
    if let Some(name) = named {
        return cluster.get(api.clone(), name, "gateway").await?.ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                format!("{} has no EgressGateway {name}", cluster.name),
            )
            .fix("name the hub's cluster with --kubeconfig or --context")
        });
    }
    let gateways = cluster.list(api.clone(), "gateways").await?;
    let found = gateways.into_iter().find(|g| in_use(g, address));
    found.ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!(
                "no policy leaves with {address} through any gateway of {}",
                cluster.name
            ),
        )
        .fix("spillway failover status lists the addresses in use, in the hub's cluster")
        .fix("for one that is yet to be used, name its gateway with --gateway")
    })
}

/// Whether some policy leaves with it.
fn in_use(gateway: &EgressGateway, address: IpAddr) -> bool {
    let identities = gateway.status.iter().flat_map(|s| &s.identities);
    let mut used = identities
        .flat_map(|i| [&i.egress_ip.ipv4, &i.egress_ip.ipv6])
        .flatten();
    used.any(|a| a.parse() == Ok(address))
}

fn holder(gateway: &EgressGateway, address: IpAddr) -> Option<NodeRef> {
    let holders = &gateway.status.as_ref()?.holders;
    let holder = holders.iter().find(|h| h.address.parse() == Ok(address))?;
    Some(NodeRef::new(&holder.member, &holder.node))
}

/// That the node is one of the gateway's and isn't to be left.
fn can_hold(gateway: &EgressGateway, members: &[Member], node: &NodeRef) -> Result<(), Failure> {
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let member = members
        .iter()
        .find(|m| m.metadata.name.as_deref() == Some(node.member.as_str()));
    let nodes = member.and_then(|m| m.status.as_ref()).map(|s| &s.nodes);
    let reported = nodes.into_iter().flatten().find(|n| n.name == node.node);
    let selected = reported.filter(|n| {
        let mut parts = gateway.spec.nodes.iter();
        parts.any(|p| p.member == node.member && p.selector.matches(&n.labels))
    });
    match selected {
        None => Err(
            Failure::new(Exit::NotFound, format!("{node} is no node of gateway {name}"))
                .fix("spillway failover status lists its nodes, as MEMBER/NODE"),
        ),
        Some(selected) if selected.draining => Err(Failure::new(
            Exit::Unhealthy,
            format!("{node} is cordoned for egress and takes nothing"),
        )
        .fix(format!(
            "in the cluster of {}: spillway failover undrain {}",
            node.member, node.node
        ))),
        Some(_) => Ok(()),
    }
}

/// The gateway's pins with that of `address` replaced.
fn with(gateway: &EgressGateway, address: IpAddr, node: Option<&NodeRef>) -> Vec<AddressPin> {
    let others = gateway.spec.pins.iter();
    let others = others.filter(|p| p.address.parse() != Ok(address)).cloned();
    let new = node.map(|node| AddressPin {
        address: address.to_string(),
        node: node.clone(),
    });
    others.chain(new).collect()
}

/// How often a change is made anew on a gateway that changed meanwhile: the hub writes its status at any time.
const TRIES: usize = 8;

/// Replaces the pin of `address`, and nobody else's.
async fn write(
    cluster: &Cluster,
    api: &Api<EgressGateway>,
    mut gateway: EgressGateway,
    address: IpAddr,
    node: Option<&NodeRef>,
) -> Result<(), Failure> {
    let name = gateway.metadata.name.clone().unwrap_or_default();
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    for _ in 0..TRIES {
        let patch = json!({
            "metadata": {"resourceVersion": gateway.metadata.resource_version},
            "spec": {"pins": with(&gateway, address, node)},
        });
        match api.patch(&name, &params, &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(err) => {
                return Err(Failure::kube(
                    &format!("changing spec.pins of gateway {name}"),
                    &err,
                ));
            }
        }
        gateway = cluster
            .get(api.clone(), &name, "gateway")
            .await?
            .ok_or_else(|| Failure::new(Exit::NotFound, format!("gateway {name} was deleted meanwhile")))?;
    }
    Err(Failure::new(
        Exit::Other,
        format!("gateway {name} changes faster than spec.pins can be written"),
    )
    .fix("run the command again"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gateway() -> EgressGateway {
        serde_json::from_value(json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "frankfurt"},
            "spec": {
                "nodes": [{"member": "fra-1", "selector": {"matchLabels": {"egress": "true"}}}],
                "addresses": {"ipv6": ["2001:db8::/120"], "ipv4": ["203.0.113.10"]},
                "pins": [{"address": "2001:DB8::0010", "member": "fra-1", "node": "n1"}],
            },
            "status": {
                "identities": [{"id": 1, "egressIP": {"ipv6": "2001:db8::10"}}],
                "holders": [{"address": "2001:db8::10", "member": "fra-1", "node": "n2", "since": "", "reason": ""}],
            },
        }))
        .expect("a gateway")
    }

    fn member(draining: bool) -> Member {
        let node = |name: &str, egress: &str| json!({"name": name, "labels": {"egress": egress}, "ready": true, "draining": draining, "overlay": {}, "underlay": {}});
        serde_json::from_value(json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": "Member", "metadata": {"name": "fra-1"},
            "spec": {"partition": "default"},
            "status": {"nodes": [node("n1", "true"), node("n3", "false")]},
        }))
        .expect("a member")
    }

    #[test]
    fn an_address_has_one_pin_however_it_is_spelt() {
        let address = "2001:db8::10".parse().expect("an address");
        let pins = with(&gateway(), address, Some(&NodeRef::new("fra-1", "n2")));
        let said: Vec<_> = pins
            .iter()
            .map(|p| (p.address.as_str(), p.node.to_string()))
            .collect();
        assert_eq!(said, [("2001:db8::10", "fra-1/n2".to_owned())]);
        assert!(with(&gateway(), address, None).is_empty());
        assert!(in_use(&gateway(), address) && !in_use(&gateway(), IpAddr::from([203, 0, 113, 10])));
        assert_eq!(holder(&gateway(), address), Some(NodeRef::new("fra-1", "n2")));
    }

    #[test]
    fn only_a_node_of_the_gateway_that_takes_part_can_hold() {
        let of =
            |node: &str, draining| can_hold(&gateway(), &[member(draining)], &NodeRef::new("fra-1", node));
        assert!(of("n1", false).is_ok());
        assert_eq!(of("n1", true).expect_err("drained").exit, Exit::Unhealthy);
        for other in ["n2", "n3"] {
            assert_eq!(of(other, false).expect_err("not selected").exit, Exit::NotFound);
        }
    }
}
