//! Devices that act, and how vfio-pci reports it.

use super::devices::eventfds;
use super::*;
use crate::events::Counter;
use std::sync::Arc;

const INTX: u32 = 0;
const MSIX: u32 = 2;
const ERR: u32 = 3;
const CONFIG: u64 = 7 << 40;
const COMMAND: u64 = CONFIG + 4;
const POWER: u64 = CONFIG + 0x64;
/// The PBA of the NVMe, in BAR0.
const PENDING: u64 = 0x3000;
const NONE: u32 = 1;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;

/// Opens the NVMe of a description.
fn opened(description: Description) -> (System, Fd, Fd) {
    let Ready { system, group, .. } = ready(description);
    let device = system.open_device(group, NVME).unwrap();
    (system, device, group)
}

fn byte(system: &System, device: Fd, at: u64) -> u8 {
    let mut data = [0];
    system.read(device, at, &mut data).unwrap();
    data[0]
}

#[test]
fn an_opened_device_decodes_and_does_not_master_the_bus() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    assert_eq!(byte(&system, device, COMMAND), 3);
    assert!(system.decodes_memory(at(NVME)) && !system.masters_bus(at(NVME)));
    system.write(device, COMMAND, &[6]).unwrap();
    assert!(system.masters_bus(at(NVME)));
    system.close(device).unwrap();
    assert!(!system.masters_bus(at(NVME)), "pci_clear_master");
}

#[test]
fn a_read_ends_with_its_region() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let mut data = [0; 8];
    assert_eq!(system.read(device, CONFIG + 0xffc, &mut data).unwrap(), 4);
    fails(system.read(device, CONFIG + 0x1000, &mut data), libc::EFAULT);
    assert_eq!(system.write(device, 0x3ffe, &data).unwrap(), 2);
    fails(system.read(device, 0x4000, &mut data), libc::EINVAL);
    fails(system.read(device, 1 << 40, &mut data), libc::EINVAL);
    fails(system.read(device, 9 << 40, &mut data), libc::EINVAL);
    fails(system.write(device, 6 << 40, &data), libc::EINVAL);
    fails(system.read(Fd(1000), 0, &mut data), libc::EBADF);
}

#[test]
fn memory_that_is_not_decoded_is_eio() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    for (command, power, decodes) in [(2, 0, true), (0, 0, false), (2, 3, false), (6, 2, true)] {
        system.write(device, POWER, &[power]).unwrap();
        system.write(device, COMMAND, &[command]).unwrap();
        assert_eq!(system.decodes_memory(at(NVME)), decodes, "{command}, D{power}");
        let read = system.read(device, 0, &mut [0; 4]).map_err(|error| error.raw_os_error());
        assert_eq!(read, if decodes { Ok(4) } else { Err(Some(libc::EIO)) });
    }
}

#[test]
fn mmap_and_read_share_the_memory() {
    use std::os::unix::fs::FileExt;
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let memory = system.mmap(device, 0x1000, 0x1000).unwrap();
    memory.write_all_at(&[7], 0x1234).unwrap();
    assert_eq!(byte(&system, device, 0x1234), 7);
    fails(system.mmap(device, 0x4000, 0x1000), libc::EINVAL);
    fails(system.mmap(device, CONFIG, 0x1000), libc::EINVAL);
}

#[test]
fn a_virtual_function_decodes_without_the_memory_space_bit() {
    let function = PciFunction { zeros: vec![(4, 2)], ..PciFunction::nvme() };
    let description = host(Kernel::Linux6_12).device(at(NVME), 1, Driver::Vfio, function);
    let (system, device, _) = opened(description);
    system.write(device, COMMAND, &[7]).unwrap();
    assert_eq!(byte(&system, device, COMMAND), 5);
    assert!(system.decodes_memory(at(NVME)));
}

