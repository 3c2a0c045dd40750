use super::*;

#[test]
fn only_a_container_has_an_api_version() {
    let Ready { system, container, group } = ready(host(Kernel::Linux6_12));
    assert_eq!(system.api_version(container).unwrap(), 0);
    fails(system.api_version(group), libc::ENOTTY);
    fails(system.api_version(Fd(-1)), libc::EBADF);
}

#[test]
fn a_container_forwards_unknown_ioctls_to_its_driver() {
    let system = host(Kernel::Linux6_12).build();
    let container = system.open_container();
    fails(system.group_status(container, 8), libc::EINVAL);
    let group = system.open_group(1).unwrap();
    system.set_container(group, container).unwrap();
    system.set_iommu(container, TYPE1V2).unwrap();
    fails(system.group_status(container, 8), libc::ENOTTY);
    fails(system.device_info(group, &mut [16, 0, 0, 0]), libc::ENOTTY);
}

#[test]
fn extensions_depend_on_the_groups_then_on_the_iommu() {
    let mut description = host(Kernel::Linux6_12);
    description.noiommu_mode = true;
    let system = description.build();
    let container = system.open_container();
    let asked =
        |extensions: [u64; 6]| extensions.map(|e| system.check_extension(container, e).unwrap());
    let extensions = [0, TYPE1, TYPE1V2, NOIOMMU, 9, 10];
    assert_eq!(asked(extensions), [0, 1, 1, 1, 1, 0], "without a group");
    let group = system.open_group(3).unwrap();
    system.set_container(group, container).unwrap();
    assert_eq!(asked(extensions), [0, 0, 0, 1, 0, 0], "with a group without IOMMU");
    system.unset_container(group).unwrap();
    let real = system.open_group(1).unwrap();
    system.set_container(real, container).unwrap();
    assert_eq!(asked(extensions), [0, 1, 1, 0, 1, 0], "with a real group");
    system.set_iommu(container, TYPE1V2).unwrap();
    assert_eq!(asked(extensions), [0, 1, 1, 0, 1, 1], "with an IOMMU");
}

#[test]
fn an_iommu_is_set_once_with_a_group_and_of_a_known_type() {
    let system = host(Kernel::Linux6_12).build();
    let container = system.open_container();
    fails(system.set_iommu(container, TYPE1V2), libc::EINVAL);
    let group = system.open_group(1).unwrap();
    system.set_container(group, container).unwrap();
    for (kind, errno) in
        [(0, libc::ENODEV), (NOIOMMU, libc::ENODEV), (9, libc::EINVAL), (1 << 32, libc::ENODEV)]
    {
        fails(system.set_iommu(container, kind), errno);
    }
    system.set_iommu(container, TYPE1).unwrap();
    fails(system.set_iommu(container, TYPE1), libc::EINVAL);
}

#[test]
fn nesting_needs_an_iommu_that_supports_it() {
    for nesting_error in [None, Some(libc::EINVAL), Some(libc::EPERM)] {
        let mut description = host(Kernel::Linux6_12);
        description.nesting_error = nesting_error;
        let system = description.build();
        let (container, group) = (system.open_container(), system.open_group(1).unwrap());
        system.set_container(group, container).unwrap();
        assert_eq!(system.check_extension(container, 6).unwrap(), 1);
        let refused = system.set_iommu(container, 6).err().and_then(|error| error.raw_os_error());
        assert_eq!(refused, nesting_error);
    }
}

#[test]
fn an_iommu_that_does_not_remap_interrupts_is_refused() {
    let mut description = host(Kernel::Linux6_12);
    description.interrupt_remapping = false;
    let system = description.build();
    let container = system.open_container();
    let group = system.open_group(1).unwrap();
    system.set_container(group, container).unwrap();
    fails(system.set_iommu(container, TYPE1V2), libc::EPERM);
    fails(system.open_device(group, NVME), libc::EINVAL);
}

#[test]
fn a_group_is_opened_once_and_by_its_number() {
    let system = host(Kernel::Linux6_12).build();
    fails(system.open_group(9), libc::ENOENT);
    let group = system.open_group(1).unwrap();
    fails(system.open_group(1), libc::EBUSY);
    system.close(group).unwrap();
    system.open_group(1).unwrap();
}

#[test]
fn status_reports_viability_and_container() {
    let Ready { system, group, .. } = ready(host(Kernel::Linux6_12));
    let nics = system.open_group(2).unwrap();
    assert_eq!(system.group_status(group, 8).unwrap(), 3);
    assert_eq!(system.group_status(nics, 8).unwrap(), 1);
    fails(system.group_status(nics, 7), libc::EINVAL);
    system.unbind(at(NIC2)).unwrap();
    system.bind(at(NIC2), Driver::Host).unwrap();
    assert_eq!(system.group_status(nics, 8).unwrap(), 0);
}

