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
            Health::new(),
            sender,
            "a-1",
            Settings::default(),
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
