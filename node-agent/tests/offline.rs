//! The agent itself in a network namespace of its own, on the real kernel, with an API server that nobody
//! answers for: it goes on from what is stored, repairs, survives its own end. Needs root, ip and nft.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use spillway_core::node::fixtures;
use spillway_core::node::inputs::NodeInputs;

/// A network namespace, alive as long as the process that made it.
struct Node {
    holder: Child,
    state: tempfile::TempDir,
    name: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.holder.kill();
        _ = self.holder.wait();
    }
}

impl Node {
    fn new(inputs: &NodeInputs, id: u8) -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .spawn()
            .expect("unshare needs root");
        let node = Self {
            holder,
            state: tempfile::tempdir().expect("directory"),
            name: inputs.node.clone(),
        };
        let own = fs::read_link("/proc/self/ns/net").expect("namespace");
        let theirs = format!("/proc/{}/ns/net", node.holder.id());
        wait("the namespace", || fs::read_link(&theirs).is_ok_and(|n| n != own));
        for command in [
            "ip link set lo up".to_owned(),
            "ip link add eth0 type veth peer name wire0".into(),
            "ip link add eth1 type veth peer name wire1".into(),
            "ip link set wire0 up".into(),
            "ip link set wire1 up".into(),
            "ip link set eth0 up".into(),
            "ip link set eth1 up".into(),
            format!("ip addr add 10.0.0.{id}/24 dev eth0"),
            format!("ip addr add fd00:10::{id}/64 dev eth0 nodad"),
            format!("ip addr add 203.0.113.{id}/24 dev eth1"),
            format!("ip addr add 2001:db8:1::{id}/64 dev eth1 nodad"),
            "ip route add default via 10.0.0.254".into(),
        ] {
            node.succeeds(&command);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
        let stored = json!({"format": 1, "boot": boot.trim(), "inputs": inputs});
        fs::write(node.state.path().join("node.json"), stored.to_string()).expect("written");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "nowhere",
            "contexts": [{"name": "nowhere", "context": {"cluster": "nowhere", "user": "nobody"}}],
            "clusters": [{"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "nobody", "user": {}}],
        });
        fs::write(node.kubeconfig(), kubeconfig.to_string()).expect("written");
        node
    }

    fn kubeconfig(&self) -> std::path::PathBuf {
        self.state.path().join("kubeconfig")
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg(program)
            .env("KUBECONFIG", self.kubeconfig())
            .env("NODE_NAME", &self.name)
            .env("SPILLWAY_STATE_DIR", self.state.path());
        command
    }

    fn run(&self, line: &str) -> Output {
        let mut words = line.split(' ');
        self.command(Path::new(words.next().expect("a program")))
            .args(words)
            .output()
            .expect("nsenter runs")
    }

    fn succeeds(&self, line: &str) -> String {
        let output = self.run(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn agent(&self) -> Agent {
        let child = self
            .command(Path::new(env!("CARGO_BIN_EXE_spillway-node-agent")))
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter runs");
        Agent(child)
    }

    /// True where the kernel holds exactly what is stored.
    fn as_stored(&self) -> bool {
        let line = format!("{} show --diff", env!("CARGO_BIN_EXE_spillway-node-agent"));
        String::from_utf8_lossy(&self.run(&line).stdout).contains("exactly")
    }
}

/// A running agent (nsenter without --fork becomes the program).
struct Agent(Child);

impl Agent {
    fn ends_by(mut self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.0.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
        wait("the agent's end", || self.0.try_wait().is_ok_and(|s| s.is_some()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} didn't come within 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_node_without_an_api_server_goes_on_from_what_is_stored() {
    let node = Node::new(&fixtures::both(), 2);
    assert!(!node.as_stored());
    let agent = node.agent();
    wait("the first apply", || node.as_stored());
    let table = node.succeeds("nft list table inet spillway");
    assert!(table.contains("10.244.0.5 : goto class_"), "{table}");
    assert!(
        node.succeeds("ip neigh show proxy")
            .contains("203.0.113.10 dev eth1 proxy")
    );

    node.succeeds("nft delete table inet spillway");
    node.succeeds("ip link del spillway0");
    wait("the repair", || node.as_stored());

    agent.ends_by("-TERM");
    assert!(node.as_stored(), "the kernel's state outlives the agent");
    let again = node.agent();
    wait("the agent", || node.as_stored());
    again.ends_by("-KILL");
    assert!(node.as_stored());
}

#[test]
fn a_source_node_goes_on_too() {
    // Its second gateway has no node that could be tried when the first one's doesn't answer.
    let mut inputs = fixtures::source();
    let plan = inputs.plan.as_mut().expect("a plan");
    let mut second = plan.gateways[0].clone();
    second.gateway = "paris".into();
    second.nodes.clear();
    second.identities[0].id = 9;
    let mut through = plan.policies[0].through[0].clone();
    (through.gateway, through.identity) = ("paris".into(), 9);
    plan.policies[0].through.push(through);
    plan.gateways.push(second);
    let node = Node::new(&inputs, 1);
    let agent = node.agent();
    wait("the first apply", || node.as_stored());
    // Nobody answers for the gateway, so nothing is sent there for long, and nothing leaves another way.
    wait("the dead next hop's end", || {
        !node.succeeds("ip rule").contains("fwmark")
    });
    let table = node.succeeds("nft list table inet spillway");
    assert!(table.contains("10.244.0.5 : goto class_"), "{table}");
    wait("the state that `show` knows of", || node.as_stored());
    agent.ends_by("-TERM");
}

/// `nft flush ruleset` takes both tables. The agent hears of it and puts them back; what passes meanwhile isn't ours to say.
#[test]
fn a_flushed_ruleset_is_put_back() {
    let node = Node::new(&fixtures::source(), 1);
    let agent = node.agent();
    wait("the first apply", || node.as_stored());
    let script = "nft flush ruleset; begin=$(date +%s%N); \
        until nft list table inet spillway_seal >/dev/null 2>&1; do :; done; echo $((($(date +%s%N) - begin) / 1000000))";
    let mut took = Vec::new();
    for _ in 0..5 {
        let output = node
            .command(Path::new("sh"))
            .args(["-c", script])
            .output()
            .expect("sh runs");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        took.push(text.parse::<u64>().unwrap_or_else(|_| panic!("{output:?}")));
        wait("the repair", || node.as_stored());
    }
    eprintln!("milliseconds until the seal was back: {took:?}");
    agent.ends_by("-TERM");
}