#[test]
fn only_a_host_driver_makes_a_group_not_viable() {
    for (driver, viable) in [
        (Driver::None, true),
        (Driver::Vfio, true),
        (Driver::Stub, true),
        (Driver::Bridge, true),
        (Driver::Host, false),
    ] {
        for kernel in KERNELS {
            let description = host(kernel).device(at(NIC2), 2, driver, PciFunction::nic());
            let system = description.build();
            let group = system.open_group(2).unwrap();
            let status = system.group_status(group, 8).unwrap();
            assert_eq!(status & 1 != 0, viable, "{driver:?} {kernel:?}");
        }
    }
}

#[test]
fn a_group_that_is_not_viable_is_refused() {
    let refused = |kernel| {
        let system = host(kernel).device(at(NIC2), 2, Driver::Host, PciFunction::nic()).build();
        let container = system.open_container();
        let group = system.open_group(2).unwrap();
        let steps = [
            system.set_container(group, container).err(),
            system.set_iommu(container, TYPE1V2).err(),
            system.open_device(group, NIC).err(),
        ];
        steps.map(|error| error.and_then(|error| error.raw_os_error()).unwrap_or(0))
    };
    assert_eq!(refused(Kernel::Linux5_4), [0, 0, libc::EINVAL]);
    assert_eq!(refused(Kernel::Linux6_12), [libc::EPERM, libc::EINVAL, libc::EINVAL]);
}

#[test]
fn set_container_accepts_only_containers() {
    for (kernel, negative, other) in [
        (Kernel::Linux5_4, libc::EINVAL, libc::EINVAL),
        (Kernel::Linux6_1, libc::EBADF, libc::EINVAL),
        (Kernel::Linux6_12, libc::EBADF, libc::EBADFD),
    ] {
        let system = host(kernel).build();
        let group = system.open_group(1).unwrap();
        let eventfd = system.open_eventfd();
        fails(system.set_container(group, Fd(-1)), negative);
        fails(system.set_container(group, Fd(999)), libc::EBADF);
        fails(system.set_container(group, eventfd), other);
        fails(system.set_container(group, group), other);
        fails(system.unset_container(group), libc::EINVAL);
    }
}

#[test]
fn the_order_of_checks_depends_on_the_kernel() {
    for (kernel, errno) in [(Kernel::Linux5_4, libc::EINVAL), (Kernel::Linux6_12, libc::EBADF)] {
        let Ready { system, group, container } = ready(host(kernel));
        fails(system.set_container(group, Fd(999)), errno);
        fails(system.set_container(group, container), libc::EINVAL);
    }
    for (kernel, errno) in [(Kernel::Linux5_4, libc::EINVAL), (Kernel::Linux6_12, libc::ENODEV)] {
        let system = host(kernel).build();
        let group = system.open_group(1).unwrap();
        fails(system.open_device(group, "nothing"), errno);
        fails(system.open_device(group, NVME), libc::EINVAL);
    }
}

#[test]
fn groups_with_and_without_an_iommu_do_not_mix() {
    let mut description = host(Kernel::Linux6_12);
    description.noiommu_mode = true;
    let Ready { system, container, group } = ready(description);
    let fake = system.open_group(3).unwrap();
    fails(system.set_container(fake, container), libc::EPERM);
    system.unset_container(group).unwrap();
    system.set_container(fake, container).unwrap();
    fails(system.set_container(group, container), libc::EPERM);
    fails(system.set_iommu(container, TYPE1V2), libc::ENODEV);
    system.set_iommu(container, NOIOMMU).unwrap();
    let device = system.open_device(fake, "0000:03:00.0").unwrap();
    let unmap = UnmapDma { argsz: 24, flags: 0, iova: 0, size: 4096 };
    fails(system.unmap_dma(container, &unmap), libc::ENOTTY);
    for fd in [device, fake] {
        system.close(fd).unwrap();
    }
    fails(system.unmap_dma(container, &unmap), libc::EINVAL);
}

#[test]
fn a_group_without_an_iommu_needs_raw_io() {
    let mut description = host(Kernel::Linux6_12);
    description.raw_io = false;
    let system = description.build();
    fails(system.open_group(3), libc::EPERM);
    system.open_group(1).unwrap();
}

#[test]
fn every_step_checks_raw_io() {
    let mut description = host(Kernel::Linux6_12);
    description.noiommu_mode = true;
    let system = description.build();
    let (container, group) = (system.open_container(), system.open_group(3).unwrap());
    system.set_raw_io(false);
    fails(system.set_container(group, container), libc::EPERM);
    system.set_raw_io(true);
    system.set_container(group, container).unwrap();
    system.set_raw_io(false);
    fails(system.set_iommu(container, NOIOMMU), libc::EPERM);
    system.set_raw_io(true);
    system.set_iommu(container, NOIOMMU).unwrap();
    system.set_raw_io(false);
    fails(system.open_device(group, "0000:03:00.0"), libc::EPERM);
}

