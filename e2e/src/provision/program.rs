//! Which Go modules there are, how each is built, and under which key the result is cached.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::version::{KubernetesVersion, required_version};

/// A Go module of `go/` with all that decides what its programs become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoModule {
    /// Folder of go.mod.
    pub(crate) dir: PathBuf,
    /// Its name in the cache and in messages.
    pub(crate) name: String,
    /// For `go build -ldflags`.
    pub(crate) ldflags: String,
    /// For `go build -tags`, comma separated; may be empty.
    pub(crate) tags: &'static str,
    /// File names as `go build` writes them, and as the arena calls them.
    pub(crate) renames: &'static [(&'static str, &'static str)],
    /// 16 hex digits over go.mod, go.sum and the flags.
    pub(crate) key: String,
}

impl GoModule {
    /// The modules that every arena needs.
    pub(crate) fn common(go_dir: &Path) -> anyhow::Result<Vec<Self>> {
        Ok(vec![
            Self::new(go_dir.join("etcd"), "", "", &[("server", "etcd")])?,
            Self::versioned(
                go_dir.join("containerd"),
                "github.com/containerd/containerd/v2",
                |version| {
                    let version = version.trim_start_matches('v');
                    format!("-X github.com/containerd/containerd/v2/version.Version={version}")
                },
                "no_aufs,no_btrfs,no_devmapper,no_zfs",
            )?,
            Self::versioned(
                go_dir.join("helm"),
                "helm.sh/helm/v4",
                |version| format!("-X helm.sh/helm/v4/internal/version.version={version}"),
                "",
            )?,
        ])
    }

    /// The enforcer of NetworkPolicy, which few arenas need.
    pub(crate) fn kube_router(go_dir: &Path) -> anyhow::Result<Self> {
        Self::versioned(
            go_dir.join("kube-router"),
            "github.com/cloudnativelabs/kube-router",
            |version| format!("-X github.com/cloudnativelabs/kube-router/pkg/version.Version={version}"),
            "",
        )
    }

    /// kind, as published.
    pub(crate) fn kind(go_dir: &Path) -> anyhow::Result<Self> {
        Self::new(go_dir.join("kind"), "", "", &[])
    }

    /// kubeadm of the default Kubernetes version, which only kind's nodes need.
    pub(crate) fn kubeadm(go_dir: &Path) -> anyhow::Result<Self> {
        let flags = kubernetes_flags(KubernetesVersion::DEFAULT);
        Self::new(go_dir.join("kubeadm"), &flags, "", &[])
    }

    /// The module of one Kubernetes version.
    pub(crate) fn kubernetes(go_dir: &Path, version: KubernetesVersion) -> anyhow::Result<Self> {
        Self::new(version.module(go_dir)?, &kubernetes_flags(version), "", &[])
    }

    fn versioned(
        dir: PathBuf,
        module: &str,
        ldflags: impl Fn(&str) -> String,
        tags: &'static str,
    ) -> anyhow::Result<Self> {
        let file = dir.join("go.mod");
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let version = required_version(&text, module)
            .with_context(|| format!("{} does not require {module}", file.display()))?;
        Self::new(dir, &ldflags(version), tags, &[])
    }

    fn new(
        dir: PathBuf,
        ldflags: &str,
        tags: &'static str,
        renames: &'static [(&'static str, &'static str)],
    ) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = dir.join(file);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (go_mod, go_sum) = (read("go.mod")?, read("go.sum")?);
        let name = dir
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let ldflags = format!("-s -w {ldflags}").trim_end().to_owned();
        let mut module = Self {
            dir,
            name,
            ldflags,
            tags,
            renames,
            key: String::new(),
        };
        module.key = key(&module.flags(), &go_mod, &go_sum);
        Ok(module)
    }

    /// The flags of `go build` that shape the programs.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = vec!["-trimpath".to_owned(), format!("-ldflags={}", self.ldflags)];
        if !self.tags.is_empty() {
            flags.push(format!("-tags={}", self.tags));
        }
        flags
    }

    /// The folder's name in the cache.
    pub(crate) fn cache_name(&self) -> String {
        format!("{}-{}", self.name, self.key)
    }
}

