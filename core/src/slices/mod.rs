//! Port slices: which node's connections may leave with which ports of an egress IP.
//!
//! ```text
//!          grant              every gateway node         given up, or no claimant
//!   free ────────► pending ─── knows of it ────► ports ────────────────► draining
//!    ▲                                             ▲   taken back by its node │
//!    │                                             └──────────────────────────┤
//!    └──── the node has no connection there and every gateway node knows ◄────┘
//! ```
//!
//! [`allot`] takes one step for one address: it reads what is recorded and says what to record next. A block that is
//! free in the record may be granted, one that becomes free by this very step may not, so that every port is free in
//! some record between two nodes. Equal input gives equal output, and where nothing has to move nothing does.
//!
//! **Sizes.** Granted are stretches of a power of two from 64 ports on, aligned, out of 1024 to 65535. A first grant is as large as it can be for
//! as many claimants as there are while half of the ports stays free: 32,768 for one, 16,384 for two, 256 for
//! a hundred, 64 from 512 on. The free half is for those that come later and for those that need more: a slice three
//! quarters full is doubled. Once nothing is free, a newcomer waits for a part of the largest slices that aren't full, a
//! slice that wants to grow for a part of those hardly used or more than twice its size.

mod grant;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::hub::PortLevel;
use spillway_crds::member::NodeRef;

pub use ports::Ports;

/// One node's ports of one address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Slice {
    /// For new connections.
    pub ports: Ports,
    /// Granted; not every gateway node may know it yet.
    pub pending: Ports,
    /// For connections that began there earlier.
    pub draining: Ports,
}

impl Slice {
    /// Ports in any state.
    pub fn all(&self) -> Ports {
        self.ports.or(&self.pending).or(&self.draining)
    }

    /// True where the node has none.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }
}

/// Slices of one address.
pub type Slices = BTreeMap<NodeRef, Slice>;

/// What is known of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// How full its slice is.
    pub level: PortLevel,
    /// Of how many ports for new connections that was said.
    pub measured: u16,
    /// Draining ports of which it says that no connection is left there.
    pub vacated: Ports,
    /// What the plan in its kernel gives it. `None` where that plan isn't known.
    pub runs: Option<Slice>,
    /// Its plan is the newest: no earlier one can still reach it.
    pub settled: bool,
    /// It can't say anything now.
    pub silent: bool,
    /// It is gone for good: it uses nothing any more.
    pub gone: bool,
}

/// What one step reads.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// What is recorded; no port in two slices.
    pub recorded: Slices,
    /// Nodes that are to have ports.
    pub claimants: BTreeSet<NodeRef>,
    /// What is known of claimants and of nodes with a slice; nothing of whoever isn't listed.
    pub facts: BTreeMap<NodeRef, Facts>,
    /// What every gateway node that counts has in its kernel.
    pub known: BTreeMap<NodeRef, Known>,
    /// No gateway node counts, or none has to know of ports: nobody needs to hear of their end.
    pub unwatched: bool,
}

/// What is true of a node's ports in every gateway node's plan.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Known {
    /// Pending or for new connections.
    pub granted: Ports,
    /// Draining.
    pub draining: Ports,
    /// In any state.
    pub mapped: Ports,
}

impl Known {
    /// What one plan says.
    pub fn of(slice: &Slice) -> Self {
        Self {
            granted: slice.ports.or(&slice.pending),
            draining: slice.draining,
            mapped: slice.all(),
        }
    }

    /// What both say.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            granted: self.granted.and(&other.granted),
            draining: self.draining.and(&other.draining),
            mapped: self.mapped.and(&other.mapped),
        }
    }
}

/// What to record next, and who lacks ports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The slices to record; no entry is empty.
    pub slices: Slices,
    /// Claimants without any port that wait for others to give some up.
    pub waiting: Vec<NodeRef>,
    /// Claimants without any port of whom nobody can say that they will get one.
    pub without: Vec<NodeRef>,
    /// Claimants whose slice is nearly full and can't grow now.
    pub cramped: Vec<NodeRef>,
}

/// One step.
pub fn allot(input: &Input) -> Outcome {
    let mut slices = input.recorded.clone();
    for (node, slice) in &mut slices {
        let facts = input.facts.get(node).copied().unwrap_or_default();
        let known = input.known.get(node).copied().unwrap_or_default();
        let unmapped = if input.unwatched {
            slice.draining
        } else {
            known.draining
        };
        release(slice, &facts, &unmapped);
        if input.claimants.contains(node) && !facts.gone {
            let ready = slice.pending.and(&known.granted);
            slice.ports = slice.ports.or(&ready);
            slice.pending = slice.pending.minus(&ready);
        } else {
            // Pending ones too: whoever has seen them must see their end before they are granted anew.
            slice.draining = slice.all();
            slice.ports = Ports::NONE;
            slice.pending = Ports::NONE;
        }
    }
    let mut step = grant::Step::new(input, slices);
    step.newcomers();
    step.growth();
    step.outcome()
}

/// Takes away what drains and is empty. `unmapped` is what all gateways call draining: one that is behind could
/// otherwise pass for one that knows of the next grant.
fn release(slice: &mut Slice, facts: &Facts, unmapped: &Ports) {
    let empty = match &facts.runs {
        _ if facts.gone => slice.draining,
        // What it said before it knew that they drain was about an earlier life of theirs.
        Some(runs) if !facts.settled => facts.vacated.and(&runs.draining),
        Some(runs) => facts
            .vacated
            .and(&runs.draining)
            .or(&slice.draining.minus(&runs.all())),
        None => Ports::NONE,
    };
    let left = slice.draining.minus(&empty.and(unmapped));
    // A record has room for so many ranges; a part that can't be named stays with the rest.
    if left.pieces().len() <= ports::MAX_RANGES {
        slice.draining = left;
    }
}
