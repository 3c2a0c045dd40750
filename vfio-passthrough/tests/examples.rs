//! Runs the examples on a device of the model, and on a real /dev/kvm if there is one.
// Two of them are VMMs for x86.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

use std::sync::Arc;

use kvm_ioctls::Kvm;
use vfio_passthrough::backend::{Device, IrqFlags};
use vfio_passthrough::model::{Call, Faults, Guest, Iommu, PciDevice};
use vm_memory::{GuestAddress, GuestRegionMmap};

#[path = "../examples/hot_plug.rs"]
#[allow(dead_code, reason = "its main function")]
mod hot_plug;
#[path = "../examples/lspci.rs"]
#[allow(dead_code, reason = "its main function")]
mod lspci;
#[path = "../examples/minimal_vmm.rs"]
#[allow(dead_code, reason = "its main function")]
mod minimal_vmm;
#[path = "../examples/own_router.rs"]
#[allow(dead_code, reason = "its main function")]
mod own_router;

fn nvme() -> Arc<PciDevice> {
    Arc::new(PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD).unwrap())
}

/// Returns whether /dev/kvm opens. If it does not, a line names the test that did not run.
fn has_kvm(test: &str) -> bool {
    let opens = Kvm::new().and_then(|kvm| kvm.create_vm()).is_ok();
    if !opens {
        eprintln!("{test} did not run: /dev/kvm does not open here");
    }
    opens
}

#[test]
fn lspci_finds_the_bar_and_the_capabilities_of_an_nvme() {
    let line = lspci::show("01:00.0".parse().unwrap(), nvme()).unwrap();
    assert_eq!(line, "0000:01:00.0 has 3 capabilities; BARs: 1");
}

#[test]
fn hot_plug_maps_ram_for_the_first_device_and_unmaps_it_after_the_last() {
    let faults = Arc::new(Faults::default());
    let (iommu, guest) = (Arc::new(Iommu::new(faults.clone())), Guest::new(faults.clone()));
    let expected = [
        "added 0000:01:00.0: 1 mappings of RAM",
        "added 0000:02:00.0: 1 mappings of RAM",
        "removed 0000:01:00.0: 1 mappings of RAM",
        "removed 0000:02:00.0: 0 mappings of RAM",
    ];
    assert_eq!(hot_plug::run(&iommu, &guest).unwrap(), expected);
    assert_eq!((guest.slots(), faults.alarms()), (vec![], vec![]), "nothing is left");
}

#[test]
fn hot_plug_leaves_the_guest_as_it_was_if_ram_cannot_be_mapped() {
    let faults = Arc::new(Faults::default());
    let (iommu, guest) = (Arc::new(Iommu::new(faults.clone())), Guest::new(faults.clone()));
    faults.fail(Call::MapDma, 0, libc::ENOMEM);
    let error = hot_plug::run(&iommu, &guest).unwrap_err().to_string();
    assert!(error.starts_with("cannot map 0x0-0xfffff for DMA: "), "{error}");
    assert_eq!((iommu.mappings(), guest.slots(), faults.alarms()), (vec![], vec![], vec![]));
}

#[test]
fn minimal_vmm_has_its_guest_read_the_bar_without_an_exit() {
    if !has_kvm("minimal_vmm_has_its_guest_read_the_bar_without_an_exit") {
        return;
    }
    let (vm, host) = minimal_vmm::create_vm().unwrap();
    let ram = Arc::new(GuestRegionMmap::from_range(GuestAddress(0), 0x1_0000, None).unwrap());
    let address = "01:00.0".parse().unwrap();
    let device = nvme();
    device.write(&device.region(0).unwrap(), 0, &0x0123_4567_u32.to_le_bytes()).unwrap();
    let line = minimal_vmm::boot(&vm, &host, &ram, address, device).unwrap();
    assert_eq!(line, "the guest read 0x01234567 from BAR0 of 0000:01:00.0 without an exit");
}

#[test]
fn own_router_delivers_by_both_kinds_of_route() {
    if !has_kvm("own_router_delivers_by_both_kinds_of_route") {
        return;
    }
    let vm = own_router::create_vm().unwrap();
    let line = own_router::interrupt(vm, "01:00.0".parse().unwrap(), nvme()).unwrap();
    let text = "a route of the VMM's own and one of 0000:01:00.0 delivered an interrupt each";
    assert_eq!(line, text);
}
