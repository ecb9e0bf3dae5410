//! One `EgressNode` a Kubernetes node: its overlay address out of the member's prefix, and where it is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::DeleteParams;
use kube::{Api, Client, Resource as _};
use serde_json::json;
use spillway_core::overlay::{MemberPrefix, assign, first_of_each_family};
use spillway_crds::address::{AddressPair, PrefixPair};
use spillway_crds::member::{EgressNode, EgressNodeSpec};

use crate::api::{self, Failure};
use crate::control::{self, Wake};
use crate::mirror::{Mirror, Objects};
use crate::plan::Store;

/// What must be written and deleted so that there is one object a node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Changes {
    write: BTreeMap<String, EgressNodeSpec>,
    delete: BTreeSet<String>,
    without: BTreeSet<String>,
    /// Nodes that get no address while some object can't be read: theirs might be that one's.
    held: BTreeSet<String>,
}

/// What tells this life of a node from those before.
pub(crate) fn incarnation(node: &Node) -> Option<String> {
    let boot = node.status.as_ref()?.node_info.as_ref()?.boot_id.as_str();
    let uid = node.metadata.uid.as_deref()?;
    Some(format!("{uid}/{boot}"))
}

/// Addresses of the given type, as the node's status lists them.
pub(crate) fn addresses<'a>(node: &'a Node, kind: &'a str) -> impl Iterator<Item = &'a str> {
    node.status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten())
        .filter(move |a| a.type_ == kind)
        .map(|a| a.address.as_str())
}

/// `recorded` holds the addresses given so far; it is ahead of `existing` until the watch has caught up. `unreadable` are
/// objects of which no version could be read.
fn changes(
    prefix: &MemberPrefix,
    nodes: &Objects<Node>,
    (existing, unreadable): (&Objects<EgressNode>, &BTreeSet<String>),
    recorded: &BTreeMap<String, AddressPair>,
) -> Changes {
    let doubtful = unreadable.iter().any(|name| nodes.contains_key(name));
    let held: BTreeSet<String> = nodes
        .keys()
        .filter(|name| doubtful && !recorded.contains_key(*name))
        .cloned()
        .collect();
    let nodes: Objects<Node> = nodes
        .iter()
        .filter(|(name, _)| !held.contains(*name))
        .map(|(name, node)| (name.clone(), node.clone()))
        .collect();
    let mut assignment = assign(prefix, recorded, nodes.keys().map(String::as_str));
    let write = nodes
        .iter()
        .map(|(name, node)| {
            let spec = EgressNodeSpec {
                overlay: assignment.nodes.remove(name).unwrap_or_default(),
                underlay: first_of_each_family(addresses(node, "InternalIP")),
                incarnation: incarnation(node),
            };
            (name.clone(), spec)
        })
        .filter(|(name, spec)| existing.get(name).is_none_or(|e| e.spec != *spec))
        .collect();
    let delete = existing
        .keys()
        .chain(unreadable)
        .filter(|name| !nodes.contains_key(*name) && !held.contains(*name))
        .cloned()
        .collect();
    Changes {
        write,
        delete,
        without: assignment.without,
        held,
    }
}

struct Controller {
    client: Client,
    store: Arc<Store>,
    nodes: Mirror<Node>,
    existing: Mirror<EgressNode>,
    recorded: BTreeMap<String, AddressPair>,
    complained: BTreeSet<String>,
    held: BTreeSet<String>,
    bad_prefix: Option<PrefixPair>,
}

/// Keeps the objects for ever.
pub(crate) async fn run(
    client: Client,
    store: Arc<Store>,
    nodes: Mirror<Node>,
    existing: Mirror<EgressNode>,
) {
    let wake = Wake::on([store.changes(), nodes.changes(), existing.changes()]);
    let controller = tokio::sync::Mutex::new(Controller {
        client,
        store,
        nodes,
        existing,
        recorded: BTreeMap::new(),
        complained: BTreeSet::new(),
        held: BTreeSet::new(),
        bad_prefix: None,
    });
    control::run("overlay addresses", wake, || async {
        controller.lock().await.reconcile().await
    })
    .await;
}

