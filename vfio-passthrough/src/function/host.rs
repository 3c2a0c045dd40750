//! What the host does to a function that a guest uses: it asks for the device, or the device fails it.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{ConfigEffects, Error, PassthroughFunction, Reset, State};
use crate::irq::Demand;
use crate::pci::regs::Command;

/// How often, and how far apart, a reset is tried: a second in all.
const RESET_TRIES: u32 = 100;
const RESET_PAUSE: Duration = Duration::from_millis(10);

impl PassthroughFunction {
    /// Signalled when the host asks for the device, because its driver is unbound or it is unplugged, and again every
    /// 10 s while it waits (`vfio_unregister_group_dev`). The answer is [`detach`](Self::detach): until then,
    /// whoever asked for it hangs. None where VFIO has no such event. The VMM polls it; it stays open as long as the
    /// function.
    pub fn request_event(&self) -> Option<&EventFd> {
        self.request.as_deref()
    }

    /// Signalled when the device has told of an uncorrectable error (PCIe AER), of which the host's kernel log has the
    /// details: what the device did since is not to be trusted. Answers are to end the guest,
    /// [`recover`](Self::recover) and [`detach`](Self::detach). None where VFIO has no such event: on conventional
    /// PCI. The VMM polls it; it stays open as long as the function.
    pub fn error_event(&self) -> Option<&EventFd> {
        self.error.as_deref()
    }

    /// The device was given up: the function reads as all-ones, and what is written to it goes nowhere.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Gives the device up while the guest runs: its interrupts, memory slots and bus mastering end, it is reset where
    /// that reaches no other, and all that this process has of it is closed, so that the host can take it. The guest
    /// finds all-ones there and has a dead device; others of its container keep their mappings. For good: the way
    /// back is a new function, of the device opened anew.
    ///
    /// Waits for no access of a vCPU's to the device's BARs: one that is under way keeps the device's file open until
    /// it ends.
    ///
    /// # Errors
    ///
    /// The first failure; what comes after it is done all the same, and the device is closed. A reset that the host's
    /// kernel refuses since it is about to take the device (`EAGAIN`) is none. Calling it again does nothing.
    pub fn detach(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = self.detach_locked(&mut state);
        (self.effects(&mut state), result)
    }

    fn detach_locked(&self, state: &mut State) -> Result<(), Error> {
        if self.is_lost() {
            return Ok(());
        }
        let running = std::mem::replace(&mut state.running, false);
        let mut result = if running { self.stop(state) } else { Ok(()) };
        result = self.both(result, self.hide_windows(state));
        for window in &mut state.windows {
            let released = window
                .release()
                .map_err(|source| self.window_error("let go of", window.bar(), source));
            result = self.both(result, released);
        }
        result = self.take_apart(state, result);
        self.lost.store(true, Ordering::Release);
        self.device.close();
        result
    }

    fn stop(&self, state: &mut State) -> Result<(), Error> {
        let quiet = self.quiesce(state);
        // The others on its bus are in use.
        let reset = match self.reset {
            Reset::Function => self.reset_device(),
            Reset::Bus | Reset::Nothing => Ok(()),
        };
        // Whoever unbinds a driver does.
        let is_refused = reset.as_ref().is_err_and(is_locked);
        self.both(quiet, if is_refused { Ok(()) } else { reset })
    }

    /// Resets the function under the guest, which goes on: it finds the registers of config space as it left them, and
    /// a device that has forgotten all else. Drivers that handle dead hardware begin anew. The answer to an error, for
    /// guests that should live on with it.
    ///
    /// # Errors
    ///
    /// [`Error::NotUsable`] where it cannot be reset alone ([`reset_kind`](Self::reset_kind)); else the first failure:
    /// what comes after it is done all the same.
    pub fn recover(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = self.recover_locked(&mut state);
        (self.effects(&mut state), result)
    }

    fn recover_locked(&self, state: &mut State) -> Result<(), Error> {
        if !state.running {
            return Ok(());
        }
        if self.reset != Reset::Function {
            let (address, reason) = (self.address, "it cannot be reset by itself");
            return Err(Error::NotUsable { address, reason });
        }
        let command = state.config.command();
        let quiet = state.interrupts.reconcile(&Demand::default());
        let mut result = quiet.map_err(|source| self.interrupt_error(source));
        result = self.both(result, self.hide_windows(state));
        // Decoding stays on, in VFIO's eyes: if the host's kernel has reset the link, or does so meanwhile, the BARs
        // are lost, and VFIO writes them again when it finds something off that it takes to be on
        // (vfio_need_bar_restore).
        let quiet = self.write_command(command.difference(Command::BUS_MASTER));
        result = self.both(result, quiet);
        result = self.both(result, self.reset_when_free());
        result = self.both(result, self.write_command(command));
        result = self.both(result, self.read_power_state(state));
        if result.is_ok() {
            self.place_windows(state);
        }
        result = self.both(result, self.reconcile_interrupts(state));
        state.unsettled = result.is_err();
        result
    }

    /// Resets it once the host's kernel does not hold its lock any more, as it does while it deals with the error
    /// itself.
    fn reset_when_free(&self) -> Result<(), Error> {
        let mut tries = RESET_TRIES;
        loop {
            match self.reset_device() {
                Err(error) if is_locked(&error) && tries > 0 => std::thread::sleep(RESET_PAUSE),
                result => return result,
            }
            tries = tries.saturating_sub(1);
        }
    }
}

/// Somebody in the host's kernel holds the device's lock (pci_try_reset_function).
fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Reset { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
}
