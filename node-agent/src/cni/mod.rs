//! The node agent's side of the CNI plugin: pods wait until this node's kernel holds what their policies say.
//!
//! ```text
//!  plugin ─► server ─► lookup   whose pod it is: the watch's copy, else one GET
//!              │ └───► events   a pod that waits long or is refused says so itself
//!              ▼
//!          registry ─► apply loop (agent.rs) ─► standing ─► server answers
//!                          ├─► cache    for when this agent doesn't answer
//!                          └─► install  the plugin's file and its place in the CNI's chain
//! ```
//!
//! Where the plugin isn't in place, the guard stands (`spillway_core::node::guard`): what comes from a pod that the loop
//! doesn't know is dropped. The loop owns what is programmed, the registry what the CNI gave out; [`Cni`] is all that the loop sees of this.

mod cache;
mod conf;
mod events;
mod flags;
mod install;
mod lookup;
mod registry;
mod server;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::sandbox::Sandbox;
use spillway_core::node::scope::Scope;
use spillway_crds::member::FirstPackets;
use tokio::sync::watch;

pub(crate) use flags::Flags;

use cache::CacheFile;
use install::Installer;
use registry::Registry;

/// What the loop last said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Whether there is a plan; none until that is known.
    pub(crate) planned: Option<bool>,
    /// Whom its policies select.
    pub(crate) scope: Arc<Scope>,
    /// What comes from pods that aren't programmed is dropped, whether or not a policy selects them.
    pub(crate) guarded: bool,
    /// Addresses that the kernel judges by a policy.
    pub(crate) selected: Arc<BTreeSet<IpAddr>>,
    /// Everything that was registered up to this number is programmed.
    pub(crate) done: u64,
    /// Why the kernel isn't as it should be.
    pub(crate) failure: Option<String>,
}

/// Shared between the loop and the server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cni(Arc<Shared>);

struct Shared {
    registry: Mutex<Registry>,
    /// Number of the last registration: wakes the loop.
    asked: watch::Sender<u64>,
    standing: watch::Sender<Standing>,
    cache: Option<CacheFile>,
    installer: Option<Arc<Installer>>,
    guard: Guard,
    /// When this agent began.
    began: Instant,
}

/// How long statuses of pods may take that started before this agent.
const SETTLED: Duration = Duration::from_secs(15);

/// When the guard stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Guard {
    Never,
    /// While some pod may have started without the plugin.
    WithoutPlugin,
    Always,
}

impl Cni {
    /// Without a plugin: the loop's calls come to nothing.
    pub(crate) fn off() -> Self {
        Self::with(None, None, Guard::Never)
    }

    /// Without a plugin, with the guard.
    fn guarded() -> Self {
        Self::with(None, None, Guard::Always)
    }

    /// With a plugin that `installer` installs, a cache in `file`, and where the plugin isn't in place the guard, if
    /// `guarded`.
    fn chained(file: PathBuf, installer: Arc<Installer>, guarded: bool) -> Self {
        let guard = if guarded {
            Guard::WithoutPlugin
        } else {
            Guard::Never
        };
        Self::with(Some(CacheFile::new(file)), Some(installer), guard)
    }

