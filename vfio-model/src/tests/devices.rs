use super::*;

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;
const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const ERR: u32 = 3;
pub(super) const REQ: u32 = 4;

fn set(flags: u32, index: u32, start: u32, count: u32) -> IrqSet {
    IrqSet::new(flags, index, start, count, IrqData::None)
}

pub(super) fn eventfds(index: u32, start: u32, fds: &[Fd]) -> IrqSet {
    let count = u32::try_from(fds.len()).unwrap();
    IrqSet::new(EVENTFD | TRIGGER, index, start, count, IrqData::Eventfds(fds.to_vec()))
}

/// Opens the NVMe.
fn nvme(kernel: Kernel) -> (System, Fd) {
    nvme_of(host(kernel))
}

fn nvme_of(host: Description) -> (System, Fd) {
    let Ready { system, group, .. } = ready(host);
    let device = system.open_device(group, NVME).unwrap();
    (system, device)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    info::word(bytes, at)
}

/// An argument of `size` bytes, which begins with `argsz`, flags and the index.
fn argument(size: u32, index: u32) -> Vec<u8> {
    let words = [size, 0, index];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(size as usize, 0);
    bytes
}

#[test]
fn device_info_reports_regions_and_irqs() {
    let (system, device) = nvme(Kernel::Linux6_12);
    let mut buffer = argument(24, 0);
    system.device_info(device, &mut buffer).unwrap();
    assert_eq!([4, 8, 12].map(|at| word(&buffer, at)), [3, 9, 5]);
    fails(system.device_info(device, &mut argument(15, 0)), libc::EINVAL);
}

#[test]
fn region_info_reports_offset_size_and_capability() {
    let (system, device) = nvme(Kernel::Linux6_12);
    let mut buffer = argument(40, 0);
    system.region_info(device, &mut buffer).unwrap();
    assert_eq!((word(&buffer, 4), word(&buffer, 12), word(&buffer, 16)), (0xf, 32, 16 << 10));
    assert_eq!(word(&buffer, 32) & 0xffff, 3, "MSIX_MAPPABLE");
    let mut short = argument(32, 0);
    system.region_info(device, &mut short).unwrap();
    assert_eq!((word(&short, 0), word(&short, 12)), (40, 0));
    let mut config = argument(32, 7);
    system.region_info(device, &mut config).unwrap();
    assert_eq!((word(&config, 16), word(&config, 28)), (4096, 7 << 8));
    for bad in [argument(31, 0), argument(32, 9)] {
        fails(system.region_info(device, &mut bad.clone()), libc::EINVAL);
    }
}

#[test]
fn irq_info_reports_flags_and_count() {
    for (kernel, index, flags, count) in [
        (Kernel::Linux6_12, INTX, 7, 1),
        (Kernel::Linux6_12, MSI, 9, 0),
        (Kernel::Linux6_12, MSIX, 1, 65),
        (Kernel::Linux6_1, MSIX, 9, 65),
        (Kernel::Linux6_12, ERR, 9, 1),
        (Kernel::Linux6_12, REQ, 9, 1),
    ] {
        let (system, device) = nvme(kernel);
        let mut buffer = argument(16, index);
        system.irq_info(device, &mut buffer).unwrap();
        assert_eq!((word(&buffer, 4), word(&buffer, 12)), (flags, count), "{index} {kernel:?}");
    }
    let (system, device) = nvme(Kernel::Linux6_12);
    fails(system.irq_info(device, &mut argument(16, 5)), libc::EINVAL);
    fails(system.irq_info(device, &mut argument(15, 0)), libc::EINVAL);
}

