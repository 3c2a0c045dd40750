//! Booted machines, shared by the tests that ask for equal ones.

use crate::{Echo, Error, L1, Lab, Machine, say};

/// A test that stalls so many machines in a row is what stalls them.
const MOST_REPLACEMENTS: u32 = 2;

/// Boots machines and keeps the last one for the next test.
pub struct Pool {
    lab: Lab,
    idle: Option<L1>,
    tally: Tally,
}

/// What the pool has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Machines booted.
    pub booted: u32,
    /// Machines that stopped making progress, and were replaced.
    pub faults: u32,
    /// Pieces of work that ran on machines, those on machines that stopped included.
    pub runs: u32,
}

impl Pool {
    /// No machine yet.
    #[must_use]
    pub fn new(lab: Lab) -> Self {
        Self { lab, idle: None, tally: Tally::default() }
    }

    /// Does `work` in such a machine. If the machine stops making progress, it is replaced and counted, and
    /// the work begins anew; there is no other reason to do it twice.
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
                    say(&format!(
                        "the emulated machine stopped and is replaced; its last words:\n{console}"
                    ));
                }
                result => return result,
            }
        }
    }

    /// So far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// A machine goes back only after success: work that failed or panicked may have left it in any state.
    fn attempt<T>(
        &mut self,
        machine: &Machine,
        work: &impl Fn(&mut L1) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.tally.runs = self.tally.runs.saturating_add(1);
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
