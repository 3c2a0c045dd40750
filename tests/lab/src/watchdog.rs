//! Decides that an emulated machine has stopped: by the host's clock, because its own may be what stopped.

use std::time::{Duration, Instant};

/// Much longer than anything in the machine is silent.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Knows when the last sign of life came.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    last: Instant,
}

impl Watchdog {
    /// Begins to wait.
    pub fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// Something was printed or answered.
    pub fn sign_of_life(&mut self, now: Instant) {
        self.last = now;
    }

    /// How long the machine may still be silent; nothing when it has been so for too long.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        PATIENCE
            .checked_sub(now.saturating_duration_since(self.last))
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_borne_for_the_patience_and_no_longer() {
        let start = Instant::now();
        let dog = Watchdog::new(start);
        assert_eq!(dog.left(start), Some(PATIENCE));
        assert_eq!(dog.left(start + PATIENCE / 2), Some(PATIENCE / 2));
        assert_eq!(dog.left(start + PATIENCE), None);
        assert_eq!(dog.left(start + PATIENCE * 2), None);
    }

    #[test]
    fn a_sign_of_life_starts_it_anew() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start);
        dog.sign_of_life(start + PATIENCE / 2);
        assert_eq!(dog.left(start + PATIENCE), Some(PATIENCE / 2));
    }
}
