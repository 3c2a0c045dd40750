//! The gate at which vCPU threads wait while the guest is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An open gate costs a vCPU thread one load; at a closed gate it waits.
#[derive(Default)]
pub(crate) struct Gate {
    is_closed: AtomicBool,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Waits while the gate is closed; returns whether it was closed.
    pub(crate) fn pass(&self) -> bool {
        if !self.is_closed() {
            return false;
        }
        let mut waiting = self.lock();
        *waiting = waiting.saturating_add(1);
        self.changed.notify_all();
        while self.is_closed() {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting = waiting.saturating_sub(1);
        true
    }

    /// Closes the gate: vCPU threads then wait at their next pass.
    pub(crate) fn close(&self) {
        let _waiting = self.lock();
        self.is_closed.store(true, Ordering::Release);
    }

    /// Opens the gate for all.
    pub(crate) fn open(&self) {
        if !self.is_closed() {
            return;
        }
        let _waiting = self.lock();
        self.is_closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the gate is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Whether `count` threads wait, now or within `time`.
    pub(crate) fn has_waiting(&self, count: usize, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |waiting| *waiting < count);
        let (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *waiting >= count
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn threads_wait_at_a_closed_gate_until_it_opens() {
        let (gate, passed) = (Gate::default(), AtomicUsize::new(0));
        assert!(!gate.pass());
        gate.close();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| passed.fetch_add(usize::from(gate.pass()), Ordering::SeqCst));
            }
            assert!(gate.has_waiting(2, LONG));
            assert!(!gate.has_waiting(3, Duration::from_millis(1)));
            assert_eq!(passed.load(Ordering::SeqCst), 0);
            gate.open();
        });
        assert_eq!(passed.load(Ordering::SeqCst), 2);
        assert!(!gate.pass() && gate.has_waiting(0, Duration::ZERO));
    }
}
