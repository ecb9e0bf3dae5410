//! The values of the charts that the CLI can set, and what they change in the embedded objects.
//!
//! Each value does to the objects what the chart's template does with it. A test renders the charts with
//! helm and compares.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::args::Image;
use crate::failure::{Exit, Failure};
use crate::manifest::{self, kind, name};

/// `host:port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint(String);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no host:port; write it like hub.example.org:9443 or [2001:db8::1]:9443");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_is_right = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= 253
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
            }
        };
        match port.parse::<u16>() {
            Ok(1..) if host_is_right => Ok(Self(text.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the hub's Service is published.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ServiceType {
    /// Only within the hub's cluster; publish it yourself.
    #[value(name = "ClusterIP")]
    ClusterIp,
    /// On a port of every node.
    #[value(name = "NodePort")]
    NodePort,
    /// Through the cloud's load balancer.
    #[value(name = "LoadBalancer")]
    LoadBalancer,
}

impl ServiceType {
    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// `key=value` of a label.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Label {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no label; write it like region=eu");
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let word = |s: &str, max: usize| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            s.len() <= max
                && edge(s.chars().next())
                && edge(s.chars().last())
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let key_is_right = match key.split_once('/') {
            Some((prefix, rest)) => word(prefix, 253) && word(rest, 63),
            None => word(key, 63),
        };
        if key_is_right && (value.is_empty() || word(value, 63)) {
            Ok(Self {
                key: key.into(),
                value: value.into(),
            })
        } else {
            Err(wrong())
        }
    }
}

/// Checks the name of a member or a partition.
pub fn member_name(text: &str) -> Result<String, String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let right = text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    right.then(|| text.to_owned()).ok_or_else(|| {
        format!("{text:?}: use lower-case letters, digits and dashes, at most 63, such as fra-1")
    })
}

/// `key=value` of `--set`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assignment {
    /// Dotted key, as in the chart's values.
    pub key: String,
    /// Value as written.
    pub value: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.into(),
                value: value.into(),
            }),
            _ => Err(format!("{text:?}: write key=value, such as log=debug")),
        }
    }
}

/// Values that both charts have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Common {
    /// `image.registry`.
    pub registry: Option<String>,
    /// `image.tag`.
    pub tag: Option<String>,
    /// `image.pullPolicy`.
    pub pull_policy: Option<String>,
    /// `log`.
    pub log: Option<String>,
    /// `logFormat`.
    pub log_format: Option<String>,
}

/// Values of the hub's chart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HubValues {
    /// Those of both charts.
    pub common: Common,
    /// `replicas`.
    pub replicas: Option<u16>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// `service.type`.
    pub service_type: Option<ServiceType>,
    /// `service.nodePort`.
    pub node_port: Option<u16>,
}

/// Values of the member's chart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MemberValues {
    /// Those of both charts.
    pub common: Common,
    /// `localRanges`.
    pub local_ranges: Vec<String>,
}

const COMMON_KEYS: &str = "image.registry, image.tag, image.pullPolicy, log, logFormat";

fn bad(what: String) -> Failure {
    Failure::new(Exit::Usage, what)
}

fn number(assignment: &Assignment) -> Result<u16, Failure> {
    assignment.value.parse().map_err(|_| {
        bad(format!(
            "--set {}: {:?} is no number",
            assignment.key, assignment.value
        ))
    })
}

fn one_of(assignment: &Assignment, words: &[&str]) -> Result<String, Failure> {
    let Assignment { key, value } = assignment;
    if words.contains(&value.as_str()) {
        return Ok(value.clone());
    }
    Err(bad(format!(
        "--set {key}: {value:?} is none of {}",
        words.join(", ")
    )))
}

impl Common {
    fn from_flags(image: &Image) -> Self {
        Self {
            registry: image.image_registry.clone(),
            tag: image.image_tag.clone(),
            ..Self::default()
        }
    }

