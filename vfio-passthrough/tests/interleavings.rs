//! vCPUs, a device and the end of a function run in orders that shuttle chooses. shuttle can switch
//! threads at the function's lock and before each call of the kernel or the VMM. Nothing deadlocks
//! or panics, nothing is held at the end, the guest has no mapping that the device does not decode,
//! and no DMA comes after the end.
//!
//! `RUSTFLAGS='--cfg shuttle' cargo test -p vfio-passthrough --test interleavings --target-dir
//! target/shuttle`
#![cfg(shuttle)]
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

use std::io;
use std::sync::Arc;

use shuttle::thread;
use vfio_passthrough::backend::{
    BusMember, Device, DeviceFlags, IrqFlags, IrqInfo, RegionInfo, RegionMmap, SetIrqs,
};
use vfio_passthrough::host::{HostMemory, MemorySlots};
use vfio_passthrough::model::{Faults, Guest, Iommu, Ledger, PciDevice};
use vfio_passthrough::{
    BarIndex, ByteRange, DmaSpace, Iova, PassthroughFunction, ResetPolicy, Space, VmmServices,
};
use vm_memory::{GuestAddress, GuestRegionMmap};

const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;

/// A device whose calls other threads can interrupt.
struct Slow(Arc<PciDevice>);

impl Device for Slow {
    fn flags(&self) -> DeviceFlags {
        self.0.flags()
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.0.region(index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.0.irq(index)
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        thread::yield_now();
        self.0.read(region, offset, data)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        thread::yield_now();
        self.0.write(region, offset, data)
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        self.0.clone().mmap(region, range)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        thread::yield_now();
        self.0.set_irqs(call)
    }

    fn reset(&self) -> io::Result<()> {
        thread::yield_now();
        self.0.reset()
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.0.bus_members()
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.0.reset_bus()
    }

    fn close(&self) {
        thread::yield_now();
        self.0.close();
    }
}

/// Memory slots whose placement other threads can interrupt.
struct SlowSlots(Guest);

impl MemorySlots for SlowSlots {
    unsafe fn map(&self, gpa: u64, memory: &dyn HostMemory) -> io::Result<u32> {
        thread::yield_now();
        // SAFETY: the caller keeps the memory until `unmap` has succeeded.
        unsafe { self.0.map(gpa, memory) }
    }

    fn unmap(&self, number: u32, gpa: u64, memory: &dyn HostMemory) -> io::Result<()> {
        self.0.unmap(number, gpa, memory)
    }
}

/// An access of a vCPU.
type Access = fn(&PassthroughFunction);

const DRIVER: [Access; 8] = [
    |function| write(function.config_write(4, &[6, 0])),
    |function| write(function.bar_write(bar0(), TABLE + 8, &0x41_u32.to_le_bytes())),
    |function| write(function.bar_write(bar0(), TABLE + 12, &[0; 4])),
    |function| write(function.config_write(0x42, &[0, 0x80])),
    |function| write(function.bar_write(bar0(), TABLE + 12, &[1, 0, 0, 0])),
    |function| function.bar_read(bar0(), PBA, &mut [0; 4]),
    |function| write(function.config_write(0x10, &0xe010_0000_u32.to_le_bytes())),
    |function| write(function.config_write(4, &[0, 0])),
];

const OTHER: [Access; 6] = [
    |function| write(function.config_write(0x64, &[3, 0])),
    |function| {
        assert!(function.decode(Space::Memory, 0xe000_0000).is_none_or(|(bar, _)| bar == bar0()))
    },
    |function| function.config_read(4, &mut [0; 4]),
    |function| write(function.config_write(0x64, &[0, 0])),
    |function| function.bar_read(bar0(), 0x10, &mut [0; 4]),
    |function| write(function.retry_placement()),
];

/// Drops the effects: only a VMM needs them.
fn write<T>(_effects: T) {}

fn bar0() -> BarIndex {
    BarIndex::new(0).unwrap()
}

fn spawn(
    function: &Arc<PassthroughFunction>,
    accesses: &'static [Access],
) -> thread::JoinHandle<()> {
    let function = function.clone();
    thread::spawn(move || accesses.iter().for_each(|access| access(&function)))
}

/// One life of a function, in one of the possible orders.
fn life() {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let (iommu, guest) = (Arc::new(Iommu::new(faults.clone())), Guest::new(faults));
    let memory = GuestRegionMmap::<()>::from_range(GuestAddress(0), 0x1000, None).unwrap();
    let mapping = DmaSpace::new(iommu.clone()).map(Iova(0), Arc::new(memory)).unwrap();
    let host = VmmServices { slots: Arc::new(SlowSlots(guest.clone())), ..guest.services() };
    let address = "01:00.0".parse().unwrap();
    let slow = Arc::new(Slow(device.clone()));
    let function =
        Arc::new(PassthroughFunction::new(address, slow, &host, ResetPolicy::Required).unwrap());
    let _ = function.config_write(0x10, &0xe000_0004_u32.to_le_bytes());
    let cpus = [spawn(&function, &DRIVER), spawn(&function, &OTHER)];
    let hardware = {
        let (device, iommu) = (device.clone(), iommu.clone());
        thread::spawn(move || {
            for _ in 0..8 {
                thread::yield_now();
                device.raise(0).unwrap();
                device.assert_pin(true).unwrap();
                // It fails while bus mastering is off.
                let _ = device.dma_write(&iommu, Iova(0), &[7; 4]);
            }
        })
    };
    thread::yield_now();
    function.reset().1.unwrap();
    thread::yield_now();
    function.shutdown().unwrap();
    drop(mapping);
    cpus.into_iter().chain([hardware]).for_each(|thread| thread.join().unwrap());
    let mut data = [0; 4];
    function.config_read(0, &mut data);
    assert_eq!(data, [0xff; 4], "nothing answers");
    assert_eq!(Ledger::of(&iommu, &device, &guest), Ledger::default());
    drop(function);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn a_function_ends_in_every_order_of_use_and_shutdown() {
    const ORDERS: usize = 3000;
    shuttle::check_random(life, ORDERS);
    // Orders with few switches find errors that need one certain switch.
    shuttle::check_pct(life, ORDERS, 4);
    println!("{} orders", 2 * ORDERS);
}