#[test]
fn a_masked_vector_is_pending_until_it_is_bound() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let (first, second) = (system.open_eventfd(), system.open_eventfd());
    system.fire(at(NVME), 9).unwrap();
    assert_eq!(byte(&system, device, PENDING + 1), 0, "MSI-X is off");
    system.set_irqs(device, &eventfds(MSIX, 0, &[first])).unwrap();
    (0..3).for_each(|_| system.fire(at(NVME), 0).unwrap());
    (0..3).for_each(|_| system.fire(at(NVME), 9).unwrap());
    assert_eq!(system.signals(first).unwrap(), 3);
    assert_eq!(byte(&system, device, PENDING + 1), 2);
    system.set_irqs(device, &eventfds(MSIX, 9, &[second])).unwrap();
    assert_eq!((system.signals(second).unwrap(), byte(&system, device, PENDING + 1)), (1, 0));
    let interrupts = system.interrupts(at(NVME));
    assert_eq!(
        (interrupts.active, interrupts.bound, interrupts.allocated),
        (Some(MSIX), [0, 9].into(), [0, 9].into())
    );
}

#[test]
fn a_pin_is_masked_when_it_fires_and_fires_again_when_it_is_unmasked() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let (trigger, unmask) = (system.open_eventfd(), system.open_eventfd());
    system.assert_pin(at(NVME), true).unwrap();
    assert_eq!(byte(&system, device, CONFIG + 6) & 8, 8, "Interrupt Status");
    system.set_irqs(device, &eventfds(INTX, 0, &[trigger])).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 1, "it was asserted already");
    system.assert_pin(at(NVME), true).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 0, "masked");
    let unmask_now = IrqSet::new(NONE | UNMASK, INTX, 0, 1, IrqData::None);
    system.set_irqs(device, &unmask_now).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 1);
    let by_eventfd = IrqSet::new(EVENTFD | UNMASK, INTX, 0, 1, IrqData::Eventfds(vec![unmask]));
    system.set_irqs(device, &by_eventfd).unwrap();
    system.poll_unmask(at(NVME));
    assert_eq!(system.signals(trigger).unwrap(), 0, "the eventfd was not signalled");
    system.signal(unmask).unwrap();
    system.poll_unmask(at(NVME));
    assert_eq!(system.signals(trigger).unwrap(), 1);
    system.assert_pin(at(NVME), false).unwrap();
    system.set_irqs(device, &unmask_now).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 0);
}

#[test]
fn a_disabled_or_masked_pin_does_not_fire() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let trigger = system.open_eventfd();
    system.set_irqs(device, &eventfds(INTX, 0, &[trigger])).unwrap();
    system.write(device, COMMAND, &[2, 4]).unwrap();
    system.assert_pin(at(NVME), true).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 0);
    system.set_irqs(device, &IrqSet::new(NONE | MASK, INTX, 0, 1, IrqData::None)).unwrap();
    system.write(device, COMMAND, &[2, 0]).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 0);
    system.set_irqs(device, &IrqSet::new(NONE | UNMASK, INTX, 0, 1, IrqData::None)).unwrap();
    assert_eq!(system.signals(trigger).unwrap(), 1);
}

#[test]
fn report_error_signals_the_error_interrupt() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let error = system.open_eventfd();
    system.report_error(at(NVME));
    system.set_irqs(device, &eventfds(ERR, 0, &[error])).unwrap();
    system.report_error(at(NVME));
    assert_eq!(system.signals(error).unwrap(), 1);
    assert_eq!(system.interrupts(at(NVME)).events, [ERR].into());
}

#[test]
fn an_interrupt_holds_its_eventfd_after_the_fd_is_closed() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let counter = Arc::new(Counter::default());
    let fd = system.open_eventfd_of(counter.clone());
    system.set_irqs(device, &eventfds(MSIX, 0, &[fd])).unwrap();
    system.close(fd).unwrap();
    system.fire(at(NVME), 0).unwrap();
    assert_eq!(counter.take(), 1);
    system.set_irqs(device, &eventfds(MSIX, 0, &[Fd(-1)])).unwrap();
    assert_eq!(Arc::strong_count(&counter), 1);
}

#[test]
fn a_reset_restores_the_power_on_values() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    system.write(device, COMMAND, &[7, 4]).unwrap();
    system.assert_pin(at(NVME), true).unwrap();
    system.reset(device).unwrap();
    assert_eq!(byte(&system, device, COMMAND), 0);
    assert_eq!(byte(&system, device, CONFIG + 6), 0x10, "no interrupt");
}

/// The NVMe on a bus with a NIC of group 2.
fn shared_bus(kernel: Kernel) -> Description {
    host(kernel).bus([at(NVME), at(NIC)])
}

