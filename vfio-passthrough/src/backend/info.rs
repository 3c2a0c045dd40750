//! Parses VFIO's info structs and their capability chains (linux/vfio.h, `struct
//! vfio_info_cap_header`). Vendor drivers in the kernel build some of them, so offsets are checked
//! and every walk ends.

use std::mem::offset_of;

use vfio_bindings::bindings::vfio as sys;

use super::{IommuInfo, IrqFlags, IrqInfo, RegionFlags, RegionInfo};
use crate::address::{ByteRange, PciAddress};

/// The most capabilities that are read: more than any real chain has. A longer chain loops.
const MAX_CAPABILITIES: usize = 64;

/// The size of a header in bytes: `id`, `version`, `next`.
const HEADER_SIZE: usize = 8;

impl RegionInfo {
    /// Parses a reply of `VFIO_DEVICE_GET_REGION_INFO`: `struct vfio_region_info` and its
    /// capabilities. Any bytes are accepted. A field after the end of the reply is 0, or `None`.
    pub fn from_reply(reply: &[u8]) -> Self {
        let flags = u32_at(reply, offset_of!(sys::vfio_region_info, flags));
        let first = match flags & sys::VFIO_REGION_INFO_FLAG_CAPS {
            0 => 0,
            _ => u32_at(reply, offset_of!(sys::vfio_region_info, cap_offset)),
        };
        Self {
            index: u32_at(reply, offset_of!(sys::vfio_region_info, index)),
            flags: RegionFlags::from_bits_retain(flags),
            size: u64_at(reply, offset_of!(sys::vfio_region_info, size)),
            file_offset: u64_at(reply, offset_of!(sys::vfio_region_info, offset)),
            sparse: capabilities(reply, first).find_map(sparse_areas),
        }
    }
}

impl IrqInfo {
    /// Parses a reply of `VFIO_DEVICE_GET_IRQ_INFO`: `struct vfio_irq_info`. A field after the end
    /// of the reply is 0.
    pub fn from_reply(reply: &[u8]) -> Self {
        Self {
            index: u32_at(reply, offset_of!(sys::vfio_irq_info, index)),
            flags: IrqFlags::from_bits_retain(u32_at(reply, offset_of!(sys::vfio_irq_info, flags))),
            count: u32_at(reply, offset_of!(sys::vfio_irq_info, count)),
        }
    }
}

impl IommuInfo {
    /// Parses a reply of `VFIO_IOMMU_GET_INFO`: `struct vfio_iommu_type1_info` and its
    /// capabilities. Any bytes are accepted. A field after the end of the reply is `None`.
    pub fn from_reply(reply: &[u8]) -> Self {
        let flags = u32_at(reply, offset_of!(sys::vfio_iommu_type1_info, flags));
        let first = match flags & sys::VFIO_IOMMU_INFO_CAPS {
            0 => 0,
            _ => u32_at(reply, offset_of!(sys::vfio_iommu_type1_info, cap_offset)),
        };
        Self {
            iova_ranges: capabilities(reply, first).find_map(iova_ranges),
            dma_avail: capabilities(reply, first).find_map(dma_avail),
        }
    }
}

/// A word of a reply; 0 after its end.
pub(super) fn u32_at(reply: &[u8], offset: usize) -> u32 {
    array(reply, offset).map_or(0, u32::from_ne_bytes)
}

fn u64_at(reply: &[u8], offset: usize) -> u64 {
    array(reply, offset).map_or(0, u64::from_ne_bytes)
}

/// A capability: its ID, and the bytes from the end of its header to the end of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capability<'a> {
    pub id: u16,
    pub body: &'a [u8],
}

/// The capabilities of an info struct in `buffer`. `first` is its `cap_offset`: 0 for none.
fn capabilities(buffer: &[u8], first: u32) -> impl Iterator<Item = Capability<'_>> {
    let mut next = first as usize;
    std::iter::from_fn(move || {
        let bytes = buffer.get(next..).filter(|_| next != 0)?;
        let (header, body) = bytes.split_at_checked(HEADER_SIZE)?;
        let id = u16::from_ne_bytes(array(header, 0)?);
        next = u32::from_ne_bytes(array(header, 4)?) as usize;
        Some(Capability { id, body })
    })
    .take(MAX_CAPABILITIES)
}

/// The areas of `struct vfio_region_info_cap_sparse_mmap`.
fn sparse_areas(capability: Capability<'_>) -> Option<Vec<ByteRange>> {
    is(capability, sys::VFIO_REGION_INFO_CAP_SPARSE_MMAP)?;
    // The areas are pairs of offset and size. If one of them wraps, no area can be mapped.
    Some(
        pairs(capability.body)
            .map(|(offset, size)| ByteRange::new(offset, size))
            .collect::<Option<_>>()
            .unwrap_or_default(),
    )
}

