use super::*;

const PAGE: u64 = 4096;
const READ: u32 = 1;
const WRITE: u32 = 2;

/// Linux 5.4, whose drivers use this interface. Pages 16 to 19 are mapped to the process's pages 32
/// to 35, the last two for reads only.
fn mapped() -> Ready {
    let ready = ready(host(Kernel::Linux5_4));
    for (page, flags) in [(16, READ | WRITE), (18, READ)] {
        let map = MapDma {
            argsz: MapDma::ARGSZ,
            flags,
            vaddr: (page + 16) * PAGE,
            iova: page * PAGE,
            size: 2 * PAGE,
        };
        ready.system.map_dma(ready.container, &map).unwrap();
    }
    ready
}

fn unmap(page: u64, pages: u64) -> UnmapDma {
    UnmapDma { argsz: UnmapDma::ARGSZ, flags: 0, iova: page * PAGE, size: pages * PAGE }
}

#[test]
fn registration_replays_the_kvm_to_all_group_notifiers() {
    let Ready { system, group, .. } = ready(host(Kernel::Linux5_4));
    let kvm = system.open_kvm();
    let register = |events| system.register_notifier(at(NVME), Notifier::Group, events);
    let early = register(1).unwrap();
    assert_eq!(system.notices(early), []);
    system.link(kvm, group).unwrap();
    let late = register(1).unwrap();
    assert_eq!(system.notices(late), [Notice::Kvm(kvm)], "replayed");
    assert_eq!(system.notices(early), vec![Notice::Kvm(kvm); 2], "replayed to all");
    system.unregister_notifier(early).unwrap();
    fails(system.unregister_notifier(early), libc::ENOENT);
    system.close(kvm).unwrap();
    assert_eq!(system.notices(late), [Notice::Kvm(kvm), Notice::NoKvm]);
    assert_eq!(system.notices(early).len(), 2, "not called any more");
    for events in [0, 2, 3] {
        fails(register(events), libc::EINVAL);
    }
}

#[test]
fn a_notifier_needs_a_group_that_is_ready() {
    let mut description = host(Kernel::Linux5_4);
    description.noiommu_mode = true;
    let system =
        description.device(at("0000:09:00.0"), 9, Driver::Host, PciFunction::nic()).build();
    let register = |device, kind| system.register_notifier(at(device), kind, 1);
    for kind in [Notifier::Group, Notifier::Iommu] {
        fails(register(NVME, kind), libc::EINVAL);
        fails(register("0000:09:00.0", kind), libc::ENODEV);
        fails(register("0000:0a:00.0", kind), libc::ENODEV);
    }
    let (container, fake) = (system.open_container(), system.open_group(3).unwrap());
    system.set_container(fake, container).unwrap();
    system.set_iommu(container, NOIOMMU).unwrap();
    fails(register("0000:03:00.0", Notifier::Iommu), libc::EINVAL);
    fails(system.pin_pages(at("0000:03:00.0"), &[0], READ), libc::EPERM);
    fails(system.unpin_pages(at("0000:03:00.0"), &[0]), libc::EPERM);
    fails(system.unregister_notifier(77), libc::EINVAL);
}

#[test]
fn notifiers_end_with_the_user_of_the_group() {
    let Ready { system, container, group } = ready(host(Kernel::Linux5_4));
    let notifier = system.register_notifier(at(NVME), Notifier::Group, 1).unwrap();
    let unmaps = system.register_notifier(at(NVME), Notifier::Iommu, 1).unwrap();
    system.close(group).unwrap();
    fails(system.unregister_notifier(notifier), libc::EINVAL);
    let (kvm, group) = (system.open_kvm(), system.open_group(1).unwrap());
    system.set_container(group, container).unwrap();
    system.set_iommu(container, TYPE1V2).unwrap();
    system.link(kvm, group).unwrap();
    assert_eq!(system.notices(notifier), []);
    fails(system.unregister_notifier(notifier), libc::ENOENT);
    fails(system.unregister_notifier(unmaps), libc::ENOENT);
    fails(system.pin_pages(at(NVME), &[0], READ), libc::EINVAL);
}

