//! Runs `nft`.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::time::Duration;

use spillway_core::node::nft::Ruleset;
use spillway_core::plan::Digest;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::observe::devices;
use super::{DEVICE_FAMILY, Difference, Observed, between, difference, parse};
use crate::{Changes, Error, Operation, Result};

/// A transaction of ten thousands of elements takes seconds; one that takes this long is stuck.
const LIMIT: Duration = Duration::from_secs(60);

/// How much of nft's complaints is passed on, in bytes.
const MESSAGE: usize = 600;

/// One table of ours, by way of the `nft` program.
#[derive(Debug)]
pub struct Nft {
    family: &'static str,
    table: String,
    /// Expressions that the kernel was seen to hold for each stamp just after we wrote it.
    fingerprints: BTreeMap<String, Digest>,
}

impl Nft {
    /// A table of this family and name, of which nothing is known yet.
    pub fn new(family: &'static str, table: String) -> Self {
        Self {
            family,
            table,
            fingerprints: BTreeMap::new(),
        }
    }

    /// Whether nft runs and the kernel answers it.
    pub async fn probe(&self) -> Result<()> {
        let output = run(&["-j", "list", "tables"], None).await?;
        succeed("list tables", output).map(|_| ())
    }

    /// Whether a chain can hook into a device's egress. The kernel is asked to make one, in a transaction that is
    /// given up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn probe_egress() -> Result<()> {
        let script = "add table netdev spillway_probe\n\
             add chain netdev spillway_probe steer { type filter hook egress device \"lo\" priority 0; }\n";
        let output = run(&["-c", "-f", "-"], Some(script)).await?;
        succeed("hook into a device's egress", output).map(|_| ())
    }

    /// The table as the kernel holds it, or `None` when there is none.
    pub async fn observe(&self) -> Result<Option<Observed>> {
        let Some(output) = list(&["-j", "-n", "list", "table", self.family, &self.table]).await? else {
            return Ok(None);
        };
        let mut observed = parse(&succeed("list table", output)?)?;
        let hooks = || observed.chains.values().filter_map(|chain| chain.hook.as_ref());
        if self.family == DEVICE_FAMILY && hooks().any(|hook| hook.device.is_none()) {
            let output = run(&["list", "chains", self.family], None).await?;
            let devices = devices(&succeed("list chains", output)?, &self.table);
            for (name, chain) in &mut observed.chains {
                if let Some(hook) = chain.hook.as_mut().filter(|hook| hook.device.is_none()) {
                    hook.device = devices.get(name).cloned();
                }
            }
        }
        Ok(Some(observed))
    }

    /// What [`Self::apply`] would change.
    pub async fn plan(&self, desired: Option<&Ruleset>) -> Result<Changes> {
        Ok(self.compare(desired).await?.1.changes)
    }

    /// As [`Self::plan`]; what is found as wanted is known from then on.
    pub async fn verify(&mut self, desired: Option<&Ruleset>) -> Result<Changes> {
        let (observed, difference) = self.compare(desired).await?;
        if difference.changes.is_empty() {
            self.learn(observed.as_ref());
        }
        Ok(difference.changes)
    }

    /// Makes the table as wanted where the kernel is known to hold `held`, in one run of nft and without reading
    /// anything back. To be followed by [`Self::verify`] before long.
    ///
    /// # Errors
    /// Where nft refuses, as it does when something is missing: [`Self::apply`] then finds out.
    pub async fn update(&self, held: &Ruleset, desired: &Ruleset) -> Result<Changes> {
        let difference = between(held, desired);
        if !difference.changes.is_empty() {
            transaction(&difference.script).await?;
        }
        Ok(difference.changes)
    }

    /// What is there, and what it lacks.
    async fn compare(&self, desired: Option<&Ruleset>) -> Result<(Option<Observed>, Difference)> {
        if let Some(other) = desired.filter(|d| d.family != self.family || d.table != self.table) {
            return Err(Error::Impossible(format!(
                "table {} {} was asked for, but this kernel was opened for table {} {}",
                other.family, other.table, self.family, self.table
            )));
        }
        let observed = self.observe().await?;
        let at = (self.family, self.table.as_str());
        let difference = difference(at, observed.as_ref(), desired, &self.fingerprints);
        Ok((observed, difference))
    }

    /// Makes the table as wanted; `None` removes it.
    ///
    /// An update that nft refuses is tried again as a replacement of the whole table. What was written is read
    /// back.
    pub async fn apply(&mut self, desired: Option<&Ruleset>) -> Result<Changes> {
        let (observed, first) = self.compare(desired).await?;
        if first.changes.is_empty() {
            if self.fingerprints.is_empty() {
                self.learn(observed.as_ref());
            }
            return Ok(first.changes);
        }
        let whole = desired.map(super::whole);
        let mut changes = first.changes;
        let replaced = format!("table {} {} (replaced: ", self.family, self.table);
        if let Err(error) = transaction(&first.script).await {
            let Some(whole) = whole.as_ref().filter(|_| !first.replaces) else {
                return Err(error);
            };
            tracing::warn!(%error, "nft refused an update of our table; replacing the whole table");
            transaction(whole).await?;
            changes.push(Operation::Change, format!("{replaced}nft refused an update)"));
        }
        // What we have just written is by definition ours, whatever was known before.
        self.fingerprints.clear();
        let (mut observed, mut left) = self.compare(desired).await?;
        if let (false, Some(whole)) = (left.changes.is_empty() || first.replaces, whole.as_ref()) {
            tracing::warn!(left = %left.changes, "an update of our table left differences; replacing the whole table");
            transaction(whole).await?;
            changes.push(
                Operation::Change,
                format!("{replaced}an update left differences)"),
            );
            (observed, left) = self.compare(desired).await?;
        }
        if !left.changes.is_empty() {
            return Err(Error::Nft {
                what: "took the table, but then listed another one".into(),
                message: left.changes.to_string().chars().take(MESSAGE).collect(),
            });
        }
        self.learn(observed.as_ref());
        Ok(changes)
    }

    fn learn(&mut self, observed: Option<&Observed>) {
        self.fingerprints = observed
            .into_iter()
            .flat_map(|o| o.chains.values())
            .flat_map(|chain| &chain.rules)
            .filter_map(|rule| Some((rule.stamp.clone()?, rule.fingerprint)))
            .collect();
    }
}

