//! Words of the command line, checked as they are read.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use spillway_crds::member::NodeRef;

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

/// Reads `MEMBER/NODE`.
pub fn node(text: &str) -> Result<NodeRef, String> {
    match text.split_once('/') {
        Some((member, node)) if !node.is_empty() && !node.contains('/') => {
            Ok(NodeRef::new(member_name(member)?, node))
        }
        _ => Err(format!("{text:?}: write MEMBER/NODE, such as fra-1/worker-3")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_member_in_front() {
        let right = node("fra-1/n2.example.org");
        assert_eq!(right, Ok(NodeRef::new("fra-1", "n2.example.org")));
        for wrong in ["n2", "/n2", "fra-1/", "fra-1/n2/x", "FRA/n2"] {
            assert!(node(wrong).is_err(), "{wrong}");
        }
    }

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
}
