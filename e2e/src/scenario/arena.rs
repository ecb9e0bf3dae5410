//! An arena as a scenario holds it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Result, bail};

use super::{Cluster, Node, Outside};
use crate::{
    lifecycle::{self, Leftovers},
    provision::Toolbox,
    state::{ArenaSpec, Dirs, Plan},
    wire::{self, Nat},
};

/// A running arena. One made by [`Arena::up`] is taken down when dropped, also by a panic; one that was attached stays.
pub struct Arena {
    dirs: Dirs,
    plan: Arc<Plan>,
    toolbox: Arc<Toolbox>,
    owned: bool,
}

impl Arena {
    /// Brings an arena up. It lives as long as the returned value.
    pub async fn up(spec: &ArenaSpec) -> Result<Self> {
        let built = lifecycle::up(spec, false).await?;
        Ok(Self {
            dirs: Dirs::new(&spec.name)?,
            plan: Arc::new(built.plan),
            toolbox: Arc::new(built.toolbox),
            owned: true,
        })
    }

    /// Uses an arena that is up, such as one from `arena up`.
    pub async fn attach(name: &str) -> Result<Self> {
        let dirs = Dirs::new(name)?;
        let plan = dirs.load_existing()?;
        let mut versions: Vec<_> = plan.clusters.iter().map(|c| c.spec.kubernetes).collect();
        versions.sort();
        versions.dedup();
        let toolbox = tokio::task::spawn_blocking(move || Toolbox::ensure(&versions)).await??;
        Ok(Self {
            dirs,
            plan: Arc::new(plan),
            toolbox: Arc::new(toolbox),
            owned: false,
        })
    }

    /// Uses the arena of that name, or brings it up if there is none; it stays up afterwards either way.
    /// For working on a scenario again and again without waiting for clusters.
    pub async fn attach_or_up(spec: &ArenaSpec) -> Result<Self> {
        if Dirs::new(&spec.name)?.load()?.is_some() {
            return Self::attach(&spec.name).await;
        }
        Ok(Self::up(spec).await?.keep())
    }

    /// Lets the arena live on when this value is dropped.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.owned = false;
        self
    }

    /// Name of the arena.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Every machine with its addresses.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The arena's directories.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// The programs the arena runs.
    pub fn toolbox(&self) -> &Toolbox {
        &self.toolbox
    }

    /// Kubeconfig of a cluster's administrator, usable from anywhere on this machine.
    pub fn kubeconfig(&self, cluster: &str) -> Result<PathBuf> {
        self.plan.cluster(cluster)?;
        Ok(self.dirs.kubeconfig(cluster))
    }

    /// A cluster by name.
    pub async fn cluster(&self, name: &str) -> Result<Cluster> {
        Cluster::connect(self.dirs.clone(), self.plan.clone(), self.toolbox.clone(), name).await
    }

    /// A node, or a control plane (`a-cp`), by name.
    pub fn node(&self, name: &str) -> Result<Node> {
        Ok(Node::new(
            self.dirs.clone(),
            self.plan.clone(),
            self.plan.machine(name)?.clone(),
        ))
    }

    /// The outside server.
    pub fn outside(&self) -> Outside {
        Outside::new(&self.dirs)
    }

    /// Narrows the router's paths between the segments and the outside to `mtu`, or widens them again.
    pub fn set_path_mtu(&self, mtu: Option<u16>) -> Result<()> {
        wire::set_path_mtu(&self.plan, mtu)
    }

    /// Lets nobody call the machines of these partitions, see [`wire::set_hidden`].
    pub fn set_hidden(
        &self,
        partitions: &[u8],
        nat: Option<Nat>,
        open: Option<(Ipv4Addr, u16)>,
    ) -> Result<()> {
        wire::set_hidden(&self.plan, partitions, nat, open)
    }

    /// How many packets the router has called too big so far, both families together.
    pub fn too_big_sent(&self) -> Result<u64> {
        wire::too_big_sent(&self.plan)
    }

    /// Begins to note the source of every packet that reaches the outside; see [`Arena::sources`].
    pub fn watch_sources(&self) -> Result<()> {
        wire::watch_sources(&self.plan)
    }

    /// All source addresses that reached the outside since then, by whatever packet.
    pub fn sources(&self) -> Result<BTreeSet<IpAddr>> {
        wire::sources(&self.plan)
    }

    /// Gives every node the workspace's daemons as cargo built them last.
    pub async fn load_workspace(&self) -> Result<usize> {
        let (dirs, plan, toolbox) = (self.dirs.clone(), self.plan.clone(), self.toolbox.clone());
        tokio::task::spawn_blocking(move || lifecycle::load_workspace(&dirs, &plan, &toolbox)).await?
    }

    /// Takes the arena down and says so if anything is left.
    pub async fn down(mut self) -> Result<()> {
        self.owned = false;
        let (dirs, plan) = (self.dirs.clone(), self.plan.clone());
        tokio::task::spawn_blocking(move || {
            lifecycle::down(&plan.name)?;
            let left: Leftovers = lifecycle::leftovers(&dirs, &plan)?;
            if !left.is_empty() {
                bail!("arena {} left something behind: {left:?}", plan.name);
            }
            Ok(())
        })
        .await?
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.owned
            && let Err(e) = lifecycle::down(&self.plan.name)
        {
            tracing::error!(
                arena = self.plan.name,
                error = format!("{e:#}"),
                "arena can't be taken down"
            );
        }
    }
}
