//! Events of the host for a function in use: the host requests the device, or the device reports an
//! error.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

use std::sync::Arc;

use vfio_passthrough::backend::{BusMember, Device, IrqFlags};
use vfio_passthrough::function::Error;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::model::{Call, Faults, Guest, Iommu, Ledger, PciDevice};
use vfio_passthrough::{BarIndex, DmaSpace, Iova, PassthroughFunction, ResetPolicy, Space};
use vm_memory::{GuestAddress, GuestRegionMmap};

const GPA: u32 = 0xe000_0000;
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;

struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    guest: Guest,
    function: PassthroughFunction,
}

/// A function that a guest uses: its BAR is placed, bus mastering is on, and a vector of MSI-X is
/// bound.
fn in_use_of(device: impl FnOnce(PciDevice) -> PciDevice) -> Setup {
    let faults = Arc::new(Faults::default());
    let device = device(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let (device, guest) = (Arc::new(device), Guest::new(faults.clone()));
    let address = "01:00.0".parse().unwrap();
    let function =
        PassthroughFunction::new(address, device.clone(), &guest.services(), ResetPolicy::Required)
            .unwrap();
    let bar0 = BarIndex::new(0).unwrap();
    let _ = function.config_write(0x10, &GPA.to_le_bytes());
    let _ = function.config_write(0x04, &[6, 0]);
    let _ = function.config_write(0x42, &[0, 0x80]);
    function.bar_write(bar0, TABLE, &0xfee0_0000_u64.to_le_bytes());
    function.bar_write(bar0, TABLE + 8, &7_u32.to_le_bytes());
    function.bar_write(bar0, TABLE + 12, &[0; 4]);
    assert_eq!((guest.slots().len(), guest.delivered().len()), (1, 1));
    Setup { faults, device, guest, function }
}

fn in_use() -> Setup {
    in_use_of(|device| device)
}

impl Setup {
    fn command(&self) -> u16 {
        let mut data = [0; 2];
        self.device.config(4, &mut data).unwrap();
        u16::from_le_bytes(data)
    }

    fn bar_read(&self, offset: u64) -> [u8; 4] {
        let mut data = [0; 4];
        self.function.bar_read(BarIndex::new(0).unwrap(), offset, &mut data);
        data
    }
}

#[test]
fn reports_each_request_of_the_host_and_detach_closes_the_device() {
    let setup = in_use();
    let request = setup.function.request_event().unwrap();
    assert!(request.read().is_err(), "no request yet");
    for times in 1..=3 {
        assert_eq!(setup.device.ask_for().unwrap(), times);
    }
    assert_eq!(request.read().unwrap(), 3);
    assert!(!setup.device.is_given_back());
    setup.function.detach().1.unwrap();
    assert!(setup.function.is_detached() && setup.device.is_given_back());
    assert_eq!(setup.device.ask_for().unwrap(), 3, "no further request");
    setup.function.detach().1.unwrap();
    setup.function.shutdown().unwrap();
    setup.function.reset().1.unwrap();
    assert!(request.read().is_err(), "its eventfd still exists");
}

#[test]
fn a_detached_function_does_nothing_and_reads_as_all_ones() {
    let setup = in_use();
    setup.function.detach().1.unwrap();
    let iommu = Iommu::new(setup.faults.clone());
    assert_eq!(Ledger::of(&iommu, &setup.device, &setup.guest), Ledger::default());
    assert_eq!(setup.command(), 0, "no DMA");
    let calls = setup.faults.all_made();
    for offset in [0x00, 0x04, 0x10, 0x34, 0x44] {
        let mut data = [0; 4];
        setup.function.config_read(offset, &mut data);
        assert_eq!(data, [0xff; 4], "{offset:#x}");
        assert!(!setup.function.config_write(offset, &[0; 4]).slots_freed);
    }
    for offset in [0, TABLE, PBA] {
        assert_eq!(setup.bar_read(offset), [0xff; 4], "{offset:#x}");
        setup.function.bar_write(BarIndex::new(0).unwrap(), offset, &[0; 4]);
    }
    let _ = setup.function.retry_placement();
    assert_eq!(setup.function.decode(Space::Memory, GPA.into()), None);
    assert_eq!(setup.faults.all_made(), calls, "no call reaches the device");
    let closed = setup.device.region(0).unwrap_err();
    assert_eq!(closed.raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn detach_keeps_the_mappings_of_other_devices() {
    let setup = in_use();
    let iommu = Arc::new(Iommu::new(setup.faults.clone()));
    let memory = GuestRegionMmap::<()>::from_range(GuestAddress(0), 0x4000, None).unwrap();
    let memory: Arc<dyn HostMemory> = Arc::new(memory);
    let mapping = DmaSpace::new(iommu.clone()).map(Iova(0), memory).unwrap();
    setup.function.detach().1.unwrap();
    assert_eq!(iommu.mappings(), [mapping.range()]);
}

#[test]
fn detach_ignores_a_reset_that_the_host_refuses_with_eagain() {
    let setup = in_use();
    setup.faults.fail(Call::Reset, 0, libc::EAGAIN);
    setup.function.detach().1.unwrap();
    assert!(setup.device.is_given_back());
}

fn reset_with_its_bus(device: PciDevice) -> PciDevice {
    device.without_reset(vec![BusMember {
        address: "01:00.0".parse().unwrap(),
        ours: true,
        driver: Some("vfio-pci".to_owned()),
    }])
}

#[test]
fn does_not_reset_a_bus_while_a_guest_runs() {
    let setup = in_use_of(reset_with_its_bus);
    let resets = || setup.faults.made(Call::ResetBus) + setup.faults.made(Call::Reset);
    let before = resets();
    let refused = setup.function.recover().1.unwrap_err();
    assert_eq!(refused.to_string(), "0000:01:00.0: it cannot be reset by itself");
    setup.function.detach().1.unwrap();
    assert_eq!(resets(), before);
    assert!(setup.device.is_given_back());
}

#[test]
fn reports_an_error_and_recovery_keeps_the_guests_settings() {
    let setup = in_use();
    let (slots, delivered) = (setup.guest.slots(), setup.guest.delivered());
    setup.device.fail().unwrap();
    assert_eq!(setup.function.error_event().unwrap().read().unwrap(), 1);
    assert!(setup.function.request_event().unwrap().read().is_err());
    let resets = setup.faults.made(Call::Reset);
    setup.function.recover().1.unwrap();
    assert_eq!(setup.faults.made(Call::Reset), resets + 1);
    assert_eq!((setup.guest.slots(), setup.guest.delivered()), (slots, delivered));
    assert_eq!(setup.command(), 6);
    setup.device.raise(0).unwrap();
    assert_eq!(setup.guest.arrived().len(), 1, "interrupts are bound again");
}

#[test]
fn recovery_retries_while_the_host_handles_the_error() {
    let setup = in_use();
    let resets = setup.faults.made(Call::Reset);
    (0..3).for_each(|nth| setup.faults.fail(Call::Reset, nth, libc::EAGAIN));
    setup.function.recover().1.unwrap();
    assert_eq!(setup.faults.made(Call::Reset), resets + 4);
    assert_eq!(setup.guest.slots().len(), 1);
}

#[test]
fn has_no_events_if_the_device_has_none() {
    let faults = Arc::new(Faults::default());
    let device = PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap();
    // The first four calls describe MSI, MSI-X, INTx and the request event.
    faults.fail(Call::IrqInfo, 4, libc::EINVAL);
    let guest = Guest::new(faults.clone());
    let address = "01:00.0".parse().unwrap();
    let function = PassthroughFunction::new(
        address,
        Arc::new(device),
        &guest.services(),
        ResetPolicy::Required,
    );
    let function = function.unwrap();
    assert!(function.request_event().is_some() && function.error_event().is_none());
    faults.fail(Call::IrqInfo, 3, libc::EPERM);
    let device = PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap();
    let refused = PassthroughFunction::new(
        address,
        Arc::new(device),
        &guest.services(),
        ResetPolicy::Required,
    );
    assert!(matches!(refused, Err(Error::DescribeInterrupts { .. })));
}