#[test]
fn raw_io_is_checked_before_or_after_the_container() {
    for (kernel, errno) in [(Kernel::Linux5_4, libc::EPERM), (Kernel::Linux6_12, libc::EBADFD)] {
        let system = host(kernel).build();
        let group = system.open_group(3).unwrap();
        system.set_raw_io(false);
        fails(system.set_container(group, group), errno);
    }
}

#[test]
fn device_names_match_exactly_except_for_options() {
    for (name, old, new) in [
        ("0000:01:00.0", 0, 0),
        ("", libc::ENODEV, libc::ENODEV),
        ("0000:01:00.", libc::ENODEV, libc::ENODEV),
        ("0000:01:00.00", libc::ENODEV, libc::ENODEV),
        ("0000:01:00.0 ", libc::ENODEV, 0),
        ("0000:01:00.0 x", libc::ENODEV, libc::EINVAL),
        (NIC, libc::ENODEV, libc::ENODEV),
    ] {
        for (kernel, errno) in [(Kernel::Linux5_4, old), (Kernel::Linux6_1, new)] {
            let Ready { system, group, .. } = ready(host(kernel));
            let opened = system.open_device(group, name);
            let found = opened.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
            assert_eq!(found, errno, "{name:?} {kernel:?}");
        }
    }
}

#[test]
fn a_group_leaves_its_container_after_its_last_user() {
    let Ready { system, container, group } = ready(host(Kernel::Linux6_12));
    let devices = [0, 1].map(|_| system.open_device(group, NVME).unwrap());
    fails(system.unset_container(group), libc::EBUSY);
    system.close(devices[0]).unwrap();
    fails(system.unset_container(group), libc::EBUSY);
    system.close(devices[1]).unwrap();
    system.unset_container(group).unwrap();
    fails(system.set_iommu(container, TYPE1V2), libc::EINVAL);
    assert_eq!(system.check_extension(container, 10).unwrap(), 0, "the IOMMU is gone");
}

#[test]
fn every_order_of_closes_frees_everything() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for kernel in KERNELS {
        for order in orders {
            let Ready { system, container, group } = ready(host(kernel));
            let device = system.open_device(group, NVME).unwrap();
            let fds = [container, group, device];
            system.close(fds[order[0]]).unwrap();
            fails(system.open_group(1), libc::EBUSY);
            system.close(fds[order[1]]).unwrap();
            let is_free = !order[..2].iter().all(|closed| *closed == 0) && order[2] == 0;
            assert_eq!(system.open_group(1).is_ok(), is_free, "{order:?} {kernel:?}");
            system.close(fds[order[2]]).unwrap();
            assert_eq!(system.containers(), 0, "{order:?} {kernel:?}");
        }
    }
}

#[test]
fn linux_5_4_makes_a_kvm_link_a_user_of_the_container() {
    let system = host(Kernel::Linux5_4).build();
    let (kvm, container) = (system.open_kvm(), system.open_container());
    let group = system.open_group(1).unwrap();
    fails(system.link(kvm, group), libc::EINVAL);
    system.set_container(group, container).unwrap();
    fails(system.link(kvm, group), libc::EINVAL);
    system.set_iommu(container, TYPE1V2).unwrap();
    system.link(kvm, group).unwrap();
    fails(system.link(kvm, group), libc::EEXIST);
    fails(system.unset_container(group), libc::EBUSY);
    system.unlink(kvm, group).unwrap();
    fails(system.unlink(kvm, group), libc::ENOENT);
    system.unset_container(group).unwrap();
}

#[test]
fn linux_5_4_refuses_a_kvm_link_without_an_iommu() {
    let mut description = host(Kernel::Linux5_4);
    description.noiommu_mode = true;
    let system = description.build();
    let (kvm, container) = (system.open_kvm(), system.open_container());
    let group = system.open_group(3).unwrap();
    system.set_container(group, container).unwrap();
    system.set_iommu(container, NOIOMMU).unwrap();
    fails(system.link(kvm, group), libc::EPERM);
}

#[test]
fn a_kvm_link_holds_the_file_of_the_group() {
    for kernel in KERNELS {
        let Ready { system, container, group } = ready(host(kernel));
        let kvm = system.open_kvm();
        system.link(kvm, group).unwrap();
        system.close(group).unwrap();
        system.close(container).unwrap();
        fails(system.open_group(1), libc::EBUSY);
        assert_eq!(system.containers(), 1);
        system.close(kvm).unwrap();
        assert_eq!(system.containers(), 0);
        system.open_group(1).unwrap();
    }
}

#[test]
fn kvm_links_only_files_of_vfio() {
    let Ready { system, container, group } = ready(host(Kernel::Linux6_1));
    let kvm = system.open_kvm();
    fails(system.link(kvm, Fd(-1)), libc::EBADF);
    fails(system.link(kvm, container), libc::EINVAL);
    fails(system.link(group, group), libc::ENOTTY);
    system.link(kvm, group).unwrap();
    system.unset_container(group).unwrap();
}
