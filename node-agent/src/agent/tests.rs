//! The loop's rounds over a kernel that only remembers.

use std::sync::Arc;

use spillway_core::node::fixtures;
use spillway_crds::condition::Verdict;
use spillway_dataplane::RecordingKernel;

use super::*;
use crate::gate::tests::seen;

const EVENT: Force = Force {
    apply: false,
    facts: false,
};
const PERIODIC: Force = Force {
    apply: true,
    facts: true,
};

struct Bench {
    kernel: Arc<RecordingKernel>,
    directory: tempfile::TempDir,
    reports: watch::Receiver<Option<Report>>,
    agent: Agent<Arc<RecordingKernel>>,
}

impl Bench {
    fn new() -> Self {
        Self::on(tempfile::tempdir().expect("directory"), Arc::default())
    }

    fn on(directory: tempfile::TempDir, kernel: Arc<RecordingKernel>) -> Self {
        let (sender, reports) = watch::channel(None);
        let agent = Agent::new(
            kernel.clone(),
            Disk::new(directory.path()),
            Standing::new(),
            Observed::new(&mut spillway_telemetry::Book::default()),
            sender,
            Cni::off(),
            Failover::without_prober(),
            "a-1",
            Settings::default(),
            kernel::Use::Auto,
        );
        Self {
            kernel,
            directory,
            reports,
            agent,
        }
    }

    /// The same node after the agent was killed and started again.
    fn restarted(self) -> Self {
        Self::on(self.directory, self.kernel)
    }

    fn verdict(&self) -> Verdict {
        self.report().verdict
    }

    fn report(&self) -> Report {
        self.reports.borrow().clone().expect("a report")
    }
}

#[tokio::test]
async fn without_anything_seen_and_stored_the_kernel_is_left_alone() {
    let mut bench = Bench::new();
    assert!(bench.agent.round(None, PERIODIC).await);
    assert!(bench.kernel.applied().is_empty());
    let nothing = Seen::default();
    assert!(bench.agent.round(Some(&nothing), PERIODIC).await);
    assert!(
        bench.kernel.applied().is_empty(),
        "no plan is no reason to remove one"
    );
    assert_eq!(bench.verdict().reason, "NoPlan");
}

#[tokio::test]
async fn one_state_is_applied_once() {
    let mut bench = Bench::new();
    assert!(bench.agent.round(Some(&seen()), PERIODIC).await);
    assert!(bench.agent.round(Some(&seen()), EVENT).await);
    let mut unselected = seen();
    unselected
        .pods
        .push(fixtures::pod("web-9", "web", &["10.244.0.99"]));
    assert!(bench.agent.round(Some(&unselected), EVENT).await);
    assert_eq!(bench.kernel.applied().len(), 1);
    assert_eq!(bench.kernel.cuts().len(), 1);
    let report = bench.report();
    assert_eq!(report.programmed, seen().head.map(|h| h.digest));
    assert_eq!(report.verdict.status, Some(true));

    bench.reports.mark_unchanged();
    assert!(bench.agent.round(Some(&unselected), PERIODIC).await);
    assert_eq!(bench.kernel.applied().len(), 2, "compared once more");
    assert_eq!(bench.kernel.cuts().len(), 1, "but nothing was different");
    assert!(
        !bench.reports.has_changed().expect("open"),
        "and there is nothing to say"
    );
}

#[tokio::test]
async fn what_concerns_no_flow_cuts_none() {
    let mut bench = Bench::new();
    bench.kernel.set_facts(with_mtu(1500));
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let cuts = bench.kernel.cuts().len();
    bench.kernel.set_facts(with_mtu(1400));
    let facts = Force { facts: true, ..EVENT };
    bench.agent.round(Some(&seen()), facts).await;
    assert_eq!(bench.kernel.applied().len(), 2, "the tunnel's MTU has changed");
    assert_eq!(bench.kernel.cuts().len(), cuts);
}

/// A node whose uplink takes packets of `mtu` bytes.
fn with_mtu(mtu: u32) -> spillway_dataplane::Facts {
    let device = spillway_dataplane::Device {
        name: "eth0".into(),
        index: 2,
        mtu,
        up: true,
        mac: None,
        addresses: vec!["10.0.0.1/24".parse().expect("prefix")],
    };
    spillway_dataplane::Facts {
        devices: [("eth0".to_owned(), device)].into(),
        ..spillway_dataplane::Facts::default()
    }
}

#[tokio::test]
async fn a_dead_gateway_node_is_nothing_to_store() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let mut inputs = bench.agent.held.clone();
    inputs.liveness.dead = [fixtures::node_ref("b", "b-1")].into();
    assert!(!bench.agent.differs(&inputs));
    assert!(
        bench.agent.held.liveness.dead.is_empty(),
        "comparing changes nothing"
    );
    inputs.pods.pop();
    assert!(bench.agent.differs(&inputs));
}

