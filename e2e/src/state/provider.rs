//! What machines are made of, and what can be done with them.

use std::{fmt, str::FromStr};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Environment variable that names the provider of arenas whose maker says nothing else.
const PROVIDER_VARIABLE: &str = "SPILLWAY_PROVIDER";

/// What an arena's machines are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// Namespaces of this machine, with the daemons of a node or a control plane in them.
    #[default]
    Namespaces,
    /// kind's containers, each with a whole node in it, in a Docker of the arena's own.
    Kind,
    /// The same in this machine's own Docker, with upstream's node images.
    KindUpstream,
}

/// What a scenario does that not every provider can do for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Clusters in several network segments.
    Segments,
    /// An enforcer of NetworkPolicy that the arena starts on every node.
    Enforcer,
    /// A kubelet that the arena configures and starts.
    OwnKubelet,
    /// It is about the arena's namespaces themselves.
    Namespaces,
    /// A cluster of its own, which it brings up and takes down.
    OwnCluster,
    /// The CNI that the arena configures: its files, and addresses that are given out when a scenario wants them.
    ArenaCni,
}

impl Provider {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Namespaces, Self::Kind, Self::KindUpstream];

    /// Whether kind makes the machines.
    pub fn is_kind(self) -> bool {
        self != Self::Namespaces
    }

    /// What a name means on this machine: `kind` uses the Docker that is there, where there is one.
    #[must_use]
    pub fn here(self) -> Self {
        match self {
            Self::Kind if crate::kind::docker_answers() => Self::KindUpstream,
            other => other,
        }
    }

    /// The one that the environment names, or the default.
    ///
    /// # Errors
    /// When the environment names one that there isn't.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(PROVIDER_VARIABLE) {
            Ok(name) if !name.is_empty() => Ok(name.parse::<Self>()?.here()),
            _ => Ok(Self::default()),
        }
    }

    /// Why this provider can't do what a scenario needs; `None` where it can.
    pub fn lacks(self, need: Need) -> Option<&'static str> {
        match (self, need) {
            (Self::Namespaces, _) | (Self::Kind, Need::ArenaCni) => None,
            (Self::KindUpstream, Need::ArenaCni) => {
                Some("pods get their network from kindnet, which keeps its files and addresses elsewhere")
            }
            (_, Need::Segments) => Some("all nodes of kind are on one Docker network"),
            (_, Need::Enforcer) => {
                Some("the enforcer is a daemon of the arena's nodes, which kind's don't run")
            }
            (_, Need::OwnKubelet) => Some("kubeadm configures and registers a kubelet of kind"),
            (_, Need::Namespaces) => Some("it is about the arena's namespaces themselves"),
            (_, Need::OwnCluster) => {
                Some("it is about an API server alone, and brings one up in seconds from namespaces")
            }
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "namespaces",
            Self::Kind => "kind",
            Self::KindUpstream => "kind-upstream",
        })
    }
}

impl FromStr for Provider {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let Some(provider) = Self::ALL.into_iter().find(|p| p.to_string() == name) else {
            bail!(
                "there is no provider {name}; there are {} and {}",
                Self::Namespaces,
                Self::Kind
            )
        };
        Ok(provider)
    }
}

#[cfg(test)]
mod tests {
    use super::Provider;

    #[test]
    fn a_provider_is_read_as_it_is_written() {
        for provider in Provider::ALL {
            assert_eq!(provider.to_string().parse::<Provider>().unwrap(), provider);
        }
        assert!("minikube".parse::<Provider>().is_err());
    }
}
