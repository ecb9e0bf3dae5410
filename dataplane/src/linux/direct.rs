//! From one state to the next without looking: the failover's way.
//!
//! A next hop that died is one message a family, an egress IP that moved here one message. Right only while the
//! kernel holds what was last written; where it doesn't, a step fails or the comparison that follows every write
//! finds the rest.

use std::collections::{BTreeMap, BTreeSet};

use spillway_core::node::state::{DesiredState, ProxyNeighbour};

use super::link::Link;
use super::step::{self, Step};
use super::{neighbours, routes, rules, sysctls};
use crate::{Error, Result};

/// What leads from one state to another that has the same device.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) build: Vec<Step>,
    pub(super) remove: Vec<Step>,
}

impl Direct {
    /// Compares two states, not the kernel.
    ///
    /// # Errors
    /// Where an interface isn't known.
    pub(super) fn between(
        held: &DesiredState,
        desired: &DesiredState,
        links: &BTreeMap<String, Link>,
    ) -> Result<Self> {
        let index = |name: &str| links.get(name).map(|l| l.index);
        let mut build = Vec::new();
        let mut removals = Vec::new();
        let mut take = |steps: Vec<Step>| {
            let (add, remove) = step::split(steps);
            build.extend(add);
            removals.push(remove);
        };
        if let Some(tunnel) = &desired.tunnel {
            let index = index(&tunnel.name)
                .ok_or_else(|| Error::Impossible(format!("device {} isn't known", tunnel.name)))?;
            let (old, new) = apart(&held.forwarding, &desired.forwarding);
            let old = old.into_iter().map(|entry| (entry, true)).collect();
            take(neighbours::forwarding_steps(&old, &new, index));
            let (old, new) = apart(&held.neighbours, &desired.neighbours);
            take(neighbours::neighbour_steps(
                &neighbours::written(&old),
                &new,
                index,
            ));
        }
        let (old, new) = apart(&held.routes, &desired.routes);
        take(routes::steps(&routes::written(&old, index), &new, index));
        let (old, new) = apart(&held.rules, &desired.rules);
        take(rules::steps(&rules::written(&old), &new));
        let settings = desired
            .sysctls
            .iter()
            .filter(|(name, value)| held.sysctls.get(*name) != Some(*value));
        take(sysctls::steps(
            &settings.map(|(n, v)| (n.clone(), v.clone())).collect(),
        ));
        let (old, new) = apart(&held.proxies, &desired.proxies);
        let place = |proxy: &ProxyNeighbour| Some((proxy.address, index(&proxy.device)?));
        take(neighbours::proxy_steps(
            &old.iter().filter_map(place).collect(),
            &new,
            index,
        ));
        Ok(Self {
            build,
            remove: removals.into_iter().rev().flatten().collect(),
        })
    }
}

/// What only `old` has, and what only `new` has.
fn apart<T: Clone + Ord>(old: &BTreeSet<T>, new: &BTreeSet<T>) -> (BTreeSet<T>, BTreeSet<T>) {
    if old == new {
        return (BTreeSet::new(), BTreeSet::new());
    }
    (
        old.difference(new).cloned().collect(),
        new.difference(old).cloned().collect(),
    )
}
