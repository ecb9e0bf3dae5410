//! Who gets what is free, and who gives up what others need.

use std::collections::BTreeSet;

use spillway_crds::hub::PortLevel;
use spillway_crds::member::NodeRef;

use super::ports::MAX_RANGES;
use super::{Facts, Input, Outcome, Ports, Slice, Slices};

/// Blocks of half of an address's ports.
const HALF: usize = 512;

/// A step under way.
pub(super) struct Step<'a> {
    input: &'a Input,
    slices: Slices,
    /// What may be granted: in nobody's slice, neither before this step nor so far in it.
    free: Ports,
    /// Claimants that got nothing.
    short: Vec<&'a NodeRef>,
    cramped: Vec<NodeRef>,
}

impl<'a> Step<'a> {
    pub(super) fn new(input: &'a Input, slices: Slices) -> Self {
        let used = input
            .recorded
            .values()
            .chain(slices.values())
            .fold(Ports::NONE, |used, s| used.or(&s.all()));
        Self {
            input,
            slices,
            free: Ports::all().minus(&used),
            short: Vec::new(),
            cramped: Vec::new(),
        }
    }

    pub(super) fn outcome(mut self) -> Outcome {
        self.slices.retain(|_, slice| !slice.is_empty());
        let short = self.short.into_iter().cloned().collect();
        // Whatever drains of others, or was freed by this step, is theirs once it is free.
        let hope = self.slices.values().any(|s| !s.draining.is_empty()) || self.slices != self.input.recorded;
        let (waiting, without) = if hope { (short, vec![]) } else { (vec![], short) };
        Outcome {
            slices: self.slices,
            waiting,
            without,
            cramped: self.cramped,
        }
    }

    fn facts(&self, node: &NodeRef) -> Facts {
        self.input.facts.get(node).copied().unwrap_or_default()
    }

    fn slice(&self, node: &NodeRef) -> Slice {
        self.slices.get(node).copied().unwrap_or_default()
    }

    /// How full a slice is; what was said of a slice of another size says nothing.
    fn level(&self, node: &NodeRef) -> PortLevel {
        let facts = self.facts(node);
        let recorded = self.input.recorded.get(node).copied().unwrap_or_default();
        if facts.measured == recorded.ports.count() {
            facts.level
        } else {
            PortLevel::Normal
        }
    }

    /// Blocks of a first grant.
    fn share(&self) -> usize {
        let each = HALF / self.input.claimants.len().max(1);
        each.checked_ilog2().map_or(1, |bits| 1 << bits)
    }

    /// First ports for claimants that have none.
    pub(super) fn newcomers(&mut self) {
        let input = self.input;
        let mut new: Vec<_> = input
            .claimants
            .iter()
            .filter(|n| {
                let slice = self.slice(n);
                slice.ports.is_empty() && slice.pending.is_empty()
            })
            .collect();
        new.retain(|n| !self.take_back(n));
        let mut share = self.share();
        while share > 1 && new.len() * share > self.free.blocks() {
            share /= 2;
        }
        for node in new {
            // What the node still calls empty is not for itself: it may say so of the next connections there.
            let free = self.free.minus(&self.facts(node).vacated);
            let stretch = powers(share).find_map(|blocks| free.stretch(blocks, &Ports::NONE));
            match stretch {
                Some(stretch) => self.grant(node, &stretch),
                None => self.short.push(node),
            }
        }
        if !self.short.is_empty() {
            self.make_room();
        }
    }

    fn grant(&mut self, node: &NodeRef, ports: &Ports) {
        self.free = self.free.minus(ports);
        let slice = self.slices.entry(node.clone()).or_default();
        slice.pending = slice.pending.or(ports);
    }

    /// Turns draining ports of the node's own that all gateways know into ports again.
    fn take_back(&mut self, node: &NodeRef) -> bool {
        let known = self.input.known.get(node).map(|k| k.mapped).unwrap_or_default();
        let Some(slice) = self.slices.get_mut(node) else {
            return false;
        };
        let back = slice.draining.and(&known);
        if slice.ports.or(&back).ranges().len() > MAX_RANGES {
            return false;
        }
        slice.ports = slice.ports.or(&back);
        slice.draining = slice.draining.minus(&back);
        !back.is_empty()
    }

    /// Blocks that will be free before long: what nodes that nobody hears of drain may take for ever.
    fn draining(&self) -> usize {
        self.slices
            .iter()
            .filter(|(node, _)| !self.facts(node).silent)
            .map(|(_, s)| s.draining.blocks())
            .sum()
    }

