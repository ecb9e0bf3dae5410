//! The thread's inside: every socket, and the order of one apply.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use spillway_core::node::flows::Flows;
use spillway_core::node::state::{DesiredState, ProxyNeighbour};

use super::announce::{self, Announcement};
use super::drift::Watched;
use super::link::{self, Link};
use super::netlink::Requests;
use super::step::{self, Step};
use super::{conntrack, facts, neighbours, routes, rules, sysctls};
use crate::nft::Nft;
use crate::{Capabilities, Changes, Error, Facts, Operation, Result};

/// What the thread owns.
pub(super) struct Worker {
    route: Requests<RouteNetlinkMessage>,
    netfilter: Requests<NetfilterMessage>,
    nft: Nft,
    capabilities: Option<Capabilities>,
    /// Shared with the listener.
    watched: Arc<Mutex<Watched>>,
}

/// Steps of everything but the table, the device and its addresses; in the order in which they are built.
struct Steps {
    build: Vec<Step>,
    remove: Vec<Step>,
}

impl Worker {
    /// Opens the sockets in the calling thread's network namespace.
    pub(super) fn open(table: String) -> Result<Self> {
        Ok(Self {
            route: Requests::open("route netlink socket", NETLINK_ROUTE)?,
            netfilter: Requests::open("netfilter netlink socket", NETLINK_NETFILTER)?,
            nft: Nft::new(table),
            capabilities: None,
            watched: Arc::default(),
        })
    }

    /// Interfaces whose changes matter.
    pub(super) fn watched(&self) -> &Arc<Mutex<Watched>> {
        &self.watched
    }

    /// See [`crate::Kernel::facts`].
    pub(super) async fn facts(&mut self, underlay: &[IpAddr]) -> Result<Facts> {
        let capabilities = match &self.capabilities {
            Some(known) => known.clone(),
            None => self.probe().await,
        };
        self.capabilities = Some(capabilities.clone());
        facts::observe(&mut self.route, underlay, &capabilities)
    }

    async fn probe(&mut self) -> Capabilities {
        let mut out = Capabilities {
            ipv6: facts::ipv6(),
            ..Capabilities::default()
        };
        let mut note = |name: &str, result: Result<()>| {
            if let Err(error) = &result {
                out.missing.insert(name.into(), error.to_string());
            }
            result.is_ok()
        };
        let nftables = note("nftables", self.nft.probe().await);
        let vxlan_gbp = note("vxlan_gbp", facts::vxlan(&mut self.route));
        let conntrack = note("conntrack", conntrack::probe(&mut self.netfilter));
        Capabilities {
            nftables,
            vxlan_gbp,
            conntrack,
            ..out
        }
    }

    /// See [`crate::Kernel::cut`].
    pub(super) fn cut(&mut self, flows: &Flows) -> Result<usize> {
        conntrack::cut(&mut self.netfilter, flows)
    }

    /// See [`crate::Kernel::plan`].
    pub(super) async fn plan(&mut self, desired: &DesiredState) -> Result<Changes> {
        let table = self.nft.plan(desired.ruleset.as_ref()).await?;
        self.plan_with(desired, table)
    }

    /// As [`Self::plan`], for what was written last.
    pub(super) async fn verify(&mut self, desired: &DesiredState) -> Result<Changes> {
        let table = self.nft.verify(desired.ruleset.as_ref()).await?;
        self.plan_with(desired, table)
    }

    fn plan_with(&mut self, desired: &DesiredState, table: Changes) -> Result<Changes> {
        let mut changes = Changes::default();
        let mut links = link::observe(&mut self.route)?;
        let device = link::device_steps(&links, desired.tunnel.as_ref());
        let mut build = device.clear;
        build.extend(device.build);
        let mut remove_addresses = Vec::new();
        // A device that has yet to be made has nothing on it; an index that no device has stands for it. What
        // leads to one that is replaced goes with it.
        let mut gone = None;
        if let Some(tunnel) = &desired.tunnel
            && device.kept.is_none()
        {
            gone = links.get(&tunnel.name).map(|l| l.index);
            links.insert(
                tunnel.name.clone(),
                Link {
                    index: u32::MAX,
                    ..Link::default()
                },
            );
        }
        if let Some(tunnel) = &desired.tunnel {
            let (add, remove) = addresses(&links, tunnel);
            build.extend(add);
            remove_addresses = remove;
        }
        let rest = self.steps(&links, desired, gone)?;
        build.extend(rest.build);
        let remove = rest
            .remove
            .into_iter()
            .chain(remove_addresses)
            .chain(device.remove);
        if desired.ruleset.is_some() {
            changes.extend(table.clone());
        }
        for step in build.into_iter().chain(remove) {
            changes.push(step.operation, step.object);
        }
        if desired.ruleset.is_none() {
            changes.extend(table);
        }
        Ok(changes)
    }

