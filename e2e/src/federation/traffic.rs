//! Pods that send, and what the outside server sees of them.

use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Federation, OUTSIDE_V6, PATIENCE};
use crate::scenario::{Mark, Pod, eventually};

/// How a pod is expected to leave.
#[derive(Clone, Copy, Debug)]
pub enum Egress<'a> {
    /// With its node's own address.
    Node,
    /// With this address.
    Ip(&'a str),
}

/// A pod of a story.
#[derive(Clone)]
pub struct StoryPod<'a> {
    federation: &'a Federation,
    member: String,
    node: String,
    pod: Pod,
}

impl<'a> StoryPod<'a> {
    pub(super) fn new(federation: &'a Federation, member: &str, pod: Pod) -> Result<Self> {
        let node = pod.node()?.name().to_owned();
        Ok(Self {
            federation,
            member: member.into(),
            node,
            pod,
        })
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.pod.address(true).unwrap_or(self.pod.addresses()[0])
    }

    /// The node it is on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The federation that it is in.
    pub(super) fn federation(&self) -> &'a Federation {
        self.federation
    }

    /// The pod itself.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The source address (without port) that the server at `to` sees of one new TCP connection.
    pub async fn source(&self, to: &str) -> Result<String> {
        self.source_by("tcp", to).await
    }

    async fn source_by(&self, protocol: &str, to: &str) -> Result<String> {
        let tag = self.pod.namespace();
        let seen = self
            .pod
            .run(&["probe", protocol, to, "--timeout", "1s", "--tag", tag])
            .await?
            .success()?;
        let address = seen
            .trim()
            .rsplit_once(':')
            .map_or(seen.trim(), |(address, _port)| address);
        Ok(address.trim_matches(['[', ']']).to_owned())
    }

    fn expected(&self, to: &str, egress: Egress<'_>) -> Result<String> {
        Ok(match egress {
            Egress::Ip(address) => address.to_owned(),
            Egress::Node => {
                let node = self.federation.node(&self.node)?;
                if to == OUTSIDE_V6 {
                    node.plan().ipv6.to_string()
                } else {
                    node.plan().ipv4.to_string()
                }
            }
        })
    }

    /// Waits until new TCP connections to `to` arrive from the expected address.
    pub async fn leaves_from(&self, to: &str, egress: Egress<'_>) -> Result<()> {
        self.leaves_from_within(PATIENCE, to, egress).await
    }

    /// The same with a limit of its own.
    pub async fn leaves_from_within(&self, limit: Duration, to: &str, egress: Egress<'_>) -> Result<()> {
        let expected = self.expected(to, egress)?;
        self.comes_from(limit, "tcp", to, &expected).await
    }

    async fn comes_from(&self, limit: Duration, protocol: &str, to: &str, expected: &str) -> Result<()> {
        let what = format!(
            "pod {} in {} reaches {to} by {protocol} from {expected}",
            self.pod.name(),
            self.member
        );
        eventually(limit, &what, || async {
            let seen = self.source_by(protocol, to).await?;
            ensure!(seen == expected, "the outside server saw {seen}");
            Ok(())
        })
        .await
    }

    /// Waits until new connections to `to` fail, and nothing of them arrives there from any address.
    pub async fn is_blocked(&self, to: &str) -> Result<()> {
        let what = format!(
            "nothing of pod {} in {} reaches {to}",
            self.pod.name(),
            self.member
        );
        eventually(PATIENCE, &what, || async {
            let mark = self.federation.outside_mark()?;
            let tag = format!("{}-blocked", self.pod.namespace());
            for protocol in ["tcp", "udp"] {
                let tried = self
                    .pod
                    .run(&["probe", protocol, to, "--timeout", "1s", "--tag", &tag])
                    .await?;
                ensure!(tried.code != 0, "{protocol} is answered: {}", tried.stdout);
            }
            // A datagram that leaks arrives, even where no answer finds back.
            let sources = self.federation.outside_sources_since(mark, &tag)?;
            ensure!(sources.is_empty(), "it arrived from {sources:?}");
            Ok(())
        })
        .await
    }

    /// Waits until UDP datagrams arrive from the address.
    pub async fn sends_udp_from(&self, to: &str, expected: &str) -> Result<()> {
        self.comes_from(PATIENCE, "udp", to, expected).await
    }

    /// Echo requests are answered and arrive from the address.
    pub async fn pings_from(&self, host: &str, expected: &str) -> Result<()> {
        let mark = self.federation.outside_mark()?;
        let tag = format!("ping-{}", self.member);
        eventually(
            PATIENCE,
            &format!("pod {} pings {host} from {expected}", self.pod.name()),
            || async {
                self.pod
                    .run(&["probe", "ping", host, "--timeout", "1s", "--tag", &tag])
                    .await?
                    .success()?;
                let sources = self.federation.outside_sources_since(mark, &tag)?;
                ensure!(
                    sources.iter().any(|s| s == expected),
                    "echo requests came from {sources:?}"
                );
                Ok(())
            },
        )
        .await
    }

    /// Holds one connection for `lines` exchanges of 10 ms; gives the source the server saw.
    pub async fn talk(&self, to: &str, tag: &str, lines: u32) -> Result<String> {
        let count = lines.to_string();
        let args = [
            "probe", "watch", "tcp", to, "--keep", "--count", &count, "--tag", tag, "--json",
        ];
        let said = self.pod.run(&args).await?.success()?;
        let first: serde_json::Value =
            serde_json::from_str(said.lines().last().context("the probe said nothing")?)?;
        first["src"]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("no source in {said}"))
    }

    /// Another pod's port answers, with no gateway in between.
    pub async fn reaches(&self, other: &StoryPod<'_>) -> Result<()> {
        let host = other.ip().to_string();
        eventually(
            PATIENCE,
            &format!("{} reaches pod {host}", self.pod.name()),
            || async {
                self.pod
                    .run(&["probe", "ping", &host, "--timeout", "1s"])
                    .await?
                    .success()
                    .map(drop)
            },
        )
        .await
    }

    /// The cluster's API server answers at its service address.
    pub async fn reaches_the_api_server(&self) -> Result<()> {
        let service = "10.96.0.1";
        eventually(PATIENCE, "the API server's service address answers", || async {
            self.pod
                .run(&["busybox", "nc", "-w", "1", service, "443", "-e", "true"])
                .await?
                .success()
                .map(drop)
        })
        .await
    }

    /// Replaces the value of a label (`key=value`).
    pub async fn label(&self, label: &str) -> Result<()> {
        let cluster = self.federation.cluster(&self.member)?;
        let args = [
            "-n",
            self.pod.namespace(),
            "label",
            "pod",
            self.pod.name(),
            label,
            "--overwrite",
        ];
        cluster.kubectl(&args).await.map(drop)
    }

    /// Deletes the pod and waits until it is gone.
    pub async fn delete(self) -> Result<()> {
        self.pod.delete().await
    }

    /// Begins to connect anew every 50 ms, until asked what came of it.
    pub fn watch(&self, to: &str) -> Result<Watch<'a>> {
        let tag = format!("{}-watch", self.pod.namespace());
        let mark = self.federation.outside_mark()?;
        let mut command = self.pod.command(&[
            "probe",
            "watch",
            "tcp",
            to,
            "--interval",
            "50ms",
            "--timeout",
            "500ms",
            "--tag",
            &tag,
            "--json",
        ])?;
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Watch {
            federation: self.federation,
            process,
            mark,
            tag,
        })
    }
}

