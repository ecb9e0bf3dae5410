//! What the runtime hands to a plugin: a command and the container in the environment, the network's
//! configuration on standard input.
//! (<https://www.cni.dev/docs/spec/>, versions 0.3.1, 0.4.0, 1.0.0 and 1.1.0.)

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::protocol::Attachment;
use crate::{cache, protocol};

/// Versions of the spec in which the plugin can be chained.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Name of the plugin's program, and `type` of its entry in a network configuration list.
pub const PLUGIN: &str = "spillway-cni";

/// The plugin's own entry in a network configuration list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// [`PLUGIN`].
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the node agent listens.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Where it leaves its cache.
    #[serde(default = "cache_file")]
    pub cache: PathBuf,
    /// Seconds for which a pod is held before it is refused; kubelet then tries again.
    #[serde(default = "wait")]
    pub wait: u32,
    /// Namespace of Spillway's own pods, which are never held.
    #[serde(default)]
    pub namespace: String,
    /// File name of the single-plugin configuration that became this list; empty where the list was there before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replaces: String,
}

fn socket() -> PathBuf {
    protocol::SOCKET.into()
}

fn cache_file() -> PathBuf {
    cache::FILE.into()
}

const fn wait() -> u32 {
    15
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            kind: PLUGIN.into(),
            socket: socket(),
            cache: cache_file(),
            wait: wait(),
            namespace: String::new(),
            replaces: String::new(),
        }
    }
}

impl Entry {
    /// How long a pod is held before it is refused.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.wait.into())
    }
}

/// Standard input.
#[derive(Debug, Deserialize)]
pub struct Input<'a> {
    /// Version that the result is wanted in; also that of the result before.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// The result of the plugin before, exactly as it came.
    #[serde(skip)]
    pub previous: Option<&'a RawValue>,
    /// The attachments that are still valid, by GC.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Vec<Valid>,
}

#[derive(Debug, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
}

#[derive(Deserialize)]
struct Previous<'a> {
    #[serde(rename = "prevResult", borrow, default)]
    result: Option<&'a RawValue>,
}

impl<'a> Input<'a> {
    /// Reads it.
    pub fn parse(text: &'a str) -> serde_json::Result<Self> {
        let input: Self = serde_json::from_str(text)?;
        // Flattened fields can't borrow, hence once more.
        let Previous { result } = serde_json::from_str(text)?;
        Ok(Self {
            previous: result,
            ..input
        })
    }

    /// Containers that are still there, by GC.
    pub fn containers(&self) -> BTreeSet<String> {
        self.valid.iter().map(|v| v.container.clone()).collect()
    }

    /// The addresses in the result before. Entries that can't be read are left out.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        #[derive(Deserialize)]
        struct Address {
            address: String,
        }
        #[derive(Deserialize)]
        struct Addresses {
            #[serde(default)]
            ips: Vec<Address>,
        }
        let all = self
            .previous
            .and_then(|p| serde_json::from_str::<Addresses>(p.get()).ok());
        let ips = all.into_iter().flat_map(|a| a.ips);
        ips.filter_map(|ip| ip.address.split('/').next()?.parse().ok())
            .collect()
    }
}

/// The sandbox that the runtime speaks of, from the environment. `CNI_ARGS` is `KEY=VALUE;…`.
pub fn attachment(variable: impl Fn(&str) -> Option<String>, addresses: BTreeSet<IpAddr>) -> Attachment {
    let arguments = variable("CNI_ARGS").unwrap_or_default();
    let argument = |key: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(k, _)| *k == key)
            .map(|(_, value)| value.to_owned())
            .next_back()
            .unwrap_or_default()
    };
    Attachment {
        container: variable("CNI_CONTAINERID").unwrap_or_default(),
        interface: variable("CNI_IFNAME").unwrap_or_default(),
        namespace: argument("K8S_POD_NAMESPACE"),
        pod: argument("K8S_POD_NAME"),
        uid: argument("K8S_POD_UID"),
        addresses,
    }
}

/// An error as the spec wants it on standard output.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// Version in which it is told.
    #[serde(rename = "cniVersion")]
    pub version: String,
    /// 4: the environment is wrong; 5: I/O; 6: the configuration can't be read; 11: try again later.
    pub code: u32,
    /// In one sentence.
    pub msg: String,
    /// The rest.
    pub details: String,
}

/// [`Failure::code`] for what another attempt may mend.
pub const TRY_AGAIN: u32 = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_found_beside_what_the_runtime_adds() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","type":"spillway-cni","wait":3,
            "prevResult":{"cniVersion":"1.0.0", "interfaces":[],"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"},
            {"address":"fd00::5/64"}],"dns":{}}}"#;
        let input = Input::parse(text).expect("read");
        assert_eq!((input.entry.wait, input.entry.socket), (3, socket()));
        let previous = input.previous.expect("a result before").get();
        assert!(previous.starts_with(r#"{"cniVersion":"1.0.0", "#), "as it came");
        let input = Input::parse(text).expect("read");
        let addresses: Vec<String> = input.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.5", "fd00::5"]);
    }

    #[test]
    fn a_result_of_0_3_1_is_read_too_and_none_is_none() {
        let old = r#"{"cniVersion":"0.3.1","type":"spillway-cni","prevResult":{"ips":[{"version":"4","address":"10.1.0.5/16"}]}}"#;
        assert_eq!(Input::parse(old).expect("read").addresses().len(), 1);
        let none = r#"{"cniVersion":"1.1.0","type":"spillway-cni","cni.dev/valid-attachments":[{"containerID":"x","ifname":"eth0"}]}"#;
        let input = Input::parse(none).expect("read");
        assert!(input.previous.is_none() && input.addresses().is_empty());
        assert!(input.containers().contains("x"));
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let variable = |name: &str| match name {
            "CNI_ARGS" => Some(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=payments;K8S_POD_NAME=billing-0;K8S_POD_UID=u".to_owned(),
            ),
            "CNI_CONTAINERID" => Some("c".to_owned()),
            _ => None,
        };
        let attachment = attachment(variable, BTreeSet::new());
        assert_eq!(
            (
                attachment.namespace.as_str(),
                attachment.pod.as_str(),
                attachment.uid.as_str()
            ),
            ("payments", "billing-0", "u")
        );
        assert!(attachment.interface.is_empty());
    }
}