#[test]
fn an_irq_set_out_of_bounds_is_einval() {
    let good = IrqSet { argsz: 24, ..eventfds(MSIX, 0, &[Fd(-1)]) };
    let bad = [
        IrqSet { argsz: 19, ..good.clone() },
        IrqSet { argsz: 23, ..good.clone() },
        IrqSet { index: 5, ..good.clone() },
        IrqSet { start: 65, ..good.clone() },
        IrqSet { count: 66, argsz: 1024, ..good.clone() },
        IrqSet { start: 64, count: 2, argsz: 28, ..good.clone() },
        IrqSet { start: 1, count: u32::MAX - 1, ..good.clone() },
        IrqSet { flags: TRIGGER, ..good.clone() },
        IrqSet { flags: NONE | EVENTFD | TRIGGER, ..good.clone() },
        IrqSet { flags: EVENTFD | TRIGGER | 64, ..good.clone() },
    ];
    for call in bad {
        fails(irq_set::validate(&call, 65, 5), libc::EINVAL);
    }
    irq_set::validate(&good, 65, 5).unwrap();
    fails(irq_set::validate(&good, 0, 5), libc::EINVAL);
}

#[test]
fn an_action_that_an_index_lacks_is_enotty() {
    let (system, device) = nvme(Kernel::Linux6_12);
    for (flags, index) in [
        (NONE, INTX),
        (NONE | MASK | UNMASK, INTX),
        (NONE | MASK, MSIX),
        (NONE | UNMASK, MSIX),
        (NONE | MASK, ERR),
        (NONE | UNMASK, REQ),
    ] {
        fails(system.set_irqs(device, &set(flags, index, 0, 1)), libc::ENOTTY);
    }
}

#[test]
fn intx_is_enabled_fired_and_disabled() {
    let (system, device) = nvme(Kernel::Linux6_12);
    let event = system.open_eventfd();
    for flags in [NONE | MASK, NONE | UNMASK, NONE | TRIGGER] {
        fails(system.set_irqs(device, &set(flags, INTX, 0, 1)), libc::EINVAL);
    }
    fails(system.set_irqs(device, &set(NONE | TRIGGER, INTX, 0, 0)), libc::EINVAL);
    system.set_irqs(device, &eventfds(INTX, 0, &[event])).unwrap();
    system.set_irqs(device, &set(NONE | TRIGGER, INTX, 0, 1)).unwrap();
    assert_eq!(system.signals(event).unwrap(), 1);
    system.set_irqs(device, &set(NONE | MASK, INTX, 0, 1)).unwrap();
    fails(system.set_irqs(device, &eventfds(MSIX, 0, &[event])), libc::EINVAL);
    system.set_irqs(device, &set(NONE | TRIGGER, INTX, 0, 0)).unwrap();
    system.set_irqs(device, &eventfds(MSIX, 0, &[event])).unwrap();
}

#[test]
fn one_eventfd_unmasks_intx() {
    let (system, device) = nvme(Kernel::Linux6_12);
    let event = system.open_eventfd();
    let unmask = |fd: Fd| IrqSet::new(EVENTFD | UNMASK, INTX, 0, 1, IrqData::Eventfds(vec![fd]));
    system.set_irqs(device, &eventfds(INTX, 0, &[event])).unwrap();
    fails(system.set_irqs(device, &unmask(Fd(999))), libc::EBADF);
    fails(system.set_irqs(device, &unmask(device)), libc::EINVAL);
    system.set_irqs(device, &unmask(event)).unwrap();
    fails(system.set_irqs(device, &unmask(event)), libc::EBUSY);
    system.set_irqs(device, &unmask(Fd(-1))).unwrap();
    system.set_irqs(device, &unmask(event)).unwrap();
    let mask = IrqSet::new(EVENTFD | MASK, INTX, 0, 1, IrqData::Eventfds(vec![event]));
    fails(system.set_irqs(device, &mask), libc::ENOTTY);
}

