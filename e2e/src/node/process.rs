//! Finding processes: by the mark in their environment, by network namespace, by descent.
//!
//! Every process of an arena carries [`MARK`] from before it can do anything, so nothing has to be recorded between a
//! fork and a crash: whoever has the mark belongs to the arena.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::wire::netns;

/// Environment variable whose value is the state directory of the arena a process belongs to.
pub const MARK: &str = "SPILLWAY_ARENA_MEMBER";

/// A process that can't be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number in the machine's own pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of proc_pid_stat(5).
    pub started: u64,
}

impl ProcessId {
    /// The process that now has number `pid`.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            started: stat(pid)?.started,
        })
    }

    /// Whether any thread of it still runs.
    ///
    /// A first thread that has ended shows as a zombie while others go on: a killed init's last thread is the one that
    /// ends all processes of its namespace.
    pub fn alive(self) -> bool {
        stat(self.pid)
            .is_some_and(|s| s.started == self.started && (!matches!(s.state, 'Z' | 'X') || s.threads > 1))
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("send {signal} to process {}", self.pid)),
        }
    }
}

/// A line of [`descendants`].
#[derive(Debug, Clone)]
pub struct Process {
    /// The process.
    pub id: ProcessId,
    /// Base name of its program.
    pub program: String,
    /// Its arguments, joined by spaces.
    pub command_line: String,
}

struct Stat {
    state: char,
    parent: i32,
    threads: u32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything, also parentheses.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let threads = fields.nth(15)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        threads,
        started,
    })
}

fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Processes that carry the arena's mark.
pub fn marked(mark: &str) -> Vec<ProcessId> {
    let wanted = format!("{MARK}={mark}");
    all()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|env| env.split(|b| *b == 0).any(|var| var == wanted.as_bytes()))
        })
        .filter_map(ProcessId::of)
        .filter(|id| id.alive())
        .collect()
}

/// Processes inside any of the named network namespaces.
pub fn in_namespaces(names: &[String]) -> Vec<ProcessId> {
    let inodes: BTreeSet<u64> = names
        .iter()
        .filter_map(|n| fs::metadata(netns::path(n)).ok())
        .map(|m| m.ino())
        .collect();
    if inodes.is_empty() {
        return Vec::new();
    }
    all()
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| inodes.contains(&m.ino())))
        .filter_map(ProcessId::of)
        .filter(|id| id.alive())
        .collect()
}

/// All processes below `ancestor`, itself left out. Orphans count: a machine's init adopts them.
pub fn descendants(ancestor: ProcessId) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in all() {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut queue = vec![ancestor.pid];
    while let Some(pid) = queue.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            queue.push(child);
            found.extend(describe(child));
        }
    }
    found
}

fn describe(pid: i32) -> Option<Process> {
    let id = ProcessId::of(pid)?;
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = raw
        .split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    let program = Path::new(words.first()?.as_ref())
        .file_name()?
        .to_string_lossy()
        .into_owned();
    Some(Process {
        id,
        program,
        command_line: words.join(" "),
    })
}

/// Kills processes until `find` finds none. Bounded: a process in an uninterruptible wait is reported.
pub fn kill_all(find: impl Fn() -> Vec<ProcessId>) -> Result<()> {
    let me = i32::try_from(std::process::id())?;
    let deadline = Instant::now() + Duration::from_secs(20);
    // An ending process loses its environment and namespaces, by which it is found, before it is gone.
    let mut ending: Vec<ProcessId> = Vec::new();
    loop {
        for process in find() {
            if process.pid != me && !ending.contains(&process) {
                process.signal(Signal::SIGKILL)?;
                ending.push(process);
            }
        }
        ending.retain(|p| p.alive());
        if ending.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "processes survive SIGKILL: {:?}",
                ending.iter().map(|p| p.pid).collect::<Vec<_>>()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
