//! The thread's inside: every socket, and the order of one apply.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use spillway_core::node::flows::Flows;
use spillway_core::node::nft::Ruleset;
use spillway_core::node::state::{DesiredState, ProxyNeighbour, TunnelDevice, WireGuardDevice};

use super::Options;
use super::announce::{Announcement, Announcer};
use super::direct::Direct;
use super::drift::Watched;
use super::link::{self, Link};
use super::netlink::Requests;
use super::step::{self, Step};
use super::{conntrack, facts, neighbours, routes, rules, sysctls};
use crate::nft::{DEVICE_FAMILY, FAMILY, Nft, batch, between, seal_table};
use crate::wireguard::{self, Encryption, Encryptor};
use crate::{Capabilities, Changes, Error, Facts, Operation, Result};

/// What the thread owns.
pub(super) struct Worker {
    route: Requests<RouteNetlinkMessage>,
    netfilter: Requests<NetfilterMessage>,
    nft: Nft,
    /// The table that stands in for it while somebody has deleted it.
    seal: Nft,
    /// The table whose chain hooks into the tunnel device.
    steering: Nft,
    announcer: Announcer,
    /// Absent without a key: then there are no encrypted paths.
    wireguard: Option<Encryptor>,
    /// Interfaces as last seen. A stale one makes a direct write fail, and everything is compared then.
    links: BTreeMap<String, Link>,
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
    pub(super) fn open(
        Options {
            table,
            key,
            wireguard,
        }: Options,
    ) -> Result<Self> {
        Ok(Self {
            route: Requests::open("route netlink socket", NETLINK_ROUTE)?,
            netfilter: Requests::open("netfilter netlink socket", NETLINK_NETFILTER)?,
            nft: Nft::new(FAMILY, table.clone()),
            seal: Nft::new(FAMILY, seal_table(&table)),
            steering: Nft::new(DEVICE_FAMILY, table),
            announcer: Announcer::default(),
            wireguard: key.map(|key| Encryptor::new(key, wireguard)),
            links: BTreeMap::new(),
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
        let egress_hook = note("egress_hook", Nft::probe_egress().await);
        let conntrack = note("conntrack", conntrack::probe(&mut self.netfilter));
        Capabilities {
            nftables,
            vxlan_gbp,
            egress_hook,
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
        let mut table = self.seal.plan(desired.seal.as_ref()).await?;
        table.extend(self.nft.plan(desired.ruleset.as_ref()).await?);
        let steering = self.steering.plan(desired.steering.as_ref()).await?;
        self.plan_with(desired, table, steering).await
    }

    /// As [`Self::plan`], for what was written last.
    pub(super) async fn verify(&mut self, desired: &DesiredState) -> Result<Changes> {
        let mut table = self.seal.verify(desired.seal.as_ref()).await?;
        table.extend(self.nft.verify(desired.ruleset.as_ref()).await?);
        let steering = self.steering.verify(desired.steering.as_ref()).await?;
        self.plan_with(desired, table, steering).await
    }

    async fn plan_with(
        &mut self,
        desired: &DesiredState,
        table: Changes,
        steering: Changes,
    ) -> Result<Changes> {
        let mut changes = Changes::default();
        let mut links = link::observe(&mut self.route)?;
        self.links.clone_from(&links);
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
                    name: tunnel.name.clone(),
                    ..Link::default()
                },
            );
        }
        if let Some(tunnel) = &desired.tunnel {
            let (add, remove) = addresses(&links, tunnel);
            build.extend(add);
            remove_addresses = remove;
        }
        let wireguard = self.wireguard_changes(&links, desired.wireguard.as_ref()).await;
        let unwanted = link::unwanted_wireguard(&links, desired.wireguard.as_ref()).collect();
        build.extend(link::wireguard_steps(&links, desired.wireguard.as_ref()));
        if let Some(device) = &desired.wireguard {
            links.entry(device.name.clone()).or_insert_with(|| Link {
                index: u32::MAX - 1,
                ..Link::default()
            });
        }
        let rest = self.steps(&links, desired, gone)?;
        let push = |steps: Vec<Step>| {
            let mut out = Changes::default();
            for step in steps {
                out.push(step.operation, step.object);
            }
            out
        };
        // Both tables stand before what they are for, and go after it.
        let (table_first, table_last) = first_or_last(table, desired.ruleset.is_some());
        let (steering_first, steering_last) = first_or_last(steering, desired.steering.is_some());
        changes.extend(table_first);
        changes.extend(wireguard);
        changes.extend(push(build));
        changes.extend(steering_first);
        changes.extend(push(rest.build));
        changes.extend(push(rest.remove));
        changes.extend(push(remove_addresses));
        changes.extend(steering_last);
        changes.extend(push(unwanted));
        changes.extend(push(device.remove));
        changes.extend(table_last);
        Ok(changes)
    }