/// The ranges of `struct vfio_iommu_type1_info_cap_iova_range`. Their ends are inclusive.
fn iova_ranges(capability: Capability<'_>) -> Option<Vec<ByteRange>> {
    is(capability, sys::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?;
    // A range up to u64::MAX loses its last byte: a `ByteRange` cannot hold it.
    Some(
        pairs(capability.body)
            .map(|(start, last)| ByteRange::between(start, last.saturating_add(1)))
            .collect(),
    )
}

/// The number of mappings in `struct vfio_iommu_type1_info_dma_avail`.
fn dma_avail(capability: Capability<'_>) -> Option<u32> {
    is(capability, sys::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)?;
    array(capability.body, 0).map(u32::from_ne_bytes)
}

/// At most `count` entries of `struct vfio_pci_dependent_device`: the address and the group of each
/// function.
pub(super) fn bus_members(bytes: &[u8], count: usize) -> Vec<(PciAddress, u32)> {
    let member = |entry: &[u8]| {
        let [g0, g1, g2, g3, d0, d1, bus, devfn] = *entry.first_chunk()?;
        let domain = u16::from_ne_bytes([d0, d1]);
        let group = u32::from_ne_bytes([g0, g1, g2, g3]);
        Some((PciAddress::new(domain.into(), bus, devfn), group))
    };
    bytes.chunks_exact(8).take(count).filter_map(member).collect()
}

fn is(capability: Capability<'_>, id: u32) -> Option<()> {
    (u32::from(capability.id) == id).then_some(())
}

/// The pairs of 64-bit numbers after a count and a reserved word. There are fewer than the count if
/// the buffer ends first.
fn pairs(body: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let count = array(body, 0).map_or(0, u32::from_ne_bytes) as usize;
    let rest = body.get(8..).unwrap_or_default();
    let pair = |bytes: &[u8]| {
        Some((u64::from_ne_bytes(array(bytes, 0)?), u64::from_ne_bytes(array(bytes, 8)?)))
    };
    rest.chunks_exact(16).take(count).filter_map(pair)
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_members_are_limited_by_the_count_and_the_buffer() {
        let bytes = [[14, 0, 0, 0, 1, 0, 3, 0x11], [15, 0, 0, 0, 0, 0, 4, 0]].concat();
        let first = ("0001:03:02.1".parse().unwrap(), 14);
        let second = ("0000:04:00.0".parse().unwrap(), 15);
        assert_eq!(bus_members(&bytes, 2), [first, second]);
        assert_eq!(bus_members(&bytes, 1), [first]);
        assert_eq!(bus_members(&bytes[..15], 4000), [first]);
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn walks_a_chain_to_its_end() {
        let buffer = words(&[0, 0, 0x0001_0003, 24, 7, 0, 0x0001_0001, 0, 9]);
        let found: Vec<_> = capabilities(&buffer, 8).map(|capability| capability.id).collect();
        assert_eq!(found, [3, 1]);
    }

    #[test]
    fn chains_that_loop_or_leave_the_buffer_end() {
        let looping = words(&[0, 0, 0x0001_0003, 8]);
        assert_eq!(capabilities(&looping, 8).count(), MAX_CAPABILITIES);
        for first in [12, 16, 17, u32::MAX] {
            assert_eq!(capabilities(&looping, first).count(), 0, "first {first}");
        }
    }

    #[test]
    fn a_count_is_limited_by_the_buffer() {
        let body = words(&[u32::MAX, 0, 0x1000, 0, 0x2000, 0, 5, 0]);
        let areas = sparse_areas(Capability { id: 1, body: &body }).unwrap();
        assert_eq!(areas, [ByteRange::new(0x1000, 0x2000).unwrap()]);
    }

    #[test]
    fn finds_the_number_of_available_mappings() {
        let body = words(&[65533]);
        assert_eq!(dma_avail(Capability { id: 3, body: &body }), Some(65533));
        assert_eq!(dma_avail(Capability { id: 1, body: &body }), None);
        assert_eq!(dma_avail(Capability { id: 3, body: &body[..3] }), None);
    }

    #[test]
    fn iova_ranges_have_inclusive_ends() {
        let body = words(&[2, 0, 0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, u32::MAX, u32::MAX]);
        let ranges = iova_ranges(Capability { id: 1, body: &body }).unwrap();
        assert_eq!(
            ranges,
            [ByteRange::between(0, 0xfee0_0000), ByteRange::between(0xfef0_0000, u64::MAX)]
        );
    }
}