/// Without these the API server says v0.0.0-master and refuses its own kubelet.
fn kubernetes_flags(version: KubernetesVersion) -> String {
    const PACKAGE: &str = "k8s.io/component-base/version";
    let KubernetesVersion { major, minor, .. } = version;
    format!(
        "-X {PACKAGE}.gitVersion={version} -X {PACKAGE}.gitMajor={major} -X {PACKAGE}.gitMinor={minor} \
         -X {PACKAGE}.gitTreeState=clean"
    )
}

/// The cache key of a module: any change of its pins or flags makes another one.
fn key(flags: &[String], go_mod: &[u8], go_sum: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(flags.join(" "));
    hash.update("\n");
    hash.update(go_mod);
    hash.update(go_sum);
    hex::encode(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::go_dir;

    #[test]
    fn a_key_follows_flags_pins_and_sums() {
        let flags = |text: &str| vec![text.to_owned()];
        let base = key(&flags("-a"), b"mod", b"sum");
        assert_eq!(base.len(), 16);
        assert_eq!(base, key(&flags("-a"), b"mod", b"sum"));
        assert_ne!(base, key(&flags("-b"), b"mod", b"sum"));
        assert_ne!(base, key(&flags("-a"), b"mod2", b"sum"));
        assert_ne!(base, key(&flags("-a"), b"mod", b"sum2"));
    }

    #[test]
    fn versions_in_flags_come_from_the_pins() {
        let modules = GoModule::common(&go_dir()).unwrap();
        let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["etcd", "containerd", "helm"]);
        assert!(
            modules[1].ldflags.contains("version.Version=2."),
            "{}",
            modules[1].ldflags
        );
        assert!(
            modules[2].ldflags.contains("version.version=v4."),
            "{}",
            modules[2].ldflags
        );
    }

    #[test]
    fn the_enforcer_is_pinned_but_no_part_of_every_arena() {
        let module = GoModule::kube_router(&go_dir()).unwrap();
        assert!(
            module.ldflags.contains("version.Version=v1."),
            "{}",
            module.ldflags
        );
        let common = GoModule::common(&go_dir()).unwrap();
        assert!(common.iter().all(|other| other.name != module.name));
    }

    /// kubeadm is apart from the other programs, so that who has those needn't build them anew for it.
    #[test]
    fn kubeadm_is_of_the_same_version_as_the_rest() {
        let pins = |module: GoModule| std::fs::read_to_string(module.dir.join("go.mod")).unwrap();
        let rest = pins(GoModule::kubernetes(&go_dir(), KubernetesVersion::DEFAULT).unwrap());
        let kubeadm = pins(GoModule::kubeadm(&go_dir()).unwrap());
        let of = |text: &str| required_version(text, "k8s.io/kubernetes").map(str::to_owned);
        assert_eq!(of(&kubeadm), of(&rest));
        assert!(
            GoModule::kind(&go_dir())
                .unwrap()
                .cache_name()
                .starts_with("kind-")
        );
    }

    #[test]
    fn kubernetes_programs_know_their_version() {
        let module = GoModule::kubernetes(&go_dir(), KubernetesVersion::DEFAULT).unwrap();
        assert!(
            module.ldflags.contains("gitVersion=v1.36.3"),
            "{}",
            module.ldflags
        );
        assert!(
            module.cache_name().starts_with("kubernetes-"),
            "{}",
            module.cache_name()
        );
    }

    /// What is named here is what the arena starts; a missing one would show only after minutes of building.
    #[test]
    fn every_version_builds_every_program() {
        let programs = [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ];
        let versions = KubernetesVersion::available().unwrap();
        assert!(versions.len() > 1, "{versions:?}");
        for version in versions {
            let module = GoModule::kubernetes(&go_dir(), version).unwrap();
            assert!(
                module.ldflags.contains(&format!("gitVersion={version}")),
                "{}",
                module.ldflags
            );
            let pins = std::fs::read_to_string(module.dir.join("go.mod")).unwrap();
            for program in programs {
                assert!(
                    pins.contains(&format!("k8s.io/kubernetes/cmd/{program}\n")),
                    "{version} builds no {program}"
                );
            }
        }
    }
}