#[test]
fn vectors_are_bound_all_or_none() {
    let (system, device) = nvme(Kernel::Linux6_12);
    let [one, two] = [0, 1].map(|_| system.open_eventfd());
    fails(system.set_irqs(device, &eventfds(MSIX, 0, &[one, Fd(999)])), libc::EBADF);
    fails(system.set_irqs(device, &set(NONE | TRIGGER, MSIX, 0, 1)), libc::EINVAL);
    system.set_irqs(device, &eventfds(MSIX, 0, &[one, two])).unwrap();
    let bools = IrqSet::new(BOOL | TRIGGER, MSIX, 0, 2, IrqData::Bools(vec![0, 1]));
    system.set_irqs(device, &bools).unwrap();
    assert_eq!([one, two].map(|fd| system.signals(fd).unwrap()), [0, 1]);
    fails(system.set_irqs(device, &eventfds(MSIX, 1, &[one, device])), libc::EINVAL);
    system.set_irqs(device, &set(NONE | TRIGGER, MSIX, 0, 2)).unwrap();
    assert_eq!(
        [one, two].map(|fd| system.signals(fd).unwrap()),
        [1, 0],
        "the failed call unbound vector 1 only"
    );
}

#[test]
fn msix_grows_where_the_kernel_supports_it() {
    for (kernel, grows) in [(Kernel::Linux6_1, false), (Kernel::Linux6_12, true)] {
        let (system, device) = nvme(kernel);
        let event = system.open_eventfd();
        system.set_irqs(device, &eventfds(MSIX, 0, &[event])).unwrap();
        for call in [
            eventfds(MSIX, 4, &[event]),
            eventfds(MSIX, 9, &[Fd(-1)]),
            set(NONE | TRIGGER, MSIX, 0, 6),
        ] {
            assert_eq!(system.set_irqs(device, &call).is_ok(), grows, "{call:?} {kernel:?}");
        }
        assert_eq!(system.signals(event).unwrap(), if grows { 2 } else { 0 });
    }
}

#[test]
fn msix_does_not_grow_where_the_interrupt_controller_cannot_add_vectors() {
    let mut host = host(Kernel::Linux6_12);
    host.grows_msix = false;
    let (system, device) = nvme_of(host);
    let event = system.open_eventfd();
    system.set_irqs(device, &eventfds(MSIX, 0, &[event])).unwrap();
    fails(system.set_irqs(device, &eventfds(MSIX, 4, &[event])), libc::EINVAL);
    // The kernel checks no bounds.
    system.set_irqs(device, &eventfds(MSIX, 9, &[Fd(-1)])).unwrap();
    system.set_irqs(device, &set(NONE | TRIGGER, MSIX, 0, 6)).unwrap();
    assert_eq!(system.signals(event).unwrap(), 1);
}

#[test]
fn msix_is_not_enabled_with_zero_vectors() {
    let (system, device) = nvme(Kernel::Linux6_12);
    fails(system.set_irqs(device, &eventfds(MSIX, 0, &[])), libc::ERANGE);
    fails(system.set_irqs(device, &set(NONE | TRIGGER, MSIX, 0, 0)), libc::EINVAL);
}

#[test]
fn error_and_request_have_one_eventfd_each() {
    let (system, device) = nvme(Kernel::Linux6_12);
    let event = system.open_eventfd();
    for index in [ERR, REQ] {
        fails(system.set_irqs(device, &set(NONE | TRIGGER, index, 0, 1)), libc::EINVAL);
        fails(system.set_irqs(device, &set(BOOL | TRIGGER, index, 0, 0)), libc::EINVAL);
        fails(system.set_irqs(device, &eventfds(index, 0, &[])), libc::EINVAL);
        fails(system.set_irqs(device, &eventfds(index, 0, &[Fd(999)])), libc::EBADF);
        system.set_irqs(device, &eventfds(index, 0, &[event])).unwrap();
        system.set_irqs(device, &set(NONE | TRIGGER, index, 0, 1)).unwrap();
        assert_eq!(system.signals(event).unwrap(), 1);
        system.set_irqs(device, &set(NONE | TRIGGER, index, 0, 0)).unwrap();
        fails(system.set_irqs(device, &set(NONE | TRIGGER, index, 0, 0)), libc::EINVAL);
    }
}

