//! KVM's VFIO device (Documentation/virt/kvm/devices/vfio.rst), which the real KVM has: it would
//! refuse a file of the model.

use crate::memory;

/// `KVM_SET_DEVICE_ATTR`
const SET_DEVICE_ATTR: u64 = 0x4018_aee1;
/// `KVM_DEV_VFIO_FILE`, and its attribute `KVM_DEV_VFIO_FILE_ADD`
const FILE: u32 = 1;
const ADD: u64 = 1;

/// A request to link a file with a virtual machine, or to end the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number of the file.
    pub file: i32,
    /// Whether the link is made.
    pub adds: bool,
}

impl Link {
    /// Reads the request, if it is one: `struct kvm_device_attr` has flags, a group, an attribute
    /// and the address of the number.
    pub fn read(request: u64, argument: usize) -> Option<Self> {
        if request != SET_DEVICE_ATTR {
            return None;
        }
        let bytes = memory::read(argument, 24).ok()?;
        let group = u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let attribute = u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let address = usize::from_ne_bytes(*bytes.get(16..)?.first_chunk()?);
        let file = memory::read(address, 4).ok()?;
        let file = i32::from_ne_bytes(*file.first_chunk()?);
        (group == FILE).then_some(Self { file, adds: attribute == ADD })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_number_of_the_file() {
        let file = 7_i32;
        let attribute = [1 << 32, 1, &raw const file as u64];
        let read = |attribute: &[u64; 3]| Link::read(SET_DEVICE_ATTR, attribute.as_ptr() as usize);
        assert_eq!(read(&attribute), Some(Link { file: 7, adds: true }));
        assert_eq!(read(&[1 << 32, 2, attribute[2]]), Some(Link { file: 7, adds: false }));
        assert_eq!(read(&[2 << 32, 1, attribute[2]]), None);
        assert_eq!(Link::read(0xae01, attribute.as_ptr() as usize), None);
    }
}
