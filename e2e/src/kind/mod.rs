//! kind's clusters as an arena: the provider for who wants a whole node, systemd and kubeadm and all, in a container.
//!
//! ```text
//! docker    where containers run: this machine's Docker, or a daemon in a machine of the arena's own
//! runtime   runc for that daemon, where this machine may do less than runc asks for
//! image     the node image where there is no registry, made from kind's own files, Debian and the toolbox
//! config    what kind is told about a cluster
//! node      a container as a machine of the arena: namespaces, cable, routes, power
//! ```
//! kind itself is unmodified. Its network is the arena's first segment, so router, outside server, addresses and
//! faults are those of every arena, and scenarios can't tell who made the nodes.

mod config;
mod docker;
mod image;
mod node;
pub mod runtime;

use anyhow::{Result, ensure};

pub(crate) use config::{cluster_name, configuration, container_name};
pub use docker::Docker;
pub(crate) use docker::{MACHINE, docker_answers, make_network, network, remove, start};
pub(crate) use image::reference;
pub(crate) use node::{adopt, configure_network, power_off, power_on};

use crate::state::ClusterPlan;

/// Refuses what can't be had with kind.
pub(crate) fn check(clusters: &[ClusterPlan]) -> Result<()> {
    for cluster in clusters {
        let (name, spec) = (&cluster.spec.name, &cluster.spec);
        ensure!(
            spec.partition == 1,
            "cluster {name}: with kind all nodes are on one Docker network, so there is only partition 1"
        );
        ensure!(
            spec.enforcer.is_none(),
            "cluster {name}: no enforcer of NetworkPolicy can be had with kind"
        );
        ensure!(
            spec.kubernetes == clusters[0].spec.kubernetes,
            "cluster {name}: with kind all clusters have the same Kubernetes version, that of the node image"
        );
    }
    Ok(())
}
