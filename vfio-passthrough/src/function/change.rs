//! Carries out the guest's writes.

use super::effects::ConfigEffects;
use super::state::{PassthroughFunction, State};
use crate::address::ByteRange;
use crate::device::FirstError;
use crate::error::Error;
use crate::irq;
use crate::pci::config::{Touched, Written};
use crate::pci::presence::{Fault, PowerState};
use crate::pci::regs::{Command, PM_STATE};

impl PassthroughFunction {
    pub(super) fn write_config(&self, state: &mut State, offset: u16, data: &[u8]) {
        let written = state.config.write(offset, data);
        self.apply(state, written);
    }

    pub(super) fn write_table(&self, at: u64, data: &[u8]) -> Option<ConfigEffects> {
        let mut state = self.lock();
        let resyncs = state.needs_resync;
        let retries = resyncs || state.interrupts.are_short();
        let changed = state.interrupts.table().write(at, data);
        if retries {
            self.apply(&mut state, Written { touched: Touched::MSIX, ..Written::default() });
        } else if changed && !state.interrupts.is_table_idle() {
            self.apply_entry(&mut state, at);
        }
        resyncs.then(|| self.effects(&mut state))
    }

    /// Carries out a write of one entry of the MSI-X table. All other vectors agree, so they are not
    /// looked at: a driver that writes entry by entry would take a time that grows with the square
    /// of their number.
    fn apply_entry(&self, state: &mut State, at: u64) {
        let result = match state.interrupts.reconcile_entry(at) {
            Some(result) => result.map_err(|source| self.interrupt_error(source)),
            None => self.reconcile_interrupts(state),
        };
        state.needs_resync = result.is_err();
        self.device.warn_of(result);
    }

    /// Carries out a write. After a failure all steps are repeated: a guest that writes the same
    /// value again touches nothing, but a device that missed the last value must still get it.
    fn apply(&self, state: &mut State, mut written: Written) {
        if state.needs_resync {
            written.touched |= Touched::COMMAND | Touched::BARS | Touched::MSIX;
        }
        if state.interrupts.are_short() {
            // The host may have more by now.
            written.touched |= Touched::MSIX;
        }
        let result = self.carry_out(state, &written);
        state.needs_resync = result.is_err();
        self.device.warn_of(result);
    }

    /// Windows that move are removed before the write is forwarded: when decoding ends, the kernel
    /// removes the pages of the BAR mappings (vfio_pci_zap_bars). Windows are placed after the
    /// write.
    fn carry_out(&self, state: &mut State, written: &Written) -> Result<(), Error> {
        let touched = written.touched;
        if touched.contains(Touched::RESET) {
            return self.reset_locked(state);
        }
        let moves = touched.intersects(Touched::COMMAND | Touched::BARS | Touched::POWER);
        if touched.contains(Touched::POWER) {
            // The mappings fault in D3hot. They are removed in each case; if the new state is D0,
            // `forward` reads it and they are placed again.
            state.config.set_in_low_power(true);
        }
        let mut errors = FirstError::new(&self.device);
        let removed = if moves { state.placement.remove_moved(&state.config) } else { Ok(()) };
        let forwarded = self.forward(state, written);
        // If the device missed the write it may not decode the BAR, and its mappings would fault.
        if moves && forwarded.is_ok() {
            state.placement.place(&state.config);
        }
        errors.add(removed);
        errors.add(forwarded);
        if touched.contains(Touched::ENABLE_AGAIN) {
            state.interrupts.ask_again();
        }
        if touched.intersects(Touched::MSIX | Touched::MSI | Touched::COMMAND) {
            errors.add(self.reconcile_interrupts(state));
        }
        errors.into_result()
    }

    /// Forwards the bits that are not emulated to the device.
    fn forward(&self, state: &mut State, written: &Written) -> Result<(), Error> {
        let mut errors = FirstError::new(&self.device);
        for (offset, data) in &written.forward {
            errors.add(self.device.write_config(*offset, data));
        }
        if written.touched.contains(Touched::COMMAND) {
            errors.add(self.write_command(state.config.command()));
        }
        if written.touched.contains(Touched::POWER) {
            errors.add(self.read_power_state(state));
            self.check_awake(state, written);
        }
        errors.into_result()
    }

    /// Logs if the guest wrote D0, and the device does not wake. The guest reads the state.
    fn check_awake(&self, state: &State, written: &Written) {
        let control = state.config.power_control();
        let wrote_d0 = |(offset, data): &(u16, Vec<u8>)| {
            let at = usize::from(control?.checked_sub(*offset)?);
            Some(u16::from(*data.get(at)?) & PM_STATE == 0)
        };
        let wakes = written.forward.iter().any(|run| wrote_d0(run) == Some(true));
        if wakes && state.config.is_in_low_power() && !self.device.is_absent() {
            let fault = Fault::Asleep(state.power);
            self.device.warn(&self.device.unfit("after the guest's write of D0", fault));
        }
    }

    pub(super) fn write_command(&self, command: Command) -> Result<(), Error> {
        self.device.write_command(command | self.host_command)
    }

    pub(super) fn read_power_state(&self, state: &mut State) -> Result<(), Error> {
        let Some(offset) = state.config.power_control() else {
            return Ok(());
        };
        let mut data = [0; 2];
        self.device.read_config(offset, &mut data)?;
        self.has_gone(state, &data);
        state.power = PowerState::of(u16::from_le_bytes(data));
        state.config.set_in_low_power(state.power != PowerState::D0);
        Ok(())
    }

    /// Binds and routes the interrupts that the guest programmed.
    pub(super) fn reconcile_interrupts(&self, state: &mut State) -> Result<(), Error> {
        let State { interrupts, config, .. } = state;
        interrupts.reconcile(config).map_err(|source| self.interrupt_error(source))
    }

    pub(super) fn interrupt_error(&self, source: irq::Error) -> Error {
        Error::Interrupts { address: self.address(), source }
    }

    /// The effects of the changes just made. The lock has been held since the first of them.
    pub(super) fn effects(&self, state: &mut State) -> ConfigEffects {
        state.sequence = state.sequence.saturating_add(1);
        ConfigEffects {
            sequence: state.sequence,
            slots_freed: state.placement.take_freed(),
            coalesced_writes: self.coalesced_writes(state),
            bars: self.bar_addresses(state),
        }
    }

    fn coalesced_writes(&self, state: &State) -> Option<ByteRange> {
        let layout = self.msix.filter(|_| state.running)?;
        let mut bars = self.bars().iter();
        let bar = bars.find(|bar| bar.index == layout.table_bar)?;
        let base = state.config.decoded(bar).filter(|_| state.interrupts.is_table_idle())?;
        ByteRange::new(base.checked_add(layout.table.start())?, layout.table.size())
    }

    fn bar_addresses(&self, state: &State) -> [Option<u64>; 7] {
        let mut addresses = [None; 7];
        for bar in self.bars.all().iter().filter(|_| state.running) {
            if let Some(address) = addresses.get_mut(usize::from(bar.index.number())) {
                *address = state.config.decoded(bar);
            }
        }
        addresses
    }
}
