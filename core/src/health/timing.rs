//! How patient a node is.

use std::time::Duration;

/// How often is probed, and what follows from answers that don't come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// Time from one probe of a node to the next.
    pub interval: Duration,
    /// Probes in a row without an answer after which a node is dead. The last of them is waited for half an interval.
    pub losses: u32,
    /// Answers in a row after which a dead node may be used again.
    pub recovery: u32,
    /// How long a node that failed must answer before it is used again; twice that after the second failure, and so
    /// on.
    pub hold_first: Duration,
    /// Longest of these times.
    pub hold_max: Duration,
    /// How long a node must do well for one of its failures to be forgotten.
    pub forgive: Duration,
    /// How long a node that hears none of several others, but something on its uplink, waits until it takes them all
    /// for dead. It can't be told from a tunnel that brings nothing.
    pub alone: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(100),
            losses: 3,
            recovery: 5,
            hold_first: Duration::from_secs(1),
            hold_max: Duration::from_secs(60),
            forgive: Duration::from_secs(60),
            alone: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// How long the last of the lost probes is waited for.
    pub(super) fn grace(&self) -> Duration {
        self.interval / 2
    }

    /// How long what a node said of itself counts.
    pub(super) fn fresh(&self) -> Duration {
        self.interval * (self.losses + 1)
    }
}
