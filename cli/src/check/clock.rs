//! Clocks. Certificates are judged by each side's own, and "since when" is compared across nodes.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use kube::client::Body;

use super::finding::{Finding, Topic};
use crate::cluster::Cluster;
use crate::failure::Failure;
use jiff::{SignedDuration, Timestamp};

/// Differences that are worth a word, and those that break certificates: they begin some minutes before they are made.
const WARNING: SignedDuration = SignedDuration::from_secs(30);
const ERROR: SignedDuration = SignedDuration::from_mins(5);
/// Kubelets renew their lease every ten seconds, and a busy one is late.
const RENEWAL: SignedDuration = SignedDuration::from_secs(60);

/// Compares the API server's clock with this machine's, and the nodes' with it.
pub(super) async fn check(cluster: &Cluster) -> Vec<Finding> {
    let began = Timestamp::now();
    let server = match server_time(cluster).await {
        Ok(server) => server,
        Err(failure) => return vec![Finding::unread("clocks", &failure)],
    };
    let mut out: Vec<Finding> = judge("the API server", server.duration_since(began))
        .into_iter()
        .collect();
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), "kube-node-lease");
    match cluster.list(leases, "node leases").await {
        Ok(leases) => {
            // The nodes' clocks are compared with the server's, not with this machine's.
            let offset = server.duration_since(began);
            out.extend(nodes(&leases, Timestamp::now() + offset));
        }
        Err(failure) => out.push(Finding::unread("clocks of nodes", &failure)),
    }
    out
}

/// The time in the header of an answer, which has whole seconds.
async fn server_time(cluster: &Cluster) -> Result<Timestamp, Failure> {
    let request = http::Request::get("/version")
        .body(Body::empty())
        .map_err(|e| Failure::new(crate::failure::Exit::Other, e.to_string()))?;
    let answer = cluster
        .client
        .send(request)
        .await
        .map_err(|e| Failure::kube("asking the API server for the time", &e))?;
    let date = answer
        .headers()
        .get(http::header::DATE)
        .and_then(|d| d.to_str().ok());
    let time = date.and_then(|d| jiff::fmt::rfc2822::parse(d).ok());
    time.map(|t| t.timestamp()).ok_or_else(|| {
        Failure::new(
            crate::failure::Exit::Other,
            "the API server's answer has no time in it",
        )
    })
}

fn judge(whose: &str, ahead: SignedDuration) -> Option<Finding> {
    let apart = ahead.abs();
    if apart < WARNING {
        return None;
    }
    let (seconds, way) = (
        apart.as_secs(),
        if ahead.is_negative() { "behind" } else { "ahead" },
    );
    let what = format!("its clock is {seconds} s {way} of the clock that it was compared with");
    let fix = "have both machines' clocks set by NTP (chronyc tracking, timedatectl)";
    Some(if apart < ERROR {
        Finding::warning(Topic::Clock, whose, what, fix)
    } else {
        Finding::error(Topic::Clock, whose, what, fix)
    })
}

/// A lease from the future was written by a clock that is ahead. One that is old may be of a node that is down.
fn nodes(leases: &[Lease], now: Timestamp) -> Vec<Finding> {
    let mut out = Vec::new();
    for lease in leases {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let Some(renewed) = lease.spec.as_ref().and_then(|s| s.renew_time.as_ref()) else {
            continue;
        };
        let ahead = renewed.0.duration_since(now);
        if ahead > WARNING {
            out.extend(judge(&format!("node {name}"), ahead));
        } else if ahead < -(RENEWAL + WARNING) {
            out.push(Finding::warning(
                Topic::Clock,
                format!("node {name}"),
                format!(
                    "its kubelet renewed its lease {} s ago: it is down, or its clock is behind",
                    ahead.abs().as_secs()
                ),
                "kubectl get nodes; on the node: timedatectl",
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn small_differences_are_none_and_large_ones_break_certificates() {
        let of = |seconds| judge("x", SignedDuration::from_secs(seconds)).map(|f| f.severity);
        assert_eq!(of(29), None);
        assert_eq!(of(-31), Some(Severity::Warning));
        assert_eq!(of(301), Some(Severity::Error));
        let said = judge("x", SignedDuration::from_secs(-31)).expect("said");
        assert!(said.what.contains("31 s behind"), "{}", said.what);
    }

    #[test]
    fn a_node_is_judged_by_when_it_says_it_renewed_its_lease() {
        let lease = |name: &str, renewed: &str| -> Lease {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name}, "spec": {"renewTime": renewed},
            }))
            .expect("a lease")
        };
        let now = "2026-01-01T12:00:00Z".parse().expect("a time");
        let found = nodes(
            &[
                lease("good", "2026-01-01T11:59:40.000000Z"),
                lease("ahead", "2026-01-01T12:10:00.000000Z"),
                lease("behind", "2026-01-01T11:50:00.000000Z"),
            ],
            now,
        );
        let objects: Vec<_> = found.iter().map(|f| (f.object.as_str(), f.severity)).collect();
        assert_eq!(
            objects,
            [
                ("node ahead", Severity::Error),
                ("node behind", Severity::Warning)
            ]
        );
    }
}
