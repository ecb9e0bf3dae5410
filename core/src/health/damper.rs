//! Who fails often is trusted late.

use super::{Moment, Timing};

/// Counts failures and forgets them one by one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Damper {
    failures: u32,
    /// When the last failure, or the last forgiveness, was.
    since: Moment,
}

impl Damper {
    /// One more failure.
    pub(super) fn fail(&mut self, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.since = now;
    }

    /// The last failure was another's.
    pub(super) fn excuse(&mut self) {
        self.failures = self.failures.saturating_sub(1);
    }

    /// Called while all is well.
    pub(super) fn forgive(&mut self, now: Moment, timing: &Timing) {
        if self.failures > 0 && now.saturating_sub(self.since) >= timing.forgive {
            self.failures -= 1;
            self.since = now;
        }
    }

    /// How long it must do well before it counts.
    pub(super) fn hold(&self, timing: &Timing) -> Moment {
        match self.failures {
            0 => Moment::ZERO,
            n => timing
                .hold_first
                .saturating_mul(1 << (n - 1).min(16))
                .min(timing.hold_max),
        }
    }

    /// Failures not forgotten yet.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn holds_grow_up_to_the_longest_and_shrink_while_all_is_well() {
        let timing = Timing::default();
        let mut damper = Damper::default();
        let mut now = Duration::ZERO;
        let mut holds = vec![damper.hold(&timing).as_secs()];
        for _ in 0..8 {
            damper.fail(now);
            holds.push(damper.hold(&timing).as_secs());
        }
        assert_eq!(holds, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..3 {
            now += timing.forgive;
            damper.forgive(now, &timing);
            damper.forgive(now, &timing);
        }
        assert_eq!((damper.failures(), damper.hold(&timing).as_secs()), (5, 16));
    }
}
