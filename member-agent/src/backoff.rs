//! Waits between attempts: doubling, bounded.

use std::time::Duration;

/// Doubling waits from 200 ms up to a ceiling.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    ceiling: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);

    /// Waits of at most `ceiling`.
    pub(crate) const fn up_to(ceiling: Duration) -> Self {
        Self {
            next: Self::FIRST,
            ceiling,
        }
    }

    /// The wait before the next attempt.
    pub(crate) fn wait(&mut self) -> Duration {
        let now = self.next.min(self.ceiling);
        self.next = (now * 2).min(self.ceiling);
        now
    }

    /// Starts from the shortest wait again.
    pub(crate) fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_ceiling_and_start_over() {
        let mut backoff = Backoff::up_to(Duration::from_secs(1));
        let waits: Vec<_> = (0..5).map(|_| backoff.wait().as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.wait().as_millis(), 200);
    }
}