/// The reply of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` with this `argsz`.
fn hot_reset_info(system: &System, device: Fd, room: u32) -> (io::Result<()>, Vec<u8>) {
    let mut reply = room.to_ne_bytes().to_vec();
    reply.resize(room as usize, 0);
    (system.hot_reset_info(device, &mut reply), reply)
}

#[test]
fn hot_reset_info_lists_the_functions_on_the_bus() {
    let (system, device, _) = opened(shared_bus(Kernel::Linux6_12));
    fails(hot_reset_info(&system, device, 11).0, libc::EINVAL);
    let (result, reply) = hot_reset_info(&system, device, 12);
    fails(result, libc::ENOSPC);
    assert_eq!(reply[8..], 2_u32.to_ne_bytes());
    let (result, reply) = hot_reset_info(&system, device, 28);
    result.unwrap();
    let entry = |group: u32, place: [u8; 2]| [&group.to_ne_bytes()[..], &[0, 0], &place].concat();
    assert_eq!(reply[12..], [entry(1, [1, 0]), entry(2, [2, 8])].concat());
}

#[test]
fn a_hot_reset_needs_all_groups_and_resets_all_functions() {
    let (system, device, group) = opened(shared_bus(Kernel::Linux6_12));
    let other = system.open_group(2).unwrap();
    for (groups, errno) in [
        (&[][..], libc::EINVAL),
        (&[group][..], libc::EINVAL),
        (&[group, device][..], libc::EINVAL),
        (&[group, Fd(1000)][..], libc::EBADF),
        (&[group, other, other][..], libc::EINVAL),
    ] {
        fails(system.hot_reset(device, groups), errno);
    }
    system.write(device, COMMAND, &[6]).unwrap();
    system.assert_pin(at(NIC), true).unwrap();
    system.hot_reset(device, &[group, other]).unwrap();
    let mut status = [0];
    system.config(at(NIC), 6, &mut status).unwrap();
    assert_eq!((byte(&system, device, COMMAND), status), (0, [0]));
    system.unbind(at(NIC)).unwrap();
    fails(system.hot_reset(device, &[group, other]), libc::EINVAL);
}

#[test]
fn a_bus_that_cannot_be_reset_is_enodev() {
    let (system, device, group) = opened(host(Kernel::Linux6_12));
    fails(hot_reset_info(&system, device, 100).0, libc::ENODEV);
    fails(system.hot_reset(device, &[group]), libc::ENODEV);
}

#[test]
fn a_group_alone_shares_an_iommu_with_no_other() {
    let system = host(Kernel::Linux6_12).alone(2).build();
    let (first, second) = (system.open_container(), system.open_container());
    let groups = [1, 2].map(|group| system.open_group(group).unwrap());
    system.set_container(groups[0], first).unwrap();
    system.set_iommu(first, TYPE1V2).unwrap();
    fails(system.set_container(groups[1], first), libc::EINVAL);
    system.set_container(groups[1], second).unwrap();
    system.set_iommu(second, TYPE1V2).unwrap();
    system.unset_container(groups[0]).unwrap();
    fails(system.set_container(groups[0], second), libc::EINVAL);
}

#[test]
fn groups_that_cannot_share_get_no_iommu_together() {
    let system = host(Kernel::Linux6_12).alone(2).build();
    let container = system.open_container();
    for group in [1, 2] {
        let group = system.open_group(group).unwrap();
        system.set_container(group, container).unwrap();
    }
    fails(system.set_iommu(container, TYPE1V2), libc::EINVAL);
}

#[test]
fn translate_ends_with_the_mapping() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    let call = MapDma { argsz: 32, flags: 3, vaddr: 0x10_0000, iova: 0x4000, size: 0x2000 };
    system.map_dma(container, &call).unwrap();
    let translate = |iova| system.translate(container, iova).unwrap();
    assert_eq!(
        [0x3fff, 0x4000, 0x5800, 0x6000].map(translate),
        [None, Some((0x10_0000, 0x2000)), Some((0x10_1800, 0x800)), None]
    );
}

