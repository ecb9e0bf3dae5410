//! Brings everything that an arena runs onto this machine: Debian packages, Kubernetes, etcd, containerd and Helm.
//!
//! ```text
//! Toolbox ── debian    system programs (runc, CNI plugins, nft, …)
//!         ── program   the Go modules of go/, their flags and cache keys
//!             └ build  one module → CACHE/bin/NAME-KEY/   (golang: the toolchain · process, progress · lock)
//!         ── enforcer  kube-router, only where an arena asks for it
//!         ── kind      kind, kubeadm and a Docker, only for arenas of kind
//!         ── sysctl    limits of the kernel that many kubelets reach
//! ```
//! The cache stands outside the checkout, in `$XDG_CACHE_HOME/spillway` or `~/.cache/spillway`: a fresh clone starts at once.

mod build;
mod debian;
mod golang;
mod kind;
mod lock;
pub(crate) mod process;
mod program;
pub(crate) mod progress;
mod sysctl;
mod version;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub use kind::{KindTools, OwnDocker};
pub(crate) use lock::Lock;
use program::GoModule;
use progress::say;
pub use version::KubernetesVersion;

/// Where Debian keeps programs, in the order of preference.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The programs of an arena. All of them exist once [`Toolbox::ensure`] returned.
#[derive(Clone, Debug)]
pub struct Toolbox {
    cache: PathBuf,
    /// Folders of the Go programs that don't depend on the Kubernetes version.
    common: Vec<PathBuf>,
    kubernetes: BTreeMap<KubernetesVersion, PathBuf>,
}

impl Toolbox {
    /// Installs and builds whatever is missing and says what it does; one line when there is nothing to do.
    /// An empty list means [`KubernetesVersion::DEFAULT`]. Blocks, for minutes on a fresh machine: from async code
    /// call it in `spawn_blocking`. Several processes may call it at once.
    ///
    /// # Errors
    /// When a package can't be installed or a build fails, with the end of its output and what to do.
    pub fn ensure(kubernetes: &[KubernetesVersion]) -> anyhow::Result<Self> {
        let default = [KubernetesVersion::DEFAULT];
        let versions = if kubernetes.is_empty() {
            &default[..]
        } else {
            kubernetes
        };
        let cache = cache_root()?;
        let go_dir = go_dir();

        let mut worked = debian::ensure(debian::PACKAGES, &cache.join("locks/debian"))?;
        worked |= sysctl::ensure()?;
        let mut common = Vec::new();
        for module in GoModule::common(&go_dir)? {
            worked |= build::ensure(&cache, &module, &module.name)?;
            common.push(build::folder(&cache, &module));
        }
        let mut built = BTreeMap::new();
        for version in versions {
            let module = GoModule::kubernetes(&go_dir, *version)?;
            worked |= build::ensure(&cache, &module, &format!("Kubernetes {version}"))?;
            built.insert(*version, build::folder(&cache, &module));
        }
        say(&format!(
            "{} in {}",
            if worked { "ready" } else { "everything is there" },
            cache.display()
        ));
        Ok(Self {
            cache,
            common,
            kubernetes: built,
        })
    }

    /// The path of a Kubernetes program: kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet,
    /// kubectl. `version` is one of those given to [`Toolbox::ensure`].
    ///
    /// # Panics
    /// When it isn't: nothing was built for it.
    pub fn kubernetes(&self, version: &KubernetesVersion, name: &str) -> PathBuf {
        self.kubernetes
            .get(version)
            .unwrap_or_else(|| panic!("the toolbox was not asked for Kubernetes {version}"))
            .join(name)
    }

    /// The path of any other program: etcd, containerd, containerd-shim-runc-v2, ctr, helm, and those of Debian
    /// (runc, busybox, nft, ip, …).
    pub fn bin(&self, name: &str) -> PathBuf {
        self.common
            .iter()
            .map(PathBuf::as_path)
            .chain(SYSTEM_FOLDERS.iter().map(Path::new))
            .map(|folder| folder.join(name))
            .find(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from(name))
    }

    /// The path of kube-router. Built when it is first asked for, in about two minutes on two cores (50 MB).
    /// Blocks meanwhile.
    ///
    /// # Errors
    /// When it can't be built, with the end of the build's output and what to do.
    pub fn kube_router(&self) -> anyhow::Result<PathBuf> {
        let module = GoModule::kube_router(&go_dir())?;
        build::ensure(&self.cache, &module, &module.name)?;
        Ok(build::folder(&self.cache, &module).join("kube-router"))
    }

    /// The folder of the standard CNI plugins.
    pub fn cni_dir(&self) -> PathBuf {
        PathBuf::from("/usr/lib/cni")
    }

    /// The kubectl of the newest Kubernetes version at hand.
    pub fn kubectl(&self) -> PathBuf {
        self.kubernetes
            .values()
            .next_back()
            .map_or_else(|| PathBuf::from("kubectl"), |folder| folder.join("kubectl"))
    }

    /// The cache's root; subfolders belong to their makers (`bin`, `images`, `locks`, `logs`).
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}

/// The folder of the Go modules in the checkout that this program was built from.
pub(crate) fn go_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("go")
}

fn cache_root() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: the arena needs a place to keep its programs")?;
    Ok(base.join("spillway"))
}