impl Controller {
    async fn reconcile(&mut self) -> Result<(), Failure> {
        if !self.nodes.synced() || !self.existing.synced() {
            return Ok(());
        }
        let contents = self.store.contents();
        let Some(member) = contents.member() else {
            return Ok(());
        };
        let prefix = match MemberPrefix::try_from(&member.overlay) {
            Ok(prefix) => prefix,
            Err(error) => {
                if self.bad_prefix.as_ref() != Some(&member.overlay) {
                    tracing::error!(%error, "the hub's plan gives no usable overlay; nodes keep their addresses");
                    self.bad_prefix = Some(member.overlay.clone());
                }
                return Ok(());
            }
        };
        let existing = self.existing.objects();
        for (name, object) in &existing {
            self.recorded
                .entry(name.clone())
                .or_insert_with(|| object.spec.overlay.clone());
        }
        let unreadable = self.existing.unreadable();
        let seen = (&existing, &unreadable);
        let changes = changes(&prefix, &self.nodes.objects(), seen, &self.recorded);
        if !changes.held.is_empty() && changes.held != self.held {
            tracing::error!(nodes = ?changes.held, ?unreadable, "these nodes get no overlay address while the EgressNodes \
                that can't be read are there: mend or delete those");
        }
        self.held.clone_from(&changes.held);
        for node in changes.without.difference(&self.complained) {
            tracing::error!(
                node,
                capacity = prefix.capacity(),
                "no overlay address is left for this node"
            );
        }
        self.complained = changes.without;
        let api = Api::<EgressNode>::all(self.client.clone());
        // Deletions first: a node that takes over an address must not be there beside its former owner.
        for name in &changes.delete {
            let what = format!("deleting EgressNode {name}");
            api::call_delete(&what, api.delete(name, &DeleteParams::default())).await?;
            self.recorded.remove(name);
            tracing::info!(node = name, "node is gone, its overlay address is free");
        }
        for (name, spec) in &changes.write {
            let object = json!({
                "apiVersion": EgressNode::api_version(&()),
                "kind": EgressNode::kind(&()),
                "metadata": { "name": name },
                "spec": spec,
            });
            // Before the write: where only its answer is lost, the address is taken all the same.
            self.recorded.insert(name.clone(), spec.overlay.clone());
            api::apply(&api, &format!("writing EgressNode {name}"), name, &object).await?;
            tracing::info!(
                node = name,
                overlay = spec.overlay.ipv4.as_deref(),
                overlay6 = spec.overlay.ipv6.as_deref(),
                underlay = spec.underlay.ipv4.as_deref(),
                underlay6 = spec.underlay.ipv6.as_deref(),
                "node recorded"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus, NodeSystemInfo};

    use super::*;

    fn node(name: &str, internal: &[&str]) -> (String, Arc<Node>) {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        let address = |a: &&str| NodeAddress {
            address: (*a).into(),
            type_: "InternalIP".into(),
        };
        node.status = Some(NodeStatus {
            addresses: Some(internal.iter().map(address).collect()),
            ..NodeStatus::default()
        });
        (name.into(), Arc::new(node))
    }

    fn prefix() -> MemberPrefix {
        MemberPrefix::try_from(&PrefixPair {
            ipv4: Some("100.64.4.0/22".into()),
            ipv6: None,
        })
        .expect("valid")
    }

    fn recorded(existing: &Objects<EgressNode>) -> BTreeMap<String, AddressPair> {
        let entry = |(name, e): (&String, &Arc<EgressNode>)| (name.clone(), e.spec.overlay.clone());
        existing.iter().map(entry).collect()
    }

    fn looked(nodes: &Objects<Node>, existing: &Objects<EgressNode>) -> Changes {
        changes(
            &prefix(),
            nodes,
            (existing, &BTreeSet::new()),
            &recorded(existing),
        )
    }

    #[test]
    fn a_second_look_writes_nothing_and_gone_nodes_are_deleted() {
        let mut nodes: Objects<Node> = [node("a", &["10.0.0.1"]), node("b", &["10.0.0.2"])].into();
        let first = looked(&nodes, &Objects::new());
        assert_eq!(first.write["b"].overlay.ipv4.as_deref(), Some("100.64.4.2"));
        assert_eq!(first.write["b"].underlay.ipv4.as_deref(), Some("10.0.0.2"));
        let existing: Objects<EgressNode> = first
            .write
            .into_iter()
            .map(|(name, spec)| (name.clone(), Arc::new(EgressNode::new(&name, spec))))
            .collect();
        assert_eq!(looked(&nodes, &existing), Changes::default());

        nodes.remove("a");
        let after = looked(&nodes, &existing);
        assert_eq!(after.delete, BTreeSet::from(["a".to_owned()]));
        assert!(after.write.is_empty(), "b keeps its address");
    }

    #[test]
    fn a_new_address_of_a_node_is_written_without_touching_its_overlay() {
        let nodes: Objects<Node> = [node("a", &["10.0.0.1"])].into();
        let spec = looked(&nodes, &Objects::new()).write.remove("a").expect("new");
        let existing: Objects<EgressNode> =
            [("a".to_owned(), Arc::new(EgressNode::new("a", spec.clone())))].into();
        let nodes: Objects<Node> = [node("a", &["10.0.0.9"])].into();
        let after = looked(&nodes, &existing).write.remove("a").expect("changed");
        assert_eq!(after.overlay, spec.overlay);
        assert_eq!(after.underlay.ipv4.as_deref(), Some("10.0.0.9"));
    }

    #[test]
    fn an_object_that_cant_be_read_keeps_its_address_from_others() {
        let nodes: Objects<Node> = [node("a", &[]), node("b", &[]), node("c", &[])].into();
        let known = BTreeMap::from([("c".to_owned(), prefix().address(3))]);
        let look = |nodes, unreadable: &[&str]| {
            let unreadable = unreadable.iter().map(|n| (*n).to_owned()).collect();
            changes(&prefix(), nodes, (&Objects::new(), &unreadable), &known)
        };
        let doubtful = look(&nodes, &["a"]);
        assert_eq!(
            doubtful.write.keys().collect::<Vec<_>>(),
            ["c"],
            "whose address is known"
        );
        assert_eq!(doubtful.held, ["a".to_owned(), "b".to_owned()].into());
        assert!(doubtful.delete.is_empty() && doubtful.without.is_empty());
        let gone = look(&nodes, &["d"]);
        assert_eq!(gone.delete, ["d".to_owned()].into(), "its node is gone");
        assert_eq!((gone.write.len(), gone.held.len()), (3, 0));
    }

    #[test]
    fn another_life_of_a_node_is_another_generation() {
        let (name, first) = node("a", &["10.0.0.1"]);
        let life = |uid: &str, boot: &str| {
            let mut node = Node::clone(&first);
            node.metadata.uid = Some(uid.into());
            let info = NodeSystemInfo {
                boot_id: boot.into(),
                ..NodeSystemInfo::default()
            };
            node.status.as_mut().expect("a status").node_info = Some(info);
            Objects::from([(name.clone(), Arc::new(node))])
        };
        let spec = looked(&life("u", "1"), &Objects::new())
            .write
            .remove("a")
            .expect("new");
        assert_eq!(spec.incarnation.as_deref(), Some("u/1"));
        let existing: Objects<EgressNode> = [("a".to_owned(), Arc::new(EgressNode::new("a", spec)))].into();
        assert!(looked(&life("u", "1"), &existing).write.is_empty());
        assert_eq!(looked(&life("u", "2"), &existing).write.len(), 1, "rebooted");
        assert_eq!(
            looked(&life("v", "1"), &existing).write.len(),
            1,
            "registered anew"
        );
    }

    #[test]
    fn an_address_just_given_stays_while_the_watch_lags() {
        let nodes: Objects<Node> = [node("b", &[])].into();
        let first = looked(&nodes, &Objects::new());
        let given = BTreeMap::from([("b".to_owned(), first.write["b"].overlay.clone())]);
        let nodes: Objects<Node> = [node("a", &[]), node("b", &[])].into();
        let second = changes(&prefix(), &nodes, (&Objects::new(), &BTreeSet::new()), &given);
        assert_eq!(second.write["b"], first.write["b"]);
        assert_ne!(second.write["a"].overlay, first.write["b"].overlay);
    }
}
