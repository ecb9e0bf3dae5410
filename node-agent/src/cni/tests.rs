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
    let with_cache = || Cni::with(Some(CacheFile::new(path.clone())), None);
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