/// A pod that connects again and again.
pub struct Watch<'a> {
    federation: &'a Federation,
    process: Child,
    mark: Mark,
    tag: String,
}

impl Watch<'_> {
    /// Ends it; everything that arrived came from `expected`, and some did.
    pub fn only_ever_from(mut self, expected: &str) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        let sources = self.federation.outside_sources_since(self.mark, &self.tag)?;
        if sources.is_empty() {
            bail!("nothing arrived at all");
        }
        ensure!(sources == [expected], "connections came from {sources:?}");
        Ok(())
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Federation {
    /// The present end of the outside server's record.
    pub fn outside_mark(&self) -> Result<Mark> {
        self.arena.outside().mark()
    }

    /// The distinct sources of what arrived outside since `mark` with `tag` in its payload, sorted.
    pub fn outside_sources_since(&self, mark: Mark, tag: &str) -> Result<Vec<String>> {
        let records = self.arena.outside().tagged_since(mark, tag)?;
        let sources: std::collections::BTreeSet<_> = records.iter().map(|r| r.src.to_string()).collect();
        Ok(sources.into_iter().collect())
    }

    /// Makes the node's address allocator hand out `address` next: host-local goes round from the one
    /// it gave out last, which it keeps in a file.
    pub(super) async fn next_address(&self, node: &str, address: IpAddr) -> Result<()> {
        let IpAddr::V4(v4) = address else {
            bail!("only IPv4 addresses are searched for")
        };
        let before = std::net::Ipv4Addr::from(u32::from(v4) - 1);
        let write =
            format!("for f in /var/lib/cni/networks/*/last_reserved_ip.0; do echo {before} > $f; done");
        self.node(node)?
            .exec(&["sh", "-c", &write])
            .await?
            .success()
            .map(drop)
    }
}