async fn transaction(script: &str) -> Result<()> {
    tracing::debug!(script, "nft transaction");
    succeed("refused a transaction", run(&["-f", "-"], Some(script)).await?).map(|_| ())
}

/// What nft prints of something, or `None` where it isn't there.
pub(super) async fn list(arguments: &[&str]) -> Result<Option<Output>> {
    let output = run(arguments, None).await?;
    let missing = || String::from_utf8_lossy(&output.stderr).contains("No such file or directory");
    Ok(if !output.status.success() && missing() {
        None
    } else {
        Some(output)
    })
}

pub(super) fn succeed(what: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let message: String = String::from_utf8_lossy(&output.stderr)
            .trim()
            .chars()
            .take(MESSAGE)
            .collect();
        return Err(Error::Nft {
            what: what.into(),
            message,
        });
    }
    String::from_utf8(output.stdout).map_err(|e| Error::NftUnreadable {
        what: "its answer".into(),
        detail: e.to_string(),
    })
}

/// Runs nft in the network namespace of the calling thread, which the child inherits.
async fn run(arguments: &[&str], input: Option<&str>) -> Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::NftMissing)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // An early exit of nft closes the pipe; its exit status tells more than EPIPE would.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    timeout(LIMIT, both)
        .await
        .map_err(|_| Error::TimedOut(format!("nft {}", arguments.join(" ")), LIMIT.as_secs()))?
        .map_err(Error::NftMissing)
}
