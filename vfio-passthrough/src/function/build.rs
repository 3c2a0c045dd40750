//! Builds a function from VFIO's description of a device. Each step makes a value, whose drop
//! undoes the step if a later one fails.

use std::io;
use std::sync::Arc;

use super::events::HostEvents;
use super::reset::{Reset, ResetPolicy, choose, reset_and_check};
use super::state::{PassthroughFunction, State};
use crate::address::PciAddress;
use crate::backend::{Device, IrqInfo, RegionInfo};
use crate::bars::placement::Placement;
use crate::bars::{Bars, regions};
use crate::counters::FunctionTraps;
use crate::device::{ConventionalConfig, FunctionDevice};
use crate::error::Error;
use crate::irq::binding::Binding;
use crate::irq::intx::Intx;
use crate::irq::{Interrupts, IrqIndex};
use crate::pci::config::ConfigSpace;
use crate::pci::presence::PowerState;
use crate::pci::regs::{COMMAND, Command};
use crate::pci::view::{self, HostSupport};
use crate::services::VmmServices;
use crate::sync::Mutex;

impl PassthroughFunction {
    /// Makes a function of an open device, in the state after power-on: no BAR is placed, nothing
    /// is decoded, interrupts are disabled.
    ///
    /// The kernel reset the device when it was opened (vfio_pci_core_enable), so it is not reset
    /// here again. A device that can only be reset with its whole bus is reset here: the kernel
    /// leaves this to its user.
    ///
    /// # Errors
    ///
    /// [`Error::NotUsable`] if the device is not a PCI function, or is a bridge; [`Error::Unfit`] if
    /// it does not respond, does not wake, or is not the one that the host recorded;
    /// [`Error::NoReset`] if `policy` requires a reset and there is none; [`Error::Vectors`] if the
    /// VMM refuses the vectors; [`Error::Region`], [`Error::DescribeInterrupts`],
    /// [`Error::Interrupts`] and [`Error::Reset`] with the errno of the kernel. Nothing stays
    /// bound.
    pub fn new(
        address: PciAddress,
        device: Arc<dyn Device>,
        services: &VmmServices,
        policy: ResetPolicy,
    ) -> Result<Self, Error> {
        let device = Arc::new(FunctionDevice::new(address, device)?);
        let conventional = device.wait_until_usable("at its assignment")?;
        if let Some(reason) = view::refusal(&conventional) {
            return Err(Error::NotUsable { address, reason });
        }
        let reset = reset(&device, &conventional, policy)?;
        let conventional = match reset {
            Reset::Bus => device.conventional_config()?,
            _ => conventional,
        };
        let regions = regions(&device)?;
        let irqs = [device.irq(IrqIndex::Msi)?, device.irq(IrqIndex::Msix)?];
        let config = config(&device, &regions, irqs, &conventional)?;
        // A guest that starts an FLR resets one function. A reset of the bus would reset others
        // too, so the guest sees no FLR capability.
        let config = if reset == Reset::Function { config } else { config.without_flr() };
        let (config, interrupts) = interrupts(&device, config, irqs, services)?;
        let events = HostEvents::new(&device)?;
        let traps = Arc::new(FunctionTraps::default());
        let guest = (services.slots.clone(), services.p2p.clone());
        let placement = Placement::new(device.clone(), &config, &regions, guest, traps.clone());
        Ok(Self {
            host_command: host_command(&conventional),
            bars: Bars::new(device.clone(), config.bars().to_vec(), regions),
            msix: config.msix(),
            device,
            reset,
            traps,
            events,
            state: Mutex::new(State {
                config,
                interrupts,
                placement,
                power: PowerState::D0,
                sequence: 0,
                needs_resync: false,
                running: true,
            }),
        })
    }

    /// Shows the function as one of several functions of the guest's device: sets the
    /// multifunction bit of its header type. A guest looks for functions 1 to 7 only where
    /// function 0 has the bit (PCI 3.0, 3.2.2.3.4). Without this call the bit is clear, whatever
    /// the host's device has.
    #[must_use]
    pub fn with_multifunction(self) -> Self {
        self.lock().config.set_multifunction();
        self
    }
}

