//! The end of the VMM: the first requested outcome counts, and every thread stops.

use std::sync::{Arc, OnceLock};

use devices::{PowerRequest, PowerSink};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::Error;

/// The reason for the stop.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest requested a reset.
    Reset,
    /// The user typed Ctrl-A x, or requested a shutdown by the control socket.
    Quit,
    /// A signal arrived.
    Signal(i32),
    /// An error occurred.
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

/// Stops the VMM when the guest writes its power registers.
pub(crate) struct StopOnRequest(pub Arc<Stop>);

impl PowerSink for StopOnRequest {
    fn request(&self, request: PowerRequest) {
        self.0.request(request.into());
    }
}

/// The outcome, with an eventfd that wakes the main thread.
pub(crate) struct Stop {
    outcome: OnceLock<Outcome>,
    insisted: OnceLock<Outcome>,
    signal: EventFd,
}

impl Stop {
    /// No stop is requested yet.
    pub(crate) fn new() -> Result<Self, Error> {
        let signal = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
        Ok(Self { outcome: OnceLock::new(), insisted: OnceLock::new(), signal })
    }

    /// Requests a stop; the first request determines the outcome.
    pub(crate) fn request(&self, outcome: Outcome) {
        match self.outcome.set(outcome) {
            // An error is harmless: a full counter already wakes the reader.
            Ok(()) => drop(self.signal.write(1)),
            Err(late) => log::debug!("already stopping; ignored outcome: {late:?}"),
        }
    }

    /// Requests a stop for the user. The request also ends a guest that is about to reboot.
    pub(crate) fn insist(&self, outcome: Outcome) {
        if let Err(late) = self.insisted.set(outcome) {
            log::debug!("already ending; ignored outcome: {late:?}");
        }
        self.request(Outcome::Quit);
    }

    /// Whether a stop is requested.
    pub(crate) fn is_requested(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Whether the guest requested a reset, and the user did not request the end.
    pub(crate) fn is_reboot(&self) -> bool {
        matches!(self.outcome.get(), Some(Outcome::Reset)) && self.insisted.get().is_none()
    }

    /// The eventfd that signals a request.
    pub(crate) fn signal(&self) -> &EventFd {
        &self.signal
    }

    /// The final outcome.
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
    fn the_first_outcome_counts() {
        let stop = Stop::new().unwrap();
        assert!(!stop.is_requested());
        stop.request(Outcome::PowerOff);
        stop.request(Outcome::Reset);
        assert!(stop.is_requested() && stop.signal().read().is_ok());
        assert!(matches!(stop.into_outcome(), Some(Outcome::PowerOff)));
    }

    #[test]
    fn a_request_of_the_user_survives_a_reboot() {
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
