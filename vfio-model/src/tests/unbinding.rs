//! Drivers that leave devices in use, and drivers of the host that bind to them.

use super::devices::{REQ, eventfds};
use super::*;

#[test]
fn an_open_device_is_requested_until_it_is_closed() {
    for (kernel, reopens) in [(Kernel::Linux5_4, true), (Kernel::Linux6_12, false)] {
        let Ready { system, container, group } = ready(host(kernel));
        let device = system.open_device(group, NVME).unwrap();
        let event = system.open_eventfd();
        system.set_irqs(device, &eventfds(REQ, 0, &[event])).unwrap();
        assert!(!system.unbind(at(NVME)).unwrap(), "it is open");
        assert_eq!(system.request_again(at(NVME)), 2);
        assert_eq!(system.signals(event).unwrap(), 2);
        assert_eq!(system.group_status(group, 8).unwrap() & 1, 1, "the group stays viable");
        let again = system.open_device(group, NVME);
        assert_eq!(again.is_ok(), reopens, "{kernel:?}");
        again.into_iter().for_each(|fd| system.close(fd).unwrap());
        system.close(device).unwrap();
        assert_eq!(system.request_again(at(NVME)), 0, "not open any more");
        fails(system.open_device(group, NVME), libc::ENODEV);
        system.close(group).unwrap();
        fails(system.open_group(1), libc::ENOENT);
        system.close(container).unwrap();
        system.bind(at(NVME), Driver::Vfio).unwrap();
        system.open_group(1).unwrap();
    }
}

#[test]
fn linux_5_4_keeps_the_last_device_while_its_group_has_a_container() {
    for closes in [true, false] {
        let Ready { system, group, .. } = ready(host(Kernel::Linux5_4));
        assert!(!system.unbind(at(NVME)).unwrap(), "the group has a container");
        assert_eq!(system.request_again(at(NVME)), 0, "no user is requested");
        fails(system.open_device(group, NVME), libc::ENODEV);
        assert_eq!(system.group_status(group, 8).unwrap(), 3);
        assert_eq!(system.driver(at(NVME)), Some(Driver::Vfio));
        match closes {
            true => system.close(group).unwrap(),
            false => system.unset_container(group).unwrap(),
        }
        assert_eq!(system.driver(at(NVME)), Some(Driver::None));
        if !closes {
            fails(system.open_group(1), libc::EBUSY);
            system.bind(at(NVME), Driver::Vfio).unwrap();
            assert_eq!(system.group_status(group, 8).unwrap(), 1, "the file stays usable");
        }
    }
}

#[test]
fn linux_5_4_keeps_a_closed_device_while_its_group_has_a_container() {
    let Ready { system, group, .. } = ready(host(Kernel::Linux5_4));
    let device = system.open_device(group, NVME).unwrap();
    assert!(!system.unbind(at(NVME)).unwrap());
    system.close(device).unwrap();
    assert_eq!(system.driver(at(NVME)), Some(Driver::Vfio));
    let kvm = system.open_kvm();
    system.link(kvm, group).unwrap();
    system.close(group).unwrap();
    fails(system.open_group(1), libc::EBUSY);
    assert_eq!(system.driver(at(NVME)), Some(Driver::Vfio), "KVM holds the file");
    system.close(kvm).unwrap();
    assert_eq!(system.driver(at(NVME)), Some(Driver::None));
    fails(system.open_group(1), libc::ENOENT);
}

#[test]
fn one_of_several_devices_leaves_without_the_group() {
    for kernel in KERNELS {
        let Ready { system, container, .. } = ready(host(kernel));
        let nics = system.open_group(2).unwrap();
        system.set_container(nics, container).unwrap();
        assert!(system.unbind(at(NIC2)).unwrap());
        fails(system.open_device(nics, NIC2), libc::ENODEV);
        assert_eq!(system.group_status(nics, 8).unwrap(), 3);
        system.open_device(nics, NIC).unwrap();
    }
}

#[test]
fn a_group_whose_last_device_leaves_is_revoked() {
    for kernel in [Kernel::Linux6_1, Kernel::Linux6_12] {
        let Ready { system, container, group } = ready(host(kernel));
        let kvm = system.open_kvm();
        assert!(system.unbind(at(NVME)).unwrap());
        assert_eq!(system.check_extension(container, 10).unwrap(), 0, "the IOMMU is gone");
        fails(system.group_status(group, 7), libc::EINVAL);
        fails(system.group_status(group, 8), libc::ENODEV);
        fails(system.set_container(group, Fd(999)), libc::EBADF);
        fails(system.set_container(group, container), libc::ENODEV);
        fails(system.set_container(group, group), libc::ENODEV);
        fails(system.unset_container(group), libc::EINVAL);
        fails(system.open_device(group, NVME), libc::ENODEV);
        system.link(kvm, group).unwrap();
        fails(system.open_group(1), libc::ENOENT);
        system.bind(at(NVME), Driver::Vfio).unwrap();
        let new = system.open_group(1).unwrap();
        system.set_container(new, container).unwrap();
        fails(system.group_status(group, 8), libc::ENODEV);
        [group, kvm, new, container].into_iter().for_each(|fd| system.close(fd).unwrap());
        assert_eq!((system.open_fds(), system.containers()), (vec![], 0));
    }
}

#[test]
fn a_host_driver_cannot_bind_in_a_group_in_use() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    let nics = system.open_group(2).unwrap();
    system.set_container(nics, container).unwrap();
    fails(system.bind(at(NIC2), Driver::Host), libc::EBUSY);
    system.unbind(at(NIC2)).unwrap();
    fails(system.unbind(at(NIC2)), libc::ENODEV);
    fails(system.bind(at(NIC2), Driver::Host), libc::EBUSY);
    system.close(nics).unwrap();
    system.bind(at(NIC2), Driver::Host).unwrap();
}
