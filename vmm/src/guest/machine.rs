//! The machine's buses. `arch` adds the fixed devices at the places of the architecture.

use std::sync::Arc;

use devices::Serial;
use kvm_ioctls::VmFd;
use resources::AddressRange;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::arch::HOT_PLUG_GSI;
use super::console::{Output, Pending};
use crate::config::Config;
use crate::counters::Calls;
use crate::error::Error;

/// The buses during construction.
#[derive(Default)]
pub(crate) struct Buses(pub(super) IoManager);

impl Buses {
    /// Adds `device` at `range` of memory; does nothing if the range is empty.
    pub(super) fn memory<D>(
        &mut self,
        what: &'static str,
        range: AddressRange,
        device: Arc<D>,
    ) -> Result<(), Error>
    where
        D: DeviceMmio + Send + Sync + 'static,
    {
        if range.is_empty() {
            return Ok(());
        }
        let refused = |source| Error::Bus { what, source };
        let range = MmioRange::new(MmioAddress(range.start), range.size).map_err(refused)?;
        self.0.register_mmio(range, device).map_err(refused)
    }

    /// The completed buses.
    pub(crate) fn into_manager(self) -> IoManager {
        self.0
    }
}

/// The console: the serial port between the guest and this process's stdin and stdout.
pub(crate) struct Console {
    /// The serial port.
    pub(crate) serial: Arc<Serial<Output>>,
    /// Signalled when the serial port accepts more input.
    pub(crate) drained: Arc<EventFd>,
    /// The unfinished line, for the main loop.
    pub(crate) pending: Arc<Pending>,
}

/// An eventfd that raises an edge-triggered GSI.
pub(super) fn line(vm: &VmFd, gsi: u32, calls: &Calls) -> Result<EventFd, Error> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
    vm.register_irqfd(&interrupt, gsi).map_err(Error::kvm("KVM_IRQFD"))?;
    calls.add("irqfd", 1);
    Ok(interrupt)
}

/// Presses the guest's power button.
pub(crate) type PowerButton = Box<dyn Fn() + Send>;

/// Whether devices come and leave while the guest runs: they come by the control socket, if the
/// machine has hot-plug.
pub(crate) fn has_hot_plug(config: &Config) -> bool {
    config.control.is_some() && HOT_PLUG_GSI.is_some()
}

/// An eventfd that makes the guest look at its slots; `None` if the machine has no hot-plug.
pub(crate) fn slots_changed(vm: &VmFd, calls: &Calls) -> Result<Option<EventFd>, Error> {
    HOT_PLUG_GSI.map(|gsi| line(vm, gsi, calls)).transpose()
}
