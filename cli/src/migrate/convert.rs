//! From another product's objects to ours. Pure.
//!
//! What can't be said in our words isn't guessed: the object comes out with a note, or where it would then let packets
//! leave with another address than before, it doesn't come out at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use spillway_crds::LabelSelector;

use super::net::{merged, pool_entry};
use super::theirs::{
    self, AppliedTo, CLUSTER_PRIORITY, GROUP, GatewaySpec, NAMESPACE_DEFAULT, PRIORITY, PolicySpec,
    PolicyStatus,
};

/// Bounds of our types.
const MAX_NAME: usize = 63;
const MAX_POOL: usize = 64;
const MAX_DESTINATIONS: usize = 256;
const MAX_SOURCES: usize = 64;

/// What the objects don't say themselves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The member that the objects come from.
    pub member: String,
    /// Members that the policies are for.
    pub members: LabelSelector,
}

/// One object that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Migrated {
    /// Its kind and name.
    pub from: String,
    /// Ours; `None` where there is no equivalent.
    pub object: Option<Value>,
    /// What is different, or why there is none.
    pub notes: Vec<String>,
}

/// Why there is no object.
type Refusal = String;

/// Gateways, policies and cluster-wide policies among `objects`, in this order, each sorted. Namespaces are read for
/// their default gateways; other kinds are left alone.
pub fn convert(objects: &[Value], options: &Options) -> Vec<Migrated> {
    let of = |kind: &str| -> BTreeMap<(String, String), &Value> {
        let group = format!("{GROUP}/");
        let ours = objects
            .iter()
            .filter(|o| o["kind"] == kind && o["apiVersion"].as_str().is_some_and(|v| v.starts_with(&group)));
        ours.map(|o| ((text(o, "namespace"), text(o, "name")), o))
            .collect()
    };
    let gateways = of("EgressGateway");
    let surroundings = Surroundings::new(objects, gateways.values().copied());
    let (policies, cluster_wide) = (of("EgressPolicy"), of("EgressClusterPolicy"));
    let lenders = surroundings.lenders(&policies, &cluster_wide);
    let mut out: Vec<Migrated> = Vec::new();
    for ((_, name), o) in gateways {
        out.push(finish("EgressGateway", &name, |notes| {
            gateway(o, &name, options, notes)
        }));
        if lenders.contains(&name) {
            out.push(finish("EgressGateway", &name, |notes| {
                lender(o, &name, options, notes)
            }));
        }
    }
    for ((namespace, name), o) in policies {
        // Exported without its namespace, an object is one of the default namespace.
        let namespace = if namespace.is_empty() {
            "default".into()
        } else {
            namespace
        };
        let full = format!("{namespace}/{name}");
        out.push(finish("EgressPolicy", &full, |notes| {
            policy(o, Some(&namespace), &surroundings, options, notes)
        }));
    }
    for ((_, name), o) in cluster_wide {
        out.push(finish("EgressClusterPolicy", &name, |notes| {
            policy(o, None, &surroundings, options, notes)
        }));
    }
    out
}

fn finish(kind: &str, name: &str, make: impl FnOnce(&mut Vec<String>) -> Result<Value, Refusal>) -> Migrated {
    let mut notes = Vec::new();
    let object = match make(&mut notes) {
        Ok(object) => Some(object),
        // What would have been different is of no interest then.
        Err(why) => {
            notes = vec![why];
            None
        }
    };
    Migrated {
        from: format!("{kind} {name}"),
        object,
        notes,
    }
}

fn text(object: &Value, key: &str) -> String {
    object["metadata"][key].as_str().unwrap_or_default().into()
}

fn read<T: DeserializeOwned + Default>(object: &Value, part: &str) -> Result<T, Refusal> {
    match &object[part] {
        Value::Null => Ok(T::default()),
        value => T::deserialize(value).map_err(|e| format!("{part} can't be read: {e}")),
    }
}

/// What policies refer to.
#[derive(Default)]
struct Surroundings {
    /// Default egress IPs by gateway.
    gateways: BTreeMap<String, theirs::Eip>,
    /// Gateways that have a pool.
    pooled: BTreeSet<String>,
    /// Gateways that are the cluster's default.
    defaults: Vec<String>,
    /// Default gateway by namespace.
    namespaces: BTreeMap<String, String>,
}

