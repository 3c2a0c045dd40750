use super::*;

const PF: &str = "0000:04:00.0";
const VF: &str = "0000:04:00.1";
const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
const OTHER: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f4";
const SET: u32 = 1 << 17;
const GET: u32 = 1 << 16;
const PROBE: u32 = 1 << 18;

/// A physical function in group 1 with a virtual function in group 2, both usable; and an NVMe
/// without SR-IOV in group 1.
fn host(kernel: Kernel) -> (System, Fd, Fd) {
    let description = Description::new(kernel)
        .device(at(PF), 1, Driver::Vfio, PciFunction::nvme())
        .device(at(NVME), 1, Driver::Vfio, PciFunction::nvme())
        .device(at(VF), 2, Driver::Vfio, PciFunction::nvme())
        .virtual_functions(at(PF), [at(VF)]);
    let system = description.build();
    let container = system.open_container();
    let groups = [1, 2].map(|group| system.open_group(group).unwrap());
    groups.iter().for_each(|group| system.set_container(*group, container).unwrap());
    system.set_iommu(container, TYPE1V2).unwrap();
    let [physical, virtual_] = groups;
    (system, physical, virtual_)
}

fn with(device: &str, token: &str) -> String {
    format!("{device} vf_token={token}")
}

#[test]
fn a_virtual_function_needs_the_token_of_its_physical_function() {
    for kernel in [Kernel::Linux6_1, Kernel::Linux6_12] {
        let (system, physical, virtual_) = host(kernel);
        fails(system.open_device(virtual_, VF), libc::EACCES);
        fails(system.open_device(virtual_, &with(VF, TOKEN)), libc::EACCES);
        let pf = system.open_device(physical, &with(PF, TOKEN)).unwrap();
        fails(system.open_device(virtual_, VF), libc::EACCES);
        fails(system.open_device(virtual_, &with(VF, OTHER)), libc::EACCES);
        system.open_device(virtual_, &with(VF, TOKEN)).unwrap();
        system.close(pf).unwrap();
        system.open_device(virtual_, &with(VF, &TOKEN.to_uppercase())).unwrap();
    }
}

#[test]
fn a_physical_function_proves_its_token_while_virtual_functions_are_open() {
    let (system, physical, virtual_) = host(Kernel::Linux6_12);
    let pf = system.open_device(physical, &with(PF, TOKEN)).unwrap();
    let vf = system.open_device(virtual_, &with(VF, TOKEN)).unwrap();
    system.close(pf).unwrap();
    fails(system.open_device(physical, PF), libc::EACCES);
    fails(system.open_device(physical, &with(PF, OTHER)), libc::EACCES);
    system.open_device(physical, &with(PF, TOKEN)).unwrap();
    system.close(vf).unwrap();
    system.open_device(physical, PF).unwrap();
    system.open_device(physical, &with(PF, OTHER)).unwrap();
    fails(system.open_device(virtual_, &with(VF, TOKEN)), libc::EACCES);
    system.open_device(virtual_, &with(VF, OTHER)).unwrap();
}

#[test]
fn a_device_without_sr_iov_takes_no_token() {
    let (system, physical, _) = host(Kernel::Linux6_12);
    fails(system.open_device(physical, &with(NVME, TOKEN)), libc::EINVAL);
    system.open_device(physical, NVME).unwrap();
}

#[test]
fn the_options_of_a_name_are_one_token() {
    let (system, physical, _) = host(Kernel::Linux6_12);
    let wrong = [
        "vf_token=".to_owned(),
        "vf_token=bd8d9d2b".to_owned(),
        format!("vf_token={}", TOKEN.replace('-', "")),
        format!("vf_token={TOKEN}0"),
        format!("vf_token={}", TOKEN.replace('b', "g")),
        format!("vf_token={TOKEN} vf_token={TOKEN}"),
        format!("token={TOKEN}"),
        format!("vf_token={TOKEN} x"),
    ];
    for options in wrong {
        fails(system.open_device(physical, &format!("{PF} {options}")), libc::EINVAL);
    }
    system.open_device(physical, &format!("{PF}   vf_token={TOKEN}  ")).unwrap();
    fails(system.open_device(physical, &format!("{PF}vf_token={TOKEN}")), libc::ENODEV);
}

#[test]
fn a_kernel_without_tokens_knows_no_options() {
    let (system, physical, virtual_) = host(Kernel::Linux5_4);
    fails(system.open_device(physical, &with(PF, TOKEN)), libc::ENODEV);
    let vf = system.open_device(virtual_, VF).unwrap();
    fails(system.device_feature(vf, &feature(SET, 24)), libc::ENOTTY);
}

/// `struct vfio_device_feature` with a token of ones.
fn feature(flags: u32, argsz: u32) -> Vec<u8> {
    [&argsz.to_ne_bytes()[..], &flags.to_ne_bytes(), &[0x11; 16]].concat()
}

#[test]
fn a_feature_sets_the_token_of_a_physical_function() {
    let (system, physical, virtual_) = host(Kernel::Linux6_12);
    let pf = system.open_device(physical, PF).unwrap();
    let nvme = system.open_device(physical, NVME).unwrap();
    fails(system.device_feature(nvme, &feature(SET, 24)), libc::ENOTTY);
    fails(system.device_feature(pf, &feature(SET | 9, 24)), libc::ENOTTY);
    let wrong = [(SET, 7), (SET, 23), (GET, 24), (0, 24), (SET | GET, 24), (SET | 1 << 19, 24)];
    for (flags, argsz) in wrong {
        fails(system.device_feature(pf, &feature(flags, argsz)), libc::EINVAL);
    }
    fails(system.device_feature(physical, &feature(SET, 24)), libc::ENOTTY);
    let ones = with(VF, "11111111-1111-1111-1111-111111111111");
    system.device_feature(pf, &feature(PROBE | SET, 24)).unwrap();
    fails(system.open_device(virtual_, &ones), libc::EACCES);
    system.ioctl(pf, 17, &mut feature(SET, 24), &mut Fd).unwrap();
    system.open_device(virtual_, &ones).unwrap();
}
