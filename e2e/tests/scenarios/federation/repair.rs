//! Somebody deletes our things by hand.

use anyhow::{Context, Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

/// Each is restored to the letter, and the policy holds afterwards.
pub(crate) async fn what_is_deleted_by_hand_is_repaired(fed: &Federation) -> Result<()> {
    let story = fed.story("repair").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.18",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.18")).await?;
    story.programmed("bank").await?;
    let source = pod.node().to_owned();
    let gateway = "a-n2".to_owned();

    let vandalism: &[(&str, &str, &str)] = &[
        (
            &source,
            "a routing rule",
            "ip rule del $(ip -o rule | awk '/spillway|fwmark.*0xff000000/ {sub(\":\",\"\",$1); print \"pref \" $1; exit}')",
        ),
        (
            &source,
            "the gateway's route",
            "t=$(ip -o rule | sed -n 's/.*fwmark.*lookup \\([0-9]*\\).*/\\1/p' | head -1); ip route flush table $t",
        ),
        (
            &source,
            "a forwarding entry",
            "bridge fdb del $(bridge fdb show dev spillway0 | awk '{print $1; exit}') dev spillway0",
        ),
        (
            &source,
            "a set element",
            "nft delete element inet spillway pods4 \"{ $(nft list map inet spillway pods4 | grep -oE '10\\.[0-9.]+' | head -1) }\"",
        ),
        (&source, "the whole table", "nft delete table inet spillway"),
        (&source, "the seal", "nft delete table inet spillway_seal"),
        (&source, "the tunnel device", "ip link del spillway0"),
        (
            &gateway,
            "the egress IP's proxy entry",
            "ip neigh del proxy 203.0.113.18 dev eth0",
        ),
        (&gateway, "the tunnel device", "ip link del spillway0"),
        (
            &gateway,
            "the map of replies",
            "nft flush map inet spillway reply4",
        ),
        (
            &gateway,
            "the table that steers replies",
            "nft delete table netdev spillway",
        ),
    ];
    for (node, what, command) in vandalism {
        let before = fed.rules_of(node).await?;
        // Stopped for the moment of the deed, so that it can be seen to have been done.
        let frozen = fed.freeze_node_agent(node)?;
        let deed = fed.node(node)?.exec(&["sh", "-c", command]).await?.success();
        deed.with_context(|| format!("deleting {what} on {node}"))?;
        ensure!(
            fed.kernel_of(node).await? != before,
            "{what} on {node} wasn't deleted"
        );
        frozen.thaw()?;
        fed.kernel_becomes(node, &before)
            .await
            .with_context(|| format!("after deleting {what} on {node}"))?;
        pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.18"))
            .await
            .with_context(|| format!("after deleting {what} on {node}"))?;
    }
    story.end().await
}
