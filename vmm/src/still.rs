//! Config space of an assigned function as memory that the guest only reads, for as long as nothing changes it but the
//! guest's own writes ([`PassthroughFunction::still_config`]). Linux reads some 150 registers of a function before a
//! driver turns it on: none of these is an exit. From then on each read is.

use std::sync::{Arc, Mutex, PoisonError};

use vfio_passthrough::PassthroughFunction;
use vfio_passthrough::host::{HostMemory, MemorySlot};
use vfio_passthrough::kvm::KvmHost;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

const PAGE: usize = 4096;

/// The page of one function, while there is one.
#[derive(Default)]
pub struct StillConfig(Mutex<Option<Page>>);

struct Page {
    memory: Arc<GuestRegionMmap>,
    slot: Box<dyn MemorySlot>,
}

impl StillConfig {
    /// Puts the page where the guest has the function's config space. Where that cannot be, each read is an exit:
    /// slow, and right.
    pub fn place(function: &PassthroughFunction, host: &KvmHost, gpa: u64) -> Self {
        let page = Page::place(function, host, gpa);
        Self(Mutex::new(page))
    }

    /// The guest wrote at `offset`: the page says so, or goes.
    pub fn follow(&self, function: &PassthroughFunction, offset: u16) {
        let mut page = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = page.as_mut() else { return };
        // A page that cannot be taken away is tried again at the next write.
        if !now.update(function, offset & !3) && now.slot.remove().is_ok() {
            *page = None;
        }
    }
}

impl Page {
    fn place(function: &PassthroughFunction, host: &KvmHost, gpa: u64) -> Option<Self> {
        let mut bytes = [0; PAGE];
        if !function.still_config(0, &mut bytes) {
            return None;
        }
        let memory = Arc::new(GuestRegionMmap::from_range(GuestAddress(gpa), PAGE, None).ok()?);
        memory.write_slice(&bytes, MemoryRegionAddress(0)).ok()?;
        let shared = Arc::clone(&memory) as Arc<dyn HostMemory>;
        let placed = host.memory().place_read_only(gpa, shared);
        let failed = |error: &_| log::debug!("config space of {} is trapped: {error}", function.address());
        let slot = placed.inspect_err(failed).ok()?;
        Some(Self { memory, slot })
    }

    /// False where it is not still any more.
    fn update(&self, function: &PassthroughFunction, offset: u16) -> bool {
        let mut data = [0; 4];
        let is_still = function.still_config(offset, &mut data);
        let written = self.memory.write_slice(&data, MemoryRegionAddress(offset.into()));
        is_still && written.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use vfio_passthrough::ResetPolicy;
    use vfio_passthrough::backend::IrqFlags;
    use vfio_passthrough::model::{Faults, Guest, PciDevice};

    use super::*;
    use crate::constant::fixture::{ECAM, Machine, READ, WRITE};

    #[test]
    fn config_space_is_read_without_an_exit_until_the_guest_turns_the_function_on() {
        let name = "config_space_is_read_without_an_exit_until_the_guest_turns_the_function_on";
        let Some(mut machine) = Machine::new(name) else {
            return;
        };
        let device = PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD).unwrap();
        let (address, host) = ("01:00.0".parse().unwrap(), Guest::new(Arc::default()).host());
        let function = PassthroughFunction::new(address, Arc::new(device), &host, ResetPolicy::Required);
        let function = function.unwrap();
        let still = StillConfig::place(&function, &machine.host, ECAM);
        let mut read = |offset: u16| machine.access(READ, offset.into());
        let write = |offset: u16, value: u16| {
            function.config_write(offset, &value.to_le_bytes());
            still.follow(&function, offset);
        };
        assert_eq!(
            (read(0), read(0x0a), read(0xffe)),
            (Some(0x1b36), Some(0x0108), Some(0))
        );
        write(0x12, 0xe000);
        assert_eq!(read(0x12), Some(0xe000), "half of a BAR");
        write(0x12, 0xffff);
        assert_eq!(read(0x12), Some(0xffff));
        write(0x04, 0x0400);
        assert_eq!(read(0x04), Some(0x0400));
        write(0x04, 0x0002);
        assert_eq!((read(0x04), read(0)), (None, None), "it decodes memory");
        write(0x04, 0);
        assert_eq!((read(0x04), read(0)), (None, None), "for good");
    }

    #[test]
    fn a_write_is_an_exit() {
        let Some(mut machine) = Machine::new("a_write_is_an_exit") else {
            return;
        };
        let device = PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD).unwrap();
        let (address, host) = ("01:00.0".parse().unwrap(), Guest::new(Arc::default()).host());
        let function = PassthroughFunction::new(address, Arc::new(device), &host, ResetPolicy::Required);
        let _still = StillConfig::place(&function.unwrap(), &machine.host, ECAM);
        assert_eq!(machine.access(WRITE, 0x04), None);
        assert_eq!(
            machine.access(READ, 0x04),
            Some(0),
            "and changes nothing by itself"
        );
    }
}
