//! A process that attaches and detaches devices for ever: it holds as much at the end as at the beginning.
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

/// Attaches of the model's devices to the model's guest.
const ON_MODEL: u64 = 10_000;
/// Attaches to a VM of KVM's, which takes 25 ms for each.
const ON_KVM: u64 = 300;
/// What is set up once, such as the allocator's arenas, is there after so many.
const WARM: u64 = 100;
/// Resident memory may differ by what the allocator keeps in reserve; 64 bytes an attach would be more.
const SLACK_KIB: u64 = 512;
/// Vectors that the guest uses.
const VECTORS: u64 = 4;
const TABLE: u64 = 0x2000;

/// What this process holds of the kernel.
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
        // The allocator splits and joins its own.
        assert!(self.mappings <= before.mappings + 4, "{name}: {self:?}");
        assert!(self.resident_kib <= before.resident_kib + SLACK_KIB, "{name}: {self:?}");
    }
}

/// Tests of one program run at once, and these look at what the process as a whole holds.
static ALONE: Mutex<()> = Mutex::new(());

/// A guest's whole use of a device: memory is mapped, BARs are placed, vectors are programmed and fire, and the
/// device is given back.
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

/// Attaches so many times, a new device each time, and compares what is held with what it was early on.
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
    assert_eq!(Arc::strong_count(&memory), 1, "nobody holds the memory");
    let last = nvme();
    attach_use_detach(&iommu, &last, host, &memory);
    (iommu, last)
}

#[test]
fn ten_thousand_attaches_leave_nothing() {
    let faults = Arc::new(Faults::default());
    let guest = Guest::new(faults.clone());
    let (iommu, device) = repeat("on the model", ON_MODEL, &guest.services(), &faults);
    assert_eq!(Ledger::of(&iommu, &device, &guest), Ledger::default());
}

/// There are as many slots and GSIs as one device needs: one that is not given back is missed at once.
#[test]
fn a_vm_has_its_slots_and_gsis_back_after_each_of_300() {
    let name = "a_vm_has_its_slots_and_gsis_back_after_each_of_300";
    let vm =
        Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| vm.create_irq_chip().map(|()| vm));
    let Ok(vm) = vm else {
        return eprintln!("{name} did not run: /dev/kvm does not open here");
    };
    let gsis = 24..24 + u32::try_from(VECTORS).unwrap();
    let kvm = KvmHost::new(Arc::new(vm), 0..1, gsis);
    let (iommu, device) = repeat("on KVM", ON_KVM, &kvm.services(), &Arc::new(Faults::default()));
    assert_eq!((iommu.mappings(), device.irqs().active), (Vec::new(), None));
    // Each places the BAR's one area and takes it away, and attaches and detaches each vector.
    let attaches = ON_KVM + 1;
    let calls = kvm.calls();
    assert_eq!(calls.set_user_memory_region.value(), 2 * attaches);
    assert_eq!(calls.irqfd.value(), 2 * VECTORS * attaches);
}
