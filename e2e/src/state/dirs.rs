//! Where an arena's files are.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{Plan, spec::check_name};

/// Directory of all arenas' state. Gone after a reboot of the machine, as the arenas themselves are.
const STATE_ROOT: &str = "/run/spillway-arena";

/// Directory of all arenas' machine disks: images, etcd, logs. On a real filesystem because `/run` may be a small tmpfs.
const DISK_ROOT: &str = "/var/lib/spillway-arena";

/// The directories of one arena.
#[derive(Debug, Clone)]
pub struct Dirs {
    name: String,
}

impl Dirs {
    /// The directories of the arena called `name`, which need not exist.
    pub fn new(name: &str) -> Result<Self> {
        check_name("arena", name)?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// State: plan, certificates, kubeconfigs, outside log.
    pub fn state(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.name)
    }

    /// Machines' disks and logs.
    pub fn disk(&self) -> PathBuf {
        Path::new(DISK_ROOT).join(&self.name)
    }

    /// Root of one machine's private files.
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.disk().join("machines").join(machine)
    }

    /// Logs of one machine's daemons.
    pub fn logs(&self, machine: &str) -> PathBuf {
        self.disk().join("logs").join(machine)
    }

    /// Certificates and keys of one cluster.
    pub fn pki(&self, cluster: &str) -> PathBuf {
        self.state().join("pki").join(cluster)
    }

    /// Kubeconfig of a cluster's administrator, usable from anywhere on this machine.
    pub fn kubeconfig(&self, cluster: &str) -> PathBuf {
        self.state().join(format!("{cluster}.kubeconfig"))
    }

    /// Directory in which the outside server keeps its log.
    pub fn outside(&self) -> PathBuf {
        self.state().join("outside")
    }

    /// The file that serialises commands which change the arena.
    pub fn lock(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(format!("{}.lock", self.name))
    }

    /// The value of [`crate::node::process::MARK`] in the environment of this arena's processes.
    pub fn mark(&self) -> String {
        self.state().display().to_string()
    }

    /// Creates the directories, private to root.
    pub fn create(&self) -> Result<()> {
        for dir in [self.state(), self.disk(), self.outside()] {
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        }
        let logs = self.disk().join("logs");
        fs::create_dir_all(&logs)?;
        let link = self.state().join("logs");
        if !link.exists() {
            std::os::unix::fs::symlink(&logs, &link)?;
        }
        Ok(())
    }

    fn plan_file(&self) -> PathBuf {
        self.state().join("state.json")
    }

    /// Writes the plan, replacing an earlier one in one step.
    pub fn save(&self, plan: &Plan) -> Result<()> {
        let new = self.state().join("state.json.new");
        fs::write(&new, serde_json::to_vec_pretty(plan)?)?;
        fs::rename(&new, self.plan_file())?;
        Ok(())
    }

    /// The plan of the arena, if it exists.
    pub fn load(&self) -> Result<Option<Plan>> {
        let file = self.plan_file();
        match fs::read(&file) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| format!("read {}", file.display()))?,
            )),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", file.display())),
        }
    }

    /// The plan of an arena that must exist.
    pub fn load_existing(&self) -> Result<Plan> {
        match self.load()? {
            Some(plan) => Ok(plan),
            None => bail!(
                "no arena called {}; `arena up --name {}` makes one",
                self.name,
                self.name
            ),
        }
    }

    /// Names of all arenas on this machine, also of half-made ones.
    pub fn all() -> Vec<String> {
        let mut names = BTreeSet::new();
        for root in [STATE_ROOT, DISK_ROOT] {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    names.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.into_iter().collect()
    }
}
