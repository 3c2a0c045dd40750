//! Replies of VFIO's info ioctls that lie: chains of capabilities that loop, lead nowhere or count
//! what is not there.

use vfio_passthrough::backend::{IommuInfo, RegionInfo};

use crate::input::Input;

/// The bits that say that there is a chain, in the flags of both structs.
const CAPABILITIES: u32 = 1 << 3 | 1 << 1;
/// The flags, and the offsets of the chain in `struct vfio_region_info` and `struct
/// vfio_iommu_type1_info`.
const FLAGS: usize = 4;
const REGION_CHAIN: usize = 12;
const IOMMU_CHAIN: usize = 16;

/// The reply, with a chain that begins at `first`.
fn reply(bytes: &[u8], chain: usize, first: u32) -> Vec<u8> {
    let mut reply = bytes.to_vec();
    for (at, word) in [(FLAGS, CAPABILITIES), (chain, first)] {
        let room = reply.iter_mut().skip(at);
        room.zip(word.to_ne_bytes()).for_each(|(byte, value)| *byte = value);
    }
    reply
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let first = input.u32();
    let region = RegionInfo::from_reply(&reply(input.0, REGION_CHAIN, first));
    let iommu = IommuInfo::from_reply(&reply(input.0, IOMMU_CHAIN, first));
    for ranges in [region.sparse, iommu.iova_ranges].into_iter().flatten() {
        assert!(ranges.len() <= bytes.len() / 16, "there are no more ranges than bytes");
        assert!(ranges.iter().all(|range| range.start() <= range.end()));
    }
}
