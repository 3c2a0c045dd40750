//! The fixed devices at the places that a PC has for them.

use std::sync::Arc;

use devices::{ConfigPorts, Ecam, EjectSink, HotPlug, PciRoot, PowerControl, PowerSink, Serial};
use kvm_ioctls::VmFd;
use resources::Layout;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioRange};
use vm_device::device_manager::PioManager;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::boot::POWER_BUTTON_PIN;
use crate::config::Config;
use crate::counters::{Calls, DeviceCounts};
use crate::error::Error;
use crate::guest::console::{Output, Pending};
use crate::guest::machine::{Buses, Console, PowerButton, line};

/// Refuses what has no meaning here: nothing.
pub(crate) fn check(_: &Config) -> Result<(), Error> {
    Ok(())
}

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

    /// Adds the power button, which is an interrupt with an ACPI method.
    pub(crate) fn add_power_button(
        &mut self,
        vm: &VmFd,
        (calls, _): (&Calls, &DeviceCounts),
    ) -> Result<PowerButton, Error> {
        let interrupt = line(vm, POWER_BUTTON_PIN, calls)?;
        // The write fails only if the guest never takes the interrupt; it is then pending.
        Ok(Box::new(move || drop(interrupt.write(1))))
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
}
