//! The machine's buses and their fixed devices.

use std::sync::Arc;

use devices::{ConfigPorts, Ecam, EjectSink, HotPlug, PciRoot, PowerControl, PowerSink, Serial};
use kvm_ioctls::VmFd;
use resources::{AddressRange, Layout};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::boot::{HOT_PLUG_GSI, POWER_BUTTON_GSI};
use super::console::{Output, Pending};
use crate::counters::{Calls, DeviceCounts};
use crate::error::Error;

/// The buses during construction.
#[derive(Default)]
pub(crate) struct Buses(IoManager);

impl Buses {
    /// Adds `device` at `size` ports from `base`.
    fn ports<D>(
        &mut self,
        what: &'static str,
        base: u16,
        size: u16,
        device: Arc<D>,
    ) -> Result<(), Error>
    where
        D: DevicePio + Send + Sync + 'static,
    {
        let refused = |source| Error::Bus { what, source };
        let range = PioRange::new(PioAddress(base), size).map_err(refused)?;
        self.0.register_pio(range, device).map_err(refused)
    }

    /// Adds `device` at `range` of memory; does nothing if the range is empty.
    fn memory<D>(
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

    /// Adds the PCI root bus: its windows, ECAM and, if `ports`, the ports of configuration
    /// mechanism #1.
    ///
    /// Linux prefers the ports when they exist: with an NVMe a boot then takes 894 exits up to
    /// init instead of 696.
    pub(crate) fn add_pci(
        &mut self,
        root: Arc<PciRoot>,
        layout: &Layout,
        ports: bool,
        counts: &DeviceCounts,
    ) -> Result<(), Error> {
        self.memory(
            "PCI ECAM",
            layout.ecam,
            counts.counted("pci-ecam", Ecam::new(Arc::clone(&root))),
        )?;
        let config_ports = counts.counted("pci-ports", ConfigPorts::new(Arc::clone(&root)));
        if ports {
            self.ports("PCI ports", ConfigPorts::BASE, ConfigPorts::SIZE, config_ports)?;
        }
        self.memory("32-bit PCI window", layout.mmio32, Arc::clone(&root))?;
        self.memory("64-bit PCI window", layout.mmio64, Arc::clone(&root))?;
        let [base, size] =
            [layout.io.start, layout.io.size].map(|value| u16::try_from(value).unwrap_or(u16::MAX));
        self.ports("PCI port window", base, size, root)
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
fn line(vm: &VmFd, gsi: u32, calls: &Calls) -> Result<EventFd, Error> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
    vm.register_irqfd(&interrupt, gsi).map_err(Error::kvm("KVM_IRQFD"))?;
    calls.add("irqfd", 1);
    Ok(interrupt)
}

/// An eventfd that presses the guest's power button.
pub(crate) fn power_button(vm: &VmFd, calls: &Calls) -> Result<EventFd, Error> {
    line(vm, POWER_BUTTON_GSI, calls)
}

/// An eventfd that makes the guest look at its slots.
pub(crate) fn slots_changed(vm: &VmFd, calls: &Calls) -> Result<EventFd, Error> {
    line(vm, HOT_PLUG_GSI, calls)
}

impl Buses {
    /// Adds the registers of hot-plug.
    pub(crate) fn add_hot_plug<S>(
        &mut self,
        registers: Arc<HotPlug<S>>,
        counts: &DeviceCounts,
    ) -> Result<(), Error>
    where
        S: EjectSink + 'static,
    {
        let counted = counts.counted("hot-plug", registers);
        self.ports("hot-plug registers", HotPlug::BASE, HotPlug::SIZE, counted)
    }

    /// Adds COM1 with its irqfd.
    pub(crate) fn add_console(
        &mut self,
        vm: &VmFd,
        (calls, counts): (&Calls, &DeviceCounts),
    ) -> Result<Console, Error> {
        let interrupt = line(vm, Serial::<Output>::GSI, calls)?;
        let drained = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?);
        let pending = Pending::new()?;
        let serial =
            Arc::new(Serial::new(interrupt, Arc::clone(&drained), Output(Arc::clone(&pending))));
        let counted = counts.counted("serial", Arc::clone(&serial));
        self.ports("COM1", Serial::<Output>::BASE, Serial::<Output>::SIZE, counted)?;
        Ok(Console { serial, drained, pending })
    }

    /// Adds the power and reset registers, which notify `sink`.
    pub(crate) fn add_power<S>(&mut self, sink: S, counts: &DeviceCounts) -> Result<(), Error>
    where
        S: PowerSink + Send + Sync + 'static,
    {
        let power = PowerControl::new(sink);
        self.ports(
            "power registers",
            PowerControl::BASE,
            PowerControl::SIZE,
            counts.counted("power", power),
        )
    }

    /// The completed buses.
    pub(crate) fn into_manager(self) -> IoManager {
        self.0
    }
}