    /// See [`crate::Kernel::apply`]; the order is explained at the head of the crate.
    pub(super) async fn apply(&mut self, desired: &DesiredState) -> Result<Changes> {
        let mut done = Changes::default();
        let mut failures = Vec::new();
        if let Some(ruleset) = &desired.ruleset {
            match self.nft.apply(Some(ruleset)).await {
                Ok(changes) => done.extend(changes),
                // Without its guards nothing may be built.
                Err(error) => return Err(error),
            }
        }
        let bare = self.apply_objects(desired, &mut done, &mut failures);
        // A device that couldn't be removed stays guarded.
        if desired.ruleset.is_none() && bare {
            match self.nft.apply(None).await {
                Ok(changes) => done.extend(changes),
                Err(error) => failures.push(error),
            }
        }
        if failures.is_empty() {
            Ok(done)
        } else {
            Err(Error::Incomplete { done, failures })
        }
    }

    /// Leads from `held`, which the kernel is known to hold, to `desired`, in the order of [`Self::apply`]. What
    /// doesn't differ isn't looked at.
    ///
    /// # Errors
    /// Where something wasn't as it was held to be; [`Self::apply`] then finds out.
    pub(super) async fn update(&mut self, held: &DesiredState, desired: &DesiredState) -> Result<Changes> {
        let (Some(table), Some(wanted)) = (&held.ruleset, &desired.ruleset) else {
            return Err(Error::Impossible(
                "a table that comes or goes is no update".into(),
            ));
        };
        let quick = self.netfilter.batch("change elements", |sequence| {
            crate::nft::batch(table, wanted, sequence)
        });
        let mut done = match quick {
            Some(Ok(())) => crate::nft::between(table, wanted).changes,
            Some(Err(error)) => return Err(error),
            None => self.nft.update(table, wanted).await?,
        };
        if !same_objects(held, desired) {
            let mut failures = Vec::new();
            self.apply_objects(desired, &mut done, &mut failures);
            if !failures.is_empty() {
                return Err(Error::Incomplete { done, failures });
            }
        }
        Ok(done)
    }

    /// Everything but the table. Answers whether no device is left that shouldn't be.
    fn apply_objects(
        &mut self,
        desired: &DesiredState,
        done: &mut Changes,
        failures: &mut Vec<Error>,
    ) -> bool {
        let mut links = match link::observe(&mut self.route) {
            Ok(links) => links,
            Err(error) => {
                failures.push(error);
                return false;
            }
        };
        let device = link::device_steps(&links, desired.tunnel.as_ref());
        let before = done.len();
        step::run(device.clear, &mut self.route, done, failures);
        step::run(device.build, &mut self.route, done, failures);
        if done.len() > before {
            match link::observe(&mut self.route) {
                Ok(fresh) => links = fresh,
                Err(error) => failures.push(error),
            }
            // What can't be given while a device is made.
            let rest = link::device_steps(&links, desired.tunnel.as_ref()).build;
            step::run(rest, &mut self.route, done, failures);
        }
        let index = |name: &String| links.get(name).map(|l| l.index);
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Watched {
            tunnel: desired.tunnel.as_ref().and_then(|t| index(&t.name)).unwrap_or(0),
            proxies: desired.proxies.iter().filter_map(|p| index(&p.device)).collect(),
        };
        let mut remove_addresses = Vec::new();
        if let Some(tunnel) = &desired.tunnel {
            let (add, remove) = addresses(&links, tunnel);
            step::run(add, &mut self.route, done, failures);
            remove_addresses = remove;
        }

        match self.steps(&links, desired, None) {
            Ok(steps) => {
                let proxies_before = neighbours::proxies(&mut self.route).unwrap_or_else(|error| {
                    failures.push(error);
                    BTreeSet::new()
                });
                step::run(steps.build, &mut self.route, done, failures);
                let new = desired.proxies.iter().filter(|p| {
                    links
                        .get(&p.device)
                        .is_some_and(|l| !proxies_before.contains(&(p.address, l.index)))
                });
                announce::start(announcements(&links, new));
                step::run(steps.remove, &mut self.route, done, failures);
            }
            Err(error) => failures.push(error),
        }
        step::run(remove_addresses, &mut self.route, done, failures);
        let failed_before = failures.len();
        step::run(device.remove, &mut self.route, done, failures);
        failures.len() == failed_before
    }

