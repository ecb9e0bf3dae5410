//! The values of the charts that the CLI can set, and what they change in the embedded objects.
//!
//! Each value does to the objects what the chart's template does with it. A test renders the charts with
//! helm and compares.

use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::args::Image;
use crate::failure::{Exit, Failure};
use crate::manifest::{self, kind, name};
use crate::words::{Assignment, Endpoint, ServiceType};

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
    /// Those of `cni`.
    pub cni: Cni,
    /// `nodeAgent.metricsPort`.
    pub metrics_port: Option<u16>,
}

/// Values of the member's chart about the CNI.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cni {
    /// `cni.mode`.
    pub mode: Option<String>,
    /// `cni.binDir`.
    pub bin_dir: Option<String>,
    /// `cni.confDir`.
    pub conf_dir: Option<String>,
    /// `cni.waitSeconds`.
    pub wait_seconds: Option<u16>,
}

impl Cni {
    fn set(&mut self, assignment: &Assignment) -> Result<bool, Failure> {
        let directory = || {
            let Assignment { key, value } = assignment;
            if value.starts_with('/') {
                Ok(Some(value.clone()))
            } else {
                Err(bad(format!("--set {key}: {value:?} is no absolute path")))
            }
        };
        match assignment.key.as_str() {
            "cni.mode" => self.mode = Some(one_of(assignment, &["Auto", "Chain", "Guard", "Off"])?),
            "cni.binDir" => self.bin_dir = directory()?,
            "cni.confDir" => self.conf_dir = directory()?,
            "cni.waitSeconds" => {
                let seconds = number(assignment)?;
                if !(1..=100).contains(&seconds) {
                    return Err(bad(format!("--set cni.waitSeconds: {seconds} isn't in 1 to 100")));
                }
                self.wait_seconds = Some(seconds);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Changes the node agent.
    fn patch(&self, object: &mut Value) {
        let Some(pod) = object.pointer_mut("/spec/template/spec") else {
            return;
        };
        for variable in pod["containers"][0]["env"].as_array_mut().into_iter().flatten() {
            let value = match variable["name"].as_str() {
                Some("SPILLWAY_CNI_MODE") => self.mode.clone(),
                Some("SPILLWAY_CNI_WAIT") => self.wait_seconds.map(|s| s.to_string()),
                _ => None,
            };
            if let Some(value) = value {
                variable["value"] = json!(value);
            }
        }
        for volume in pod["volumes"].as_array_mut().into_iter().flatten() {
            let path = match volume["name"].as_str() {
                Some("cni-bin") => &self.bin_dir,
                Some("cni-conf") => &self.conf_dir,
                _ => &None,
            };
            if let Some(path) = path {
                volume["hostPath"]["path"] = json!(path);
            }
        }
    }
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
        if self.common.set(assignment)? || self.cni.set(assignment)? {
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
            "nodeAgent.metricsPort" => self.metrics_port = Some(number(assignment)?),
            other => {
                let own =
                    "localRanges, nodeAgent.metricsPort, cni.mode, cni.binDir, cni.confDir, cni.waitSeconds";
                return Err(unknown(other, "spillway-member", own));
            }
        }
        Ok(())
    }

    /// Lets others read the node agent's metrics.
    fn open_metrics(&self, object: &mut Value) {
        let container = object.pointer_mut("/spec/template/spec/containers/0");
        let (Some(port), Some(container)) = (self.metrics_port, container) else {
            return;
        };
        for variable in container["env"].as_array_mut().into_iter().flatten() {
            if variable["name"] == "SPILLWAY_METRICS_PORT" {
                variable["value"] = json!(port.to_string());
            }
        }
        if port != 0 {
            container["ports"] = json!([{"name": "metrics", "containerPort": port, "protocol": "TCP"}]);
        }
    }

    /// A member's objects with these values.
    pub fn render(&self) -> Result<Vec<Value>, Failure> {
        let mut objects = manifest::member()?;
        for object in &mut objects {
            self.common.patch(object);
            if name(object) == "spillway-node-agent" && kind(object) == "DaemonSet" {
                self.cni.patch(object);
                self.open_metrics(object);
            }
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
