//! The INTx pin of a function (PCI 3.0, 2.2.6). It is level-triggered. VFIO masks it each time it
//! fires, until the guest acknowledges the interrupt.
//!
//! ```text
//!   device asserts -> VFIO masks it, signals trigger -> irqfd: line up -> guest handles it, EOI
//!   device deasserted, or: fires again <- VFIO unmasks <- resample <- irqfd: line down <-+
//! ```
//!
//! The kernel does all of this. The VMM does not run.

use std::sync::Arc;

use super::binding::disable;
use super::error::Error;
use super::index::IrqIndex;
use crate::address::PciAddress;
use crate::backend::{Device, SetIrqs};
use crate::host::{IntxConnection, IntxLine};

/// The INTx pin of one function. Dropping it unbinds the pin, then disconnects the line.
pub struct Intx {
    address: PciAddress,
    /// The line, and the number of the pin that is wired to it.
    line: (Arc<dyn IntxLine>, u8),
    device: Arc<dyn Device>,
    connection: Option<Box<dyn IntxConnection>>,
    /// The resample eventfd is bound: VFIO unmasks the pin when the guest acknowledges the
    /// interrupt.
    resample_bound: bool,
}

impl Intx {
    /// A pin that is not bound.
    pub fn new(
        address: PciAddress,
        device: Arc<dyn Device>,
        line: (Arc<dyn IntxLine>, u8),
    ) -> Self {
        Self { address, line, device, connection: None, resample_bound: false }
    }

    /// Whether the pin is bound in VFIO.
    pub fn is_enabled(&self) -> bool {
        self.connection.is_some()
    }

    /// Connects the pin to its line, and binds it. If a step fails, the earlier steps are undone.
    ///
    /// # Errors
    ///
    /// [`Error::Route`] if the VMM does not connect the line, [`Error::SetIrqs`] if VFIO refuses an
    /// eventfd.
    pub fn enable(&mut self) -> Result<(), Error> {
        if self.is_enabled() && self.resample_bound {
            return Ok(());
        }
        // An earlier call may have failed, and so may its undo.
        self.disable()?;
        let index = IrqIndex::Intx;
        let (line, pin) = &self.line;
        let connection = line.connect(*pin).map_err(|source| Error::Route { index, source })?;
        let trigger = [Some(connection.trigger().clone())];
        let call = SetIrqs::Trigger { index: index.number(), start: 0, eventfds: &trigger };
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| Error::SetIrqs { index, what, source }
        };
        self.device.set_irqs(call).map_err(failed("enable"))?;
        // From here on the pin is bound: `disable` unbinds it.
        let connection = self.connection.insert(connection);
        let call = SetIrqs::UnmaskOn { index: index.number(), eventfd: connection.resample() };
        let resampled = self.device.set_irqs(call).map_err(failed("unmask by eventfd"));
        self.resample_bound = resampled.is_ok();
        // The first error is returned. If the undo fails too, the next call repeats it first.
        resampled.or_else(|error| self.disable().or(Ok(())).and(Err(error)))
    }

    /// Unbinds the pin, and disconnects the line.
    ///
    /// # Errors
    ///
    /// [`Error::SetIrqs`]: the pin stays bound.
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
    fn dropping_a_pin_unbinds_it_and_disconnects_the_line() -> std::io::Result<()> {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
        let guest = Guest::new(faults);
        let address = "01:00.0".parse().map_err(std::io::Error::other)?;
        let mut intx = Intx::new(address, device.clone(), (Arc::new(guest.clone()), 1));
        intx.enable().map_err(std::io::Error::other)?;
        assert_eq!((device.irqs().active, guest.pins()), (Some(IrqIndex::Intx.number()), 1));
        drop(intx);
        assert_eq!((device.irqs().active, guest.pins()), (None, 0));
        Ok(())
    }
}