impl Surroundings {
    fn new<'a>(objects: &[Value], gateways: impl Iterator<Item = &'a Value>) -> Self {
        let mut all = Self::default();
        for object in gateways {
            let name = text(object, "name");
            let spec: GatewaySpec = read(object, "spec").unwrap_or_default();
            if spec.cluster_default {
                all.defaults.push(name.clone());
            }
            let mut pools = [&spec.ippools.ipv4, &spec.ippools.ipv6]
                .into_iter()
                .flatten()
                .flatten();
            if pools.any(|e| !e.trim().is_empty()) {
                all.pooled.insert(name.clone());
            }
            let eip = theirs::Eip {
                ipv4: spec.ippools.default4,
                ipv6: spec.ippools.default6,
            };
            all.gateways.insert(name, eip);
        }
        for object in objects.iter().filter(|o| o["kind"] == "Namespace") {
            if let Some(gateway) = object["metadata"]["labels"][NAMESPACE_DEFAULT].as_str() {
                all.namespaces.insert(text(object, "name"), gateway.into());
            }
        }
        all
    }

    /// Gateways with a pool, with whose nodes' own addresses some policy leaves nevertheless.
    fn lenders(
        &self,
        policies: &BTreeMap<(String, String), &Value>,
        cluster_wide: &BTreeMap<(String, String), &Value>,
    ) -> BTreeSet<String> {
        let namespaced = policies.iter().map(|((ns, _), o)| (Some(ns.as_str()), *o));
        let all = namespaced.chain(cluster_wide.values().map(|o| (None, *o)));
        all.filter_map(|(namespace, object)| {
            let spec: PolicySpec = read(object, "spec").ok()?;
            let (gateway, _) = self.gateway(&spec.egress_gateway_name, namespace).ok()?;
            (spec.egress_ip.use_node_ip && self.pooled.contains(&gateway)).then_some(gateway)
        })
        .collect()
    }

    /// The gateway of a policy, and how it was found where the policy doesn't name it.
    fn gateway(&self, named: &str, namespace: Option<&str>) -> Result<(String, Option<String>), Refusal> {
        if !named.is_empty() {
            return Ok((named.into(), None));
        }
        if let Some((namespace, gateway)) = namespace.and_then(|n| Some((n, self.namespaces.get(n)?))) {
            let how = format!("it named no gateway: {gateway} is the default of namespace {namespace}");
            return Ok((gateway.clone(), Some(how)));
        }
        match self.defaults.as_slice() {
            [one] => Ok((
                one.clone(),
                Some(format!("it named no gateway: {one} is the cluster's default")),
            )),
            [] => Err("it names no gateway and no default gateway was among what was read".into()),
            several => Err(format!(
                "it names no gateway, and several are the cluster's default: {}",
                several.join(", ")
            )),
        }
    }
}

/// Name of the gateway that stands for a gateway's nodes without its pool.
fn lender_name(gateway: &str) -> String {
    format!("{gateway}-node-ip")
}

/// A second gateway of the same nodes, for policies that leave with the nodes' own addresses.
fn lender(object: &Value, name: &str, options: &Options, notes: &mut Vec<String>) -> Result<Value, Refusal> {
    let mut copy = gateway(object, name, options, &mut Vec::new())?;
    let name = lender_name(name);
    fits("metadata.name, with -node-ip behind it,", &name)?;
    notes.push(format!(
        "for policies with useNodeIP there is a gateway of its own, {name}: here a gateway has a pool or its nodes' addresses"
    ));
    copy["metadata"]["name"] = name.into();
    copy["spec"]["addresses"] = json!({"nodeIP": true});
    Ok(copy)
}