    /// Announces those of `addresses` that we answer for.
    pub(super) fn announce(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let links = link::observe(&mut self.route)?;
        let names: BTreeMap<u32, &str> = links.values().map(|l| (l.index, l.name.as_str())).collect();
        let held: Vec<ProxyNeighbour> = neighbours::proxies(&mut self.route)?
            .into_iter()
            .filter(|(address, _)| addresses.contains(address))
            .filter_map(|(address, index)| {
                Some(ProxyNeighbour {
                    address,
                    device: (*names.get(&index)?).to_owned(),
                })
            })
            .collect();
        announce::start(announcements(&links, held.iter()));
        Ok(())
    }

    fn steps(
        &mut self,
        links: &BTreeMap<String, Link>,
        desired: &DesiredState,
        gone: Option<u32>,
    ) -> Result<Steps> {
        let index = |name: &str| links.get(name).map(|l| l.index);
        let mut build = Vec::new();
        let mut removals = Vec::new();
        let mut take = |steps: Vec<Step>| {
            let (add, remove) = step::split(steps);
            build.extend(add);
            removals.push(remove);
        };
        if let Some(tunnel) = &desired.tunnel {
            let Some(index) = index(&tunnel.name) else {
                return Err(Error::Impossible(format!(
                    "device {} couldn't be made",
                    tunnel.name
                )));
            };
            let held = neighbours::forwarding(&mut self.route, index)?;
            take(neighbours::forwarding_steps(&held, &desired.forwarding, index));
            let held = neighbours::neighbours(&mut self.route, index)?;
            take(neighbours::neighbour_steps(&held, &desired.neighbours, index));
        }
        let mut held = routes::observe(&mut self.route)?;
        held.retain(|(_, route)| gone.is_none() || route.device != gone);
        take(routes::steps(&held, &desired.routes, index));
        take(rules::steps(&rules::observe(&mut self.route)?, &desired.rules));
        take(sysctls::steps(&desired.sysctls));
        take(neighbours::proxy_steps(
            &neighbours::proxies(&mut self.route)?,
            &desired.proxies,
            index,
        ));
        Ok(Steps {
            build,
            remove: removals.into_iter().rev().flatten().collect(),
        })
    }
}

/// Whether the two differ in nothing but their tables.
fn same_objects(a: &DesiredState, b: &DesiredState) -> bool {
    a.tunnel == b.tunnel
        && a.forwarding == b.forwarding
        && a.neighbours == b.neighbours
        && a.routes == b.routes
        && a.rules == b.rules
        && a.proxies == b.proxies
        && a.sysctls == b.sysctls
}

fn addresses(
    links: &BTreeMap<String, Link>,
    tunnel: &spillway_core::node::state::TunnelDevice,
) -> (Vec<Step>, Vec<Step>) {
    links.get(&tunnel.name).map_or_else(Default::default, |link| {
        let steps = link::address_steps(&link.addresses, tunnel, link.index);
        steps.into_iter().partition(|s| s.operation != Operation::Remove)
    })
}

fn announcements<'a>(
    links: &BTreeMap<String, Link>,
    proxies: impl Iterator<Item = &'a ProxyNeighbour>,
) -> Vec<Announcement> {
    proxies
        .filter_map(|proxy| {
            let link = links.get(&proxy.device)?;
            Some(Announcement {
                address: proxy.address,
                device: proxy.device.clone(),
                index: link.index,
                mac: link.mac?,
            })
        })
        .collect()
}
