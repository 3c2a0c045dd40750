//! The fixed devices at their places in memory.

use std::sync::Arc;

use devices::{Ecam, EjectSink, GpioButton, HotPlug, PciRoot, PowerSink, Serial};
use kvm_ioctls::VmFd;
use resources::Layout;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::places::{GPIO, GPIO_GSI, PORTS, SERIAL, SERIAL_GSI};
use crate::config::Config;
use crate::counters::{Calls, DeviceCounts};
use crate::error::Error;
use crate::guest::console::{Output, Pending};
use crate::guest::machine::{Buses, Console, PowerButton, line};

/// Refuses what has no meaning here.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    let refused = |option, why| Err(Error::NotOnThisArch { option, why });
    match config {
        Config { pci_ports: true, .. } => {
            refused("--pci-ports", "aarch64 has no ports; the guest uses ECAM")
        }
        Config { hot_plug_windows: Some(_), .. } => {
            refused("--hot-plug-windows", "hot-plug needs ACPI, and the guest has a device tree")
        }
        _ => Ok(()),
    }
}

/// The ports of the host bridge, as addresses.
struct Ports(Arc<PciRoot>);

impl DeviceMmio for Ports {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        match u16::try_from(offset) {
            Ok(port) => self.0.pio_read(PioAddress(port), 0, data),
            Err(_) => data.fill(0xff),
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Ok(port) = u16::try_from(offset) {
            self.0.pio_write(PioAddress(port), 0, data);
        }
    }
}

impl Buses {
    /// Adds the PCI root bus: its windows and ECAM.
    pub(crate) fn add_pci(
        &mut self,
        root: Arc<PciRoot>,
        layout: &Layout,
        _ports: bool,
        counts: &DeviceCounts,
    ) -> Result<(), Error> {
        let ecam = counts.counted("pci-ecam", Ecam::new(Arc::clone(&root)));
        self.memory("PCI ECAM", layout.ecam, ecam)?;
        self.memory("32-bit PCI window", layout.mmio32, Arc::clone(&root))?;
        self.memory("64-bit PCI window", layout.mmio64, Arc::clone(&root))?;
        self.memory("PCI port window", PORTS, Arc::new(Ports(root)))
    }

    /// Adds nothing: the machine has no hot-plug.
    pub(crate) fn add_hot_plug<S>(
        &mut self,
        _registers: Arc<HotPlug<S>>,
        _counts: &DeviceCounts,
    ) -> Result<(), Error>
    where
        S: EjectSink + 'static,
    {
        Ok(())
    }

    /// Adds the serial port with its irqfd.
    pub(crate) fn add_console(
        &mut self,
        vm: &VmFd,
        (calls, counts): (&Calls, &DeviceCounts),
    ) -> Result<Console, Error> {
        let interrupt = line(vm, SERIAL_GSI, calls)?;
        let drained = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?);
        let pending = Pending::new()?;
        let serial =
            Arc::new(Serial::new(interrupt, Arc::clone(&drained), Output(Arc::clone(&pending))));
        let counted = counts.counted("serial", Arc::clone(&serial));
        self.memory("serial port", SERIAL, counted)?;
        Ok(Console { serial, drained, pending })
    }

    /// Adds the GPIO controller with the power button.
    pub(crate) fn add_power_button(
        &mut self,
        vm: &VmFd,
        (calls, counts): (&Calls, &DeviceCounts),
    ) -> Result<PowerButton, Error> {
        let gpio = Arc::new(GpioButton::new(line(vm, GPIO_GSI, calls)?));
        self.memory("GPIO controller", GPIO, counts.counted("gpio", Arc::clone(&gpio)))?;
        Ok(Box::new(move || gpio.press()))
    }

    /// Adds nothing: KVM reports PSCI's calls by an exit.
    pub(crate) fn add_power<S>(&mut self, _sink: S, _counts: &DeviceCounts) -> Result<(), Error>
    where
        S: PowerSink + Send + Sync + 'static,
    {
        Ok(())
    }
}