#[test]
fn pages_are_pinned_all_or_none_and_within_limits() {
    let Ready { system, .. } = mapped();
    let pin = |pages: &[u64], access| system.pin_pages(at(NVME), pages, access);
    fails(pin(&[16], READ), libc::EINVAL);
    let notifier = system.register_notifier(at(NVME), Notifier::Iommu, 1).unwrap();
    fails(pin(&[], READ), libc::EINVAL);
    fails(pin(&[16; 513], READ), libc::E2BIG);
    assert_eq!(pin(&[16; 512], READ).unwrap(), [32; 512]);
    fails(pin(&[16, 20], READ), libc::EINVAL);
    fails(pin(&[16, 18], READ | WRITE), libc::EPERM);
    fails(pin(&[u64::MAX], READ), libc::EINVAL);
    assert_eq!(pin(&[19, 17], READ).unwrap(), [35, 33]);
    fails(system.unpin_pages(at(NVME), &[]), libc::EINVAL);
    fails(system.unpin_pages(at(NVME), &[16; 513]), libc::E2BIG);
    fails(system.unpin_pages(at(NVME), &[20, 19]), libc::EINVAL);
    assert_eq!(
        system.unpin_pages(at(NVME), &[19, 20, 17]).unwrap(),
        1,
        "up to the first that is not mapped"
    );
    fails(system.pin_pages(at(NIC), &[16], READ), libc::EINVAL);
    fails(system.unpin_pages(at("0000:0a:00.0"), &[16]), libc::ENODEV);
    assert_eq!(system.notices(notifier), []);
}

#[test]
fn an_unmap_of_pinned_pages_calls_the_notifiers() {
    let Ready { system, container, .. } = mapped();
    let notifiers = [0, 1].map(|_| system.register_notifier(at(NVME), Notifier::Iommu, 1).unwrap());
    system.pin_pages(at(NVME), &[17, 17], WRITE).unwrap();
    assert_eq!(system.unpin_pages(at(NVME), &[17]).unwrap(), 1, "one pin is left");
    assert_eq!(system.unmap_dma(container, &unmap(16, 4)).unwrap(), 4 * PAGE);
    let notices = [Notice::Unmap(16 * PAGE..18 * PAGE)];
    assert_eq!(notifiers.map(|notifier| system.notices(notifier)), [notices.clone(), notices]);
    fails(system.pin_pages(at(NVME), &[17], READ), libc::EINVAL);
    assert_eq!(system.locked_memory(), 0);
}

#[test]
fn an_unmap_of_pinned_pages_without_a_notifier_stops_the_kernel() {
    let Ready { system, container, .. } = mapped();
    let notifier = system.register_notifier(at(NVME), Notifier::Iommu, 1).unwrap();
    system.pin_pages(at(NVME), &[16, 18], READ).unwrap();
    assert_eq!(system.unpin_pages(at(NVME), &[16]).unwrap(), 1);
    assert_eq!(system.unmap_dma(container, &unmap(16, 2)).unwrap(), 2 * PAGE);
    assert_eq!(system.notices(notifier), []);
    system.unregister_notifier(notifier).unwrap();
    let error = system.unmap_dma(container, &unmap(18, 2)).unwrap_err();
    assert!(error.to_string().contains("no notifier unpins pages"), "{error}");
    assert_eq!(system.mappings(container).unwrap().len(), 1);
}

#[test]
fn version_1_pins_nothing() {
    let system = host(Kernel::Linux5_4).build();
    let (container, group) = (system.open_container(), system.open_group(1).unwrap());
    system.set_container(group, container).unwrap();
    fails(system.pin_pages(at(NVME), &[0], READ), libc::EINVAL);
    system.set_iommu(container, TYPE1).unwrap();
    system.register_notifier(at(NVME), Notifier::Iommu, 1).unwrap();
    fails(system.pin_pages(at(NVME), &[0], READ), libc::EACCES);
    fails(system.unpin_pages(at(NVME), &[0]), libc::EACCES);
}
