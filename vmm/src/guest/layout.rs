//! Plans the guest's physical layout, for a guest and for `vmm check`.

use resources::{
    AddressRange, BarRequest, BarSpace, CpuReach, IoReach, Layout, LayoutError, LayoutRequest,
    Reserved, Spare,
};
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use super::machine;
use crate::config::{Config, Memory, Windows};

/// The inputs of a layout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs<'a> {
    pub(crate) memory: Memory,
    /// The addresses that the CPUs can access.
    pub(crate) cpu: CpuReach,
    /// The IOMMU's apertures; `None` without assigned devices, or if not known yet.
    pub(crate) apertures: Option<&'a [AddressRange]>,
    /// The reserved regions of the devices' groups.
    pub(crate) reserved: &'a [Reserved],
    /// The devices' BARs.
    pub(crate) bars: &'a [BarRequest],
    /// The room for BARs of devices that come while the guest runs.
    pub(crate) later: Later,
}

/// The room for BARs of devices that come while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    /// No device comes.
    None,
    /// As far as there is room.
    IfPossible(Windows),
    /// Without the room there is no guest.
    Required(Windows),
}

impl Later {
    /// Devices come by the control socket.
    pub(crate) fn of(config: &Config) -> Self {
        match (machine::has_hot_plug(config), config.hot_plug_windows) {
            (false, _) => Self::None,
            (true, None) => Self::IfPossible(Windows::default()),
            (true, Some(windows)) => Self::Required(windows),
        }
    }

    fn spare(self) -> Vec<Spare> {
        let (Self::IfPossible(windows) | Self::Required(windows)) = self else {
            return Vec::new();
        };
        let sizes = [
            (BarSpace::Memory32, "32", windows.memory32),
            (BarSpace::Memory64, "64", windows.memory64),
        ];
        let spare = |(space, option, size)| Spare {
            space,
            size,
            what: format!("devices that come later (--hot-plug-windows {option}=SIZE)"),
        };
        sizes.map(spare).into()
    }
}

impl<'a> Needs<'a> {
    /// What is known before the devices are opened.
    pub(crate) fn new(config: &Config, cpu: CpuReach, reserved: &'a [Reserved]) -> Self {
        let later = Later::of(config);
        Self { memory: config.memory, cpu, apertures: None, reserved, bars: &[], later }
    }

    /// Plans the layout.
    pub(crate) fn plan(&self) -> Result<Layout, LayoutError> {
        match (self.plan_with(&self.later.spare()), self.later) {
            (Err(_), Later::IfPossible(_)) => self.plan_with(&[]),
            (planned, _) => planned,
        }
    }

    fn plan_with(&self, spare: &[Spare]) -> Result<Layout, LayoutError> {
        Layout::plan(&LayoutRequest {
            ram: self.memory.bytes(),
            ram_page: self.memory.page(),
            cpu: self.cpu,
            reach: self.apertures.map_or(IoReach::Unrestricted, IoReach::Apertures),
            reserved: self.reserved,
            bars: self.bars,
            spare,
        })
    }
}

/// Reserved regions of the groups of `devices`, where guest memory must not be.
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

    /// A layout with `memory` of RAM around the `reserved` ranges, given as first and last address.
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
            later: Later::None,
        };
        needs.plan().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::fixture::Fixture;

    /// 39 address bits, and RAM after which 128 GiB are left.
    fn narrow(later: Later) -> Result<Layout, LayoutError> {
        let cpu = CpuReach { address_bits: 39, hypertransport: false };
        let memory = "383G".parse().unwrap();
        Needs { memory, cpu, apertures: None, reserved: &[], bars: &[], later }.plan()
    }

    #[test]
    fn room_for_later_devices_is_required_only_if_the_user_asks_for_it() {
        let windows = Windows::default();
        let without = narrow(Later::None).unwrap();
        assert_eq!(narrow(Later::IfPossible(windows)), Ok(without.clone()));
        let fits = Windows { memory64: 64 << 30, ..windows };
        assert_eq!(narrow(Later::Required(fits)), Ok(without));
        let error = narrow(Later::Required(windows)).unwrap_err().to_string();
        let expected = "for 256 GiB of 64-bit memory for devices that come later \
                        (--hot-plug-windows 64=SIZE): the largest free piece";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn reads_each_group_once_and_ignores_relaxable_regions() {
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
