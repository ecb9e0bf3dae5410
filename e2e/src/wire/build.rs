//! Creating the wire, and plugging machines into it.

use std::{
    collections::hash_map::DefaultHasher,
    fmt::Write as _,
    hash::{Hash as _, Hasher as _},
    process::Command,
};

use anyhow::Result;

use super::{address, netns};
use crate::state::{ClusterPlan, MachinePlan, NodePlan, Plan};

/// Interface name of every machine's only network card.
pub const CARD: &str = "eth0";

/// Creates bridges, router and the outside network. Machines are plugged in later.
pub fn build(plan: &Plan) -> Result<()> {
    let wire = plan.wire_netns();
    build_switch(plan)?;
    netns::sysctl(
        &wire,
        &[
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
        ],
    )?;
    let mut lines = Vec::new();
    for p in plan.partitions() {
        let bridge = bridge(plan, p);
        lines.push(format!(
            "link add {bridge} type bridge stp_state 0 mcast_snooping 0"
        ));
        lines.push(format!("link set {bridge} up"));
    }
    netns::ip_batch(&wire, &lines)?;
    build_router(plan)
}

/// Creates the namespace in which the bridges are to be.
pub fn build_switch(plan: &Plan) -> Result<()> {
    let wire = plan.wire_netns();
    netns::create(&wire)?;
    netns::sysctl(
        &wire,
        &[
            // A bridge there is a switch: no frame of it may pass this namespace's packet filter.
            ("bridge/bridge-nf-call-iptables", "0"),
            ("bridge/bridge-nf-call-ip6tables", "0"),
            ("bridge/bridge-nf-call-arptables", "0"),
        ],
    )
}

/// Names this machine's own namespace as the one in which the bridges are. Nothing in it is changed.
pub fn borrow_switch(plan: &Plan) -> Result<()> {
    let me = std::process::id().to_string();
    netns::run(Command::new("ip").args(["netns", "attach", &plan.wire_netns(), &me]))
}

/// Name of a partition's bridge.
pub fn bridge(plan: &Plan, partition: u8) -> String {
    match plan.borrowed_namespace() {
        None => format!("br{partition}"),
        Some(ns) => address::unique_port(&format!("{ns}-br{partition}")),
    }
}

/// Name of the router's port on a partition's bridge.
fn router_port(plan: &Plan, partition: u8) -> String {
    match plan.borrowed_namespace() {
        None => format!("router-{partition}"),
        Some(ns) => address::unique_port(&format!("{ns}-router-{partition}")),
    }
}

/// Creates router and outside network, and plugs the router into the bridges, which are there already.
pub fn build_router(plan: &Plan) -> Result<()> {
    let (wire, router, outside) = (plan.wire_netns(), plan.router_netns(), plan.outside_netns());
    netns::create(&router)?;
    netns::sysctl(
        &router,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
        ],
    )?;
    netns::create(&outside)?;

    let mut lines = Vec::new();
    for p in plan.partitions() {
        let port = router_port(plan, p);
        lines.push(format!(
            "link add {port} mtu 1500 type veth peer name part{p} mtu 1500 netns {router}"
        ));
        lines.push(format!("link set {port} master {} up", bridge(plan, p)));
    }
    netns::ip_batch(&wire, &lines)?;

    let mut lines = vec![format!(
        "link add outside type veth peer name {CARD} netns {outside}"
    )];
    for p in plan.partitions() {
        let (e4, e6) = (address::egress_v4(p), address::egress_v6(p));
        lines.push(format!("link set part{p} up"));
        lines.push(format!(
            "addr add {}/24 dev part{p}",
            address::host_v4(p, address::ROUTER_HOST)
        ));
        lines.push(format!(
            "addr add {}/64 dev part{p} nodad",
            address::host_v6(p, address::ROUTER_HOST)
        ));
        if let Some(host) = e4.hosts().next() {
            lines.push(format!("addr add {host}/24 dev part{p}"));
        }
        if let Some(host) = e6.hosts().find(|h| *h != e6.network()) {
            lines.push(format!("addr add {host}/64 dev part{p} nodad"));
        }
    }
    lines.push("link set outside up".to_owned());
    lines.push(format!("addr add {}/24 dev outside", address::ROUTER_OUTSIDE_V4));
    lines.push(format!(
        "addr add {}/64 dev outside nodad",
        address::ROUTER_OUTSIDE_V6
    ));
    netns::ip_batch(&router, &lines)?;

    let mut lines = vec![format!("link set {CARD} up")];
    lines.extend(
        address::OUTSIDE_V4
            .iter()
            .map(|a| format!("addr add {a}/24 dev {CARD}")),
    );
    lines.extend(
        address::OUTSIDE_V6
            .iter()
            .map(|a| format!("addr add {a}/64 dev {CARD} nodad")),
    );
    lines.push(format!("route add default via {}", address::ROUTER_OUTSIDE_V4));
    lines.push(format!("route add default via {}", address::ROUTER_OUTSIDE_V6));
    netns::ip_batch(&outside, &lines)
}

