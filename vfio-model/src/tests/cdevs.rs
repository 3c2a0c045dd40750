//! Character devices: bind, attach, and what keeps a group in use.

use super::devices::{REQ, eventfds};
use super::iommufd::{everything, page, ranges, space};
use super::*;

const PAGE: u64 = 4096;
const OTHER: &str = "0000:05:00.0";

/// The host with another NVMe in group 5.
fn two(kernel: Kernel) -> Description {
    host(kernel).device(at(OTHER), 5, Driver::Vfio, PciFunction::nvme())
}

fn bind(system: &System, device: Fd, iommufd: Fd) -> io::Result<u32> {
    let call = BindIommufd::to(iommufd);
    system.bind_iommufd(device, &call)
}

fn attach(system: &System, device: Fd, id: u32) -> io::Result<u32> {
    system.attach_pt(device, &AttachPt { argsz: AttachPt::ARGSZ, flags: 0, id })
}

fn detach(system: &System, device: Fd) -> io::Result<()> {
    system.detach_pt(device, &AttachPt { argsz: AttachPt::DETACH_ARGSZ, flags: 0, id: 0 })
}

pub fn bound(system: &System, address: &str, iommufd: Fd) -> Fd {
    let device = system.open_cdev(at(address)).unwrap();
    bind(system, device, iommufd).unwrap();
    device
}

#[test]
fn a_file_gives_access_from_its_bind_on() {
    let (system, iommufd, ioas) = space(two(Kernel::Linux6_12));
    let device = system.open_cdev(at(NVME)).unwrap();
    let info = |fd| system.device_info(fd, &mut [16, 0, 0, 0]);
    fails(info(device), libc::EINVAL);
    fails(system.reset(device), libc::EINVAL);
    fails(system.read(device, 0, &mut [0]), libc::EINVAL);
    fails(system.mmap(device, 0, PAGE), libc::EINVAL);
    fails(attach(&system, device, ioas), libc::EINVAL);
    fails(detach(&system, device), libc::EINVAL);
    fails(system.ioctl(device, 43, &mut [], &mut Fd), libc::EINVAL);
    assert_eq!(bind(&system, device, iommufd).unwrap(), 2);
    info(device).unwrap();
    system.read(device, 0, &mut [0]).unwrap();
    system.reset(device).unwrap();
    fails(system.ioctl(device, 43, &mut [], &mut Fd), libc::ENOTTY);
}

#[test]
fn wrong_binds_are_refused() {
    let system = two(Kernel::Linux6_12).build();
    let (iommufd, container) = (system.open_iommufd().unwrap(), system.open_container());
    let device = system.open_cdev(at(NVME)).unwrap();
    let good = BindIommufd::to(iommufd);
    for (bad, errno) in [
        (BindIommufd { argsz: 15, ..good }, libc::EINVAL),
        (BindIommufd { flags: 1, ..good }, libc::EINVAL),
        (BindIommufd { iommufd: Fd(-1), ..good }, libc::EINVAL),
        (BindIommufd { iommufd: Fd(1000), ..good }, libc::EBADF),
        (BindIommufd { iommufd: container, ..good }, libc::EBADFD),
    ] {
        fails(system.bind_iommufd(device, &bad), errno);
    }
    system.bind_iommufd(device, &good).unwrap();
    fails(system.bind_iommufd(device, &good), libc::EINVAL);
    let again = system.open_cdev(at(NVME)).unwrap();
    fails(system.bind_iommufd(again, &good), libc::EINVAL);
    fails(system.bind_iommufd(iommufd, &good), libc::ENOTTY);
    fails(system.open_cdev(at("0000:03:00.0")), libc::ENOENT);
    fails(system.open_cdev(at("0000:00:04.0")), libc::ENOENT);
    fails(system.open_cdev(at("0000:77:00.0")), libc::ENOENT);
}

#[test]
fn a_group_is_open_or_bound() {
    let Ready { system, group, container } = ready(two(Kernel::Linux6_12));
    let iommufd = system.open_iommufd().unwrap();
    let device = system.open_cdev(at(NVME)).unwrap();
    fails(bind(&system, device, iommufd), libc::EBUSY);
    let opened = system.open_device(group, NVME).unwrap();
    fails(bind(&system, opened, iommufd), libc::EINVAL);
    fails(attach(&system, opened, 1), libc::ENOTTY);
    fails(detach(&system, opened), libc::ENOTTY);
    system.close(group).unwrap();
    fails(bind(&system, device, iommufd), libc::EBUSY);
    system.close(opened).unwrap();
    bind(&system, device, iommufd).unwrap();
    fails(system.open_group(1), libc::EBUSY);
    system.close(device).unwrap();
    system.open_group(1).unwrap();
    system.close(container).unwrap();
}