    /// See [`crate::Kernel::apply`]; the order is explained at the head of the crate.
    pub(super) async fn apply(&mut self, desired: &DesiredState) -> Result<Changes> {
        let mut done = Changes::default();
        let mut failures = Vec::new();
        // Without their guards nothing may be built.
        if let Some(seal) = &desired.seal {
            done.extend(self.seal.apply(Some(seal)).await?);
        }
        if let Some(ruleset) = &desired.ruleset {
            done.extend(self.nft.apply(Some(ruleset)).await?);
        }
        let bare = self.apply_objects(desired, &mut done, &mut failures).await;
        // A device that couldn't be removed stays guarded.
        if desired.ruleset.is_none() && bare {
            match self.nft.apply(None).await {
                Ok(changes) => done.extend(changes),
                Err(error) => failures.push(error),
            }
        }
        if desired.seal.is_none() && bare {
            match self.seal.apply(None).await {
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
        if held.seal.is_some() != desired.seal.is_some() {
            return Err(Error::Impossible(
                "a table that comes or goes is no update".into(),
            ));
        }
        let mut done = Changes::default();
        if let (Some(seal), Some(wanted)) = (&held.seal, &desired.seal)
            && seal != wanted
        {
            done.extend(change(&mut self.netfilter, &self.seal, seal, wanted).await?);
        }
        if table != wanted {
            done.extend(change(&mut self.netfilter, &self.nft, table, wanted).await?);
        }
        if same_objects(held, desired) {
            return Ok(done);
        }
        let mut failures = Vec::new();
        if same_devices(held, desired) {
            if let (Some(steering), Some(wanted)) = (&held.steering, &desired.steering)
                && steering != wanted
            {
                done.extend(change(&mut self.netfilter, &self.steering, steering, wanted).await?);
            }
            // Failing here isn't wrong: another device has other routes, and comparing finds them.
            let mut later = None;
            if let (Some(_), Some(device)) = (&held.wireguard, &desired.wireguard)
                && held.wireguard != desired.wireguard
            {
                later = self.encrypt_first(device, &mut done, &mut failures).await;
            }
            self.write_directly(held, desired, &mut done, &mut failures)?;
            if let Some(device) = later {
                self.encrypt(device, &mut done, &mut failures).await;
            }
        } else {
            self.apply_objects(desired, &mut done, &mut failures).await;
        }
        if failures.is_empty() {
            Ok(done)
        } else {
            Err(Error::Incomplete { done, failures })
        }
    }

    /// Writes what differs between two states with one device, and reads nothing.
    fn write_directly(
        &mut self,
        held: &DesiredState,
        desired: &DesiredState,
        done: &mut Changes,
        failures: &mut Vec<Error>,
    ) -> Result<()> {
        let direct = Direct::between(held, desired, &self.links)?;
        step::run(direct.build, &mut self.route, done, failures);
        let links = std::mem::take(&mut self.links);
        self.watch(desired, &links);
        let new = desired.proxies.difference(&held.proxies);
        self.announcer.start(announcements(&links, new));
        self.links = links;
        step::run(direct.remove, &mut self.route, done, failures);
        Ok(())
    }

    /// Remembers which interfaces' changes matter, and which addresses are ours to announce.
    fn watch(&mut self, desired: &DesiredState, links: &BTreeMap<String, Link>) {
        let index = |name: &String| links.get(name).map(|l| l.index);
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Watched {
            tunnel: desired.tunnel.as_ref().and_then(|t| index(&t.name)).unwrap_or(0),
            proxies: desired.proxies.iter().filter_map(|p| index(&p.device)).collect(),
        };
        let held = desired.proxies.iter();
        self.announcer.answers_for(
            held.filter_map(|p| Some((p.address, index(&p.device)?)))
                .collect(),
        );
    }

    /// Everything but the first table. Answers whether no device is left that shouldn't be.
    async fn apply_objects(
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
        self.watch(desired, &links);
        let mut remove_addresses = Vec::new();
        if let Some(tunnel) = &desired.tunnel {
            let (add, remove) = addresses(&links, tunnel);
            step::run(add, &mut self.route, done, failures);
            remove_addresses = remove;
        }
        if let Some(steering) = &desired.steering {
            self.steer(Some(steering), done, failures).await;
        }
        let mut later = None;
        if let Some(wanted) = &desired.wireguard {
            self.links.clone_from(&links);
            later = self.encrypt_first(wanted, done, failures).await;
            match link::observe(&mut self.route) {
                Ok(fresh) => links = fresh,
                Err(error) => failures.push(error),
            }
            step::run(
                link::wireguard_steps(&links, Some(wanted)),
                &mut self.route,
                done,
                failures,
            );
            self.watch(desired, &links);
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
                self.announcer.start(announcements(&links, new));
                step::run(steps.remove, &mut self.route, done, failures);
            }
            Err(error) => failures.push(error),
        }
        step::run(remove_addresses, &mut self.route, done, failures);
        if desired.steering.is_none() {
            self.steer(None, done, failures).await;
        }
        let failed_before = failures.len();
        if desired.wireguard.is_none()
            && let Some(encryptor) = &mut self.wireguard
            && let Err(error) = encryptor.remove().await
        {
            failures.push(error);
        }
        let unwanted: Vec<_> = link::unwanted_wireguard(&links, desired.wireguard.as_ref()).collect();
        step::run(unwanted, &mut self.route, done, failures);
        step::run(device.remove, &mut self.route, done, failures);
        self.links = links;
        let bare = failures.len() == failed_before;
        if let Some(wanted) = later {
            self.encrypt(wanted, done, failures).await;
        }
        bare
    }

    /// Brings WireGuard to `wanted`, but for new peers behind a relay. Answers what is left for when the routes to relays
    /// stand: a peer is called as soon as it is there, and a handshake that leaves for nowhere is repeated only after five
    /// seconds (`REKEY_TIMEOUT`).
    async fn encrypt_first<'a>(
        &mut self,
        wanted: &'a WireGuardDevice,
        done: &mut Changes,
        failures: &mut Vec<Error>,
    ) -> Option<&'a WireGuardDevice> {
        let mut early = wanted.clone();
        let relayed = wanted.relayed();
        if !relayed.is_empty()
            && let Some(encryptor) = &mut self.wireguard
        {
            // Whoever can't be asked has none.
            let known = encryptor.encryption().await.unwrap_or_default().peers;
            early
                .peers
                .retain(|key, _| known.contains_key(key) || !relayed.contains(key));
        }
        self.encrypt(&early, done, failures).await;
        (early != *wanted).then_some(wanted)
    }

    /// Brings WireGuard to `wanted`.
    async fn encrypt(&mut self, wanted: &WireGuardDevice, done: &mut Changes, failures: &mut Vec<Error>) {
        let result = self.bring_wireguard_to(wanted).await;
        if let Some(encryptor) = &mut self.wireguard {
            encryptor.note(&result);
        }
        match result {
            Ok(changes) => done.extend(changes),
            Err(error) => failures.push(error),
        }
    }

    async fn bring_wireguard_to(&mut self, wanted: &WireGuardDevice) -> Result<Changes> {
        let Some(encryptor) = &mut self.wireguard else {
            return Err(Error::Impossible(
                "paths must be encrypted, and this node has no key".into(),
            ));
        };
        let driver = encryptor.driver()?;
        let mut changes = Changes::default();
        let link = self.links.get(&wanted.name);
        let there = link.is_some_and(|link| link.kind == Some(driver.kind()));
        // Another agent encrypted otherwise, and its device may have outlived it. Routes through it go with it.
        if let Some(link) = link.filter(|_| !there) {
            let what = format!(
                "device {} (it isn't {}'s)",
                link.name,
                driver.implementation().as_str()
            );
            let step = Step::remove(what, link::deletion(link.index));
            let mut failures = Vec::new();
            step::run([step], &mut self.route, &mut changes, &mut failures);
            if let Some(error) = failures.pop() {
                return Err(error);
            }
        }
        let planned = driver.plan(wanted, there).await?;
        if !planned.is_empty() {
            driver.apply(wanted, there).await?;
            changes.extend(planned);
        }
        Ok(changes)
    }

    /// What [`Self::encrypt`] would do. Without a key, as in another process than the agent's, only the device can be
    /// looked at.
    async fn wireguard_changes(
        &mut self,
        links: &BTreeMap<String, Link>,
        wanted: Option<&WireGuardDevice>,
    ) -> Changes {
        let Some(wanted) = wanted else {
            return Changes::default();
        };
        let link = links.get(&wanted.name);
        let Some(encryptor) = &mut self.wireguard else {
            return wireguard::changes(link.map(|_| wanted), Some(wanted));
        };
        let planned = match encryptor.driver() {
            Ok(driver) => {
                let there = link.is_some_and(|link| link.kind == Some(driver.kind()));
                driver.plan(wanted, there).await
            }
            Err(error) => Err(error),
        };
        // Whoever can't even be asked has nothing.
        planned.unwrap_or_else(|_| wireguard::changes(None, Some(wanted)))
    }

    /// See [`crate::Kernel::encryption`].
    pub(super) async fn encryption(&mut self) -> Result<Encryption> {
        match &mut self.wireguard {
            Some(encryptor) => encryptor.encryption().await,
            None => Ok(Encryption::default()),
        }
    }

    async fn steer(&mut self, wanted: Option<&Ruleset>, done: &mut Changes, failures: &mut Vec<Error>) {
        match self.steering.apply(wanted).await {
            Ok(changes) => done.extend(changes),
            Err(error) => failures.push(error),
        }
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
        self.announcer.start(announcements(&links, held.iter()));
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

/// Changes one table where the kernel is known to hold `held`: by itself where that can be, else by a run of nft.
async fn change(
    netfilter: &mut Requests<NetfilterMessage>,
    nft: &Nft,
    held: &Ruleset,
    wanted: &Ruleset,
) -> Result<Changes> {
    match netfilter.batch("change elements", |sequence| batch(held, wanted, sequence)) {
        Some(Ok(())) => Ok(between(held, wanted).changes),
        Some(Err(error)) => Err(error),
        None => nft.update(held, wanted).await,
    }
}

/// What a table changes, before what it is for and after it: it comes first where it is wanted.
fn first_or_last(table: Changes, wanted: bool) -> (Changes, Changes) {
    if wanted {
        (table, Changes::default())
    } else {
        (Changes::default(), table)
    }
}

/// Whether the two have the same devices, so that the difference between them can be written without a look at the kernel.
fn same_devices(a: &DesiredState, b: &DesiredState) -> bool {
    let wireguard = |state: &DesiredState| {
        state.wireguard.clone().map(|device| WireGuardDevice {
            peers: BTreeMap::new(),
            ..device
        })
    };
    a.tunnel == b.tunnel && a.steering.is_some() == b.steering.is_some() && wireguard(a) == wireguard(b)
}

/// Whether the two differ in nothing but the tables with the guards.
fn same_objects(a: &DesiredState, b: &DesiredState) -> bool {
    a.tunnel == b.tunnel
        && a.steering == b.steering
        && a.wireguard == b.wireguard
        && a.forwarding == b.forwarding
        && a.neighbours == b.neighbours
        && a.routes == b.routes
        && a.rules == b.rules
        && a.proxies == b.proxies
        && a.sysctls == b.sysctls
}

fn addresses(links: &BTreeMap<String, Link>, tunnel: &TunnelDevice) -> (Vec<Step>, Vec<Step>) {
    links.get(&tunnel.name).map_or_else(Default::default, |link| {
        let steps = link::address_steps(&link.addresses, &tunnel.addresses, link);
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