#[test]
fn a_device_without_a_reset_refuses_it() {
    let (system, device) = nvme(Kernel::Linux6_12);
    system.reset(device).unwrap();
    let (container, group) = (system.open_container(), system.open_group(2).unwrap());
    system.set_container(group, container).unwrap();
    system.set_iommu(container, TYPE1V2).unwrap();
    let nic = system.open_device(group, NIC).unwrap();
    fails(system.reset(nic), libc::EINVAL);
    fails(system.irq_info(nic, &mut argument(16, ERR)), libc::EINVAL);
    let mut msix = argument(16, MSIX);
    system.irq_info(nic, &mut msix).unwrap();
    assert_eq!((word(&msix, 4), word(&msix, 12)), (9, 0), "MSI-X of 0 vectors does not grow");
}

#[test]
fn a_conventional_function_has_the_error_interrupt_since_7_3() {
    for kernel in KERNELS {
        let system = host(kernel).build();
        let (container, group) = (system.open_container(), system.open_group(2).unwrap());
        system.set_container(group, container).unwrap();
        system.set_iommu(container, TYPE1V2).unwrap();
        let (nic, event) = (system.open_device(group, NIC).unwrap(), system.open_eventfd());
        let (info, set) =
            (system.irq_info(nic, &mut argument(16, ERR)), eventfds(ERR, 0, &[event]));
        if kernel == Kernel::Linux7_3 {
            info.unwrap();
            system.set_irqs(nic, &set).unwrap();
        } else {
            fails(info, libc::EINVAL);
            fails(system.set_irqs(nic, &set), libc::EINVAL);
        }
    }
}

#[test]
fn an_eventfd_has_an_irqfd_of_each_machine_before_7_3() {
    for kernel in KERNELS {
        let system = host(kernel).build();
        let (first, second, eventfd) =
            (system.open_kvm(), system.open_kvm(), system.open_eventfd());
        let assign = Irqfd { eventfd, gsi: 5, flags: 0, resample: Fd(-1) };
        system.irqfd(first, &assign).unwrap();
        fails(system.irqfd(first, &Irqfd { gsi: 6, ..assign }), libc::EBUSY);
        match kernel {
            Kernel::Linux7_3 => fails(system.irqfd(second, &assign), libc::EBUSY),
            _ => system.irqfd(second, &assign).unwrap(),
        }
        system.close(first).unwrap();
        let deassign = Irqfd { flags: Irqfd::DEASSIGN, ..assign };
        system.irqfd(second, &deassign).unwrap();
        system.irqfd(second, &deassign).unwrap();
        system.irqfd(second, &assign).unwrap();
    }
}

#[test]
fn an_irqfd_needs_eventfds() {
    let system = host(Kernel::Linux6_12).build();
    let (kvm, eventfd) = (system.open_kvm(), system.open_eventfd());
    let good = Irqfd { eventfd, gsi: 5, flags: Irqfd::RESAMPLE, resample: eventfd };
    for (bad, errno) in [
        (Irqfd { flags: 4, ..good }, libc::EINVAL),
        (Irqfd { eventfd: Fd(-1), ..good }, libc::EBADF),
        (Irqfd { eventfd: kvm, ..good }, libc::EINVAL),
        (Irqfd { resample: Fd(-1), ..good }, libc::EBADF),
        (Irqfd { eventfd: Fd(-1), flags: Irqfd::DEASSIGN, ..good }, libc::EBADF),
    ] {
        fails(system.irqfd(kvm, &bad), errno);
    }
    fails(system.irqfd(eventfd, &good), libc::ENOTTY);
    system.irqfd(kvm, &good).unwrap();
    // A closed eventfd has no irqfd any more.
    system.close(eventfd).unwrap();
    fails(system.irqfd(kvm, &good), libc::EBADF);
}