#[test]
fn a_group_has_one_owner() {
    let system = host(Kernel::Linux6_12).build();
    let (iommufd, other) = (system.open_iommufd().unwrap(), system.open_iommufd().unwrap());
    let first = bound(&system, NIC, iommufd);
    let second = system.open_cdev(at(NIC2)).unwrap();
    fails(bind(&system, second, other), libc::EPERM);
    bind(&system, second, iommufd).unwrap();
    system.close(first).unwrap();
    system.unbind(at(NIC)).unwrap();
    fails(system.bind(at(NIC), Driver::Host), libc::EBUSY);
    system.close(second).unwrap();
    system.bind(at(NIC), Driver::Host).unwrap();
    fails(bind(&system, system.open_cdev(at(NIC2)).unwrap(), iommufd), libc::EPERM);

    let mut description = host(Kernel::Linux6_12);
    description.interrupt_remapping = false;
    let system = description.build();
    let iommufd = system.open_iommufd().unwrap();
    fails(bind(&system, system.open_cdev(at(NVME)).unwrap(), iommufd), libc::EPERM);
}

#[test]
fn an_attached_device_narrows_the_address_space() {
    let (system, iommufd, ioas) = space(two(Kernel::Linux6_12).reserved(1, 0..0x1000));
    let device = bound(&system, NVME, iommufd);
    let page_table = attach(&system, device, ioas).unwrap();
    assert_eq!(page_table, 3);
    let usable = vec![(0x1000, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];
    assert_eq!(ranges(&system, iommufd, ioas), (usable, PAGE));
    for (iova, errno) in [(0, libc::EINVAL), (0xfee0_0000, libc::EINVAL), (1 << 39, libc::EINVAL)] {
        fails(system.ioas_map(iommufd, &page(ioas, iova)), errno);
    }
    for odd in [
        IoasMap { iova: 0x2001, ..page(ioas, 0) },
        IoasMap { length: 1, ..page(ioas, 0x2000) },
        IoasMap { user_va: 1, ..page(ioas, 0x2000) },
    ] {
        fails(system.ioas_map(iommufd, &odd), libc::EINVAL);
    }
    fails(system.ioas_allow_iovas(iommufd, ioas, &[0..=0x1fff]), libc::EADDRINUSE);
    for id in [ioas, page_table, 2] {
        fails(system.iommu_destroy(iommufd, id), libc::EBUSY);
    }
    detach(&system, device).unwrap();
    detach(&system, device).unwrap();
    assert_eq!(ranges(&system, iommufd, ioas), (vec![(0, u64::MAX)], 1));
    fails(system.iommu_destroy(iommufd, page_table), libc::ENOENT);
    system.iommu_destroy(iommufd, ioas).unwrap();
}

#[test]
fn an_iommu_of_64_bits_has_no_end() {
    let mut description = two(Kernel::Linux6_12);
    description.iova_ranges = vec![0..0xfee0_0000, 0xfef0_0000..u64::MAX];
    let usable = vec![(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)];
    let (system, iommufd, ioas) = space(description.clone());
    attach(&system, bound(&system, NVME, iommufd), ioas).unwrap();
    assert_eq!(ranges(&system, iommufd, ioas), (usable, PAGE));
    let last = u64::MAX - PAGE + 1;
    system.ioas_map(iommufd, &page(ioas, last)).unwrap();
    let Ready { system, container, .. } = ready(description);
    let map = MapDma { argsz: 32, flags: 3, vaddr: PAGE, iova: last, size: PAGE };
    system.map_dma(container, &map).unwrap();
}

#[test]
fn an_attach_is_refused_where_areas_or_allowed_ranges_are_in_the_way() {
    let (system, iommufd, ioas) = space(two(Kernel::Linux6_12));
    let device = bound(&system, NVME, iommufd);
    for map in [
        page(ioas, 0xfee0_0000),
        page(ioas, 1 << 39),
        IoasMap { length: 1, ..page(ioas, 0) },
        IoasMap { user_va: 1, ..page(ioas, 0) },
    ] {
        system.ioas_map(iommufd, &map).unwrap();
        fails(attach(&system, device, ioas), libc::EADDRINUSE);
        system.ioas_unmap(iommufd, &everything(ioas)).unwrap();
    }
    system.ioas_allow_iovas(iommufd, ioas, &[0..=0xfee0_0000]).unwrap();
    fails(attach(&system, device, ioas), libc::EADDRINUSE);
    system.ioas_allow_iovas(iommufd, ioas, &[0..=0xfedf_ffff]).unwrap();
    fails(attach(&system, device, 9), libc::ENOENT);
    fails(attach(&system, device, 2), libc::EINVAL);
    let short = AttachPt { argsz: 11, flags: 0, id: ioas };
    fails(system.attach_pt(device, &short), libc::EINVAL);
    fails(system.attach_pt(device, &AttachPt { argsz: 12, flags: 1, id: ioas }), libc::EINVAL);
    fails(system.detach_pt(device, &AttachPt { argsz: 7, flags: 0, id: 0 }), libc::EINVAL);
    assert_eq!(attach(&system, device, ioas).unwrap(), 3, "no refused attach left an object");
}

#[test]
fn memory_is_pinned_while_a_device_is_attached() {
    let mut description = two(Kernel::Linux6_12);
    description.memory = vec![(0x10_0000..0x10_4000, true), (0x10_4000..0x10_6000, false)];
    description.locked_memory = Some(4 * PAGE);
    let (system, iommufd, ioas) = space(description);
    let device = bound(&system, NVME, iommufd);
    let large = IoasMap { length: 4 * PAGE, ..page(ioas, 0) };
    let map = |map: IoasMap| system.ioas_map(iommufd, &map);
    map(large).unwrap();
    map(page(ioas, 4 * PAGE)).unwrap();
    fails(attach(&system, device, ioas), libc::ENOMEM);
    assert_eq!(system.locked_memory(), 0, "none stays pinned");
    system.ioas_unmap(iommufd, &everything(ioas)).unwrap();
    map(IoasMap { user_va: 0x10_3000, length: 2 * PAGE, ..page(ioas, 0) }).unwrap();
    fails(attach(&system, device, ioas), libc::EFAULT);
    system.ioas_unmap(iommufd, &everything(ioas)).unwrap();

    attach(&system, device, ioas).unwrap();
    map(large).unwrap();
    assert_eq!(system.locked_memory(), 4 * PAGE);
    fails(map(page(ioas, 8 * PAGE)), libc::ENOMEM);
    let absent = IoasMap { user_va: 0x10_3000, length: 8 * PAGE, ..page(ioas, 8 * PAGE) };
    fails(map(absent), libc::EFAULT);
    detach(&system, device).unwrap();
    assert_eq!(system.locked_memory(), 0);
    assert_eq!(attach(&system, device, ioas).unwrap(), 3);
    assert_eq!(system.locked_memory(), 4 * PAGE);
    system.close(iommufd).unwrap();
    assert_eq!((system.iommufds(), system.locked_memory()), (1, 4 * PAGE), "the device holds it");
    system.close(device).unwrap();
    assert_eq!((system.iommufds(), system.locked_memory()), (0, 0));
}

#[test]
fn memory_counts_by_user_or_by_process() {
    for (mode, errno) in [(0, None), (1, Some(libc::ENOMEM))] {
        let mut description = two(Kernel::Linux6_12);
        description.locked_memory = Some(PAGE);
        let Ready { system, container, .. } = ready(description);
        let map = MapDma { argsz: 32, flags: 3, vaddr: 0x10_0000, iova: 0, size: PAGE };
        system.map_dma(container, &map).unwrap();
        let iommufd = system.open_iommufd().unwrap();
        let set = IommuOption { option: 0, op: IommuOption::SET, object: 0, value: mode };
        system.iommu_option(iommufd, &set).unwrap();
        let ioas = system.ioas_alloc(iommufd, 0).unwrap();
        attach(&system, bound(&system, OTHER, iommufd), ioas).unwrap();
        let result = system.ioas_map(iommufd, &page(ioas, 0));
        assert_eq!(result.err().and_then(|error| error.raw_os_error()), errno, "mode {mode}");
    }
}

#[test]
fn groups_share_the_page_table_of_an_address_space_if_they_can() {
    for (description, tables) in
        [(two(Kernel::Linux6_12), [4, 4]), (two(Kernel::Linux6_12).alone(5), [4, 5])]
    {
        let (system, iommufd, ioas) = space(description);
        let (first, second) = (bound(&system, NVME, iommufd), bound(&system, OTHER, iommufd));
        let found = [first, second].map(|device| attach(&system, device, ioas).unwrap());
        assert_eq!(found, tables);
        system.ioas_map(iommufd, &page(ioas, 0)).unwrap();
        system.close(first).unwrap();
        assert_eq!(system.locked_memory(), PAGE, "the other device needs it");
        system.close(second).unwrap();
        assert_eq!(system.locked_memory(), 0);
    }
}

#[test]
fn devices_of_a_group_are_in_one_address_space() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let other = system.ioas_alloc(iommufd, 0).unwrap();
    let (first, second) = (bound(&system, NIC, iommufd), bound(&system, NIC2, iommufd));
    let page_table = attach(&system, first, ioas).unwrap();
    fails(attach(&system, second, other), libc::EINVAL);
    assert_eq!(attach(&system, second, page_table).unwrap(), page_table);
    let next = attach(&system, second, other).unwrap();
    assert_eq!(ranges(&system, iommufd, ioas).1, 1, "both moved");
    assert_eq!(attach(&system, first, other).unwrap(), next);
    detach(&system, first).unwrap();
    assert_eq!(ranges(&system, iommufd, other).1, PAGE, "the second stays");
    detach(&system, second).unwrap();
    assert_eq!(ranges(&system, iommufd, other).1, 1);
}

