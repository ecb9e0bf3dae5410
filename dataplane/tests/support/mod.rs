//! Network namespaces for tests: made for one test, gone with it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod capture;
pub mod fixture;
pub mod monitor;
pub mod traffic;

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use spillway_dataplane::{LinuxKernel, Options, PrivateKey};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with loopback up, deleted on drop.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("swdp-{}-{number}-{label}", std::process::id());
        host(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.run("ip link set lo up");
        // Link-local addresses are needed for forwarding, and detection would hold them back for a second.
        namespace.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        namespace
    }

    /// Runs a command line inside; panics with its output where it fails.
    pub fn run(&self, line: &str) -> String {
        let (ok, output) = self.attempt(line);
        assert!(ok, "{line} in {}: {output}", self.name);
        output
    }

    /// Runs a command line inside; answers whether it succeeded and what it printed.
    pub fn attempt(&self, line: &str) -> (bool, String) {
        self.inside(|| shell(line))
    }

    /// Calls `f` on a thread inside.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(format!("/run/netns/{}", self.name)).expect("namespace");
                    setns(file, CloneFlags::CLONE_NEWNET).expect("enter namespace");
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The kernel of this namespace.
    pub fn kernel(&self) -> LinuxKernel {
        self.inside(LinuxKernel::open).expect("open the kernel")
    }

    /// The same with a WireGuard key.
    pub fn kernel_with(&self, key: PrivateKey) -> LinuxKernel {
        let options = Options {
            key: Some(key),
            ..Options::default()
        };
        self.inside(|| LinuxKernel::open_with(options))
            .expect("open the kernel")
    }

    /// A pair of interfaces, one end here and one there, both up.
    pub fn connect(&self, here: &str, there: &Self, name_there: &str) {
        host(&format!(
            "ip link add {here} netns {} type veth peer name {name_there} netns {}",
            self.name, there.name
        ));
        self.run(&format!("ip link set {here} up"));
        there.run(&format!("ip link set {name_there} up"));
    }

    /// Adds addresses without duplicate address detection.
    pub fn address(&self, device: &str, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.run(&format!("ip addr add {address} dev {device}{nodad}"));
        }
    }

    /// Makes it a router of both families that tolerates asymmetric paths.
    pub fn router(&self) {
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
        ] {
            self.run(&format!("sysctl -qw {setting}"));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn shell(line: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", line]).output().expect("run sh");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn host(line: &str) {
    let (ok, output) = shell(line);
    assert!(ok, "{line}: {output}");
}

/// True where the test can make namespaces. Elsewhere it fails, as a test that tests nothing must not pass.
pub fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(
        root,
        "needs root for network namespaces: run `make unit`, or sudo -E cargo test -p spillway-dataplane"
    );
    root
}

/// Polls until `condition` holds; panics after five seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
