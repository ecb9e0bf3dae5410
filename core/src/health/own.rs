//! Whether this node itself is fit to be a gateway's.
//!
//! A node that sends and doesn't receive would take all egress IPs, since to it everybody else is dead. So a node that
//! hears nobody steps back, unless something tells it that the others are gone rather than that it is deaf. And a node
//! that its colleagues don't hear steps back as well, so that all of them agree on who holds what.

use super::damper::Damper;
use super::{Moment, Timing};

/// What the device is like on which egress IPs are answered for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Uplink {
    /// It has a carrier.
    pub carrier: bool,
    /// When it was last seen to have received anything.
    pub received: Option<Moment>,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            carrier: true,
            received: None,
        }
    }
}

/// How this node is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Condition {
    /// It hasn't programmed a plan, or not yet found out who else is there.
    #[default]
    Starting,
    /// Nothing is wrong.
    Fit,
    /// It hears nobody in the tunnel, but something on its uplink: the others are gone.
    Alone,
    /// It hears nobody.
    Deaf,
    /// It is heard by nobody.
    Mute,
    /// Its uplink has no carrier.
    NoCarrier,
    /// It was one of the three above lately.
    HeldDown,
}

impl Condition {
    /// It takes egress IPs like any other.
    pub const fn fit(self) -> bool {
        matches!(self, Self::Fit | Self::Alone)
    }

    /// It can't carry anything.
    pub const fn unusable(self) -> bool {
        matches!(self, Self::Deaf | Self::Mute | Self::NoCarrier)
    }

    /// In words.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Starting => "this node is starting",
            Self::Fit => "this node is fit",
            Self::Alone => "this node is the only one left",
            Self::Deaf => "this node hears nobody and holds no egress IP until it does",
            Self::Mute => "no other node hears this one, so it holds no egress IP",
            Self::NoCarrier => "this node's uplink has no carrier, so it holds no egress IP",
            Self::HeldDown => "this node failed lately and is held down for a while",
        }
    }
}

/// What is seen at one moment.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent answers to independent questions"
)]
pub(super) struct Seen {
    /// A plan is in the kernel.
    pub(super) programmed: bool,
    /// Every probed node was heard or found dead.
    pub(super) judged: bool,
    /// Others share a gateway with this node.
    pub(super) colleagues: bool,
    /// How many others it should hear.
    pub(super) expected: usize,
    /// A colleague that this node gets no answer from gets none from it, and nobody does.
    pub(super) mute: bool,
    /// The uplink.
    pub(super) uplink: Uplink,
}

/// The state machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    pub(super) condition: Condition,
    /// Probe rounds since anybody was heard, and since when nobody was.
    silent: u32,
    last_heard: Moment,
    /// Rounds in a row in each of which somebody was heard.
    hearing: u32,
    heard_this_round: bool,
    damper: Damper,
    /// Until when it is held down.
    until: Moment,
    deaf_since: Moment,
}

impl Own {
    pub(super) fn heard(&mut self, now: Moment) {
        self.silent = 0;
        self.last_heard = now;
        self.heard_this_round = true;
    }

    /// It may be about to find out that it is deaf: the last word of a peer is at most one round older than the last
    /// word of all.
    pub(super) fn doubtful(&self, timing: &Timing) -> bool {
        self.silent + 1 >= timing.losses && !self.condition.unusable() && self.condition != Condition::Alone
    }

    /// A round of probes is being sent.
    pub(super) fn round(&mut self) {
        self.silent = self.silent.saturating_add(1);
        self.hearing = if self.heard_this_round {
            self.hearing.saturating_add(1)
        } else {
            0
        };
        self.heard_this_round = false;
    }

    /// Answers true where the condition changed.
    pub(super) fn judge(&mut self, now: Moment, last_round: Moment, seen: &Seen, timing: &Timing) -> bool {
        let waited = now >= last_round + timing.grace();
        let silent = self.silent > timing.losses || (self.silent == timing.losses && waited);
        let old = self.condition;
        self.condition = if !seen.uplink.carrier {
            Condition::NoCarrier
        } else if !seen.colleagues {
            if seen.programmed {
                Condition::Fit
            } else {
                Condition::Starting
            }
        } else if silent && seen.expected > 0 {
            if old != Condition::Deaf && old != Condition::Alone {
                self.deaf_since = now;
            }
            match self.alone(now, seen, timing) {
                true if seen.programmed => Condition::Alone,
                true => Condition::Starting,
                false => Condition::Deaf,
            }
        } else if seen.mute {
            Condition::Mute
        } else if !seen.programmed {
            Condition::Starting
        } else {
            self.recovered(now, seen, timing)
        };
        if self.condition.unusable() && !old.unusable() && old != Condition::Starting {
            self.damper.fail(now);
        }
        if self.condition.unusable() {
            self.until = now + self.damper.hold(timing);
        }
        if self.condition.fit() {
            self.damper.forgive(now, timing);
        }
        self.condition != old
    }

    /// Nothing is wrong now: for long enough?
    fn recovered(&self, now: Moment, seen: &Seen, timing: &Timing) -> Condition {
        match self.condition {
            Condition::Starting if !seen.judged => Condition::Starting,
            Condition::Fit | Condition::Alone | Condition::Starting => Condition::Fit,
            // Those that it heard nothing of are dead to it until they have answered for as long.
            broken if broken.unusable() && self.hearing <= timing.recovery => broken,
            _ if now >= self.until => Condition::Fit,
            _ => Condition::HeldDown,
        }
    }

    /// The tunnel is silent. The others are gone, rather than this node deaf, where the uplink brings something: at
    /// once where there was but one other, else after a time, since it is unlikely that all fail together.
    fn alone(&self, now: Moment, seen: &Seen, timing: &Timing) -> bool {
        // Frames that came together with the last datagram prove nothing.
        let since = self.last_heard + timing.interval * 2;
        let hears = seen.uplink.received.is_some_and(|at| at > since);
        hears && (seen.expected <= 1 || now >= self.deaf_since + timing.alone)
    }
}
