//! The order of policies that take the same packet.
//!
//! Of all policies that select a pod and whose destinations hold a packet's address and port, the one with the longest
//! prefix around that address wins. Among prefixes of one length the one that names the fewest ports with this port does:
//! a port before a range, a narrow range before a wide one, any range before a whole protocol, and that before a policy
//! without `ports`. Among equals the first in [`rank`] does: the higher priority, then the older policy, then the first by
//! namespace and name, a cluster-wide policy before all namespaces. No two policies are equal in all of these, so the order
//! is total, and nothing in it depends on the node, on the time or on the order in which objects arrive.

use std::cmp::Reverse;

use spillway_crds::member::PolicyRef;

/// Sorts policies, the one that wins first. `created` in seconds since 1970.
pub fn rank(priority: i32, created: i64, source: &PolicyRef) -> impl Ord + use<'_> {
    (
        Reverse(priority),
        created,
        source.namespace.as_deref(),
        source.name.as_str(),
    )
}
