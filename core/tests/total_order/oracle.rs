//! Policies and pods, and which policy takes which packet: as the documentation says, one pod and one destination at a
//! time.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use spillway_crds::hub::Protocol;

use crate::words::{Asks, Dice, Labels};

pub(crate) const NAMESPACES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
pub(crate) const GATEWAYS: [&str; 3] = ["frankfurt", "paris", "vienna"];
pub(crate) const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];
/// Destinations crowd around this address.
pub(crate) const CROWD: u32 = u32::from_be_bytes([198, 51, 100, 0]);

/// A policy as the oracle knows it.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) namespace: Option<&'static str>,
    pub(crate) created: i64,
    pub(crate) priority: i32,
    pub(crate) members: Asks,
    pub(crate) namespaces: Asks,
    pub(crate) pods: Asks,
    pub(crate) sources: Vec<Ipv4Net>,
    pub(crate) cidrs: Vec<Ipv4Net>,
    pub(crate) except: Vec<Ipv4Net>,
    /// Protocol, and first and last port where they are named.
    pub(crate) ports: Vec<(Protocol, Option<(u16, u16)>)>,
    /// Gateway and, where it is fixed, the last digit of its egress IP.
    pub(crate) through: Vec<(usize, Option<u8>)>,
}

pub(crate) fn pods_asked(dice: &mut Dice) -> Asks {
    match dice.below(7) {
        0 => Asks::All,
        1 | 2 => Asks::Is("app", dice.of(&["a", "b", "c"])),
        3 => Asks::OneOf("app", vec!["a", "b"]),
        4 => Asks::NoneOf("tier", vec![dice.of(&["front", "back"])]),
        5 => Asks::Has("tier"),
        _ => Asks::Both(
            Box::new(Asks::Is("app", dice.of(&["a", "b"]))),
            Box::new(Asks::Is("tier", dice.of(&["front", "back"]))),
        ),
    }
}

pub(crate) fn net(dice: &mut Dice) -> Ipv4Net {
    let length = match dice.below(10) {
        0 => 0,
        1 => 16,
        n => u8::try_from(22 + n).expect("small"),
    };
    Ipv4Net::new(Ipv4Addr::from(CROWD + dice.below(64)), length)
        .expect("length")
        .trunc()
}

/// Ports crowd around 440.
fn port(dice: &mut Dice) -> (Protocol, Option<(u16, u16)>) {
    let protocol = dice.of(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Icmp]);
    if protocol == Protocol::Icmp || dice.one_in(4) {
        return (protocol, None);
    }
    let first = 438 + u16::try_from(dice.below(6)).expect("small");
    let more = if dice.one_in(2) {
        0
    } else {
        u16::try_from(dice.below(5)).expect("small")
    };
    (protocol, Some((first, first + more)))
}

pub(crate) fn rule(dice: &mut Dice, number: usize) -> Rule {
    let namespace = (!dice.one_in(3)).then(|| dice.of(&NAMESPACES));
    let mut cidrs: Vec<Ipv4Net> = (0..dice.below(4)).map(|_| net(dice)).collect();
    let mut except: Vec<Ipv4Net> = (0..dice.below(3))
        .map(|_| net(dice))
        .filter(|n| n.prefix_len() > 20)
        .collect();
    for list in [&mut cidrs, &mut except] {
        list.sort();
        list.dedup();
    }
    let mut ports: Vec<_> = if dice.one_in(3) {
        (0..=dice.below(3)).map(|_| port(dice)).collect()
    } else {
        Vec::new()
    };
    ports.sort_unstable();
    ports.dedup();
    let first = dice.below(3) as usize;
    let mut through = vec![(first, None)];
    if dice.one_in(2) {
        through[0].1 = Some(u8::try_from(dice.below(5)).expect("small"));
    }
    if dice.one_in(4) {
        through.push(((first + 1) % 3, None));
    }
    Rule {
        // Equal names in different namespaces, and names that sort otherwise than by age.
        name: format!("p{:03}", (number * 7919) % 1000),
        namespace,
        created: i64::from(dice.below(40)),
        priority: if dice.one_in(3) {
            i32::try_from(dice.below(5)).expect("small") - 2
        } else {
            0
        },
        members: match dice.below(4) {
            0 => Asks::Is("region", dice.of(&["eu", "us"])),
            1 => Asks::Is("name", dice.of(&MEMBERS)),
            _ => Asks::All,
        },
        namespaces: match dice.below(3) {
            0 => Asks::Is("team", dice.of(&["red", "blue"])),
            1 => Asks::Is("kubernetes.io/metadata.name", dice.of(&NAMESPACES)),
            _ => Asks::All,
        },
        pods: pods_asked(dice),
        sources: if dice.one_in(6) {
            let first = Ipv4Addr::from(u32::from_be_bytes([10, 244, 0, 0]) + dice.below(100));
            vec![
                Ipv4Net::new(first, 24 + u8::try_from(dice.below(9)).expect("small"))
                    .expect("length")
                    .trunc(),
            ]
        } else {
            Vec::new()
        },
        cidrs,
        except,
        ports,
        through,
    }
}