#[tokio::test]
async fn a_restart_without_the_api_server_keeps_everything() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let held = bench.kernel.held();
    let mut bench = bench.restarted();
    assert!(bench.agent.round(None, PERIODIC).await);
    assert_eq!(bench.kernel.held(), held);
    assert_eq!(bench.report().programmed, seen().head.map(|h| h.digest));
}

#[tokio::test]
async fn a_flushed_kernel_is_filled_again() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let held = bench.kernel.held();
    bench.kernel.lose_everything();
    bench
        .agent
        .round(
            Some(&seen()),
            Force {
                apply: true,
                facts: false,
            },
        )
        .await;
    assert_eq!(bench.kernel.held(), held);
    assert_eq!(bench.kernel.cuts().len(), 2, "flows may have begun meanwhile");
}

#[tokio::test]
async fn a_half_written_plan_changes_nothing_but_the_pods() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let mut later = seen();
    later.gateways.clear();
    later.pods.clear();
    assert!(bench.agent.round(Some(&later), EVENT).await);
    let held = bench.kernel.held();
    assert!(held.flows.pods.is_empty());
    assert!(held.tunnel.is_some());
    assert_eq!(bench.report().programmed, seen().head.map(|h| h.digest));
}

#[tokio::test]
async fn a_refusing_kernel_is_reported_and_asked_again() {
    let mut bench = Bench::new();
    bench.kernel.refuse(Some("no room".into()));
    assert!(!bench.agent.round(Some(&seen()), PERIODIC).await);
    let report = bench.report();
    assert_eq!((report.programmed, report.verdict.status), (None, Some(false)));
    assert!(
        report.verdict.message.contains("no room"),
        "{}",
        report.verdict.message
    );
    bench.kernel.refuse(None);
    assert!(
        bench.agent.round(Some(&seen()), EVENT).await,
        "even without being told to"
    );
    assert_eq!(bench.verdict().status, Some(true));
}

#[tokio::test]
async fn a_teardown_takes_everything_and_another_plan_brings_it_back() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let ours = bench.kernel.held().flows.ours;
    let mut leaving = seen();
    leaving.head.as_mut().expect("head").teardown = true;
    assert!(bench.agent.round(Some(&leaving), EVENT).await);
    assert_eq!(bench.kernel.held(), DesiredState::default());
    assert_eq!(
        bench.kernel.cuts().last().map(|f| f.abandoned.clone()),
        Some(ours)
    );
    let report = bench.report();
    assert!(report.torn_down && report.programmed.is_none());
    assert!(
        std::fs::read_dir(bench.directory.path())
            .expect("directory")
            .next()
            .is_none(),
        "no trace"
    );

    assert!(bench.agent.round(Some(&Seen::default()), EVENT).await);
    assert_eq!(bench.kernel.held(), DesiredState::default());
    assert!(bench.agent.round(Some(&seen()), EVENT).await);
    assert!(bench.kernel.held().tunnel.is_some());
    assert!(!bench.report().torn_down);
}

#[tokio::test]
async fn what_was_stored_is_never_older_than_the_kernel() {
    let mut bench = Bench::new();
    bench.kernel.refuse(Some("killed in between".into()));
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let stored = Disk::new(bench.directory.path())
        .load("a-1")
        .expect("stored first");
    assert_eq!(stored.plan.map(|p| p.policies.len()), Some(1));
}

#[tokio::test]
async fn a_pod_deleted_by_force_stays_selected_until_another_has_its_address() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let selected = bench.kernel.held().flows.pods;
    let mut later = seen();
    let mut forgotten = later.pods.remove(0);
    forgotten.deleting = true;
    later.forgotten = vec![forgotten.clone()];
    bench.agent.round(Some(&later), EVENT).await;
    assert_eq!(
        bench.kernel.held().flows.pods,
        selected,
        "its containers may run on"
    );
    later.forgotten.clear();
    bench.agent.round(Some(&later), EVENT).await;
    let mut bench = bench.restarted();
    bench.agent.round(Some(&later), PERIODIC).await;
    assert_eq!(
        bench.kernel.held().flows.pods,
        selected,
        "nor does a restart forget it"
    );

    let mut reused = fixtures::pod("web-1", "web", &["10.244.0.5", "fd00:244::5"]);
    reused.created = 1;
    later.pods.push(reused);
    bench.agent.round(Some(&later), EVENT).await;
    assert_eq!(bench.kernel.held().flows.pods.len(), selected.len() - 2);
    later.pods.pop();
    bench.agent.round(Some(&later), EVENT).await;
    assert_eq!(
        bench.kernel.held().flows.pods.len(),
        selected.len() - 2,
        "gone for good"
    );

    let mut ended = seen();
    let mut pod = ended.pods.remove(0);
    pod.finished = true;
    ended.forgotten = vec![pod];
    bench.agent.round(Some(&ended), EVENT).await;
    assert_eq!(
        bench.kernel.held().flows.pods.len(),
        selected.len() - 2,
        "it had ended"
    );
}

