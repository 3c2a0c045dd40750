//! Reset and recovery of a function, and its two ends: shutdown at the guest's end, and detach
//! while the guest runs.

use super::effects::ConfigEffects;
use super::reset::{Reset, reset_and_check, reset_once};
use super::state::{PassthroughFunction, State};
use crate::backend::is_locked;
use crate::device::{FirstError, FunctionDevice};
use crate::error::Error;
use crate::irq::Interrupts;
use crate::pci::regs::{COMMAND, Command};

impl PassthroughFunction {
    /// Resets the function, and brings the guest's view back to the state after power-on. Call it
    /// when the guest resets. If the reset is that of a bus ([`Reset::Bus`]), it also resets the
    /// other functions on the bus, so the guest's CPUs must be stopped.
    ///
    /// # Errors
    ///
    /// The first failure. Later steps are carried out too. The VMM carries out the effects in
    /// either case. A reset after which the device does not respond, does not wake, or is another
    /// one has failed ([`Error::Unfit`]); the guest then reads all-ones. `EAGAIN` is returned after
    /// a second of retries.
    pub fn reset(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = if self.is_detached() { Ok(()) } else { self.reset_locked(&mut state) };
        (self.effects(&mut state), result)
    }

    /// Resets the function while the guest runs, and restores the config space that the guest
    /// programmed. The rest of the device's state is lost. Call it after
    /// [`error_event`](Self::error_event) fired, for a guest whose driver can handle a device that
    /// lost its state.
    ///
    /// # Errors
    ///
    /// [`Error::NotUsable`] if the function cannot be reset alone
    /// ([`reset_kind`](Self::reset_kind)): nothing was done. Otherwise the first failure; later
    /// steps are carried out too. The VMM carries out the effects in each case.
    pub fn recover(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = self.recover_locked(&mut state);
        (self.effects(&mut state), result)
    }

    /// Detaches the device while the guest runs, so that the host can have it: it disables
    /// interrupts and bus mastering, removes the memory slots, and closes the device. The kernel
    /// resets it then. Where the kernel does not ([`Device::resets_when_closed`]), the function is
    /// reset before, if that resets no other function. The guest then reads all-ones. Other devices
    /// of the container keep their mappings. To use the device again, open it and make a new
    /// function.
    ///
    /// It does not wait for accesses of vCPUs to the device's BARs. An access that is under way
    /// keeps the device's file open until it ends.
    ///
    /// # Errors
    ///
    /// The first failure. Later steps are carried out too, and the device is closed. The VMM
    /// carries out the effects in either case. `EAGAIN` of the reset is not a failure: the kernel
    /// holds the device's lock and resets the device itself. A second call does nothing.
    ///
    /// [`Device::resets_when_closed`]: crate::backend::Device::resets_when_closed
    pub fn detach(&self) -> (ConfigEffects, Result<(), Error>) {
        let mut state = self.lock();
        let result = if self.is_detached() { Ok(()) } else { self.detach_locked(&mut state) };
        (self.effects(&mut state), result)
    }

    /// Ends the function with its guest: it disables interrupts and bus mastering, removes the
    /// memory slots, and resets the function. Afterwards reads give all-ones and the device does no
    /// DMA, so that guest memory may be unmapped.
    ///
    /// # Errors
    ///
    /// The first failure. Later steps are carried out too. A second call does nothing.
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