/// The bits of the command register that the host has set and the guest cannot change. Without
/// SERR# enable, a device may not report errors to the host (PCIe 6.2.6).
fn host_command(conventional: &ConventionalConfig) -> Command {
    let bytes = conventional.get(usize::from(COMMAND)..).and_then(<[u8]>::first_chunk);
    let found = Command::from_bits_retain(bytes.copied().map_or(0, u16::from_le_bytes));
    found & Command::SERR
}

/// Chooses the reset of the function. If it is the reset of its bus, this resets the bus.
fn reset(
    device: &FunctionDevice,
    conventional: &ConventionalConfig,
    policy: ResetPolicy,
) -> Result<Reset, Error> {
    let address = device.address;
    let found = choose(address, device.device.flags(), || device.device.bus_members());
    match (found, policy) {
        (Ok(Reset::Bus), _) => reset_bus(device, conventional).map(|()| Reset::Bus),
        (Ok(reset), _) => Ok(reset),
        (Err(reason), ResetPolicy::Required) => Err(Error::NoReset { address, reason }),
        (Err(reason), ResetPolicy::IfPossible) => {
            // The user accepted this, so it is no warning.
            log::info!(
                "{address}: {reason}; the guest gets it in the state in which its last user left it"
            );
            Ok(Reset::Nothing)
        }
    }
}

fn reset_bus(device: &FunctionDevice, conventional: &ConventionalConfig) -> Result<(), Error> {
    // There must be no DMA during the reset. The kernel restores the command register written here
    // (pci_restore_state).
    device.write_command(host_command(conventional))?;
    reset_and_check(device, Reset::Bus)
}

fn config(
    device: &FunctionDevice,
    regions: &[RegionInfo],
    [msi, msix]: [IrqInfo; 2],
    conventional: &ConventionalConfig,
) -> Result<ConfigSpace, Error> {
    let mut host = HostSupport { msi: msi.count, msix: msix.count, ..HostSupport::default() };
    host.regions.iter_mut().zip(regions).for_each(|(size, region)| *size = region.size);
    let size = u16::try_from(device.config_size()).unwrap_or(u16::MAX);
    device.walk_config(|read| {
        // The headers of extended capabilities take a few reads. Reading the whole extended space
        // would take about 1000: vfio-pci splits a read into dwords.
        let read = |offset: u16, data: &mut [u8]| {
            let range = usize::from(offset)..usize::from(offset).saturating_add(data.len());
            match conventional.get(range) {
                Some(found) => {
                    data.copy_from_slice(found);
                    Ok(())
                }
                None => read(offset, data),
            }
        };
        ConfigSpace::new(device.address, size, &host, read)
    })
}

/// The interrupts that the function, VFIO and the VMM all support.
fn interrupts(
    device: &FunctionDevice,
    config: ConfigSpace,
    [msi, msix]: [IrqInfo; 2],
    services: &VmmServices,
) -> Result<(ConfigSpace, Interrupts), Error> {
    let msi = config.msi().map(|layout| (IrqIndex::Msi, msi, layout.vectors()));
    let msix = config.msix().map(|layout| (IrqIndex::Msix, msix, layout.vectors));
    let bind = |found| binding(device, found, services);
    let (msi, msix) = (msi.map(bind).transpose()?, msix.map(bind).transpose()?);
    let number = config.pin();
    let line = services.intx.clone().filter(|_| number != 0);
    let has_pin = line.is_some() && device.irq(IrqIndex::Intx)?.count != 0;
    let line = line.filter(|_| has_pin);
    let wired = |line| Intx::new(device.address, device.device.clone(), (line, number));
    let pin = line.map(wired);
    let interrupts = Interrupts::new(config.msix(), (pin, msi, msix));
    let config = if has_pin { config } else { config.without_pin() };
    Ok((config, interrupts))
}

fn binding(
    device: &FunctionDevice,
    (index, irq, vectors): (IrqIndex, IrqInfo, u16),
    services: &VmmServices,
) -> Result<Binding, Error> {
    let address = device.address;
    let failed = |source: io::Error| Error::Vectors { address, index, vectors, source };
    let allocated = services.msi.allocate(vectors).map_err(failed)?;
    Ok(Binding::new(address, index, device.device.clone(), irq, allocated))
}