fn gateway(object: &Value, name: &str, options: &Options, notes: &mut Vec<String>) -> Result<Value, Refusal> {
    let spec: GatewaySpec = read(object, "spec")?;
    fits("metadata.name", name)?;
    let mut addresses = Map::new();
    for (family, list) in [("ipv4", spec.ippools.ipv4), ("ipv6", spec.ippools.ipv6)] {
        let mut entries = Vec::new();
        for entry in list.unwrap_or_default().iter().filter(|e| !e.trim().is_empty()) {
            let place = format!("ippools.{family}");
            let (entry, v6) = pool_entry(entry).map_err(|why| format!("{place}: {why}"))?;
            if v6 != (family == "ipv6") {
                return Err(format!("{place} holds {entry}, which is of the other family"));
            }
            entries.push(entry);
        }
        if entries.len() > MAX_POOL {
            return Err(format!(
                "ippools.{family} has {} entries and here a pool has at most {MAX_POOL}: merge some to ranges or blocks",
                entries.len()
            ));
        }
        if !entries.is_empty() {
            addresses.insert(family.into(), json!(entries));
        }
    }
    let mut default = Map::new();
    for (family, address) in [("ipv4", &spec.ippools.default4), ("ipv6", &spec.ippools.default6)] {
        if !address.is_empty() {
            default.insert(family.into(), json!(address));
        }
    }
    if !default.is_empty() {
        addresses.insert("default".into(), Value::Object(default));
    }
    if !addresses.contains_key("ipv4") && !addresses.contains_key("ipv6") {
        addresses = Map::from_iter([("nodeIP".to_owned(), true.into())]);
    }
    let Some(selector) = spec.node_selector.selector else {
        return Err("nodeSelector.selector is missing: which nodes is it?".into());
    };
    if !spec.node_selector.policy.is_empty() {
        notes.push(format!(
            "nodeSelector.policy {:?} has no equivalent: egress IPs are spread over all ready nodes by rank",
            spec.node_selector.policy
        ));
    }
    if spec.cluster_default {
        notes.push("clusterDefault has no equivalent: each policy names its gateway".into());
    }
    Ok(json!({
        "apiVersion": "spillway.io/v1alpha1",
        "kind": "EgressGateway",
        "metadata": {"name": name},
        "spec": {"nodes": [{"member": options.member, "selector": selector}], "addresses": addresses},
    }))
}

fn fits(field: &str, name: &str) -> Result<(), Refusal> {
    match name.len() {
        0 => Err(format!("{field} is missing")),
        1..=MAX_NAME => Ok(()),
        _ => Err(format!(
            "{field} has more than {MAX_NAME} characters: choose a shorter name"
        )),
    }
}

