//! Ioctls by number: each reaches its call, with the fds of the program translated.

use super::*;

/// The program's fds are 100 above the system's.
fn translate(fd: i32) -> Fd {
    Fd(fd - 100)
}

fn call(system: &System, fd: Fd, request: u32, argument: &mut [u8]) -> io::Result<i32> {
    system.ioctl(fd, request, argument, &mut translate)
}

fn number(fd: Fd) -> u32 {
    (fd.0 + 100) as u32
}

#[test]
fn a_program_runs_by_numbers_to_its_end() {
    let system = host(Kernel::Linux6_12).bus([at(NVME)]).build();
    let (container, group) = (system.open_container(), system.open_group(1).unwrap());
    let call = |fd, request, argument: &mut [u8]| call(&system, fd, request, argument);
    assert_eq!(call(container, 0, &mut []).unwrap(), 0);
    assert_eq!(call(container, 1, &mut TYPE1V2.to_ne_bytes()).unwrap(), 1);
    let mut status = words(&[8, 0]);
    call(group, 3, &mut status).unwrap();
    assert_eq!(status[4], 1);
    call(group, 4, &mut words(&[number(container)])).unwrap();
    call(container, 2, &mut TYPE1V2.to_ne_bytes()).unwrap();
    let device = Fd(call(group, 6, &mut NVME.as_bytes().to_vec()).unwrap());

    let mut map = words(&[32, 3, 0x1000, 0, 0x4000, 0, 0x2000, 0]);
    call(container, 13, &mut map).unwrap();
    assert_eq!(system.mappings(container).unwrap(), vec![0x4000..0x6000; 1]);
    let mut unmap = words(&[24, 0, 0, 0, 0x10_0000, 0]);
    call(container, 14, &mut unmap).unwrap();
    assert_eq!(unmap[16..], 0x2000_u64.to_ne_bytes());

    let eventfd = system.open_eventfd();
    call(device, 10, &mut words(&[28, 4 | 32, 2, 0, 2, number(eventfd), u32::MAX])).unwrap();
    assert_eq!(system.interrupts(at(NVME)).bound, [0].into());
    let loop_back = [words(&[22, 2 | 32, 2, 0, 2]), vec![1, 1]].concat();
    call(device, 10, &mut loop_back.clone()).unwrap();
    assert_eq!(system.signals(eventfd).unwrap(), 1);
    call(device, 11, &mut []).unwrap();
    call(device, 13, &mut words(&[16, 0, 1, number(group)])).unwrap();
    fails(call(device, 13, &mut words(&[16, 1, 1, number(group)])), libc::EINVAL);
    for (fd, request) in [(device, 7), (device, 8), (device, 9), (device, 12), (container, 12)] {
        let mut argument = words(&[64, 0, 0]);
        argument.resize(64, 0);
        call(fd, request, &mut argument).unwrap();
    }
    fails(call(device, 15, &mut []), libc::ENOTTY);
    system.close(device).unwrap();
    call(group, 5, &mut []).unwrap();
}

#[test]
fn an_argument_that_is_too_short_is_refused_or_read_as_zeros() {
    let Ready { system, container, group } = ready(host(Kernel::Linux6_12));
    let device = system.open_device(group, NVME).unwrap();
    for fd in [container, group, device] {
        for request in (0..20).filter(|request| ![0, 5, 11].contains(request)) {
            let result = call(&system, fd, request, &mut []);
            assert!(result.is_err() || request == 1, "{fd:?}, {request}: {result:?}");
        }
    }
}
