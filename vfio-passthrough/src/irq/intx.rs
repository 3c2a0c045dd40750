//! The INTx pin of a function (PCI 2.2.6): level triggered, and masked by VFIO each time it fires,
//! until the guest has acknowledged it.
//!
//! ```text
//!   device asserts -> VFIO masks it, signals trigger -> irqfd: line up -> guest handles it, EOI
//!   device deasserted, or: fires again <- VFIO unmasks <- resample <- irqfd: line down <-+
//! ```
//!
//! All of it is in the kernel: no exit and no wake-up of the VMM.

use std::sync::Arc;

use super::binding::disable;
use super::error::Error;
use super::index::IrqIndex;
use crate::address::PciAddress;
use crate::backend::{Device, SetIrqs};
use crate::host::{IntxConnection, IntxLine};

/// The pin of one function. Dropping it unbinds it, then cuts the wire.
pub struct Intx {
    address: PciAddress,
    line: Arc<dyn IntxLine>,
    device: Arc<dyn Device>,
    connection: Option<Box<dyn IntxConnection>>,
    /// VFIO unmasks it when the guest has acknowledged it; without that it fires once.
    unmasks: bool,
}

impl Intx {
    /// Not bound yet.
    pub fn new(address: PciAddress, device: Arc<dyn Device>, line: Arc<dyn IntxLine>) -> Self {
        Self { address, line, device, connection: None, unmasks: false }
    }

    /// VFIO has it on.
    pub fn is_enabled(&self) -> bool {
        self.connection.is_some()
    }

    /// Wires the pin and lets VFIO signal it. Where a step fails, those before it are undone.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn enable(&mut self) -> Result<(), Error> {
        if self.is_enabled() && self.unmasks {
            return Ok(());
        }
        // What an earlier try left half done and could not undo.
        self.disable()?;
        let index = IrqIndex::Intx;
        let connection = self.line.connect().map_err(|source| Error::Route { index, source })?;
        let trigger = [Some(connection.trigger().clone())];
        let call = SetIrqs::Trigger { index: index.number(), start: 0, eventfds: &trigger };
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| Error::SetIrqs { index, what, source }
        };
        self.device.set_irqs(call).map_err(failed("enable"))?;
        // From here on `disable` has something to undo.
        let connection = self.connection.insert(connection);
        let call = SetIrqs::UnmaskOn { index: index.number(), eventfd: connection.resample() };
        let resampled = self.device.set_irqs(call).map_err(failed("unmask by eventfd"));
        self.unmasks = resampled.is_ok();
        // Why it cannot be used comes first; where the undo fails too, the next try begins with it.
        resampled.or_else(|error| self.disable().or(Ok(())).and(Err(error)))
    }

    /// Stops VFIO from signalling it, and cuts the wire.
    ///
    /// # Errors
    ///
    /// [`Error::SetIrqs`]: it stays bound.
    pub fn disable(&mut self) -> Result<(), Error> {
        if self.is_enabled() {
            disable(&*self.device, IrqIndex::Intx)?;
            self.connection = None;
        }
        Ok(())
    }
}

impl Drop for Intx {
    fn drop(&mut self) {
        if let Err(error) = self.disable() {
            log::error!("{}: INTx stays bound until the device is closed: {error}", self.address);
        }
    }
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use super::*;
    use crate::backend::IrqFlags;
    use crate::model::{Faults, Guest, PciDevice};

    #[test]
    fn a_pin_that_is_dropped_is_off_and_its_wire_cut() -> std::io::Result<()> {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
        let guest = Guest::new(faults);
        let address = "01:00.0".parse().map_err(std::io::Error::other)?;
        let mut intx = Intx::new(address, device.clone(), Arc::new(guest.clone()));
        intx.enable().map_err(std::io::Error::other)?;
        assert_eq!((device.irqs().active, guest.pins()), (Some(IrqIndex::Intx.number()), 1));
        drop(intx);
        assert_eq!((device.irqs().active, guest.pins()), (None, 0));
        Ok(())
    }
}