fn policy(
    object: &Value,
    namespace: Option<&str>,
    surroundings: &Surroundings,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Value, Refusal> {
    let spec: PolicySpec = read(object, "spec")?;
    let status: PolicyStatus = read(object, "status").unwrap_or_default();
    let name = text(object, "name");
    if name.is_empty() {
        return Err("metadata.name is missing".into());
    }
    let (gateway, how) = surroundings.gateway(&spec.egress_gateway_name, namespace)?;
    notes.extend(how);
    fits("egressGatewayName", &gateway)?;
    let mut out = Map::new();
    if !options.members.is_everything() {
        out.insert("members".into(), json!(options.members));
    }
    selection(&spec.applied_to, namespace, &mut out, notes)?;
    let destinations = merged("destSubnet", spec.dest_subnet.as_deref().unwrap_or_default())?;
    if destinations.len() > MAX_DESTINATIONS {
        return Err(format!(
            "destSubnet has {} ranges even when merged, and here a policy has at most {MAX_DESTINATIONS}: divide them \
             among several policies",
            destinations.len()
        ));
    }
    if !destinations.is_empty() {
        out.insert("to".into(), json!({"cidrs": destinations}));
    }
    let priority = priority(spec.priority, namespace)?;
    if priority != 0 {
        out.insert("priority".into(), json!(priority));
    }
    if spec.priority != 0 {
        notes.push(format!(
            "priority {} became {priority}: here the higher goes first, and a longer destination prefix before both",
            spec.priority
        ));
    }
    let known = surroundings.gateways.get(&gateway);
    let pooled = surroundings.pooled.contains(&gateway);
    let lent = known.is_some() && (spec.egress_ip.use_node_ip || !pooled);
    let mut through = json!({"gateway": gateway});
    if lent {
        if pooled {
            through["gateway"] = lender_name(&gateway).into();
        }
        notes.push("it leaves with the address of the gateway's node that carries it".into());
    } else {
        let egress_ip = egress_ip(&spec, &status, known, notes)?;
        if !egress_ip.is_empty() {
            through["egressIP"] = Value::Object(egress_ip);
        } else if spec.egress_ip.allocator == "rr" {
            through["allocation"] = "Pool".into();
        }
    }
    out.insert("through".into(), json!([through]));
    let (kind, metadata) = match namespace {
        Some(namespace) => (
            "FederatedEgressPolicy",
            json!({"name": name, "namespace": namespace}),
        ),
        None => ("FederatedClusterEgressPolicy", json!({"name": name})),
    };
    Ok(json!({"apiVersion": "spillway.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": out}))
}

/// Whom a policy selects.
fn selection(
    applied: &AppliedTo,
    namespace: Option<&str>,
    out: &mut Map<String, Value>,
    notes: &mut Vec<String>,
) -> Result<(), Refusal> {
    let sources = merged(
        "appliedTo.podSubnet",
        applied.pod_subnet.as_deref().unwrap_or_default(),
    )?;
    let pods = applied.pod_selector.clone().unwrap_or_default();
    if sources.is_empty() && pods.is_everything() {
        return Err("appliedTo selects nothing: neither labels nor addresses of pods are given".into());
    }
    if sources.len() > MAX_SOURCES {
        return Err(format!(
            "appliedTo.podSubnet has {} ranges even when merged, and here a policy has at most {MAX_SOURCES}: divide \
             them among several policies",
            sources.len()
        ));
    }
    if namespace.is_none()
        && let Some(selector) = applied.namespace_selector.as_ref().filter(|s| !s.is_everything())
    {
        out.insert("namespaces".into(), json!(selector));
    }
    if !pods.is_everything() {
        out.insert("pods".into(), json!(pods));
    }
    if !sources.is_empty() {
        if let Some(namespace) = namespace {
            notes.push(format!(
                "appliedTo.podSubnet became sources, which are those of pods of namespace {namespace} only"
            ));
        }
        out.insert("sources".into(), json!({"cidrs": sources}));
    }
    Ok(())
}

/// Their lower number goes first, our higher one does; their default for namespaced policies is our default.
fn priority(given: i64, namespace: Option<&str>) -> Result<i64, Refusal> {
    let number = match (given, namespace) {
        (0, Some(_)) => PRIORITY,
        (0, None) => CLUSTER_PRIORITY,
        (1..=65_536, _) => given,
        _ => return Err(format!("priority {given} isn't one of 1 to 65536")),
    };
    Ok(PRIORITY - number)
}

/// The addresses that a policy leaves with: those that it names, else those that it leaves with now, else the
/// gateway's default ones. Empty: the gateway's default ones here or one of the pool, as it asked for, and a note.
fn egress_ip(
    spec: &PolicySpec,
    status: &PolicyStatus,
    default: Option<&theirs::Eip>,
    notes: &mut Vec<String>,
) -> Result<Map<String, Value>, Refusal> {
    if spec.egress_ip.use_node_ip {
        return Err("egressIP.useNodeIP needs its gateway, which wasn't among what was read".into());
    }
    let default = default.cloned().unwrap_or_default();
    let fixed = &spec.egress_ip;
    let mut out = Map::new();
    let mut from = None;
    for (family, named, now, default) in [
        ("ipv4", &fixed.ipv4, &status.eip.ipv4, &default.ipv4),
        ("ipv6", &fixed.ipv6, &status.eip.ipv6, &default.ipv6),
    ] {
        let choice = [
            (named, None),
            (now, Some("the one it leaves with now (status.eip)")),
            (default, Some("its gateway's default egress IP")),
        ]
        .into_iter()
        .find(|(address, _)| !address.is_empty());
        let Some((address, how)) = choice else {
            continue;
        };
        let parsed: IpAddr = address
            .parse()
            .map_err(|_| format!("egressIP.{family}: {address:?} is no address"))?;
        if parsed.is_ipv6() != (family == "ipv6") {
            return Err(format!("egressIP.{family}: {address} is of the other family"));
        }
        from = from.or(how);
        out.insert(family.into(), json!(parsed.to_string()));
    }
    let asked = if fixed.allocator == "rr" {
        "allocatorPolicy rr"
    } else {
        "the default"
    };
    if let Some(how) = from {
        notes.push(format!(
            "its egress IP was chosen by {asked}; here it is fixed to {how}"
        ));
    } else if out.is_empty() {
        notes.push(format!(
            "its egress IP was chosen by {asked} and isn't known: it gets {}; name another in through[0].egressIP",
            if fixed.allocator == "rr" {
                "one of the pool (allocation: Pool)"
            } else {
                "the gateway's default address"
            }
        ));
    }
    Ok(out)
}
