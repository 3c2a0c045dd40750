//! How it ends: whoever comes first says so, and everybody else stops.

use std::sync::{Arc, OnceLock};

use devices::{PowerRequest, PowerSink};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::Error;

/// Why the VMM stops.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The user typed Ctrl-A x.
    Quit,
    /// A signal asked for it.
    Signal(i32),
    /// Something cannot go on.
    Failed(Error),
}

impl From<PowerRequest> for Outcome {
    fn from(request: PowerRequest) -> Self {
        match request {
            PowerRequest::PowerOff => Self::PowerOff,
            PowerRequest::Reset => Self::Reset,
        }
    }
}

/// What the guest asks of its power registers stops the VMM.
pub(crate) struct StopOnRequest(pub Arc<Stop>);

impl PowerSink for StopOnRequest {
    fn request(&self, request: PowerRequest) {
        self.0.request(request.into());
    }
}

/// The outcome once there is one, with an eventfd that wakes the main thread.
pub(crate) struct Stop {
    outcome: OnceLock<Outcome>,
    insisted: OnceLock<Outcome>,
    signal: EventFd,
}

impl Stop {
    /// Nothing stops yet.
    pub(crate) fn new() -> Result<Self, Error> {
        let signal = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
        Ok(Self { outcome: OnceLock::new(), insisted: OnceLock::new(), signal })
    }

    /// Asks everything to stop; the first asker's outcome is the outcome.
    pub(crate) fn request(&self, outcome: Outcome) {
        if let Err(late) = self.outcome.set(outcome) {
            log::debug!("already stopping; ignored: {late:?}");
        }
        // A full counter already wakes the reader.
        let _ = self.signal.write(1);
    }

    /// The same, for what the user asks: a guest that is about to boot again ends by it, too.
    pub(crate) fn insist(&self, outcome: Outcome) {
        if let Err(late) = self.insisted.set(outcome) {
            log::debug!("already ending; ignored: {late:?}");
        }
        self.request(Outcome::Quit);
    }

    /// Whether somebody has asked.
    pub(crate) fn is_requested(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// The eventfd that is written when somebody asks.
    pub(crate) fn signal(&self) -> &EventFd {
        &self.signal
    }

    /// The outcome.
    pub(crate) fn into_outcome(self) -> Option<Outcome> {
        match self.outcome.into_inner() {
            Some(asked @ (Outcome::Reset | Outcome::Quit)) => {
                self.insisted.into_inner().or(Some(asked))
            }
            asked => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outcome_stands() {
        let stop = Stop::new().unwrap();
        assert!(!stop.is_requested());
        stop.request(Outcome::PowerOff);
        stop.request(Outcome::Reset);
        assert!(stop.is_requested() && stop.signal().read().is_ok());
        assert!(matches!(stop.into_outcome(), Some(Outcome::PowerOff)));
    }

    #[test]
    fn what_the_user_asks_is_not_lost_to_a_reboot() {
        let ended = |first| {
            let stop = Stop::new().unwrap();
            stop.request(first);
            stop.insist(Outcome::Signal(15));
            stop.insist(Outcome::Quit);
            stop.into_outcome()
        };
        assert!(matches!(ended(Outcome::Reset), Some(Outcome::Signal(15))));
        assert!(matches!(ended(Outcome::PowerOff), Some(Outcome::PowerOff)));
        let stop = Stop::new().unwrap();
        stop.insist(Outcome::Signal(15));
        assert!(stop.is_requested());
        stop.request(Outcome::Reset);
        assert!(matches!(stop.into_outcome(), Some(Outcome::Signal(15))));
    }
}