    fn with(cache: Option<CacheFile>, installer: Option<Arc<Installer>>, guard: Guard) -> Self {
        Self(Arc::new(Shared {
            registry: Mutex::default(),
            asked: watch::channel(0).0,
            standing: watch::channel(Standing::default()).0,
            cache,
            installer,
            guard,
            began: Instant::now(),
        }))
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on from what an earlier agent knew. Without a plugin nobody would ever tell of a sandbox's end.
    pub(crate) fn restore(&self, sandboxes: &[Sandbox]) {
        if self.0.installer.is_some() {
            self.registry().restore(sandboxes);
        }
    }

    /// Says when the plugin is no longer in place, or is again.
    pub(crate) fn chain(&self) -> watch::Receiver<u64> {
        let installer = self.0.installer.as_ref();
        installer.map_or_else(|| self.asked(), |i| i.changes())
    }

    /// When the guard may go, if it stands until then only.
    pub(crate) fn lifts(&self) -> Option<Instant> {
        let installer = self.0.installer.as_ref()?;
        installer
            .doubted_until()
            .filter(|_| self.0.guard == Guard::WithoutPlugin)
    }

    fn guards(&self) -> bool {
        match self.0.guard {
            Guard::Never => false,
            Guard::WithoutPlugin => self.why_open().is_some() || !self.installed_for_certain(),
            Guard::Always => true,
        }
    }

    /// Whether no pod can start now, or has just started, without the plugin.
    fn installed_for_certain(&self) -> bool {
        let installer = self.0.installer.as_ref();
        installer.is_some_and(|i| i.problem().is_none() && i.doubted_until().is_none())
    }

    /// Why new pods don't pass the plugin, where there is to be one.
    fn why_open(&self) -> Option<String> {
        let installer = self.0.installer.as_ref()?;
        installer.problem().or_else(|| {
            self.registry().unheard().map(|pod| {
                format!(
                    "pod {pod} got its network without the CNI plugin: the container runtime doesn't use the \
                     configuration that the plugin was put into; cni.confDir must be where it looks"
                )
            })
        })
    }

    /// What keeps pods' first packets from leaving otherwise than their policies say.
    pub(crate) fn first_packets(&self) -> FirstPackets {
        let installer = self.0.installer.as_ref();
        match (self.0.guard, installer.map(|_| self.why_open().is_some())) {
            (_, Some(false)) => FirstPackets::Chain,
            (Guard::Never, Some(true)) => FirstPackets::Open,
            (Guard::Never, None) => FirstPackets::Off,
            (Guard::WithoutPlugin | Guard::Always, _) => FirstPackets::Guard,
        }
    }

    /// Says when something was registered.
    pub(crate) fn asked(&self) -> watch::Receiver<u64> {
        self.0.asked.subscribe()
    }

    /// Before the kernel is made to hold what `inputs` ask for: completes them by what the CNI gave out, and sees
    /// to it that plugin and cache know of the plan. Gives what [`Cni::finish`] is to be told.
    pub(crate) fn begin(&self, inputs: &mut NodeInputs) -> u64 {
        let heard = self.0.began.elapsed() > SETTLED && self.installed_for_certain();
        let number = {
            let mut registry = self.registry();
            registry.listen(&inputs.pods, heard);
            registry.complete(inputs)
        };
        let scope = {
            let standing = self.0.standing.borrow();
            (standing.planned != Some(true) || !standing.scope.is_of(inputs))
                .then(|| Arc::new(Scope::of(inputs)))
        };
        if let Some(scope) = scope {
            if let Some(cache) = &self.0.cache {
                cache.set_scope(&scope);
            }
            self.0.standing.send_modify(|s| {
                s.planned = Some(true);
                s.scope = scope;
            });
        }
        if let Some(installer) = &self.0.installer {
            installer.want(true);
        }
        inputs.guard = self.guards();
        // A pod that isn't selected then waits, too: it must not meet the guard.
        let guard = inputs.guard;
        self.0
            .standing
            .send_if_modified(|s| std::mem::replace(&mut s.guarded, guard) != guard);
        number
    }

    /// After that: the addresses that the kernel now judges, or why it isn't as it should be.
    pub(crate) fn finish(&self, number: u64, outcome: Result<BTreeSet<IpAddr>, String>) {
        if let (Some(cache), Ok(selected)) = (&self.0.cache, &outcome) {
            cache.set_addresses(selected);
        }
        self.0.standing.send_modify(|s| match outcome {
            Ok(selected) => {
                s.done = number;
                s.failure = None;
                if *s.selected != selected {
                    s.selected = Arc::new(selected);
                }
            }
            Err(failure) => s.failure = Some(failure),
        });
    }

    /// There is no plan: nobody is held, unless an earlier agent knew better.
    pub(crate) fn unplanned(&self) {
        if self.0.cache.as_ref().is_some_and(CacheFile::exists) {
            return;
        }
        self.0.standing.send_if_modified(|s| {
            let news = s.planned != Some(false);
            s.planned = Some(false);
            news
        });
    }

    /// All was taken out of the kernel: plugin and cache go too.
    pub(crate) fn torn_down(&self) -> Result<(), String> {
        *self.registry() = Registry::default();
        self.0.standing.send_modify(|s| {
            *s = Standing {
                planned: Some(false),
                ..Standing::default()
            };
        });
        let plugin = self.0.installer.as_ref().map_or(Ok(()), |i| i.remove());
        // Last: while the plugin stands it must find what it needs.
        let cache = self.0.cache.as_ref().map_or(Ok(()), CacheFile::clear);
        plugin.and(cache)
    }

    /// What keeps pods from being held, if anything does.
    pub(crate) fn problem(&self) -> Option<String> {
        let why = self.why_open()?;
        Some(match self.0.guard {
            Guard::Never => format!("new pods aren't held: {why}"),
            Guard::WithoutPlugin | Guard::Always => format!(
                "new pods can't be held, so what they send to destinations of policies is dropped until this node \
                 knows them: {why}"
            ),
        })
    }

    /// Whether an earlier agent left word that a policy may concern such a pod.
    fn was_in_question(&self, namespace: &str, addresses: &BTreeSet<IpAddr>) -> bool {
        self.0
            .cache
            .as_ref()
            .is_some_and(|cache| cache.holds(namespace, addresses))
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.0.standing.subscribe()
    }

    /// Registers; the number is programmed once [`Standing::done`] is as high.
    fn add(&self, sandbox: Sandbox) -> u64 {
        let number = self.registry().add(sandbox);
        self.0.asked.send_replace(number);
        number
    }

    fn remove(&self, gone: impl Fn(&Sandbox) -> bool) {
        let number = self.registry().remove(gone);
        if let Some(number) = number {
            self.0.asked.send_replace(number);
        }
    }
}

#[cfg(test)]
mod tests;
