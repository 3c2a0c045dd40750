//! A process that attaches and detaches devices many times holds as much at the end as at the
//! beginning.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::Kvm;
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::model::{Faults, Guest, Iommu, Ledger, PciDevice};
use vfio_passthrough::{BarIndex, DmaSpace, Iova, PassthroughFunction, ResetPolicy, VmmServices};
use vm_memory::{GuestAddress, GuestRegionMmap};

/// The number of attaches of the model's devices to the model's guest.
const ON_MODEL: u64 = 10_000;
/// The number of attaches to a real VM of KVM. Each takes 25 ms.
const ON_KVM: u64 = 300;
/// After so many attaches everything exists that is set up once, such as the allocator's arenas.
const WARM: u64 = 100;
/// Resident memory may differ by the reserve of the allocator. A leak of 64 bytes at each attach
/// exceeds it.
const SLACK_KIB: u64 = 512;
/// The number of vectors that the guest uses.
const VECTORS: u64 = 4;
const TABLE: u64 = 0x2000;

/// The resources of the kernel that this process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    fds: usize,
    mappings: usize,
    resident_kib: u64,
}

impl Held {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next()).unwrap();
        Self {
            fds: fs::read_dir("/proc/self/fd").unwrap().count(),
            mappings: fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
            resident_kib: resident.parse().unwrap(),
        }
    }

    fn assert_no_more_than(self, before: Self, name: &str, times: u64) {
        println!("{name}: after {WARM}: {before:?}, after {times}: {self:?}");
        assert_eq!(self.fds, before.fds, "{name}: fds");
        // The allocator splits and joins its own mappings.
        assert!(self.mappings <= before.mappings + 4, "{name}: {self:?}");
        assert!(self.resident_kib <= before.resident_kib + SLACK_KIB, "{name}: {self:?}");
    }
}

/// The tests of one program run in parallel, but these measure the whole process: one runs at a
/// time.
static ALONE: Mutex<()> = Mutex::new(());

/// A guest's whole use of a device: memory is mapped, BARs are placed, vectors are programmed and
/// fire, and the function is shut down.
fn attach_use_detach(
    iommu: &Arc<Iommu>,
    device: &Arc<PciDevice>,
    host: &VmmServices,
    memory: &Arc<dyn HostMemory>,
) {
    let space = DmaSpace::new(iommu.clone());
    let address = "01:00.0".parse().unwrap();
    let function =
        PassthroughFunction::new(address, device.clone(), host, ResetPolicy::Required).unwrap();
    let mapping = space.map_all([(Iova(0), memory.clone())]).unwrap();
    let _ = function.config_write(0x10, &0xe000_0000_u32.to_le_bytes());
    let _ = function.config_write(0x04, &6_u16.to_le_bytes());
    let bar = BarIndex::new(0).unwrap();
    for entry in (0..VECTORS).map(|vector| TABLE + vector * 16) {
        function.bar_write(bar, entry, &0xfee0_0000_u64.to_le_bytes());
        function.bar_write(bar, entry + 8, &0x41_u32.to_le_bytes());
        function.bar_write(bar, entry + 12, &0_u32.to_le_bytes());
    }
    let _ = function.config_write(0x42, &0x8000_u16.to_le_bytes());
    device.raise(1).unwrap();
    assert_eq!(usize::try_from(VECTORS).unwrap(), device.irqs().bound.len());
    function.shutdown().unwrap();
    drop(mapping);
}

fn ram() -> Arc<dyn HostMemory> {
    Arc::new(GuestRegionMmap::<()>::from_range(GuestAddress(0), 1 << 20, None).unwrap())
}

/// Attaches a new device each time, and compares the held resources at the end with those after
/// `WARM` attaches.
fn repeat(
    name: &str,
    times: u64,
    host: &VmmServices,
    faults: &Arc<Faults>,
) -> (Arc<Iommu>, Arc<PciDevice>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (iommu, memory) = (Arc::new(Iommu::new(faults.clone())), ram());
    let nvme = || Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let attach = || attach_use_detach(&iommu, &nvme(), host, &memory);
    (0..WARM).for_each(|_| attach());
    let before = Held::now();
    (WARM..times).for_each(|_| attach());
    Held::now().assert_no_more_than(before, name, times);
    assert_eq!(Arc::strong_count(&memory), 1, "the memory is not held");
    let last = nvme();
    attach_use_detach(&iommu, &last, host, &memory);
    (iommu, last)
}

#[test]
fn holds_nothing_after_ten_thousand_attaches() {
    let faults = Arc::new(Faults::default());
    let guest = Guest::new(faults.clone());
    let (iommu, device) = repeat("on the model", ON_MODEL, &guest.services(), &faults);
    assert_eq!(Ledger::of(&iommu, &device, &guest), Ledger::default());
}

/// The VM has as many slots and GSIs as one device needs, so the next attach fails if one of them
/// is not freed.
#[test]
fn frees_slots_and_gsis_after_each_of_300_attaches() {
    let name = "frees_slots_and_gsis_after_each_of_300_attaches";
    let vm =
        Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| vm.create_irq_chip().map(|()| vm));
    let Ok(vm) = vm else {
        return eprintln!("{name} did not run: /dev/kvm does not open here");
    };
    let gsis = 24..24 + u32::try_from(VECTORS).unwrap();
    let kvm = KvmHost::new(Arc::new(vm), 0..1, gsis);
    let (iommu, device) = repeat("on KVM", ON_KVM, &kvm.services(), &Arc::new(Faults::default()));
    assert_eq!((iommu.mappings(), device.irqs().active), (Vec::new(), None));
    // Each attach places and removes the BAR's one area, and attaches and detaches each vector.
    let attaches = ON_KVM + 1;
    let calls = kvm.calls();
    assert_eq!(calls.set_user_memory_region.value(), 2 * attaches);
    assert_eq!(calls.irqfd.value(), 2 * VECTORS * attaches);
}
