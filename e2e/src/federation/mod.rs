//! A federation on an arena: installed, joined and asked as its users do, through the `spillway`
//! program, kubectl and the outside server.
//!
//! [`Shape`] says which clusters and gateways there are. All clusters have the same pod and service ranges.

mod capture;
mod cni;
mod crowd;
mod daemons;
mod diagnose;
mod flows;
mod gateway;
mod hub;
mod install;
mod kernel;
mod membership;
mod registration;
mod rest;
mod shape;
mod story;
mod traffic;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

pub use capture::{Capture, Captured};
pub use cni::Down;
pub use crowd::{Arrivals, Crowd};
pub use daemons::Frozen;
pub use flows::{Flows, Load, Outcome};
pub use membership::Token;
pub use shape::Shape;
pub use story::Story;
pub use traffic::{Egress, StoryPod, Watch};

use crate::scenario::{Arena, Cluster, Node};
use crate::state::{ArenaSpec, Provider};
use crate::wire::Nat;

/// The outside server over IPv4.
pub const OUTSIDE: &str = "198.51.100.10:7000";
/// Its second IPv4 address.
pub const OUTSIDE_OTHER: &str = "198.51.100.11:7000";
/// The outside server over IPv6.
pub const OUTSIDE_V6: &str = "[2001:db8:51::10]:7000";
/// Node port of the hub's service.
const HUB_PORT: u16 = 30_943;
/// How long convergence may take on a busy machine before a scenario gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A hub and its members.
pub struct Federation {
    arena: Arena,
    shape: Shape,
    clusters: BTreeMap<String, Cluster>,
}

impl Federation {
    /// The arena that a standard federation stands on.
    pub fn arena_spec(name: &str, provider: Provider) -> ArenaSpec {
        Shape::Standard.spec(name, provider)
    }

    /// Brings a standard federation up.
    pub async fn up(name: &str) -> Result<Self> {
        Self::up_as(Shape::Standard, name).await
    }

    /// Brings the clusters up, of the make that the environment names, installs the hub, joins all members, offers the
    /// gateways.
    ///
    /// With `SPILLWAY_ARENA=name` in the environment an arena of that name (or, for another shape than the standard
    /// one, of that name and a suffix) is used, brought up if there is none and left standing: for working on one
    /// scenario again and again.
    pub async fn up_as(shape: Shape, name: &str) -> Result<Self> {
        let provider = Provider::from_environment()?;
        let arena = if let Ok(kept) = std::env::var("SPILLWAY_ARENA") {
            Arena::attach_or_up(&shape.spec(&shape.arena_name(&kept, provider), provider)).await?
        } else {
            let name = shape.arena_name(name, provider);
            let name = format!("{name}-{}", std::process::id() % 10_000);
            Arena::up(&shape.spec(&name, provider)).await?
        };
        let federation = Self::on(arena, shape).await?;
        federation.install_hub().await.context("installing the hub")?;
        for member in federation.members() {
            if federation.member_exists(member).await? {
                continue;
            }
            let token = federation.token(member, &["region=eu"]).await?;
            federation
                .join(member, &token)
                .await
                .with_context(|| format!("joining {member}"))?;
        }
        federation.hide().await?;
        federation.offer_gateways().await?;
        Ok(federation)
    }

    /// Puts its shape's hidden members behind their firewall and NAT, and tells the hub.
    async fn hide(&self) -> Result<()> {
        let hidden = self.shape.hidden();
        if hidden.is_empty() {
            return Ok(());
        }
        self.hidden(false, None)?;
        for member in hidden {
            let patch = r#"{"spec":{"reachability":"Endpoints"}}"#;
            self.hub()
                .kubectl(&["patch", "member", member, "--type", "merge", "-p", patch])
                .await?;
        }
        Ok(())
    }

    /// What firewall and NAT do about the hidden partitions: the NAT may have rebound, and a port may be open.
    pub fn hidden(&self, rebound: bool, open: Option<(Ipv4Addr, u16)>) -> Result<()> {
        self.arena.set_hidden(&[2, 3], Some(Nat::of(2, rebound)), open)
    }

    /// A federation on an arena that is up, with nothing installed yet but the images.
    pub async fn on(arena: Arena, shape: Shape) -> Result<Self> {
        arena
            .load_workspace()
            .await
            .context("giving the nodes the workspace's images")?;
        let mut clusters = BTreeMap::new();
        for cluster in &arena.plan().clusters {
            let name = &cluster.spec.name;
            clusters.insert(name.clone(), arena.cluster(name).await?);
        }
        Ok(Self {
            arena,
            shape,
            clusters,
        })
    }

    /// The clusters that join the hub.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.clusters
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "hub")
    }

    /// Offers its shape's gateways.
    pub async fn offer_gateways(&self) -> Result<()> {
        self.apply_hub(self.shape.gateways()).await
    }

    /// Takes everything down; an arena that was there before stays.
    pub async fn down(self) -> Result<()> {
        drop(self.clusters);
        if std::env::var_os("SPILLWAY_ARENA").is_some() {
            let _left_standing = self.arena.keep();
            return Ok(());
        }
        self.arena.down().await
    }

    /// What it is made of.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The arena below.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Gives the arena back, to be kept or taken down.
    pub fn into_arena(self) -> Arena {
        self.arena
    }

    /// A cluster by name: `hub` or a member.
    pub fn cluster(&self, name: &str) -> Result<&Cluster> {
        self.clusters
            .get(name)
            .with_context(|| format!("there is no cluster {name}"))
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.arena.node(name)
    }

    /// The member that a node belongs to.
    pub fn member_of(&self, node: &str) -> Result<&Cluster> {
        self.cluster(node.split('-').next().unwrap_or_default())
    }

    /// Runs the `spillway` program against a cluster; gives standard output and error together with
    /// how it ended.
    pub async fn spillway(&self, cluster: &str, args: &[&str]) -> Result<crate::scenario::Output> {
        let output = Command::new(program("spillway")?)
            .args(args)
            .env("KUBECONFIG", self.arena.kubeconfig(cluster)?)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(300), output)
            .await
            .with_context(|| format!("spillway {} doesn't end", args.join(" ")))??;
        Ok(crate::scenario::Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }

    /// The same, where failing is not an option.
    pub async fn spillway_ok(&self, cluster: &str, args: &[&str]) -> Result<String> {
        let output = self.spillway(cluster, args).await?;
        ensure!(
            output.code == 0,
            "spillway {} in {cluster} ended with {}:\n{}{}",
            args.join(" "),
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }
}

/// A program of the workspace, beside the one that runs.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    for dir in me.ancestors().skip(1).take(2) {
        let candidate = dir.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("program {name} isn't built; `cargo build --workspace` builds it")
}
