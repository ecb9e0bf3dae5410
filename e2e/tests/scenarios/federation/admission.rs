//! What the API server itself refuses, with a message that names the fix.

use anyhow::{Result, ensure};
use spillway_e2e::federation::Federation;

/// (what is wrong, the object, what the refusal must say)
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "a destination with host bits",
        "{apiVersion: spillway.io/v1alpha1, kind: FederatedClusterEgressPolicy, metadata: {name: x}, spec: {to: {cidrs: [198.51.100.7/24]}, through: [{gateway: frankfurt}]}}",
        "host bits",
    ),
    (
        "a destination that is no CIDR",
        "{apiVersion: spillway.io/v1alpha1, kind: FederatedClusterEgressPolicy, metadata: {name: x}, spec: {to: {cidrs: [example.com]}, through: [{gateway: frankfurt}]}}",
        "to.cidrs is a CIDR",
    ),
    (
        "no gateway",
        "{apiVersion: spillway.io/v1alpha1, kind: FederatedClusterEgressPolicy, metadata: {name: x}, spec: {through: []}}",
        "spec.through",
    ),
    (
        "an egress IP of the wrong family",
        "{apiVersion: spillway.io/v1alpha1, kind: FederatedClusterEgressPolicy, metadata: {name: x}, spec: {through: [{gateway: frankfurt, egressIP: {ipv4: '2001:db8::1'}}]}}",
        "ipv4 must be one IPv4 address",
    ),
    (
        "a gateway without addresses",
        "{apiVersion: spillway.io/v1alpha1, kind: EgressGateway, metadata: {name: x}, spec: {nodes: [{member: a}], addresses: {}}}",
        "at least one entry",
    ),
    (
        "a gateway without nodes",
        "{apiVersion: spillway.io/v1alpha1, kind: EgressGateway, metadata: {name: x}, spec: {nodes: [], addresses: {ipv4: [203.0.113.99]}}}",
        "spec.nodes",
    ),
    (
        "an address range that is none",
        "{apiVersion: spillway.io/v1alpha1, kind: EgressGateway, metadata: {name: x}, spec: {nodes: [{member: a}], addresses: {ipv4: [203.0.113.10-]}}}",
        "a range",
    ),
    (
        "an unknown word for onUnavailable",
        "{apiVersion: spillway.io/v1alpha1, kind: FederatedClusterEgressPolicy, metadata: {name: x}, spec: {through: [{gateway: frankfurt}], onUnavailable: Perhaps}}",
        "onUnavailable",
    ),
];

/// The real API server's verdict on bad objects, and on a good one.
pub(crate) async fn the_api_server_refuses_what_it_should(fed: &Federation) -> Result<()> {
    for (what, object, expected) in REFUSED {
        let refusal = fed.hub().refusal_of(object).await?;
        ensure!(
            refusal.contains(expected),
            "{what}: expected the refusal to say {expected:?}, it said: {refusal}"
        );
    }
    let good = "{apiVersion: spillway.io/v1alpha1, kind: FederatedClusterEgressPolicy, metadata: {name: dry}, spec: {namespaces: {matchLabels: {team: x}}, to: {cidrs: ['2001:db8::/32', 192.0.2.0/24]}, through: [{gateway: frankfurt, egressIP: {ipv6: '2001:db8:113::10'}}], onUnavailable: NodeIP}}";
    fed.hub().accepts(good).await?;
    Ok(())
}
