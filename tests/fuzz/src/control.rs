//! Target `control`: requests of a client of the control socket, and what they say of sysfs.

use std::fs::File;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

/// The descriptors that come with the request.
const FILES: usize = 3;

/// Input that does not begin so is the body of an addition.
const REQUEST: &[u8] = b"PUT ";

pub fn run(bytes: &[u8]) {
    let files = || (0..FILES).map(|_| File::open("/dev/null").unwrap()).collect();
    let devices = if bytes.starts_with(REQUEST) {
        vmm::read_request(bytes, files())
    } else {
        let length = bytes.len();
        let head =
            format!("PUT /api/v1/vm.add-device HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        vmm::read_request(&[head.as_bytes(), bytes].concat(), files())
    };
    devices.iter().flatten().for_each(|(address, sysfs)| check(*address, sysfs));
}

/// Asks what the start of a device asks. A copy of what the client says about a device says the same.
fn check(address: PciAddress, sysfs: &Sysfs) {
    let null = File::open("/dev/null").unwrap();
    let group = sysfs.group(address);
    if let Some(group) = group {
        let _ = (sysfs.offenders(group), sysfs.reserved_regions(group));
        let _ = sysfs.not_viable(address, group).to_string();
        let members = sysfs.members(group);
        members.iter().for_each(|member| drop((sysfs.driver(*member), sysfs.is_vfio(*member))));
    }
    let _ = sysfs.ready_group(address).map_err(|error| error.to_string());
    let _ = (sysfs.vf_token_of(address), sysfs.upstream_bridge(address), sysfs.cdev(address));
    let _ = (sysfs.group_of(&null), sysfs.is_cdev_of(&null, address), sysfs.lacks_groups());
    let copy = Sysfs::of_copy(sysfs.copy(address, Some(&null)));
    if sysfs.has_device(address) {
        assert_eq!(copy.group(address), group);
        assert_eq!(group.map(|own| copy.members(own)), group.map(|own| sysfs.members(own)));
        assert_eq!(copy.identity(address), sysfs.identity(address));
        assert_eq!(copy.physical_function(address), sysfs.physical_function(address));
    }
}