#[test]
fn a_move_that_fails_changes_nothing() {
    let mut description = two(Kernel::Linux6_12);
    description.locked_memory = Some(PAGE);
    let (system, iommufd, ioas) = space(description);
    let other = system.ioas_alloc(iommufd, 0).unwrap();
    let device = bound(&system, NVME, iommufd);
    let page_table = attach(&system, device, ioas).unwrap();
    system.ioas_map(iommufd, &page(ioas, 0)).unwrap();
    for (iova, errno) in
        [(0, libc::ENOMEM), (0xfee0_0000, libc::ENOMEM), (1 << 39, libc::EADDRINUSE)]
    {
        system.ioas_map(iommufd, &page(other, iova)).unwrap();
        fails(attach(&system, device, other), errno);
        assert_eq!(attach(&system, device, ioas).unwrap(), page_table, "it is there");
        assert_eq!(ranges(&system, iommufd, other).1, 1);
        system.ioas_unmap(iommufd, &everything(other)).unwrap();
    }
    system.ioas_unmap(iommufd, &everything(ioas)).unwrap();
    system.ioas_map(iommufd, &page(other, 0xfee0_0000)).unwrap();
    fails(attach(&system, device, other), libc::EADDRINUSE);
    assert_eq!(system.locked_memory(), 0);
}