#[tokio::test]
async fn what_a_finished_pod_still_sends_keeps_its_identity_until_the_address_is_anothers() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let address: IpAddr = "10.244.0.6".parse().expect("address");
    let mut later = seen();
    later.pods[1].finished = true;
    bench.agent.round(Some(&later), EVENT).await;
    let last = || bench.kernel.cuts().pop().expect("a cut");
    assert!(!last().pods.contains_key(&address) && last().departed.contains(&address));
    let flow = spillway_core::node::flows::Flow {
        source: address,
        destination: "198.51.100.1".parse().expect("address"),
        translated: "100.64.4.1".parse().expect("address"),
        port: 40_000,
        protocol: 6,
        to_port: 443,
        mark: spillway_core::node::flows::connection_mark(7),
    };
    assert!(!last().cut(&flow));

    later.pods.push(fixtures::pod("web-1", "web", &["10.244.0.6"]));
    bench.agent.round(Some(&later), EVENT).await;
    let last = bench.kernel.cuts().pop().expect("a cut");
    assert!(last.departed.is_empty() && last.cut(&flow));

    let mut unselected = seen();
    unselected.pods[1].labels.clear();
    bench.agent.round(Some(&seen()), EVENT).await;
    bench.agent.round(Some(&unselected), EVENT).await;
    let last = bench.kernel.cuts().pop().expect("a cut");
    assert!(last.cut(&flow), "a running pod that was relabelled begins anew");
}

#[tokio::test]
async fn one_failing_step_keeps_no_flow_from_being_cut_and_nothing_counts_as_programmed() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    bench
        .kernel
        .fail_one_step(Some("somebody else has a route".into()));
    let mut later = seen();
    later.pods.pop();
    later.pods.pop();
    let cuts = bench.kernel.cuts().len();
    assert!(!bench.agent.round(Some(&later), EVENT).await);
    assert_eq!(bench.kernel.cuts().len(), cuts + 1);
    let report = bench.report();
    assert_eq!((report.programmed, report.verdict.status), (None, Some(false)));
    assert!(report.verdict.message.contains("somebody else has a route"));
    bench.kernel.fail_one_step(None);
    assert!(bench.agent.round(Some(&later), EVENT).await);
    assert_eq!(bench.report().programmed, seen().head.map(|h| h.digest));
}

#[tokio::test]
async fn a_restart_knows_what_the_agent_before_it_had_programmed() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let ours = bench.kernel.held().flows.ours;
    let mut bench = bench.restarted();
    let mut leaving = seen();
    leaving.head.as_mut().expect("head").teardown = true;
    bench.agent.round(Some(&leaving), PERIODIC).await;
    assert_eq!(
        bench.kernel.cuts().last().map(|f| f.abandoned.clone()),
        Some(ours)
    );
}

#[tokio::test]
async fn older_inputs_are_not_kept_where_newer_ones_cannot_be_stored() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    // Where the new file should be written there is something that no file can replace.
    std::fs::create_dir(bench.directory.path().join("node.json.new")).expect("directory");
    let mut later = seen();
    later
        .pods
        .push(fixtures::pod("billing-2", "billing", &["10.244.0.8"]));
    bench.agent.round(Some(&later), EVENT).await;
    let held = bench.kernel.held();
    assert_eq!(Disk::new(bench.directory.path()).load("a-1"), None);
    let mut bench = bench.restarted();
    bench.agent.round(None, PERIODIC).await;
    assert_eq!(bench.kernel.held(), held, "the newer pod is still there");
}

#[tokio::test]
async fn one_pods_change_is_held_against_its_own_flows_only() {
    let mut bench = Bench::new();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    let only = |bench: &Bench| bench.kernel.cuts().pop().expect("a cut").only;
    assert_eq!(only(&bench), None, "nobody knows what there was before");
    let mut later = seen();
    later
        .pods
        .push(fixtures::pod("billing-2", "billing", &["10.244.0.8"]));
    bench.agent.round(Some(&later), EVENT).await;
    let address: IpAddr = "10.244.0.8".parse().expect("address");
    assert_eq!(only(&bench), Some([address].into()));
    bench.kernel.lose_everything();
    bench.agent.round(Some(&seen()), PERIODIC).await;
    assert_eq!(only(&bench), None, "flows may have begun meanwhile");
}