#[test]
fn a_host_with_few_vectors_enables_nothing_and_returns_how_many_it_has() {
    const MSI: u32 = 1;
    let function = PciFunction { msi: 8, ..PciFunction::nvme() };
    for kernel in KERNELS {
        // The index, the number asked for, the host's number, and what the ioctl returns.
        let cases = [
            (MSIX, 4, 4, Ok(0)),
            (MSIX, 4, 3, Ok(3)),
            (MSIX, 4, 0, Err(libc::ENOSPC)),
            (MSI, 8, 8, Ok(0)),
            // Linux tries all or one.
            (MSI, 8, 7, Ok(1)),
            (MSI, 8, 0, Err(libc::ENOSPC)),
        ];
        for (index, asked, had, expected) in cases {
            let mut host = Description::new(kernel);
            host.host_vectors = had;
            let host = host.device(at(NVME), 1, Driver::Vfio, function.clone());
            let Ready { system, group, .. } = ready(host);
            let device = system.open_device(group, NVME).unwrap();
            let event = system.open_eventfd();
            let set = eventfds(index, 0, &vec![event; asked]);
            let result = match system.set_irqs(device, &set) {
                Ok(()) => Ok(0),
                Err(error) => {
                    let fewer = error.get_ref().and_then(|inner| inner.downcast_ref());
                    let had = fewer.map(|FewerVectors(had)| *had);
                    had.ok_or_else(|| error.raw_os_error().unwrap())
                }
            };
            assert_eq!(result, expected, "{index}: {asked} of {had}, {kernel:?}");
            let active = system.interrupts(at(NVME)).active;
            assert_eq!(active.is_some(), expected == Ok(0), "{index}: {asked} of {had}");
        }
    }
}

#[test]
fn a_host_that_does_not_count_its_vectors_enables_nothing() {
    for kernel in KERNELS {
        let mut host = host(kernel);
        (host.host_vectors, host.counts_vectors) = (3, false);
        let Ready { system, group, .. } = ready(host);
        let device = system.open_device(group, NVME).unwrap();
        let event = system.open_eventfd();
        fails(system.set_irqs(device, &eventfds(MSIX, 0, &[event; 4])), libc::ENOSPC);
        assert_eq!(system.interrupts(at(NVME)).active, None, "{kernel:?}");
        system.set_irqs(device, &eventfds(MSIX, 0, &[event; 3])).unwrap();
    }
}

#[test]
fn a_vector_that_the_host_does_not_have_cannot_be_added() {
    let mut host = host(Kernel::Linux6_12);
    host.host_vectors = 3;
    let Ready { system, group, .. } = ready(host);
    let device = system.open_device(group, NVME).unwrap();
    let event = system.open_eventfd();
    system.set_irqs(device, &eventfds(MSIX, 0, &[event])).unwrap();
    fails(system.set_irqs(device, &eventfds(MSIX, 4, &[event; 3])), libc::ENOSPC);
    assert_eq!(system.interrupts(at(NVME)).bound, [0].into(), "none of the call's vectors");
    // They keep their interrupts of the host.
    system.set_irqs(device, &eventfds(MSIX, 4, &[event; 2])).unwrap();
    assert_eq!(system.interrupts(at(NVME)).bound, [0, 4, 5].into());
    fails(system.set_irqs(device, &eventfds(MSIX, 9, &[event])), libc::ENOSPC);
}

#[test]
fn an_absent_device_reads_all_ones_except_for_virtual_bytes() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let nvme = at(NVME);
    system.set_absent(nvme, true).unwrap();
    let mut ids = [0; 2];
    system.read(device, CONFIG, &mut ids).unwrap();
    assert_eq!(ids, [0x36, 0x1b], "vfio-pci answers from memory");
    assert_eq!((byte(&system, device, CONFIG + 8), byte(&system, device, 0)), (0xff, 0xff));
    assert!(!system.decodes_memory(nvme) && !system.masters_bus(nvme));
    system.write(device, POWER, &[3]).unwrap();
    system.set_absent(nvme, false).unwrap();
    assert_eq!((byte(&system, device, CONFIG + 8), byte(&system, device, POWER)), (2, 0));
}

#[test]
fn a_write_of_the_power_state_that_the_kernel_knows_does_nothing() {
    let (system, device, _) = opened(host(Kernel::Linux6_12));
    let nvme = at(NVME);
    system.set_power_state(nvme, 3, false).unwrap();
    let write = |state| {
        system.write(device, POWER, &[state]).unwrap();
        byte(&system, device, POWER)
    };
    assert_eq!([0, 3, 0, 2].map(write), [3, 3, 0, 2]);
    system.set_power_state(nvme, 3, true).unwrap();
    assert_eq!([3, 0].map(write), [3, 3], "stuck");
}
