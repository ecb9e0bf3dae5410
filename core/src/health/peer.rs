//! One probed node.

use super::damper::Damper;
use super::message::Said;
use super::{Moment, Timing};

/// How something of a node was heard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// It answered a probe: both directions work.
    Answer,
    /// It probed this node: that direction works.
    Request,
}

/// What is thought of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Not probed long enough.
    Unknown,
    /// It answers.
    Alive,
    /// It doesn't.
    Dead { since: Moment },
    /// It answers, and is used only where there is no other until it has done so for long enough.
    HeldDown { until: Moment },
}

/// A change of what is thought of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    Met,
    Died,
    Returned { after: Moment },
    HeldDown { hold: Moment, failures: u32 },
    Retired,
    Resumed,
}

/// The state machine of one node.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) state: State,
    /// What it last said.
    said: Said,
    /// Last datagram of any kind, and what that said.
    pub(super) latest: Option<(Moment, Said)>,
    /// Probes sent since the last answer.
    unanswered: u32,
    /// Answers since a probe was last lost, and when the first of them came.
    answers: u32,
    first: Moment,
    damper: Damper,
    /// It has answered before.
    met: bool,
    /// Its last death counted as a failure.
    blamed: bool,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            state: State::Unknown,
            said: Said::default(),
            latest: None,
            unanswered: 0,
            answers: 0,
            first: Moment::ZERO,
            damper: Damper::default(),
            met: false,
            blamed: false,
        }
    }

    /// A probe is being sent.
    pub(super) fn sending(&mut self) {
        // One may still be on its way; two are not.
        if self.unanswered >= 2 {
            self.answers = 0;
        }
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// A datagram came from it.
    pub(super) fn heard(&mut self, now: Moment, heard: Heard, said: Said, timing: &Timing) -> Option<Turn> {
        self.latest = Some((now, said));
        let before = std::mem::replace(&mut self.said, said);
        let answered = heard == Heard::Answer;
        if answered {
            self.unanswered = 0;
            if self.answers == 0 {
                self.first = now;
            }
            self.answers = self.answers.saturating_add(1);
        }
        match self.state {
            // Whoever was never there may have been told of this node a little later than this node of it.
            State::Unknown | State::Dead { .. } if answered && !self.met => {
                self.met = true;
                self.state = State::Alive;
                Some(Turn::Met)
            }
            State::Dead { since } if answered && self.answers >= timing.recovery => {
                let until = self.first + self.damper.hold(timing);
                if until > now {
                    self.state = State::HeldDown { until };
                    return Some(Turn::HeldDown {
                        hold: until.saturating_sub(now),
                        failures: self.damper.failures(),
                    });
                }
                self.state = State::Alive;
                Some(Turn::Returned {
                    after: now.saturating_sub(since),
                })
            }
            State::Alive if before.usable() && !said.usable() => Some(Turn::Retired),
            State::Alive if !before.usable() && said.usable() => Some(Turn::Resumed),
            _ => None,
        }
    }

    /// Looks at what time has done.
    pub(super) fn judge(&mut self, now: Moment, last_round: Moment, timing: &Timing) -> Option<Turn> {
        let lost = self.unanswered >= timing.losses && now >= last_round + timing.grace();
        match self.state {
            State::Dead { .. } => None,
            _ if lost => {
                // Who said that it would go has not failed, and who was never there neither.
                self.blamed = self.said.ready && self.state != State::Unknown;
                if self.blamed {
                    self.damper.fail(now);
                }
                self.answers = 0;
                self.state = State::Dead { since: now };
                Some(Turn::Died)
            }
            State::HeldDown { until } if now >= until => {
                self.state = State::Alive;
                Some(Turn::Returned { after: Moment::ZERO })
            }
            State::Alive => {
                self.damper.forgive(now, timing);
                None
            }
            _ => None,
        }
    }

    /// If it died lately, that was this node's fault.
    pub(super) fn excuse(&mut self, now: Moment, timing: &Timing) {
        if let State::Dead { since } = self.state
            && self.blamed
            && now.saturating_sub(since) <= timing.fresh()
        {
            self.blamed = false;
            self.damper.excuse();
        }
    }

    /// It answers and may be used like any other.
    pub(super) fn alive(&self) -> bool {
        self.state == State::Alive && self.said.usable()
    }

    /// It answers and would take part; only this node's memory of a failure is in the way.
    pub(super) fn only_held_down(&self) -> bool {
        matches!(self.state, State::HeldDown { .. }) && self.said.usable()
    }

    /// It answers and is to be used only where there is no other.
    pub(super) fn retiring(&self) -> bool {
        match self.state {
            State::Alive => !self.said.usable(),
            State::HeldDown { .. } => true,
            State::Unknown | State::Dead { .. } => false,
        }
    }

    /// It answers, and says that it has only left its place to others. What this node remembers of it doesn't matter, so
    /// that all who hear it agree.
    pub(super) fn yielding(&self) -> bool {
        let answers = matches!(self.state, State::Alive | State::HeldDown { .. });
        answers && self.said.ready && self.said.yielding
    }

    pub(super) fn dead(&self) -> bool {
        matches!(self.state, State::Dead { .. })
    }

    /// Whether this node would use it like any other if it asked for that.
    pub(super) fn counts(&self) -> bool {
        matches!(self.state, State::Unknown | State::Alive)
    }

    /// What it said within the last few intervals.
    pub(super) fn fresh(&self, now: Moment, timing: &Timing) -> Option<Said> {
        self.latest
            .filter(|(at, _)| now.saturating_sub(*at) <= timing.fresh())
            .map(|(_, said)| said)
    }
}
