//! Objects of CNIs, which this cluster may have or not, now or later.
//!
//! A kind that comes with a CNI is watched only while it is served: asking for it would be polling. Whether it is
//! served is told by one object of Kubernetes that is watched by name: its CustomResourceDefinition, or the
//! APIService where another server has it.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use serde_json::Value;
use spillway_core::ranges::{Found, Reading};
use tokio::sync::watch;

use crate::mirror::{Keeper, Mirror, Objects, Served, State, Trouble, mirror};
use crate::tasks::Tasks;

type Parse = fn(&[Value]) -> Found;

/// One source of ranges.
#[derive(Clone)]
pub(crate) struct Foreign {
    /// Its name in the ClusterNetwork.
    pub(crate) name: &'static str,
    objects: Mirror<DynamicObject>,
    parse: Parse,
}

/// A kind that comes with a CNI.
struct CniKind {
    /// `plural.group`, which also is the name of its definition.
    name: &'static str,
    kind: &'static str,
    /// Versions that can be read, best first.
    versions: &'static [&'static str],
    /// APIService to look at instead of the definition.
    api_service: Option<&'static str>,
    parse: Parse,
}

static KINDS: [CniKind; 6] = [
    CniKind {
        name: "ippools.crd.projectcalico.org",
        kind: "IPPool",
        versions: &["v1"],
        api_service: None,
        parse: |o| spillway_core::ranges::calico(o),
    },
    CniKind {
        name: "ippools.projectcalico.org",
        kind: "IPPool",
        versions: &["v3"],
        api_service: Some("v3.projectcalico.org"),
        parse: |o| spillway_core::ranges::calico(o),
    },
    CniKind {
        name: "spiderippools.spiderpool.spidernet.io",
        kind: "SpiderIPPool",
        versions: &["v2beta1"],
        api_service: None,
        parse: |o| spillway_core::ranges::spider_pools(o),
    },
    CniKind {
        name: "spidercoordinators.spiderpool.spidernet.io",
        kind: "SpiderCoordinator",
        versions: &["v2beta1"],
        api_service: None,
        parse: |o| spillway_core::ranges::spider_coordinators(o),
    },
    CniKind {
        name: "ciliumnodes.cilium.io",
        kind: "CiliumNode",
        versions: &["v2"],
        api_service: None,
        parse: |o| spillway_core::ranges::cilium_nodes(o),
    },
    CniKind {
        name: "ciliumpodippools.cilium.io",
        kind: "CiliumPodIPPool",
        versions: &["v2", "v2alpha1"],
        api_service: None,
        parse: |o| spillway_core::ranges::cilium_pools(o),
    },
];

/// Objects of Kubernetes' own kinds: source, kind, namespace, what selects them.
const BUILT_IN: [(&str, &str, &str, Select, Parse); 6] = [
    (
        "configmaps/kube-system/kubeadm-config",
        "ConfigMap",
        "kube-system",
        Select::Name("kubeadm-config"),
        |o| spillway_core::ranges::kubeadm(o),
    ),
    (
        "configmaps/kube-system/cilium-config",
        "ConfigMap",
        "kube-system",
        Select::Name("cilium-config"),
        |o| spillway_core::ranges::cilium_config(o),
    ),
    (
        "configmaps/kube-system/kube-flannel-cfg",
        "ConfigMap",
        "kube-system",
        Select::Name("kube-flannel-cfg"),
        |o| spillway_core::ranges::flannel(o),
    ),
    (
        "configmaps/kube-flannel/kube-flannel-cfg",
        "ConfigMap",
        "kube-flannel",
        Select::Name("kube-flannel-cfg"),
        |o| spillway_core::ranges::flannel(o),
    ),
    (
        "daemonsets/kube-system/weave-net",
        "DaemonSet",
        "kube-system",
        Select::Name("weave-net"),
        |o| spillway_core::ranges::weave(o),
    ),
    (
        "pods/kube-system/kube-controller-manager",
        "Pod",
        "kube-system",
        Select::Label("component=kube-controller-manager"),
        |o| spillway_core::ranges::controller_manager(o),
    ),
];

