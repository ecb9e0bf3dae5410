//! Policies and pods, and which policy takes which packet: as the documentation says, one pod and one destination at a
//! time.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

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

/// True where `a` goes before `b` for a packet that both take, with prefixes of the lengths given.
pub(crate) fn goes_before(a: (&Rule, u8), b: (&Rule, u8)) -> bool {
    if a.1 != b.1 {
        return a.1 > b.1;
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

/// The policy that takes a packet of `pod` to `to`.
pub(crate) fn oracle<'a>(rules: &'a [Rule], pod: &Subject, to: Ipv4Addr) -> Option<&'a Rule> {
    let mut best: Option<(&Rule, u8)> = None;
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
        let mut length = if rule.cidrs.is_empty() { Some(0) } else { None };
        for cidr in rule.cidrs.iter().filter(|n| n.contains(&to)) {
            length = length.max(Some(cidr.prefix_len()));
        }
        if let Some(length) = length
            && best.is_none_or(|best| goes_before((rule, length), best))
        {
            best = Some((rule, length));
        }
    }
    best.map(|(rule, _)| rule)
}

/// The egress IP that a policy's packets leave with: all gateways are there, so the first one's.
pub(crate) fn leaves_with(rule: &Rule) -> Ipv4Addr {
    let (gateway, fixed) = rule.through[0];
    egress_ip(gateway, fixed.unwrap_or(0))
}

pub(crate) fn egress_ip(gateway: usize, digit: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, u8::try_from(gateway + 1).expect("small"), 10 + digit)
}