#[test]
fn a_device_that_leaves_is_requested_until_its_last_file_is_closed() {
    let (system, iommufd, _) = space(two(Kernel::Linux6_12));
    let (device, unbound) = (bound(&system, NVME, iommufd), system.open_cdev(at(NVME)).unwrap());
    let event = system.open_eventfd();
    system.set_irqs(device, &eventfds(REQ, 0, &[event])).unwrap();
    assert!(!system.unbind(at(NVME)).unwrap());
    assert_eq!(system.signals(event).unwrap(), 1);
    fails(system.open_cdev(at(NVME)), libc::ENOENT);
    system.close(device).unwrap();
    assert_eq!(system.request_again(at(NVME)), 2, "the other file holds the device");
    assert_eq!(system.signals(event).unwrap(), 0, "its interrupts are freed");
    assert_eq!(system.driver(at(NVME)), Some(Driver::Vfio));
    system.close(unbound).unwrap();
    assert_eq!(system.driver(at(NVME)), Some(Driver::None));
}

#[test]
fn a_link_with_kvm_keeps_a_device_bound() {
    let (system, iommufd, _) = space(two(Kernel::Linux6_12));
    let device = system.open_cdev(at(NVME)).unwrap();
    let kvm = system.open_kvm();
    system.link(kvm, device).unwrap();
    fails(system.link(kvm, device), libc::EEXIST);
    fails(system.link(kvm, iommufd), libc::EINVAL);
    bind(&system, device, iommufd).unwrap();
    system.close(device).unwrap();
    fails(system.open_group(1), libc::EBUSY);
    system.close(kvm).unwrap();
    system.open_group(1).unwrap();
}

