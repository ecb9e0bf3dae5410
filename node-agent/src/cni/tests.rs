//! What the loop and the server share.

use spillway_core::node::fixtures;
use spillway_core::node::inputs::Pod;

use super::*;

#[test]
fn nobody_knows_until_the_loop_has_gone_round() {
    let cni = Cni::off();
    assert_eq!(cni.standing().borrow().planned, None);
    cni.unplanned();
    assert_eq!(cni.standing().borrow().planned, Some(false));
    let mut inputs = fixtures::source();
    let number = cni.begin(&mut inputs);
    let standing = cni.standing().borrow().clone();
    assert!(standing.planned == Some(true) && standing.scope.could_select_in("payments"));
    cni.finish(number, Err("nft says no".into()));
    assert_eq!(cni.standing().borrow().failure.as_deref(), Some("nft says no"));
}

#[test]
fn what_was_registered_before_a_round_is_done_after_it() {
    let cni = Cni::off();
    let pod = fixtures::pod("billing-9", "billing", &["10.244.0.9"]);
    let number = cni.add(Sandbox {
        container: "c".into(),
        interface: "eth0".into(),
        pod,
        fresh: true,
    });
    assert_eq!(*cni.asked().borrow(), number);
    let mut inputs = fixtures::source();
    let round = cni.begin(&mut inputs);
    assert_eq!(inputs.sandboxes.len(), 1);
    let later = cni.add(Sandbox {
        container: "d".into(),
        interface: "eth0".into(),
        pod: Pod::default(),
        fresh: true,
    });
    cni.finish(round, Ok(BTreeSet::new()));
    let done = cni.standing().borrow().done;
    assert!(done >= number && done < later);
}

#[test]
fn a_lost_plan_frees_nobody_whom_an_earlier_agent_held() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("cni.json");
    let with_cache = || Cni::with(Some(CacheFile::new(path.clone())), None, Guard::Never);
    let cni = with_cache();
    cni.unplanned();
    assert_eq!(cni.standing().borrow().planned, Some(false), "there was none");
    cni.begin(&mut fixtures::source());
    let next = with_cache();
    next.unplanned();
    assert_eq!(next.standing().borrow().planned, None);
    let nowhere = BTreeSet::new();
    assert!(next.was_in_question("payments", &nowhere) && !next.was_in_question("web", &nowhere));
    next.torn_down().expect("torn down");
    assert_eq!(next.standing().borrow().planned, Some(false));
    assert!(!next.was_in_question("payments", &nowhere));
}

#[test]
fn a_teardown_frees_everybody() {
    let cni = Cni::off();
    let mut inputs = fixtures::source();
    let number = cni.begin(&mut inputs);
    cni.finish(number, Ok(["10.244.0.5".parse().expect("address")].into()));
    cni.torn_down().expect("torn down");
    let standing = cni.standing().borrow().clone();
    assert!(standing.planned == Some(false) && standing.selected.is_empty());
    assert!(!standing.scope.could_select_in("payments"));
}

/// A node's directories with a network in `10-n.conflist`, and what keeps the plugin in its chain.
fn chained(directory: &std::path::Path, network: &str, guarded: bool) -> Cni {
    for name in ["bin", "net.d"] {
        std::fs::create_dir_all(directory.join(name)).expect("directory");
    }
    std::fs::write(directory.join("plugin"), "program").expect("written");
    std::fs::write(directory.join("net.d/10-n.conflist"), network).expect("written");
    let places = install::Places {
        plugin: directory.join("plugin"),
        programs: directory.join("bin"),
        networks: directory.join("net.d"),
    };
    let installer = Installer::new(places, spillway_cni::config::Entry::default());
    Cni::chained(directory.join("cni.json"), installer, guarded)
}

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

#[test]
fn where_nothing_can_be_chained_the_guard_stands_and_says_why() {
    let directory = tempfile::tempdir().expect("directory");
    let mut inputs = fixtures::source();
    let chain_only = chained(directory.path(), "{", false);
    chain_only.begin(&mut inputs);
    assert!(!inputs.guard, "as the operator chose");
    assert_eq!(chain_only.first_packets(), FirstPackets::Open);
    let problem = chain_only.problem().expect("a problem");
    assert!(
        problem.contains("aren't held") && problem.contains("10-n.conflist"),
        "{problem}"
    );

    let cni = chained(directory.path(), "{", true);
    cni.begin(&mut inputs);
    assert!(inputs.guard && cni.standing().borrow().guarded);
    assert_eq!(cni.first_packets(), FirstPackets::Guard);
    let problem = cni.problem().expect("a problem");
    assert!(
        problem.contains("dropped") && problem.contains("10-n.conflist"),
        "{problem}"
    );

    std::fs::remove_file(directory.path().join("net.d/10-n.conflist")).expect("removed");
    let empty = Cni::chained(
        directory.path().join("cni.json"),
        cni.0.installer.clone().expect("one"),
        true,
    );
    cni.0.installer.as_ref().expect("one").ensure();
    assert!(empty.problem().expect("a problem").contains("cni.confDir"));
}

#[test]
fn the_guard_stands_while_pods_may_have_passed_the_plugin_by() {
    let directory = tempfile::tempdir().expect("directory");
    let cni = chained(directory.path(), LIST, true);
    let mut changed = cni.chain();
    let mut inputs = fixtures::source();
    cni.begin(&mut inputs);
    assert!(inputs.guard, "it was put in only now");
    assert!(cni.lifts().is_some() && changed.has_changed().expect("open"));
    assert_eq!((cni.first_packets(), cni.problem()), (FirstPackets::Chain, None));

    // Another agent finds it in place.
    changed.mark_unchanged();
    let text = std::fs::read_to_string(directory.path().join("net.d/10-n.conflist")).expect("readable");
    let next = chained(directory.path(), &text, true);
    next.begin(&mut inputs);
    assert!(!inputs.guard && next.lifts().is_none());

    // The CNI's own agent writes it anew.
    let mut changed = next.chain();
    std::fs::write(directory.path().join("net.d/10-n.conflist"), LIST).expect("written");
    next.0.installer.as_ref().expect("one").ensure();
    assert!(changed.has_changed().expect("open"), "the loop is woken");
    changed.mark_unchanged();
    next.begin(&mut inputs);
    assert!(inputs.guard && next.standing().borrow().guarded);
}

#[test]
fn off_and_guard_leave_no_sandbox_whose_end_nobody_would_tell() {
    for (cni, guard, said) in [
        (Cni::off(), false, FirstPackets::Off),
        (Cni::guarded(), true, FirstPackets::Guard),
    ] {
        cni.restore(&[Sandbox::default()]);
        let mut inputs = fixtures::source();
        cni.begin(&mut inputs);
        assert!(inputs.sandboxes.is_empty());
        assert_eq!((inputs.guard, cni.first_packets()), (guard, said));
    }
}
