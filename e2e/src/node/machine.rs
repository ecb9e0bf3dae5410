//! Booting a machine, finding its processes, entering it, switching it off.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::process::{self, MARK, Process, ProcessId};
use crate::wire::netns;

/// What a machine's init process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Host name.
    pub name: String,
    /// Its `/etc/machine-id`, 32 hexadecimal digits.
    pub machine_id: String,
    /// Its network namespace, which exists already.
    pub netns: String,
    /// Directory for its root directory and bookkeeping.
    pub dir: PathBuf,
    /// Directory for its daemons' logs.
    pub logs: PathBuf,
    /// Value of the arena's [`MARK`].
    pub mark: String,
    /// Directories of the outer machine that it sees.
    pub binds: Vec<Bind>,
    /// Search path of its daemons and of commands executed in it.
    pub path: String,
    /// What it runs.
    pub daemons: Vec<Daemon>,
}

/// A directory seen inside a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    /// Where it is outside.
    pub source: PathBuf,
    /// Where it is inside, absolute.
    pub target: PathBuf,
    /// Whether the machine may only read.
    pub read_only: bool,
}

/// A program that is started with the machine and again whenever it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    /// Name of its log.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// What must be there before it starts.
    pub after: Vec<Await>,
}

/// A condition of a daemon's start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Await {
    /// A file or socket exists.
    Path(PathBuf),
    /// Something accepts connections there.
    Listening(SocketAddr),
    /// A command succeeds. It is tried a few times a second.
    Succeeds(Vec<String>),
}

impl Bind {
    /// The same path inside as outside, read-only.
    pub fn same(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            source: path.clone(),
            target: path,
            read_only: true,
        }
    }
}

/// The `arena` program, which is also every machine's init: this very program, one that is named by
/// `SPILLWAY_ARENA_BIN`, or one beside or above this program (where cargo puts it for tests).
pub fn arena_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SPILLWAY_ARENA_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("find this program's file")?;
    if me.file_name().is_some_and(|n| n == "arena") {
        return Ok(me);
    }
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("arena"))
        .find(|p| p.is_file())
        .context("the `arena` program isn't built: run `cargo build -p spillway-e2e --bins`, or set SPILLWAY_ARENA_BIN")
}

/// A machine of which only the directory is known.
#[derive(Debug, Clone)]
pub struct Machine {
    dir: PathBuf,
    name: String,
}

impl Machine {
    /// The machine called `name` whose files are in `dir`.
    pub fn new(name: &str, dir: PathBuf) -> Self {
        Self {
            dir,
            name: name.to_owned(),
        }
    }

    /// Starts the machine; returns when its root is in place and its daemons are being started.
    pub fn boot(spec: &MachineSpec) -> Result<Self> {
        let machine = Self::new(&spec.name, spec.dir.clone());
        ensure!(machine.init().is_none(), "machine {} is on already", spec.name);
        fs::create_dir_all(&spec.dir)?;
        fs::create_dir_all(&spec.logs)?;
        let file = spec.dir.join("machine.json");
        fs::write(&file, serde_json::to_vec_pretty(spec)?)?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(spec.logs.join("init.log"))?;
        let mut child = netns::command(&spec.netns, arena_program()?)?
            .args(["internal", "boot"])
            .arg(&file)
            .current_dir("/")
            .env(MARK, &spec.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start machine {}", spec.name))?;
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        let status = child.wait()?;
        if !status.success() || said.trim() != "up" {
            let log = fs::read_to_string(spec.logs.join("init.log")).unwrap_or_default();
            bail!(
                "machine {} doesn't start: {}",
                spec.name,
                log.lines().next_back().unwrap_or("no message")
            );
        }
        Ok(machine)
    }

    /// The machine's first process, while it is on.
    pub fn init(&self) -> Option<ProcessId> {
        let text = fs::read_to_string(self.dir.join("init.json")).ok()?;
        serde_json::from_str(&text)
            .ok()
            .filter(|id: &ProcessId| id.alive())
    }

    fn init_or_off(&self) -> Result<ProcessId> {
        self.init()
            .with_context(|| format!("machine {} is off", self.name))
    }

    /// Its processes, also those in pods.
    pub fn processes(&self) -> Result<Vec<Process>> {
        Ok(process::descendants(self.init_or_off()?))
    }

    /// Sends a signal to every process whose program is called `program`; says how many that were.
    pub fn signal(&self, program: &str, signal: Signal) -> Result<usize> {
        let found: Vec<_> = self
            .processes()?
            .into_iter()
            .filter(|p| p.program == program)
            .collect();
        for process in &found {
            process.id.signal(signal)?;
        }
        Ok(found.len())
    }

    /// Sends a signal to every process but init: SIGSTOP hangs the machine, SIGCONT wakes it.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        let mut told = BTreeSet::new();
        loop {
            // Whoever wasn't stopped yet may have started others meanwhile.
            let new: Vec<_> = self
                .processes()?
                .into_iter()
                .filter(|p| told.insert(p.id.pid))
                .collect();
            if new.is_empty() {
                return Ok(());
            }
            new.iter().try_for_each(|p| p.id.signal(signal))?;
        }
    }

    /// A command that runs inside the machine's namespaces.
    pub fn command(&self, command: &[impl AsRef<std::ffi::OsStr>]) -> Result<Command> {
        let init = self.init_or_off()?;
        let spec: MachineSpec = serde_json::from_slice(&fs::read(self.dir.join("machine.json"))?)?;
        let mut nsenter = Command::new("nsenter");
        nsenter
            .args([
                "--target",
                &init.pid.to_string(),
                "--net",
                "--mount",
                "--pid",
                "--uts",
                "--root",
                "--wdns=/root",
                "--",
            ])
            .args(command)
            .env("PATH", &spec.path)
            .env("HOME", "/root");
        Ok(nsenter)
    }

    /// Kills the machine as a power cut does: no process of it gets a chance to react. Its disk stays.
    pub fn kill(&self) -> Result<()> {
        let Some(init) = self.init() else { return Ok(()) };
        init.signal(Signal::SIGKILL)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while init.alive() {
            ensure!(
                Instant::now() < deadline,
                "machine {} doesn't die: init {}",
                self.name,
                init.pid
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// The directories that hold the given programs, each once, to be bound into a machine.
pub fn binds_for(programs: &[PathBuf]) -> Vec<Bind> {
    let mut dirs: Vec<PathBuf> = programs
        .iter()
        .filter_map(|p| {
            p.canonicalize()
                .ok()
                .and_then(|p| p.parent().map(Path::to_path_buf))
                .into_iter()
                .chain(p.parent().map(Path::to_path_buf))
                .next()
        })
        .chain(programs.iter().filter_map(|p| p.parent().map(Path::to_path_buf)))
        .filter(|dir| !dir.starts_with("/usr") && !dir.starts_with("/bin") && !dir.starts_with("/sbin"))
        .collect();
    dirs.sort();
    dirs.dedup();
    dirs.into_iter().map(Bind::same).collect()
}
