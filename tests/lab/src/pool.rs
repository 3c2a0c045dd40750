//! Booted machines, which tests that need equal ones share.

use crate::{Echo, Error, L1, Lab, Machine, say};

/// After this many replacements for one test, the test itself is taken as the cause, and fails.
const MOST_REPLACEMENTS: u32 = 2;

/// Boots machines, and keeps the last one for the next test.
pub struct Pool {
    lab: Lab,
    idle: Option<L1>,
    tally: Tally,
}

/// The counters of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The number of machines booted.
    pub booted: u32,
    /// The number of machines that stopped making progress.
    pub faults: u32,
}

impl Pool {
    /// A pool without a machine.
    #[must_use]
    pub fn new(lab: Lab) -> Self {
        Self { lab, idle: None, tally: Tally::default() }
    }

    /// Does `work` in a machine like `machine`. If the machine stops making progress, replaces it,
    /// counts it, and starts the work again. No other error is retried.
    pub fn with<T>(
        &mut self,
        machine: &Machine,
        work: impl Fn(&mut L1) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut replaced = 0u32;
        loop {
            match self.attempt(machine, &work) {
                Err(Error::Stalled { console, .. }) if replaced < MOST_REPLACEMENTS => {
                    replaced = replaced.saturating_add(1);
                    let what =
                        "the emulated machine stopped and is replaced; the end of its output";
                    say(&format!("{what}:\n{console}"));
                }
                result => return result,
            }
        }
    }

    /// The counters so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Does `work` once. The pool keeps the machine only after success, because failed work may
    /// have left it in any state.
    fn attempt<T>(
        &mut self,
        machine: &Machine,
        work: &impl Fn(&mut L1) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let result = self.take(machine).and_then(|mut l1| {
            let done = work(&mut l1)?;
            self.idle = Some(l1);
            Ok(done)
        });
        if matches!(result, Err(Error::Stalled { .. })) {
            self.tally.faults = self.tally.faults.saturating_add(1);
        }
        result
    }

    fn take(&mut self, machine: &Machine) -> Result<L1, Error> {
        if let Some(l1) = self.idle.take().filter(|l1| l1.machine() == machine) {
            return Ok(l1);
        }
        self.tally.booted = self.tally.booted.saturating_add(1);
        L1::boot(&self.lab, machine, Echo::Silent)
    }
}
