//! What the kind provider needs beside the toolbox.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use super::program::GoModule;
use super::progress::say;
use super::{Toolbox, build, debian, go_dir, golang::Go};

/// kind and all it works with. Nothing of it is installed: it is in the cache.
#[derive(Clone, Debug)]
pub struct KindTools {
    /// The kind program.
    pub kind: PathBuf,
    /// For a Docker of the arena's own.
    pub own: Option<OwnDocker>,
}

/// What a Docker of the arena's own and its node image are made of.
#[derive(Clone, Debug)]
pub struct OwnDocker {
    /// The kubeadm program.
    pub kubeadm: PathBuf,
    /// kind's sources, with the files of its node image; their folder is named by kind's version.
    pub kind_source: PathBuf,
    /// Root of unpacked Debian packages: Docker and its containerd, debootstrap.
    pub debian: PathBuf,
}

impl OwnDocker {
    /// Folder of docker and containerd.
    pub fn programs(&self) -> PathBuf {
        self.debian.join("usr/bin")
    }

    /// Folder of dockerd and its helpers.
    pub fn helpers(&self) -> PathBuf {
        self.debian.join("usr/sbin")
    }
}

/// Debian packages that are unpacked, not installed: to install docker.io would start it, and change this machine's
/// firewall.
const PACKAGES: &[&str] = &["containerd", "debootstrap", "docker.io"];

impl Toolbox {
    /// kind, and with `own` all that a Docker of the arena's own takes. Built and fetched when first asked for. Blocks
    /// meanwhile, for some minutes.
    ///
    /// # Errors
    /// When something can't be built or fetched, with the end of the messages and what to do.
    pub fn kind(&self, own: bool) -> anyhow::Result<KindTools> {
        let kind = GoModule::kind(&go_dir())?;
        let mut worked = build::ensure(&self.cache, &kind, &kind.name)?;
        let own = if own {
            let kubeadm = GoModule::kubeadm(&go_dir())?;
            worked |= build::ensure(&self.cache, &kubeadm, &kubeadm.name)?;
            let debian = self.cache.join("kind/debian");
            worked |= debian::unpack(PACKAGES, &debian, &self.cache.join("locks/debian"))?;
            Some(OwnDocker {
                kubeadm: build::folder(&self.cache, &kubeadm).join("kubeadm"),
                kind_source: self.source(&kind, "sigs.k8s.io/kind")?,
                debian,
            })
        } else {
            None
        };
        if worked {
            say("kind's tools are ready");
        }
        Ok(KindTools {
            kind: build::folder(&self.cache, &kind).join("kind"),
            own,
        })
    }

    /// Where Go keeps the sources of a module that `pins` requires; checked against go.sum when they were downloaded.
    fn source(&self, pins: &GoModule, module: &str) -> anyhow::Result<PathBuf> {
        let go_mod = std::fs::read_to_string(pins.dir.join("go.mod"))?;
        let needed = golang_needed(&go_mod)?;
        let go = Go::ensure(needed, &self.cache.join("locks"))?;
        let output = go
            .command(&pins.dir)
            .args(["list", "-m", "-f", "{{.Dir}}", module])
            .output()
            .context("run go list")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && !text.trim().is_empty(),
            "go list -m {module}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(PathBuf::from(text.trim()))
    }
}

fn golang_needed(go_mod: &str) -> anyhow::Result<(u16, u16, u16)> {
    super::golang::needed(go_mod).context("go.mod has no go line")
}