/// Name of a machine's port on the wire's side; interface names hold 15 bytes.
pub fn port(machine: &MachinePlan) -> String {
    if let Some(name) = &machine.port {
        return name.clone();
    }
    if machine.name.len() <= 15 {
        return machine.name.clone();
    }
    let digest = hash(&machine.name);
    format!(
        "{}~{digest:06x}",
        machine.name.chars().take(8).collect::<String>(),
        digest = digest & 0xff_ffff
    )
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A machine keeps its hardware address across power cycles, as a real card does.
fn hardware_address(machine: &MachinePlan) -> String {
    let [a, b, c, d] = machine.ipv4.octets();
    format!("02:5b:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Has a machine's namespace forward packets, and check their sources.
pub fn be_a_router(ns: &str) -> Result<()> {
    netns::sysctl(
        ns,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            ("ipv6/conf/all/accept_ra", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            // Nobody here has an address twice, and a pod bridge that is still looking is deaf for its first second.
            ("ipv6/conf/default/accept_dad", "0"),
            // Strict, as Red Hat's family ships it: the harder case for whoever routes asymmetrically on a node.
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
        ],
    )
}

/// Creates a machine's empty namespace and its network card, and plugs the cable in.
pub fn plug(plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let (ns, wire, port, p) = (
        &machine.netns,
        plan.wire_netns(),
        port(machine),
        machine.partition,
    );
    netns::create(ns)?;
    be_a_router(ns)?;
    netns::ip_batch(
        &wire,
        &[
            format!(
                "link add {port} mtu 1500 type veth peer name {CARD} mtu 1500 address {} netns {ns}",
                hardware_address(machine)
            ),
            format!("link set {port} master {} up", bridge(plan, p)),
        ],
    )?;
    netns::ip_batch(
        ns,
        &[
            format!("link set {CARD} up"),
            format!("addr add {}/24 dev {CARD}", machine.ipv4),
            format!("addr add {}/64 dev {CARD} nodad", machine.ipv6),
            format!(
                "route add default via {}",
                address::host_v4(p, address::ROUTER_HOST)
            ),
            format!(
                "route add default via {}",
                address::host_v6(p, address::ROUTER_HOST)
            ),
        ],
    )
}

/// Takes a machine's card away, and its namespace with all routes, rules and devices.
pub fn unplug(plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let wire = plan.wire_netns();
    // Deleting one end of the pair deletes the other at once; the namespace alone could linger with its last process.
    if netns::path(&wire).exists() {
        let _absent_is_fine = Command::new("ip")
            .args(["-n", &wire, "link", "del", &port(machine)])
            .output();
    }
    netns::delete(&machine.netns)
}

/// What a CNI's agent does on each node besides the plugin's work: routes to the other nodes' pods, and masquerading
/// of pods that talk to anything that is no pod of this cluster.
pub fn route_pods(cluster: &ClusterPlan, node: &NodePlan) -> Result<()> {
    let mut lines = Vec::new();
    for other in cluster
        .kubernetes_nodes()
        .filter(|o| o.machine.name != node.machine.name)
    {
        for range in &other.pod_ranges {
            lines.push(format!(
                "route add {range} via {}",
                other.machine.address_like(*range)
            ));
        }
    }
    netns::ip_batch(&node.machine.netns, &lines)?;
    let mut rules = String::new();
    for range in &cluster.spec.pod_ranges {
        let family = if range.addr().is_ipv4() { "ip" } else { "ip6" };
        let _never_fails = write!(
            rules,
            "table {family} arena-masq {{\n chain postrouting {{\n  type nat hook postrouting priority srcnat; policy accept;\n  \
             {family} saddr {range} {family} daddr != {range} counter masquerade\n }}\n}}\n"
        );
    }
    netns::nft(&node.machine.netns, &rules)
}
