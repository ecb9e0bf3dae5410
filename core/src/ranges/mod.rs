//! Which ranges belong to a cluster, from what its Kubernetes and its CNI say of themselves.
//!
//! Each source is a function from objects to [`Found`]: ranges, and what can't be used. Objects of others are
//! untrusted JSON; nothing in them makes a source fail as a whole. [`combine`] puts the sources together.
//! Where sources disagree, all of them are right: a range too many takes destinations away from policies only where
//! the cluster itself claims them, a range too few sends traffic within the cluster to a gateway.

mod book;
mod calico;
mod cilium;
mod flannel;
mod found;
mod kubernetes;
mod nodes;
mod spiderpool;
mod strays;
#[cfg(test)]
mod tests;
mod weave;

pub use book::{Outcome, Reading, combine, verdict};
pub use calico::calico;
pub use cilium::{cilium_config, cilium_nodes, cilium_pools};
pub use flannel::flannel;
pub use found::{Found, parse};
pub use kubernetes::{api_server, controller_manager, kubeadm, service_ranges};
pub use nodes::{node_addresses, node_annotations, node_pod_ranges};
pub use spiderpool::{spider_coordinators, spider_pools};
pub use strays::strays;
pub use weave::weave;
