//! Tests of the model itself: its devices, and its alarms about wrong programs.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

use std::sync::Arc;

use vfio_passthrough::backend::{AddressSpace as _, Device as _, IrqFlags, RegionMmap};
use vfio_passthrough::model::{Call, Faults, Guest, Iommu, Ledger, PciDevice};
use vfio_passthrough::{ByteRange, DmaSpace, Iova, PassthroughFunction, ResetPolicy};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

const PAGE: u64 = 0x1000;
const COMMAND: u64 = 0x04;
const POWER: u64 = 0x64;
const CONFIG: u32 = 7;

struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    iommu: Arc<Iommu>,
    guest: Guest,
}

fn setup() -> Setup {
    let faults = Arc::new(Faults::default());
    Setup {
        device: Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap()),
        iommu: Arc::new(Iommu::new(faults.clone())),
        guest: Guest::new(faults.clone()),
        faults,
    }
}

impl Setup {
    fn write_config(&self, offset: u64, value: u16) {
        let config = self.device.region(CONFIG).unwrap();
        self.device.write(&config, offset, &value.to_le_bytes()).unwrap();
    }

    /// The errno of a read of BAR0, and that of a write.
    fn bar0(&self) -> [Option<i32>; 2] {
        let bar0 = self.device.region(0).unwrap();
        let mut data = [0; 4];
        let results = [self.device.read(&bar0, 0, &mut data), self.device.write(&bar0, 0, &data)];
        results.map(|result| result.err().and_then(|error| error.raw_os_error()))
    }

    fn mmap(&self) -> Arc<RegionMmap> {
        let bar0 = self.device.region(0).unwrap();
        Arc::new(self.device.clone().mmap(&bar0, ByteRange::between(0, PAGE)).unwrap())
    }

    fn map(
        &self,
        iova: u64,
        size: u64,
    ) -> (Arc<GuestRegionMmap<()>>, vfio_passthrough::dma::Mapping) {
        let memory = memory(size);
        let space = DmaSpace::new(self.iommu.clone());
        (memory.clone(), space.map(Iova(iova), memory).unwrap())
    }

    fn ledger(&self) -> Ledger {
        Ledger::of(&self.iommu, &self.device, &self.guest)
    }
}

fn memory(size: u64) -> Arc<GuestRegionMmap<()>> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), size as usize, None).unwrap())
}

fn bytes(memory: &GuestRegionMmap<()>, at: u64) -> [u8; 4] {
    memory.read_obj(MemoryRegionAddress(at)).unwrap()
}

/// `COMMAND`, the power state, and whether memory is decoded then.
const STATES: [(u16, u16, bool); 6] =
    [(2, 0, true), (0, 0, false), (2, 3, false), (1, 0, false), (6, 2, true), (0, 3, false)];

#[test]
fn refuses_reads_and_writes_of_memory_that_is_not_decoded() {
    let setup = setup();
    assert_eq!(setup.bar0(), [None; 2], "after the open");
    for (command, power, decoded) in STATES {
        setup.write_config(POWER, power);
        setup.write_config(COMMAND, command);
        let errno = (!decoded).then_some(libc::EIO);
        assert_eq!(setup.bar0(), [errno; 2], "{command:#x}, D{power}");
    }
    setup.device.reset().unwrap();
    assert_eq!(setup.bar0(), [Some(libc::EIO); 2], "after a reset");
}

