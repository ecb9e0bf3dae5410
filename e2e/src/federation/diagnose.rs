//! What the federation looked like when a scenario failed.

use std::path::Path;

use spillway_crds::NAMESPACE;

use super::Federation;

impl Federation {
    /// Writes objects, daemons' logs and the nodes' kernels below `target/e2e/SCENARIO`; never fails.
    pub async fn diagnose(&self, scenario: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/e2e")
            .join(scenario.replace("::", "-"));
        if std::fs::create_dir_all(&dir).is_err() {
            return;
        }
        for (name, cluster) in &self.clusters {
            let kinds = "pods,nodes,leases,members,egressgateways,federatedegresspolicies,federatedclusteregresspolicies";
            let member_kinds = "hubconnections,egressplans,plannedmembers,plannedpolicies,plannedgateways,plannedpeers,egressnodes,clusternetworks";
            let kinds = if name == "hub" { kinds } else { member_kinds };
            for (what, args) in [
                ("objects", vec!["get", kinds, "-A", "-o", "yaml"]),
                ("pods", vec!["get", "pods", "-A", "-o", "wide"]),
                ("events", vec!["get", "events", "-A"]),
                (
                    "logs",
                    vec![
                        "logs",
                        "-n",
                        NAMESPACE,
                        "-l",
                        "app.kubernetes.io/part-of=spillway",
                        "--tail=300",
                        "--prefix",
                        "--all-containers",
                    ],
                ),
            ] {
                let text = cluster
                    .kubectl(&args)
                    .await
                    .unwrap_or_else(|err| format!("{err:#}"));
                let _best_effort = std::fs::write(dir.join(format!("{name}-{what}.txt")), text);
            }
            for node in cluster.nodes().unwrap_or_default() {
                let text = self
                    .kernel_of(node.name())
                    .await
                    .unwrap_or_else(|err| format!("{err:#}"));
                let _best_effort = std::fs::write(dir.join(format!("{}-kernel.txt", node.name())), text);
            }
        }
        eprintln!("    what it looked like: {}", dir.display());
    }
}