pub(crate) fn member_labels(name: &str) -> Labels {
    let region = if name == "m3" { "us" } else { "eu" };
    [("name".into(), name.into()), ("region".into(), region.into())].into()
}

pub(crate) fn namespace_labels(name: &str) -> Labels {
    let team = if matches!(name, "alpha" | "beta") {
        "red"
    } else {
        "blue"
    };
    [
        ("kubernetes.io/metadata.name".into(), name.into()),
        ("team".into(), team.into()),
    ]
    .into()
}

/// A pod with the member it is in.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) member: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) labels: Labels,
    pub(crate) address: Ipv4Addr,
}

pub(crate) fn subject(dice: &mut Dice, number: u32) -> Subject {
    let mut labels: Labels = [("app".to_owned(), dice.of(&["a", "b", "c", "d"]).to_owned())].into();
    if dice.one_in(2) {
        labels.insert("tier".into(), dice.of(&["front", "back"]).into());
    }
    // A third in each member, with the same addresses in all.
    let member = MEMBERS[number as usize % 3];
    Subject {
        member,
        namespace: dice.of(&NAMESPACES),
        labels,
        address: Ipv4Addr::from(u32::from_be_bytes([10, 244, 0, 1]) + number / 3),
    }
}

/// True where `a` goes before `b` for a packet that both take, with prefixes of the lengths given and with so many ports.
pub(crate) fn goes_before(a: (&Rule, u8, u32), b: (&Rule, u8, u32)) -> bool {
    if a.1 != b.1 {
        return a.1 > b.1;
    }
    if a.2 != b.2 {
        return a.2 < b.2;
    }
    if a.0.priority != b.0.priority {
        return a.0.priority > b.0.priority;
    }
    if a.0.created != b.0.created {
        return a.0.created < b.0.created;
    }
    // Cluster-wide policies have no namespace, which sorts before all.
    let name = |r: &Rule| (r.namespace.unwrap_or(""), r.name.clone());
    name(a.0) < name(b.0)
}

/// Where a packet goes: an address, and a protocol and port, or a protocol that no policy can name.
pub(crate) type Probe = (Ipv4Addr, Option<(Protocol, u16)>);

/// How many ports the narrowest entry of the rule around the packet's has; `None` where it doesn't take the packet.
fn fewest_ports(rule: &Rule, packet: Option<(Protocol, u16)>) -> Option<u32> {
    if rule.ports.is_empty() {
        return Some(u32::MAX);
    }
    let (protocol, port) = packet?;
    let mut fewest = None;
    for (named, range) in &rule.ports {
        let size = match range {
            _ if *named != protocol => continue,
            None => 65_536,
            Some((first, last)) if *first <= port && port <= *last => u32::from(last - first) + 1,
            Some(_) => continue,
        };
        fewest = Some(fewest.map_or(size, |least: u32| least.min(size)));
    }
    fewest
}

/// The policy that takes a packet of `pod`.
pub(crate) fn oracle<'a>(rules: &'a [Rule], pod: &Subject, (to, packet): Probe) -> Option<&'a Rule> {
    let mut best: Option<(&Rule, u8, u32)> = None;
    for rule in rules {
        let place = match rule.namespace {
            Some(namespace) => namespace == pod.namespace,
            None => rule.namespaces.met(&namespace_labels(pod.namespace)),
        };
        let source = rule.sources.is_empty() || rule.sources.iter().any(|s| s.contains(&pod.address));
        if !place || !source || !rule.members.met(&member_labels(pod.member)) || !rule.pods.met(&pod.labels) {
            continue;
        }
        if rule.except.iter().any(|n| n.contains(&to)) {
            continue;
        }
        let Some(ports) = fewest_ports(rule, packet) else {
            continue;
        };
        let mut length = if rule.cidrs.is_empty() { Some(0) } else { None };
        for cidr in rule.cidrs.iter().filter(|n| n.contains(&to)) {
            length = length.max(Some(cidr.prefix_len()));
        }
        if let Some(length) = length
            && best.is_none_or(|best| goes_before((rule, length, ports), best))
        {
            best = Some((rule, length, ports));
        }
    }
    best.map(|(rule, ..)| rule)
}

/// The egress IP that a policy's packets leave with: all gateways are there, so the first one's.
pub(crate) fn leaves_with(rule: &Rule) -> Ipv4Addr {
    let (gateway, fixed) = rule.through[0];
    egress_ip(gateway, fixed.unwrap_or(0))
}

pub(crate) fn egress_ip(gateway: usize, digit: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, u8::try_from(gateway + 1).expect("small"), 10 + digit)
}