#[test]
fn decodes_ports_and_virtual_functions_without_the_memory_bit() {
    let faults = Arc::new(Faults::default());
    let mut config = vec![0; 0x100];
    config[0x10] = 1;
    let ports = PciDevice::new(faults.clone(), config, &[0x20], vec![]).unwrap();
    let memory =
        PciDevice::new(faults, vec![0; 0x100], &[0x20], vec![]).unwrap().with_zeros(COMMAND, 2);
    for device in [ports, memory] {
        let (config, bar0) = (device.region(CONFIG).unwrap(), device.region(0).unwrap());
        device.write(&config, COMMAND, &[0, 0]).unwrap();
        device.read(&bar0, 0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn reports_memory_that_stays_in_the_guest_when_decoding_ends() {
    for (command, power, decoded) in STATES {
        let setup = setup();
        let slot = setup.guest.services().slots.place(0xe000_0000, setup.mmap()).unwrap();
        setup.write_config(POWER, power);
        setup.write_config(COMMAND, command);
        let alarms = setup.ledger().alarms;
        assert_eq!(alarms.is_empty(), decoded, "{command:#x}, D{power}: {alarms:?}");
        let named = alarms
            .iter()
            .all(|alarm| alarm.contains("0xe0000000-0xe0000fff that the device does not decode"));
        assert!(named, "{alarms:?}");
        drop(slot);
    }
}

#[test]
fn reports_memory_that_is_placed_while_it_is_not_decoded() {
    let setup = setup();
    setup.write_config(COMMAND, 0);
    let mmap = setup.mmap();
    drop(setup.guest.services().slots.place(0xe000_0000, mmap).unwrap());
    assert_eq!(setup.faults.alarms().len(), 1);
}

#[test]
fn accepts_a_slot_whose_removal_failed_and_one_that_is_removed_in_time() {
    let setup = setup();
    let host = setup.guest.services();
    let mut stays = host.slots.place(0xe000_0000, setup.mmap()).unwrap();
    let mut goes = host.slots.place(0xe010_0000, setup.mmap()).unwrap();
    goes.remove().unwrap();
    setup.faults.fail(Call::RemoveSlot, 0, libc::EBUSY);
    stays.remove().unwrap_err();
    setup.write_config(COMMAND, 0);
    assert_eq!(setup.faults.alarms(), [""; 0]);
    stays.remove().unwrap();
}

#[test]
fn accepts_an_unmapped_region() {
    let setup = setup();
    setup.write_config(COMMAND, 0);
    drop(setup.mmap());
    // Other memory can be at its address now.
    for _ in 0..4 {
        drop(setup.guest.services().slots.place(0, memory(PAGE)).unwrap());
    }
    assert_eq!(setup.faults.alarms(), [""; 0]);
}

#[test]
fn devices_read_and_write_memory_across_mappings() {
    let setup = setup();
    let ((low, _low), (high, _high)) = (setup.map(0x10_0000, PAGE), setup.map(0x10_1000, 2 * PAGE));
    setup.write_config(COMMAND, 6);
    setup.device.dma_write(&setup.iommu, Iova(0x10_0ffe), &[1, 2, 3, 4]).unwrap();
    assert_eq!((bytes(&low, 0xffc), bytes(&high, 0)), ([0, 0, 1, 2], [3, 4, 0, 0]));
    high.write_obj(0x0807_0605_u32, MemoryRegionAddress(2)).unwrap();
    let mut data = [0; 8];
    setup.device.dma_read(&setup.iommu, Iova(0x10_0ffe), &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(setup.faults.alarms(), [""; 0]);
}

#[test]
fn refuses_dma_without_bus_mastering() {
    let setup = setup();
    let (memory, _mapping) = setup.map(0, PAGE);
    let error = setup.device.dma_write(&setup.iommu, Iova(0), &[1; 4]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!((bytes(&memory, 0), setup.faults.alarms()), ([0; 4], vec![]));
}

#[test]
fn reports_dma_to_addresses_that_are_not_mapped() {
    let setup = setup();
    setup.write_config(COMMAND, 4);
    let (_, mapping) = setup.map(0x10_0000, PAGE);
    let device = &setup.device;
    device.dma_read(&setup.iommu, Iova(0x10_0ffc), &mut [0; 8]).unwrap_err();
    drop(mapping);
    let error = device.dma_write(&setup.iommu, Iova(0x10_0000), &[1; 4]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    let alarms = [
        "a device reads 0x101000-0x101003: there is no mapping",
        "a device writes 0x100000-0x100003: there is no mapping",
    ];
    assert_eq!(setup.ledger().alarms, alarms);
}

#[test]
fn reports_dma_to_freed_memory() {
    const BASE: u64 = 2 << 36;
    const SIZE: u64 = 1 << 36;
    let setup = setup();
    setup.write_config(COMMAND, 4);
    let gone = memory(SIZE);
    // SAFETY: the test breaks the contract below on purpose. The model's devices access memory
    // through the kernel, which reports unmapped memory. Other mappings of this process do not come
    // into the middle of so large a hole.
    unsafe { setup.iommu.map(BASE, &*gone) }.unwrap();
    let middle = Iova(BASE + SIZE / 2);
    setup.device.dma_write(&setup.iommu, middle, &[1; 4]).unwrap();
    drop(gone);
    setup.device.dma_write(&setup.iommu, middle, &[1; 4]).unwrap_err();
    let alarms =
        ["a device writes 0x2800000000-0x2800000003: there is a mapping to memory that is gone"];
    assert_eq!(setup.ledger().alarms, alarms);
}

#[test]
fn does_no_dma_after_shutdown() {
    let setup = setup();
    let (memory, mapping) = setup.map(0, PAGE);
    let address = "01:00.0".parse().unwrap();
    let function = PassthroughFunction::new(
        address,
        setup.device.clone(),
        &setup.guest.services(),
        ResetPolicy::Required,
    )
    .unwrap();
    let _ = function.config_write(0x10, &0xe000_0004_u32.to_le_bytes());
    let _ = function.config_write(0x04, &[6, 0]);
    setup.device.dma_write(&setup.iommu, Iova(0), &[7; 4]).unwrap();
    assert_eq!(bytes(&memory, 0), [7; 4]);
    function.shutdown().unwrap();
    drop((mapping, memory));
    let error = setup.device.dma_write(&setup.iommu, Iova(0), &[8; 4]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    drop(function);
    assert_eq!(setup.ledger(), Ledger::default());
}
