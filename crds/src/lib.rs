//! The API types of Spillway and the schema the API server enforces on them.
//!
//! ```text
//!  hub cluster (spillway.io)                 member cluster (member.spillway.io)
//!  Member ─────────────┐                     HubConnection   who we joined, how it goes
//!  EgressGateway ──────┤  resolved by core   EgressPlan      the plan's head: digest, tunnel, teardown
//!  FederatedEgressPolicy ──────────────────► PlannedPolicy   one policy as this member must realise it
//!  FederatedClusterEgressPolicy ──────────►  PlannedGateway  one gateway, its nodes and identities
//!                                            PlannedPeer     another member's nodes at the tunnel's far end
//!                                            EgressNode      one node here: overlay address, what it runs
//!                                            ClusterNetwork  ranges that never leave through a gateway
//! ```
//!
//! Users write the kinds on the left. The member agent alone writes the right-hand ones, except
//! `EgressNode.status`, which each node's agent owns.

#![allow(
    unreachable_pub,
    reason = "the KubeSchema derive emits private copies of public types"
)]

pub mod address;
pub mod condition;
pub mod export;
pub mod hub;
pub mod member;
pub mod selector;

pub use condition::{Condition, ConditionType};
pub use selector::{LabelSelector, Operator, Requirement};

/// API group of what users write on the hub.
pub const HUB_GROUP: &str = "spillway.io";
/// API group of what the member agent keeps in its own cluster.
pub const MEMBER_GROUP: &str = "member.spillway.io";
/// Version of both groups.
pub const VERSION: &str = "v1alpha1";
/// Name of the objects of which a member has exactly one (`EgressPlan`, `ClusterNetwork`, `HubConnection`).
pub const SINGLETON: &str = "current";
/// Namespace that both charts install into.
pub const NAMESPACE: &str = "spillway-system";
/// Key of a taint that whoever makes nodes may give them: the member agent takes it away once the node's agent has
/// programmed the plan and holds pods.
pub const STARTUP_TAINT: &str = "spillway.io/agent-not-ready";
/// Annotation on a planned object: the digest of its content as the hub computed it.
pub const DIGEST_ANNOTATION: &str = "member.spillway.io/digest";
