//! The member's agents by other ways than the join command: Helm and kustomize.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use spillway_crds::NAMESPACE;

use super::Federation;

const RELEASE: &str = "spillway-member";

/// `deploy/` of the checkout.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

impl Federation {
    /// `helm install` of the member's chart, with the arena's images, and the label that its notes ask for.
    pub async fn helm_install(&self, member: &str) -> Result<()> {
        let cluster = self.cluster(member)?;
        let chart = deploy("charts/spillway-member").to_string_lossy().into_owned();
        cluster
            .helm(&[
                "install",
                RELEASE,
                &chart,
                "--namespace",
                NAMESPACE,
                "--create-namespace",
                "--set",
                "image.tag=dev",
            ])
            .await?;
        cluster
            .kubectl(&[
                "label",
                "namespace",
                NAMESPACE,
                "pod-security.kubernetes.io/enforce=privileged",
            ])
            .await
            .map(drop)
    }

    /// Releases that Helm knows in the member.
    pub async fn helm_releases(&self, member: &str) -> Result<String> {
        self.cluster(member)?
            .helm(&["list", "--all-namespaces", "--short"])
            .await
            .map(|text| text.trim().to_owned())
    }

    /// `kubectl apply -k` of an overlay that takes the arena's images.
    pub async fn kustomize_apply(&self, member: &str) -> Result<()> {
        // kustomize takes bases by relative paths only.
        let target = deploy("../target/e2e");
        std::fs::create_dir_all(&target)?;
        let dir = tempfile::Builder::new()
            .prefix("overlay-")
            .tempdir_in(target)
            .context("a folder for the overlay")?;
        let overlay = "
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../../deploy/kustomize/member]
images:
- {name: docker.io/spillway/member-agent, newTag: dev}
- {name: docker.io/spillway/node-agent, newTag: dev}
";
        std::fs::write(dir.path().join("kustomization.yaml"), overlay)?;
        let path = dir.path().to_string_lossy().into_owned();
        self.cluster(member)?
            .kubectl(&["apply", "--server-side", "-k", &path])
            .await
            .map(drop)
    }
}
