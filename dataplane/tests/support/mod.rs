//! Network namespaces for tests: made for one test, gone with it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod capture;
pub mod fixture;
pub mod lab;
pub mod monitor;
pub mod traffic;

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use spillway_dataplane::{Choice, LinuxKernel, Options, PrivateKey};

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

    /// The same with a WireGuard key, encrypting as [`wireguard`] says.
    pub fn kernel_with(&self, key: PrivateKey) -> LinuxKernel {
        self.kernel_encrypting(key, wireguard())
    }

    /// The same, encrypting as `wireguard` says.
    pub fn kernel_encrypting(&self, key: PrivateKey, wireguard: Choice) -> LinuxKernel {
        let options = Options {
            key: Some(key),
            wireguard,
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

/// Who encrypts in tests that don't say: `SPILLWAY_TEST_WIREGUARD`, `kernel` or `userspace`, where not every kernel can.
pub fn wireguard() -> Choice {
    match std::env::var("SPILLWAY_TEST_WIREGUARD").as_deref() {
        Ok("kernel") => Choice::Kernel,
        Ok("userspace") | Err(_) => Choice::Userspace,
        Ok(other) => panic!("SPILLWAY_TEST_WIREGUARD is kernel or userspace, not {other}"),
    }
}

/// `time` as long as this machine needs for it: times `SPILLWAY_TEST_PATIENCE`, 1 where that isn't set. An emulated one is
/// several times slower.
pub fn patient(time: Duration) -> Duration {
    let factor = std::env::var("SPILLWAY_TEST_PATIENCE").map_or(1, |f| f.parse().expect("a number"));
    time * factor
}

/// Whether a chain can hook into a device's egress here.
pub fn egress_hook() -> bool {
    let node = Namespace::new("hook");
    let chain = "add chain netdev t c { type filter hook egress device lo priority 0; }";
    node.attempt(&format!("printf 'add table netdev t\\n{chain}\\n' | nft -c -f -"))
        .0
}

/// For tests of what needs such a chain. Where there can't be one the test fails, since a test that tests nothing must not
/// pass; whoever tests many kernels knows it by these words.
pub fn needs_egress_hook() {
    assert!(
        egress_hook(),
        "doesn't apply: this kernel has no netdev egress hook"
    );
}

/// Polls until `condition` holds; panics after twenty seconds. WireGuard repeats a handshake that got lost only after five
/// (`REKEY_TIMEOUT`), which is no fault of what is tested.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + patient(Duration::from_secs(20));
    while !condition() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
