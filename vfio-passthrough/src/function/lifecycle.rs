//! Reset, recovery, and the two ends of a function: shutdown with its guest, and detach while the
//! guest runs on.

use std::io;
use std::time::Duration;

use super::reset::BUS_RESET;
use super::{ConfigEffects, PassthroughFunction, Reset, State};
use crate::device::FirstError;
use crate::error::Error;
use crate::irq::Interrupts;
use crate::pci::regs::Command;

/// Reset retries: 100 x 10 ms.
const RESET_RETRIES: u32 = 100;
const RESET_PAUSE: Duration = Duration::from_millis(10);

impl PassthroughFunction {
    /// Brings the function back to how it is after power-on, for a reset of the guest. The guest's
    /// CPUs must not run meanwhile where the reset is that of a whole bus ([`Reset::Bus`]): it
    /// reaches the other functions on the bus too.
    ///
    /// # Errors
    ///
    /// The first failure. The steps after it are done all the same, and the effects are to be
    /// carried out.
    pub fn reset(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = if self.is_detached() { Ok(()) } else { self.reset_locked(&mut state) };
        (self.effects(&mut state), result)
    }

    /// Resets the function while the guest runs: the guest finds the registers of config space as
    /// it left them, and a device that has forgotten all else. Drivers that handle dead hardware
    /// begin anew. It is an answer to a reported error, for guests that should survive it.
    ///
    /// # Errors
    ///
    /// [`Error::NotUsable`] where it cannot be reset alone ([`reset_kind`](Self::reset_kind)), else
    /// the first failure. The steps after it are done all the same, and the effects are to be
    /// carried out.
    pub fn recover(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = self.recover_locked(&mut state);
        (self.effects(&mut state), result)
    }

    /// Takes the device from the guest while it runs: interrupts, memory slots and bus mastering
    /// end, the device is reset where that reaches no other, and all that this process has of it is
    /// closed, so that the host can have it. The guest then reads all-ones. Other devices of the
    /// container keep their mappings. It cannot be undone: a new function is made of the device
    /// when it is opened again.
    ///
    /// It does not wait for a vCPU's access to the device's BARs: one that is under way keeps the
    /// device's file open until it ends.
    ///
    /// # Errors
    ///
    /// The first failure. The steps after it are done all the same, the effects are to be carried
    /// out, and the device is closed. A reset that the kernel refuses because it is about to take
    /// the device (`EAGAIN`) is no failure. A second call does nothing.
    pub fn detach(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = if self.is_detached() { Ok(()) } else { self.detach_locked(&mut state) };
        (self.effects(&mut state), result)
    }

    /// Takes the function from the guest at its end: interrupts, memory slots and bus mastering
    /// end, and it is reset. After this it reads as all-ones and does no DMA, so that the memory
    /// that it could reach may be unmapped.
    ///
    /// # Errors
    ///
    /// The first failure. The steps after it are done all the same. A second call does nothing.
    pub fn shutdown(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.running, false) {
            return Ok(());
        }
        let mut errors = FirstError::new(&self.device);
        errors.add(self.reset_locked(&mut state));
        errors.add(self.teardown(&mut state));
        errors.into_result()
    }

    fn detach_locked(&self, state: &mut State) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        if std::mem::replace(&mut state.running, false) {
            errors.add(self.stop(state));
        }
        errors.add(state.placement.retire_all());
        errors.add(state.placement.release());
        errors.add(self.teardown(state));
        let result = errors.into_result();
        self.device.detach();
        result
    }

    /// Ends what the function holds of the host.
    fn teardown(&self, state: &mut State) -> Result<(), Error> {
        let result = self.events.unbind(&self.device);
        state.interrupts = Interrupts::default();
        state.placement.clear();
        result
    }

    fn stop(&self, state: &mut State) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        errors.add(self.quiesce(state));
        // The other functions on its bus are in use.
        if self.reset == Reset::Function {
            // The kernel holds the lock of a device whose driver is being unbound, and resets it
            // then.
            let reset = self.reset_device();
            errors.add(reset.or_else(|error| if is_locked(&error) { Ok(()) } else { Err(error) }));
        }
        errors.into_result()
    }

    pub(super) fn reset_locked(&self, state: &mut State) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        errors.add(self.quiesce(state));
        errors.add(self.reset_device());
        // Nothing is decoded any more: this retries the removals that failed.
        state.placement.place(&state.config);
        let result = errors.into_result();
        state.needs_resync = result.is_err();
        result
    }

    /// Interrupts, memory slots and DMA end, and the guest's view is as after power-on.
    fn quiesce(&self, state: &mut State) -> Result<(), Error> {
        let in_low_power = state.config.is_in_low_power();
        state.config.reset();
        state.interrupts.table().reset();
        let mut errors = FirstError::new(&self.device);
        errors.add(self.reconcile_interrupts(state));
        errors.add(state.placement.retire(&state.config));
        if let Some(offset) = state.config.power_control().filter(|_| in_low_power) {
            // A function without a reset would otherwise stay in D3.
            errors.add(self.device.write_config(offset, &[0]));
        }
        // No DMA while a reset is under way, nor after it where the device has none.
        errors.add(self.write_command(Command::empty()));
        errors.into_result()
    }

    fn recover_locked(&self, state: &mut State) -> Result<(), Error> {
        if !state.running {
            return Ok(());
        }
        if self.reset != Reset::Function {
            let (address, reason) = (self.address(), "it cannot be reset by itself");
            return Err(Error::NotUsable { address, reason });
        }
        let command = state.config.command();
        let mut errors = FirstError::new(&self.device);
        let disabled = state.interrupts.disable();
        errors.add(disabled.map_err(|source| self.interrupt_error(source)));
        errors.add(state.placement.retire_all());
        // Decoding stays on for VFIO: if the host's kernel has reset the link, or does so
        // meanwhile, the BARs are lost, and VFIO writes them again when it finds decoding off that
        // it takes to be on (vfio_need_bar_restore).
        errors.add(self.write_command(command.difference(Command::BUS_MASTER)));
        errors.add(self.reset_when_free());
        errors.add(self.write_command(command));
        errors.add(self.read_power_state(state));
        if errors.is_ok() {
            state.placement.place(&state.config);
        }
        errors.add(self.reconcile_interrupts(state));
        let result = errors.into_result();
        state.needs_resync = result.is_err();
        result
    }

    /// Resets it once the kernel does not hold its lock any more, as it does while it handles the
    /// error itself.
    fn reset_when_free(&self) -> Result<(), Error> {
        let mut retries = RESET_RETRIES;
        loop {
            match self.reset_device() {
                Err(error) if is_locked(&error) && retries > 0 => std::thread::sleep(RESET_PAUSE),
                result => return result,
            }
            retries = retries.saturating_sub(1);
        }
    }

    fn reset_device(&self) -> Result<(), Error> {
        let (address, device) = (self.address(), &self.device.device);
        let (call, result) = match self.reset {
            Reset::Function => ("VFIO_DEVICE_RESET", device.reset()),
            Reset::Bus => (BUS_RESET, device.reset_bus()),
            Reset::Nothing => return Ok(()),
        };
        result.map_err(|source| Error::Reset { address, call, source })
    }
}

/// The kernel holds the device's lock (pci_try_reset_function).
fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Reset { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
}