#[derive(Clone, Copy)]
enum Select {
    Name(&'static str),
    Label(&'static str),
}

/// Starts to watch all sources.
pub(crate) fn start(client: &Client, tasks: &mut Tasks) -> Vec<Foreign> {
    let mut all = Vec::new();
    for (name, kind, namespace, select, parse) in BUILT_IN {
        let group = if kind == "DaemonSet" { "apps" } else { "" };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        let select = match select {
            Select::Name(name) => Config::default().fields(&format!("metadata.name={name}")),
            Select::Label(label) => Config::default().labels(label),
        };
        let api = Api::namespaced_with(client.clone(), namespace, &resource);
        let (objects, keeper) = mirror(name, api, select);
        tasks.spawn(name, keeper.patient().run());
        all.push(Foreign { name, objects, parse });
    }
    for kind in &KINDS {
        let (objects, keeper) = mirror(kind.name, kind.api(client, kind.versions[0]), Config::default());
        all.push(Foreign {
            name: kind.name,
            objects,
            parse: kind.parse,
        });
        let (sentinel, watcher) = kind.sentinel(client);
        tasks.spawn(kind.name, watcher.patient().run());
        let (served, told) = watch::channel(Served::Unknown(None));
        tasks.spawn(kind.name, tell(client.clone(), kind, sentinel, served));
        tasks.spawn(kind.name, keeper.patient().run_while(told));
    }
    all
}

/// Says, whenever it changes, whether and by which version `kind` is served.
async fn tell(
    client: Client,
    kind: &'static CniKind,
    sentinel: Mirror<DynamicObject>,
    served: watch::Sender<Served<DynamicObject>>,
) {
    let mut changes = sentinel.changes();
    let mut last = None;
    loop {
        changes.mark_unchanged();
        let version = match sentinel.state() {
            // Kubernetes itself serves the sentinels' kinds, but not every API server aggregates others.
            State::Absent => Ok(None),
            State::Synced => kind
                .version(sentinel.objects().values().next().map(|o| &o.data))
                .map_err(Some),
            State::Unread => Err(sentinel.trouble()),
        };
        if last.as_ref() != Some(&version) {
            served.send_replace(match version.clone() {
                Ok(Some(version)) => Served::Yes(Box::new(kind.api(&client, version))),
                Ok(None) => Served::No,
                Err(trouble) => Served::Unknown(trouble),
            });
            last = Some(version);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl CniKind {
    fn api(&self, client: &Client, version: &str) -> Api<DeserializeGuard<DynamicObject>> {
        let (plural, group) = self.name.split_once('.').unwrap_or((self.name, ""));
        let gvk = GroupVersionKind::gvk(group, version, self.kind);
        Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural))
    }

    /// The watch of the one object that tells whether the kind is served.
    fn sentinel(&self, client: &Client) -> (Mirror<DynamicObject>, Keeper<DynamicObject>) {
        let (gvk, name) = match self.api_service {
            Some(name) => (
                GroupVersionKind::gvk("apiregistration.k8s.io", "v1", "APIService"),
                name,
            ),
            None => (
                GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
                self.name,
            ),
        };
        let api = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
        let select = Config::default().fields(&format!("metadata.name={name}"));
        mirror(self.name, api, select)
    }

    /// The version to read, if `sentinel` says that one is served. Another server that doesn't answer has its objects
    /// all the same.
    fn version(&self, sentinel: Option<&Value>) -> Result<Option<&'static str>, Trouble> {
        let Some(sentinel) = sentinel else {
            return Ok(None);
        };
        let ready = if self.api_service.is_some() {
            "Available"
        } else {
            "Established"
        };
        let mut conditions = sentinel["status"]["conditions"].as_array().into_iter().flatten();
        if !conditions.any(|c| c["type"] == ready && c["status"] == "True") {
            return match self.api_service {
                None => Ok(None),
                Some(name) => Err(Trouble {
                    forbidden: false,
                    text: format!("APIService {name} isn't Available"),
                }),
            };
        }
        let serves = |version: &str| {
            if self.api_service.is_some() {
                return sentinel["spec"]["version"] == version;
            }
            let mut versions = sentinel["spec"]["versions"].as_array().into_iter().flatten();
            versions.any(|v| v["name"] == version && v["served"] == true)
        };
        Ok(self.versions.iter().copied().find(|v| serves(v)))
    }
}

impl Foreign {
    /// Says when something changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.objects.changes()
    }

    /// What the source gives now.
    pub(super) fn reading(&self) -> Reading {
        reading(&self.objects, |objects| {
            // An object that was read as JSON is JSON again.
            let values: Vec<Value> = objects
                .values()
                .filter_map(|o| serde_json::to_value(&**o).ok())
                .collect();
            (self.parse)(&values)
        })
    }
}

/// What a copy gives, read by `parse`.
pub(super) fn reading<K>(copy: &Mirror<K>, parse: impl FnOnce(&Objects<K>) -> Found) -> Reading {
    let trouble = copy.trouble();
    match (copy.state(), trouble) {
        (_, Some(t)) if t.forbidden => Reading::Forbidden(t.text),
        (State::Unread, Some(t)) => Reading::Failed(t.text),
        (State::Unread, None) => Reading::Pending,
        (State::Absent, _) => Reading::NotThere,
        (State::Synced, _) => {
            let objects = copy.objects();
            if objects.is_empty() {
                Reading::NotThere
            } else {
                Reading::Read(parse(&objects))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(name: &str) -> &'static CniKind {
        KINDS.iter().find(|k| k.name == name).expect("a kind")
    }

    #[test]
    fn a_definition_is_read_by_its_best_served_version_once_it_is_established() {
        let pools = kind("ciliumpodippools.cilium.io");
        let definition = |established: &str, versions: Value| {
            json!({"spec": {"versions": versions},
                   "status": {"conditions": [{"type": "Established", "status": established}]}})
        };
        let old = json!([{"name": "v2alpha1", "served": true}]);
        let both = json!([{"name": "v2alpha1", "served": true}, {"name": "v2", "served": true}]);
        let unserved = json!([{"name": "v2alpha1", "served": true}, {"name": "v2", "served": false}]);
        let version = |sentinel: Value| pools.version(Some(&sentinel)).expect("known");
        assert_eq!(version(definition("True", old.clone())), Some("v2alpha1"));
        assert_eq!(version(definition("True", both)), Some("v2"));
        assert_eq!(version(definition("True", unserved)), Some("v2alpha1"));
        assert_eq!(version(definition("False", old)), None);
        assert_eq!(
            version(definition("True", json!([{"name": "v9", "served": true}]))),
            None
        );
        assert_eq!(version(json!({"spec": 1})), None);
        assert_eq!(pools.version(None), Ok(None));
    }

    #[test]
    fn an_aggregated_api_counts_while_it_is_available() {
        let pools = kind("ippools.projectcalico.org");
        let service = |available: &str| {
            json!({"spec": {"group": "projectcalico.org", "version": "v3"},
                   "status": {"conditions": [{"type": "Available", "status": available}]}})
        };
        assert_eq!(pools.version(Some(&service("True"))), Ok(Some("v3")));
        let trouble = pools.version(Some(&service("False"))).expect_err("it isn't gone");
        assert!(
            !trouble.forbidden && trouble.text.contains("v3.projectcalico.org"),
            "{trouble:?}"
        );
        assert_eq!(pools.version(None), Ok(None));
    }
}