    /// Starts draining of as many ports as those that got none need: of the largest slices first, and of full ones only
    /// where the others have too little.
    fn make_room(&mut self) {
        let mut each = self.share();
        loop {
            let needed = self.short.len() * each;
            for spare_full in [true, false] {
                while self.draining() < needed {
                    let victim = self.largest(each * 2, spare_full);
                    if !victim.is_some_and(|node| self.give_up(&node)) {
                        break;
                    }
                }
            }
            if self.draining() >= needed || each == 1 {
                return;
            }
            each /= 2;
        }
    }

    /// The claimant with the most ports, at least `blocks`; rather one that can say when they are free.
    fn largest(&self, blocks: usize, spare_full: bool) -> Option<NodeRef> {
        self.slices
            .iter()
            .filter(|(node, s)| {
                let full = self.level(node) >= PortLevel::High;
                s.ports.blocks() >= blocks && !(spare_full && full)
            })
            .max_by_key(|(node, s)| {
                let idle = self.level(node) == PortLevel::Idle;
                (!self.facts(node).silent, s.ports.blocks(), idle, *node)
            })
            .map(|(node, _)| node.clone())
    }

    /// The node gives up half of its ports. False where it can't.
    fn give_up(&mut self, node: &NodeRef) -> bool {
        let Some(slice) = self.slices.get_mut(node) else {
            return false;
        };
        let half = slice.ports.half();
        let draining = slice.draining.or(&half);
        if half.is_empty() || draining.pieces().len() > MAX_RANGES {
            return false;
        }
        slice.ports = slice.ports.minus(&half);
        slice.draining = draining;
        true
    }

    /// More ports for claimants whose slices are nearly full: the fullest and then the smallest first.
    pub(super) fn growth(&mut self) {
        let input = self.input;
        let mut full: Vec<_> = input
            .claimants
            .iter()
            .filter(|n| self.level(n) >= PortLevel::High)
            .filter(|n| {
                let slice = self.slice(n);
                // A step of this node's own is still under way.
                slice.pending.is_empty() && !slice.ports.is_empty()
            })
            .collect();
        full.sort_by_key(|n| (std::cmp::Reverse(self.level(n)), self.slice(n).ports.blocks(), *n));
        let recorded = &self.input.recorded;
        full.retain(|n| recorded.get(*n).is_some_and(|r| r.ports == self.slice(n).ports));
        let newcomers_wait = !self.short.is_empty();
        let mut served = BTreeSet::new();
        for node in full {
            if newcomers_wait || !(self.take_back(node) || self.double(node)) {
                self.cramped.push(node.clone());
            } else {
                served.insert(node);
            }
        }
        if newcomers_wait || self.draining() > 0 {
            return;
        }
        if let Some(first) = self.cramped.first().cloned() {
            let least = self.slice(&first).ports.blocks() * 2;
            let idle = self.idle(&served);
            let larger = || self.largest(least, true).filter(|n| !served.contains(n));
            if let Some(victim) = idle.or_else(larger) {
                self.give_up(&victim);
            }
        }
    }

    /// The largest slice that is hardly used.
    fn idle(&self, served: &BTreeSet<&NodeRef>) -> Option<NodeRef> {
        self.slices
            .iter()
            .filter(|(node, s)| {
                let idle = self.level(node) == PortLevel::Idle && !self.facts(node).silent;
                idle && s.ports.blocks() > 1 && !served.contains(node)
            })
            .max_by_key(|(node, s)| (s.ports.blocks(), *node))
            .map(|(node, _)| node.clone())
    }

    /// Grants as much again as the node has, or what there is.
    fn double(&mut self, node: &NodeRef) -> bool {
        let vacated = self.facts(node).vacated;
        let mut wanted = self.slice(node).ports.blocks();
        let mut got = false;
        while wanted > 0 {
            let slice = self.slice(node);
            let free = self.free.minus(&vacated);
            let largest = 1 << wanted.ilog2().min(HALF.ilog2());
            let near = slice.ports.or(&slice.pending);
            let Some(stretch) = powers(largest).find_map(|blocks| free.stretch(blocks, &near)) else {
                break;
            };
            if near.or(&stretch).ranges().len() > MAX_RANGES {
                break;
            }
            wanted -= stretch.blocks();
            self.grant(node, &stretch);
            got = true;
        }
        got
    }
}

/// `blocks`, a power of two, and the smaller ones.
fn powers(blocks: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(blocks), |b| (*b > 1).then_some(b / 2))
}