    /// Ends the function with its guest, before its device is closed. It does the same as
    /// [`shutdown`](Self::shutdown), but leaves the reset to the kernel where the kernel resets
    /// the device when it is closed ([`Device::resets_when_closed`]): one reset instead of two.
    /// Bus mastering is off then, and was read back. Otherwise it resets the function.
    ///
    /// The VMM then closes the device ([`Device::close`], or the drop of its last owner), and after
    /// that unmaps guest memory. It calls this for all its functions before it closes the first
    /// device: a reset of a bus needs all its devices open, and functions behind one bridge are
    /// reset here, because the kernel cannot reset several of them at the same time.
    ///
    /// # Errors
    ///
    /// The first failure. Later steps are carried out too. A second call does nothing.
    ///
    /// [`Device::resets_when_closed`]: crate::backend::Device::resets_when_closed
    /// [`Device::close`]: crate::backend::Device::close
    pub fn shutdown_before_close(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.running, false) {
            return Ok(());
        }
        let mut errors = FirstError::new(&self.device);
        if !self.leaves_reset_to_close(&mut state, &mut errors) {
            errors.add(reset_and_check(&self.device, self.reset));
        }
        errors.add(self.teardown(&mut state));
        errors.into_result()
    }

    /// Whether the kernel resets the function when its device is closed, so that
    /// [`shutdown_before_close`](Self::shutdown_before_close) leaves the reset to it.
    pub fn is_reset_when_closed(&self) -> bool {
        self.reset == Reset::Function && self.device.device.resets_when_closed()
    }

    /// Quiesces the function, and returns whether the kernel resets it when its device is closed, and
    /// it does no DMA until then.
    fn leaves_reset_to_close(&self, state: &mut State, errors: &mut FirstError<'_>) -> bool {
        errors.add(self.quiesce(state));
        let read = masters_bus(&self.device);
        let has_no_dma = matches!(read, Ok(false));
        errors.add(read.map(drop));
        errors.is_ok() && has_no_dma && self.is_reset_when_closed()
    }

    fn detach_locked(&self, state: &mut State) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        if std::mem::replace(&mut state.running, false) {
            errors.add(self.stop(state));
        }
        errors.add(state.placement.remove_all());
        errors.add(state.placement.replace_by_zeros());
        errors.add(self.teardown(state));
        let result = errors.into_result();
        self.device.detach();
        result
    }

    /// Unbinds the events, and drops interrupts and windows.
    fn teardown(&self, state: &mut State) -> Result<(), Error> {
        let result = self.events.unbind(&self.device);
        state.interrupts = Interrupts::default();
        state.placement.clear();
        result
    }

    fn stop(&self, state: &mut State) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        let is_reset = self.leaves_reset_to_close(state, &mut errors);
        // A reset of the bus would reset functions that are in use.
        if self.reset == Reset::Function && !is_reset {
            // EAGAIN: the kernel holds the lock while it unbinds the driver, and resets the device
            // when it is closed (vfio_pci_core_disable).
            let reset = reset_once(&self.device, self.reset);
            let reset = reset.or_else(|error| if is_locked(&error) { Ok(()) } else { Err(error) });
            errors.add(reset.map_err(|source| self.reset.error(&self.device, source)));
        }
        errors.into_result()
    }

    pub(super) fn reset_locked(&self, state: &mut State) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        errors.add(self.quiesce(state));
        errors.add(reset_and_check(&self.device, self.reset));
        // The function decodes nothing now, so this places no window. It retries removals that
        // failed.
        state.placement.place(&state.config);
        let result = errors.into_result();
        state.needs_resync = result.is_err();
        result
    }

    /// Brings the guest's view back to the state after power-on, disables interrupts and DMA, and
    /// removes the memory slots.
    fn quiesce(&self, state: &mut State) -> Result<(), Error> {
        let in_low_power = state.config.is_in_low_power();
        state.config.reset();
        state.interrupts.table().reset();
        let mut errors = FirstError::new(&self.device);
        errors.add(self.reconcile_interrupts(state));
        errors.add(state.placement.remove_moved(&state.config));
        if let Some(offset) = state.config.power_control().filter(|_| in_low_power) {
            // A function without a reset would otherwise stay in D3.
            errors.add(self.device.write_config(offset, &[0]));
        }
        // There must be no DMA during a reset, nor afterwards if the device has no reset.
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
        errors.add(state.placement.remove_all());
        // Decoding stays on in VFIO's view. A link reset by the host's kernel clears the device's
        // BARs. VFIO restores them if decoding is on in its view and off in the device
        // (vfio_need_bar_restore).
        errors.add(self.write_command(command.difference(Command::BUS_MASTER)));
        errors.add(reset_and_check(&self.device, self.reset));
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
}

/// Reads whether bus mastering is on. A device that does not respond reads as all-ones.
fn masters_bus(device: &FunctionDevice) -> Result<bool, Error> {
    let mut command = [0; 2];
    device.read_config(COMMAND, &mut command)?;
    let command = Command::from_bits_retain(u16::from_le_bytes(command));
    Ok(command.contains(Command::BUS_MASTER))
}