#[test]
fn a_hot_reset_needs_all_functions_in_the_iommufd() {
    let description = host(Kernel::Linux6_12).bus([at(NIC), at(NIC2)]).bus([at(NVME)]);
    let (system, iommufd, _) = space(description);
    let nic = bound(&system, NIC, iommufd);
    let info = |fd: Fd| {
        let mut reply = 28_u32.to_ne_bytes().to_vec();
        reply.resize(28, 0xa5);
        system.hot_reset_info(fd, &mut reply).unwrap();
        let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().unwrap());
        (word(4), [word(12), word(20)])
    };
    assert_eq!(info(nic), (3, [2, 0]), "the group is the iommufd's");
    fails(system.hot_reset(nic, &[iommufd]), libc::EINVAL);
    system.hot_reset(nic, &[]).unwrap();
    system.unbind(at(NIC2)).unwrap();
    assert_eq!(info(nic), (1, [2, u32::MAX]), "a function without vfio-pci");
    fails(system.hot_reset(nic, &[]), libc::EINVAL);
    let nvme = bound(&system, NVME, iommufd);
    system.hot_reset(nvme, &[]).unwrap();
    system.close(nvme).unwrap();
    let group = system.open_group(1).unwrap();
    let container = system.open_container();
    system.set_container(group, container).unwrap();
    system.set_iommu(container, TYPE1V2).unwrap();
    fails(system.hot_reset(system.open_device(group, NVME).unwrap(), &[]), libc::EINVAL);
}

#[test]
fn a_program_binds_and_attaches_by_numbers() {
    let (system, iommufd, ioas) = space(two(Kernel::Linux6_12));
    let device = system.open_cdev(at(NVME)).unwrap();
    let call = |request, words: &mut [u32]| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let result = system.ioctl(device, request, &mut bytes, &mut Fd);
        let read = bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        words.iter_mut().zip(read).for_each(|(to, from)| *to = from);
        result
    };
    let mut bind = [16, 0, iommufd.0 as u32, 0];
    call(18, &mut bind).unwrap();
    let mut attach = [12, 0, ioas];
    call(19, &mut attach).unwrap();
    assert_eq!((bind[3], attach[2]), (2, 3));
    call(20, &mut [8, 0]).unwrap();
    fails(call(13, &mut [12, 0, 0]), libc::ENODEV);
}

#[test]
fn the_memory_of_a_device_cannot_be_pinned() {
    let (system, iommufd, ioas) = space(two(Kernel::Linux7_3));
    let device = bound(&system, NVME, iommufd);
    attach(&system, device, ioas).unwrap();
    system.mapped_at(0x10_0000..0x10_4000);
    fails(system.ioas_map(iommufd, &page(ioas, 0)), libc::EFAULT);
    system.munmap(&(0x10_0000..0x10_1000));
    system.ioas_map(iommufd, &page(ioas, 0)).unwrap();
}

#[test]
fn an_attach_and_a_detach_take_a_pasid_since_7_3() {
    for kernel in [Kernel::Linux6_12, Kernel::Linux7_3] {
        let (system, iommufd, ioas) = space(two(kernel));
        let device = bound(&system, NVME, iommufd);
        attach(&system, device, ioas).unwrap();
        let with = |argsz, id| AttachPt { argsz, flags: AttachPt::PASID, id };
        fails(system.attach_pt(device, &with(AttachPt::ARGSZ, ioas)), libc::EINVAL);
        fails(system.attach_pt(device, &with(16, ioas)), libc::EINVAL);
        let absent = system.attach_pt(device, &with(16, 9));
        let detached = system.detach_pt(device, &with(12, 0));
        if kernel == Kernel::Linux7_3 {
            fails(absent, libc::ENOENT);
            detached.unwrap();
        } else {
            fails(absent, libc::EINVAL);
            fails(detached, libc::EINVAL);
        }
        // The device without a PASID stays attached.
        fails(system.iommu_destroy(iommufd, ioas), libc::EBUSY);
    }
}
