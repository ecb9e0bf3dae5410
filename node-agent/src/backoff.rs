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

    /// Waits of at most this many seconds.
    pub(crate) const fn up_to_seconds(ceiling: u64) -> Self {
        Self {
            next: Self::FIRST,
            ceiling: Duration::from_secs(ceiling),
        }
    }

    /// Starts from the shortest wait again.
    pub(crate) fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.next.min(self.ceiling);
        self.next = (now * 2).min(self.ceiling);
        Some(now)
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        Backoff::reset(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_ceiling_and_start_over() {
        let mut backoff = Backoff::up_to_seconds(1);
        let waits: Vec<_> = (&mut backoff).take(5).map(|d| d.as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(), Some(Backoff::FIRST));
    }
}
