//! The guest's physical layout, planned in the same way for a guest and by `vmm check`.

use resources::{
    AddressRange, BarRequest, CpuReach, IoReach, Layout, LayoutError, LayoutRequest, Reserved,
};
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use crate::config::Memory;

/// What a layout is planned from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs<'a> {
    /// RAM.
    pub(crate) memory: Memory,
    /// What the CPUs reach.
    pub(crate) cpu: CpuReach,
    /// What the IOMMU maps; none where no device is assigned, or where that is not known yet.
    pub(crate) apertures: Option<&'a [AddressRange]>,
    /// What the devices' groups keep for something else.
    pub(crate) reserved: &'a [Reserved],
    /// The devices' BARs.
    pub(crate) bars: &'a [BarRequest],
}

impl Needs<'_> {
    /// Plans it.
    pub(crate) fn plan(&self) -> Result<Layout, LayoutError> {
        Layout::plan(&LayoutRequest {
            ram: self.memory.bytes(),
            ram_page: self.memory.page(),
            cpu: self.cpu,
            reach: self.apertures.map_or(IoReach::Unrestricted, IoReach::Apertures),
            reserved: self.reserved,
            bars: self.bars,
        })
    }
}

/// Where guest memory may not be, by the groups of `devices`.
pub(crate) fn reserved(
    sysfs: &Sysfs,
    devices: impl IntoIterator<Item = PciAddress>,
) -> Vec<Reserved> {
    let mut groups: Vec<_> = devices.into_iter().filter_map(|device| sysfs.group(device)).collect();
    groups.sort_unstable();
    groups.dedup();
    let of = |group: &u32| {
        let regions = sysfs.reserved_regions(*group).into_iter();
        let taken = regions.filter(|region| region.is_taken());
        let group = *group;
        taken.map(move |region| Reserved {
            range: AddressRange::new(region.range.start(), region.range.size()),
            what: format!("{} of IOMMU group {group}", region.kind),
        })
    };
    groups.iter().flat_map(of).collect()
}

/// Plans for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A layout with so much RAM around the ranges of `reserved`, which are of first and last
    /// address.
    pub(crate) fn layout(memory: &str, reserved: &[(u64, u64)]) -> Layout {
        let reserved: Vec<_> = reserved
            .iter()
            .map(|(first, last)| Reserved {
                range: AddressRange::inclusive(*first, *last),
                what: String::new(),
            })
            .collect();
        let needs = Needs {
            memory: memory.parse().unwrap(),
            cpu: CpuReach { address_bits: 48, hypertransport: true },
            apertures: None,
            reserved: &reserved,
            bars: &[],
        };
        needs.plan().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::fixture::Fixture;

    #[test]
    fn each_group_is_asked_once_and_what_is_relaxable_is_free() {
        let regions = |group, text: &str| {
            (format!("sys/kernel/iommu_groups/{group}/reserved_regions"), text.to_owned())
        };
        let (seven, seven_text) =
            regions(7, "0x0 0xffffff direct-relaxable\n0xfee00000 0xfeefffff msi\n");
        let (eight, eight_text) = regions(8, "0xfd00000000 0xffffffffff reserved\n");
        let fixture = Fixture::new()
            .nvme("0000:00:03.0", 8, None)
            .nvme("0000:00:02.0", 7, None)
            .nvme("0000:00:02.1", 7, None)
            .file(&seven, seven_text)
            .file(&eight, eight_text);
        let devices =
            ["00:03.0", "00:02.0", "00:02.1", "00:04.0"].map(|name| name.parse().unwrap());
        let found: Vec<_> = reserved(&fixture.host().sysfs, devices)
            .into_iter()
            .map(|reserved| (reserved.range.to_string(), reserved.what))
            .collect();
        let expected = [
            ("0xfee00000-0xfeefffff", "msi of IOMMU group 7"),
            ("0xfd00000000-0xffffffffff", "reserved of IOMMU group 8"),
        ];
        assert_eq!(found, expected.map(|(range, what)| (range.to_owned(), what.to_owned())));
    }
}
