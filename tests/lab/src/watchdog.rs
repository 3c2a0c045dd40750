//! Detects that an emulated machine has stopped. It uses the host's clock, because the machine's
//! clock stops too.

use std::time::{Duration, Instant};

/// How long a machine may be silent. No step of a test is silent for nearly as long.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// The time of the machine's last sign of life: a line of output or an answer.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    last: Instant,
}

impl Watchdog {
    /// Starts at the time `now`.
    pub fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// Records a sign of life at the time `now`.
    pub fn sign_of_life(&mut self, now: Instant) {
        self.last = now;
    }

    /// How much longer the machine may be silent; `None` if it was silent for too long.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        SILENCE_LIMIT
            .checked_sub(now.saturating_duration_since(self.last))
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_silence_up_to_the_limit() {
        let start = Instant::now();
        let dog = Watchdog::new(start);
        assert_eq!(dog.left(start), Some(SILENCE_LIMIT));
        assert_eq!(dog.left(start + SILENCE_LIMIT / 2), Some(SILENCE_LIMIT / 2));
        assert_eq!(dog.left(start + SILENCE_LIMIT), None);
        assert_eq!(dog.left(start + SILENCE_LIMIT * 2), None);
    }

    #[test]
    fn sign_of_life_restarts_the_time() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start);
        dog.sign_of_life(start + SILENCE_LIMIT / 2);
        assert_eq!(dog.left(start + SILENCE_LIMIT), Some(SILENCE_LIMIT / 2));
    }
}