    /// Takes the assignment if it is one of both charts' values.
    fn set(&mut self, assignment: &Assignment) -> Result<bool, Failure> {
        let value = assignment.value.clone();
        match assignment.key.as_str() {
            "image.registry" => self.registry = Some(value),
            "image.tag" => self.tag = Some(value),
            "image.pullPolicy" => {
                self.pull_policy = Some(one_of(assignment, &["Always", "IfNotPresent", "Never"])?);
            }
            "log" => self.log = Some(value),
            "logFormat" => self.log_format = Some(one_of(assignment, &["text", "json"])?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn patch(&self, object: &mut Value) {
        let Some(container) = object.pointer_mut("/spec/template/spec/containers/0") else {
            return;
        };
        if let Some(image) = container["image"].as_str().map(str::to_owned) {
            let (path, tag) = image.rsplit_once(':').unwrap_or((&image, ""));
            let (registry, last) = path.rsplit_once('/').unwrap_or(("", path));
            let registry = self.registry.as_deref().unwrap_or(registry);
            let tag = self.tag.as_deref().filter(|tag| !tag.is_empty()).unwrap_or(tag);
            container["image"] = json!(format!("{registry}/{last}:{tag}"));
        }
        if let Some(policy) = &self.pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        let variables = container["env"].as_array_mut();
        for variable in variables.into_iter().flatten() {
            let value = match variable["name"].as_str() {
                Some("SPILLWAY_LOG") => &self.log,
                Some("SPILLWAY_LOG_FORMAT") => &self.log_format,
                _ => &None,
            };
            if let Some(value) = value {
                variable["value"] = json!(value);
            }
        }
    }
}

impl HubValues {
    /// From flags; `--set` comes last and wins.
    pub fn new(install: &crate::args::HubInstall) -> Result<Self, Failure> {
        let mut values = Self {
            common: Common::from_flags(&install.image),
            replicas: install.replicas,
            endpoints: install.endpoints.clone(),
            service_type: install.service_type,
            node_port: install.node_port,
        };
        for assignment in &install.image.set {
            values.set(assignment)?;
        }
        if values.node_port.is_some()
            && !matches!(
                values.service_type,
                Some(ServiceType::NodePort | ServiceType::LoadBalancer)
            )
        {
            return Err(bad(
                "a node port needs --service-type NodePort or LoadBalancer".into()
            ));
        }
        Ok(values)
    }

    /// Sets one value of the chart.
    pub fn set(&mut self, assignment: &Assignment) -> Result<(), Failure> {
        if self.common.set(assignment)? {
            return Ok(());
        }
        match assignment.key.as_str() {
            "replicas" => self.replicas = Some(number(assignment)?),
            "service.nodePort" => self.node_port = Some(number(assignment)?),
            "service.type" => {
                let kind = ServiceType::from_str(&assignment.value, false).map_err(|_| {
                    bad(format!(
                        "--set service.type: {:?} is none of ClusterIP, NodePort, LoadBalancer",
                        assignment.value
                    ))
                })?;
                self.service_type = Some(kind);
            }
            "endpoints" => {
                self.endpoints = assignment
                    .value
                    .trim_matches(['{', '}'])
                    .split(',')
                    .map(|endpoint| endpoint.trim().parse().map_err(bad))
                    .collect::<Result<_, _>>()?;
            }
            other => {
                return Err(unknown(
                    other,
                    "spillway-hub",
                    "replicas, endpoints, service.type, service.nodePort",
                ));
            }
        }
        Ok(())
    }

    /// The hub's objects with these values.
    pub fn render(&self) -> Result<Vec<Value>, Failure> {
        let mut objects = manifest::hub()?;
        for object in &mut objects {
            self.common.patch(object);
            match kind(object) {
                "Deployment" => {
                    if let Some(replicas) = self.replicas {
                        object["spec"]["replicas"] = json!(replicas);
                    }
                    let arguments = object
                        .pointer_mut("/spec/template/spec/containers/0/args")
                        .and_then(Value::as_array_mut);
                    if let (Some(arguments), false) = (arguments, self.endpoints.is_empty()) {
                        let endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
                        arguments.push(json!(format!("--endpoints={}", endpoints.join(","))));
                    }
                }
                "Service" => {
                    if let Some(kind) = self.service_type {
                        object["spec"]["type"] = json!(kind.as_str());
                    }
                    if let Some(port) = self.node_port {
                        object["spec"]["ports"][0]["nodePort"] = json!(port);
                    }
                }
                _ => {}
            }
        }
        Ok(objects)
    }
}

impl MemberValues {
    /// From flags; `--set` comes last and wins.
    pub fn new(image: &Image) -> Result<Self, Failure> {
        let mut values = Self {
            common: Common::from_flags(image),
            ..Self::default()
        };
        for assignment in &image.set {
            values.set(assignment)?;
        }
        Ok(values)
    }

    /// Sets one value of the chart.
    pub fn set(&mut self, assignment: &Assignment) -> Result<(), Failure> {
        if self.common.set(assignment)? {
            return Ok(());
        }
        match assignment.key.as_str() {
            "localRanges" => {
                self.local_ranges = assignment
                    .value
                    .trim_matches(['{', '}'])
                    .split(',')
                    .map(|r| r.trim().to_owned())
                    .collect();
            }
            other => return Err(unknown(other, "spillway-member", "localRanges")),
        }
        Ok(())
    }

    /// A member's objects with these values.
    pub fn render(&self) -> Result<Vec<Value>, Failure> {
        let mut objects = manifest::member()?;
        for object in &mut objects {
            self.common.patch(object);
            if name(object) == "spillway-member-agent" && !self.local_ranges.is_empty() {
                let variables = object
                    .pointer_mut("/spec/template/spec/containers/0/env")
                    .and_then(Value::as_array_mut);
                if let Some(variables) = variables {
                    variables
                        .push(json!({"name": "SPILLWAY_EXTRA_CIDRS", "value": self.local_ranges.join(",")}));
                }
            }
        }
        Ok(objects)
    }
}

fn unknown(key: &str, chart: &str, own: &str) -> Failure {
    bad(format!("--set {key}: this program sets {COMMON_KEYS}, {own}")).fix(format!(
        "for every other value install the chart {chart} with helm; it makes the same objects"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_host_and_port() {
        for right in ["hub.example.org:9443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert_eq!(
                right.parse::<Endpoint>().map(|e| e.to_string()),
                Ok(right.to_owned())
            );
        }
        for wrong in [
            "hub",
            "hub:",
            "hub:0",
            ":1",
            "2001:db8::1:9443",
            "https://hub:1",
            "a b:1",
            "hub:99999",
            "a,b:1",
        ] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_are_what_kubernetes_takes() {
        assert!("region=eu".parse::<Label>().is_ok());
        assert!("example.org/tier=".parse::<Label>().is_ok());
        for wrong in ["region", "=eu", "-a=b", "a=b c", "a/b/c=d"] {
            assert!(wrong.parse::<Label>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        assert!(member_name("fra-1").is_ok());
        for wrong in ["", "Fra", "-a", "a-", "a.b", &"a".repeat(64)] {
            assert!(member_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_value_names_the_known_ones() {
        let failure = HubValues::default()
            .set(&"nodeSelector.a=b".parse().expect("an assignment"))
            .expect_err("no such value");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.what.contains("service.nodePort") && failure.fix[0].contains("helm"),
            "{failure}"
        );
    }

    #[test]
    fn a_registry_with_a_port_survives() {
        let mut values = MemberValues::default();
        values.common.registry = Some("registry.example.org:5000/team".into());
        values.common.tag = Some("v7".into());
        let images: Vec<String> = values
            .render()
            .expect("renders")
            .iter()
            .filter_map(|o| {
                o.pointer("/spec/template/spec/containers/0/image")?
                    .as_str()
                    .map(str::to_owned)
            })
            .collect();
        assert_eq!(
            images,
            [
                "registry.example.org:5000/team/node-agent:v7",
                "registry.example.org:5000/team/member-agent:v7"
            ]
        );
    }
}
