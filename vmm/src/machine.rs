//! The machine: its parts put together, run, and taken apart in the right order.

use std::sync::Arc;

use devices::{ConfigPorts, Ecam, PciRoot, PowerControl, Serial};
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VmFd};
use resources::{AddressRange, Layout};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::POWER_BUTTON_GSI;
use crate::console::{Output, Pending};
use crate::events::Keyboard;
use crate::stats::Stats;
use crate::stop::{Stop, StopOnRequest};
use crate::vcpu::{Vcpu, cpuid};
use crate::{Args, Error};

/// The buses as they are filled.
#[derive(Default)]
pub struct Buses(IoManager);

impl Buses {
    /// Puts `device` at `size` ports from `base` on.
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

    /// Puts `device` at `range` of memory; nowhere, if that is empty.
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

    /// Adds the PCI root bus: its windows, ECAM and, if the guest is to have them, the ports of mechanism #1.
    ///
    /// Linux prefers the ports where they are there: with an NVMe, 894 exits up to init against 696.
    pub fn add_pci(
        &mut self,
        root: PciRoot,
        layout: &Layout,
        ports: bool,
        stats: &Stats,
    ) -> Result<(), Error> {
        let root = Arc::new(root);
        self.memory(
            "PCI ECAM",
            layout.ecam,
            stats.counted("pci-ecam", Ecam::new(Arc::clone(&root))),
        )?;
        let config_ports = stats.counted("pci-ports", ConfigPorts::new(Arc::clone(&root)));
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
pub struct Console {
    /// Stdin's way to the guest, for the main loop.
    pub keyboard: Keyboard,
    /// The unfinished line, for the main loop.
    pub pending: Arc<Pending>,
    /// What presses the power button, which is beside it.
    pub power_button: EventFd,
}

/// An eventfd that raises an edge-triggered line.
fn line(vm: &VmFd, gsi: u32, stats: &Stats) -> Result<EventFd, Error> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
    vm.register_irqfd(&interrupt, gsi).map_err(Error::kvm("KVM_IRQFD"))?;
    stats.kvm_ioctls.add("irqfd", 1);
    Ok(interrupt)
}

impl Buses {
    /// Adds COM1, with its interrupt through KVM, and the power button's.
    pub fn add_console(
        &mut self,
        vm: &VmFd,
        stop: &Arc<Stop>,
        stats: &Stats,
    ) -> Result<Console, Error> {
        let interrupt = line(vm, Serial::<Output>::GSI, stats)?;
        let power_button = line(vm, POWER_BUTTON_GSI, stats)?;
        let drained = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
        let pending = Pending::new()?;
        let signal = drained.try_clone().map_err(Error::system("dup"))?;
        let serial = Arc::new(Serial::new(interrupt, signal, Output(Arc::clone(&pending))));
        let counted = stats.counted("serial", Arc::clone(&serial));
        self.ports("COM1", Serial::<Output>::BASE, Serial::<Output>::SIZE, counted)?;
        let keyboard = Keyboard::new(serial, drained, Arc::clone(stop));
        Ok(Console { keyboard, pending, power_button })
    }

    /// Adds the registers of power and reset.
    pub fn add_power(&mut self, stop: &Arc<Stop>, stats: &Stats) -> Result<(), Error> {
        let power = PowerControl::new(StopOnRequest(Arc::clone(stop)));
        self.ports(
            "power registers",
            PowerControl::BASE,
            PowerControl::SIZE,
            stats.counted("power", power),
        )
    }

    /// All that was added.
    pub fn into_manager(self) -> IoManager {
        self.0
    }
}

/// Creates the guest's CPUs. All but the first wait for the guest to start them.
pub fn create_vcpus(
    vm: &VmFd,
    supported: &CpuId,
    count: u8,
    stats: &Stats,
) -> Result<Vec<Vcpu>, Error> {
    let create = |index: u8| {
        let fd = vm.create_vcpu(index.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid::for_cpu(supported, index, count)?;
        fd.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))?;
        Ok(Vcpu { fd, index })
    };
    ["create_vcpu", "set_cpuid2"].iter().for_each(|call| stats.kvm_ioctls.add(call, count.into()));
    (0..count).map(create).collect()
}

/// Refuses more CPUs than KVM offers.
pub fn check_cpus(kvm: &Kvm, args: &Args) -> Result<(), Error> {
    let most = kvm.get_max_vcpus();
    match usize::from(args.cpus) > most {
        true => Err(Error::TooManyCpus { asked: args.cpus, most }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

    use super::*;

    /// What each of the most CPUs says of itself, as KVM has it.
    #[test]
    fn kvm_takes_254_cpus_that_tell_one_topology() {
        let Ok(kvm) = crate::kvm::open() else {
            eprintln!("NOT RUN: kvm_takes_254_cpus_that_tell_one_topology: /dev/kvm does not open");
            return;
        };
        const MOST: u8 = 254;
        let stats = Stats::default();
        let vm = crate::kvm::create_vm(&kvm, &stats.kvm_ioctls).unwrap();
        let supported = cpuid::supported(&kvm).unwrap();
        let vcpus = create_vcpus(&vm, &supported, MOST, &stats).unwrap();
        assert_eq!(vcpus.len(), usize::from(MOST));
        for (id, vcpu) in (0_u32..).zip(&vcpus) {
            let cpuid = vcpu.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            let leaf = |function, index| {
                let mut entries = cpuid.as_slice().iter();
                *entries.find(|entry| entry.function == function && entry.index == index).unwrap()
            };
            assert_eq!(leaf(1, 0).ebx >> 16, id << 8 | 254, "leaf 1 of {id}");
            assert_eq!(leaf(1, 0).ecx >> 21 & 1, 1, "x2APIC");
            let levels = [0, 1].map(|index| leaf(0xb, index));
            let told =
                levels.map(|level| (level.eax & 0x1f, level.ebx & 0xffff, level.ecx, level.edx));
            assert_eq!(told, [(0, 1, 0x100, id), (8, 254, 0x201, id)], "leaf 0xb of {id}");
            assert_eq!(leaf(0x8000_0008, 0).ecx & 0xf0ff, 8 << 12 | 253);
        }
    }
}
