//! What runs inside `arena internal boot` and as the first process of every machine.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::sethostname,
};

use super::{
    machine::{Await, Daemon, MachineSpec},
    process::ProcessId,
    root,
};

/// How long a daemon that ended is left alone, as systemd's units do it for Kubernetes.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// How often a start condition is looked at.
const POLL: Duration = Duration::from_millis(20);

fn read_spec(file: &Path) -> Result<MachineSpec> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", file.display()))
}

/// Makes a pid namespace, starts init in it, writes down which process it is, and reports `up` on standard output.
#[expect(
    clippy::print_stdout,
    reason = "the word is the protocol between this process and the one that boots machines"
)]
pub fn boot(file: &Path) -> Result<()> {
    let spec = read_spec(file)?;
    let me = std::env::current_exe()?;
    unshare(CloneFlags::CLONE_NEWPID).context("make a pid namespace (this needs root)")?;
    let mut child = Command::new(me)
        .args(["internal", "init"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start init")?;
    let pid = i32::try_from(child.id())?;
    let id = ProcessId::of(pid).context("init ended at once")?;
    fs::write(spec.dir.join("init.json"), serde_json::to_vec(&id)?)?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said)?;
    }
    if said.trim() != "up" {
        let status = child.wait()?;
        bail!("init: {status}");
    }
    print!("up");
    Ok(())
}

/// How often a command that is a start condition is run.
const COMMAND_POLL: Duration = Duration::from_millis(200);

type Ended = mpsc::Sender<ExitStatus>;

/// Children by process number. A starter holds the lock from before the fork until its child is listed, so that the
/// reaper never meets a child it can't place.
#[derive(Default)]
struct Children {
    by_pid: Mutex<HashMap<i32, Ended>>,
    started: Condvar,
}

/// Sets the machine up, then starts, restarts and reaps until it is killed.
#[expect(
    clippy::print_stdout,
    reason = "the word is the protocol between this process and the one that boots machines"
)]
pub fn init(file: &Path) -> Result<()> {
    let spec = Arc::new(read_spec(file)?);
    // Logs are outside the machine's root, so a handle is taken before the door closes.
    let logs = Arc::new(fs::File::open(&spec.logs).with_context(|| format!("open {}", spec.logs.display()))?);
    // Not earlier, in `boot`: changing the root moves every process of the mount namespace, and `boot` has yet to read
    // and write outside.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("make namespaces")?;
    sethostname(&spec.name)?;
    root::enter(&spec)?;
    // A session of its own: a Ctrl-C at the terminal that started the arena must not reach it.
    nix::unistd::setsid().ok();
    let children = Arc::new(Children::default());
    for daemon in spec.daemons.clone() {
        let (spec, children, logs) = (spec.clone(), children.clone(), logs.clone());
        thread::Builder::new()
            .name(daemon.name.clone())
            .spawn(move || supervise(&spec, &daemon, &children, &logs))?;
    }
    print!("up");
    std::io::stdout().flush()?;
    // The reader outside waits for the end of this stream.
    nix::unistd::dup2_stdout(fs::File::options().write(true).open("/dev/null")?)?;
    reap(&children)
}

fn reap(children: &Children) -> Result<()> {
    loop {
        let status = match waitpid(None, None) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => {
                let guard = children.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
                let (_guard, _timeout) = children
                    .started
                    .wait_timeout(guard, Duration::from_secs(1))
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            Err(e) => return Err(e).context("wait for children"),
        };
        let (pid, raw) = match status {
            WaitStatus::Exited(pid, code) => (pid, code << 8),
            WaitStatus::Signaled(pid, signal, _) => (pid, signal as i32),
            _ => continue,
        };
        let ended = children
            .by_pid
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pid.as_raw());
        if let Some(ended) = ended {
            let _starter_is_gone = ended.send(ExitStatus::from_raw(raw));
        }
    }
}

fn supervise(spec: &MachineSpec, daemon: &Daemon, children: &Children, logs: &fs::File) {
    loop {
        for condition in &daemon.after {
            while !holds(condition, spec, children, logs) {
                thread::sleep(match condition {
                    Await::Succeeds(_) => COMMAND_POLL,
                    _ => POLL,
                });
            }
        }
        let started = Instant::now();
        match start(spec, daemon, children, logs) {
            Ok(ended) => {
                let status = ended.recv();
                note(
                    logs,
                    daemon,
                    &format!("ended after {:?}: {status:?}", started.elapsed()),
                );
            }
            Err(e) => note(logs, daemon, &format!("doesn't start: {e:#}")),
        }
        thread::sleep(RESTART_DELAY);
    }
}

fn holds(condition: &Await, spec: &MachineSpec, children: &Children, logs: &fs::File) -> bool {
    match condition {
        Await::Path(path) => path.exists(),
        Await::Listening(address) => TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok(),
        Await::Succeeds(command) => {
            let check = Daemon {
                name: "conditions".to_owned(),
                command: command.clone(),
                after: Vec::new(),
            };
            let ended = start(spec, &check, children, logs);
            ended.is_ok_and(|ended| ended.recv().is_ok_and(|status| status.success()))
        }
    }
}

fn open_log(logs: &fs::File, name: &str) -> Result<fs::File> {
    let fd = nix::fcntl::openat(
        logs,
        name,
        nix::fcntl::OFlag::O_CREAT
            | nix::fcntl::OFlag::O_APPEND
            | nix::fcntl::OFlag::O_WRONLY
            | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )?;
    Ok(fd.into())
}

fn note(logs: &fs::File, daemon: &Daemon, text: &str) {
    if let Ok(mut log) = open_log(logs, "init.log") {
        let _nowhere_else_to_say_it = writeln!(log, "{} {}: {text}", Timestamp::now(), daemon.name);
    }
}

fn start(
    spec: &MachineSpec,
    daemon: &Daemon,
    children: &Children,
    logs: &fs::File,
) -> Result<mpsc::Receiver<ExitStatus>> {
    let [program, args @ ..] = daemon.command.as_slice() else {
        bail!("{} has no command", daemon.name)
    };
    let log = open_log(logs, &format!("{}.log", daemon.name))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env(super::process::MARK, &spec.mark)
        .env("PATH", &spec.path)
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let (ended, receiver) = mpsc::channel();
    let mut by_pid = children.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn().with_context(|| format!("run {program}"))?;
    by_pid.insert(i32::try_from(child.id())?, ended);
    drop(by_pid);
    children.started.notify_all();
    Ok(receiver)
}
