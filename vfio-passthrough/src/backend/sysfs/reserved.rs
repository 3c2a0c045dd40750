//! Reserved addresses of a group's I/O address space.

use std::fmt;
use std::path::Path;

use super::source::GROUPS;
use super::tree::Sysfs;
use crate::address::ByteRange;

/// Why addresses are reserved (linux/iommu.h, `enum iommu_resv_type`; names as in
/// `iommu_group_resv_type_string`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Writes there are interrupts.
    Msi,
    /// The device accesses memory there for the firmware (RMRR). VFIO refuses the group.
    Direct,
    /// Like `Direct`, but only until a driver takes the device. VFIO can map other memory there.
    DirectRelaxable,
    /// The IOMMU does not translate the addresses, or this library does not know the kind.
    Reserved,
}

impl fmt::Display for ReservedKind {
    /// The name in sysfs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Msi => "msi",
            Self::Direct => "direct",
            Self::DirectRelaxable => "direct-relaxable",
            Self::Reserved => "reserved",
        })
    }
}

/// Reserved addresses of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: ByteRange,
    /// The reason.
    pub kind: ReservedKind,
}

impl ReservedRegion {
    /// Guest memory cannot be there (`vfio_iommu_resv_exclude`).
    pub fn is_taken(&self) -> bool {
        self.kind != ReservedKind::DirectRelaxable
    }
}

impl Sysfs {
    /// The reserved addresses of a group. The list is empty also if sysfs cannot be read.
    ///
    /// [`DmaSpace::iova_ranges`](crate::DmaSpace::iova_ranges) excludes these addresses, but only
    /// after the group is attached, and since Linux 5.4.
    pub fn reserved_regions(&self, group: u32) -> Vec<ReservedRegion> {
        let folder = Path::new(GROUPS).join(group.to_string());
        let text = self.source.text(&folder.join("reserved_regions"));
        text.map(|text| regions(&text)).unwrap_or_default()
    }
}

/// Each line has a first address, a last address and a kind. Other lines are skipped.
fn regions(text: &str) -> Vec<ReservedRegion> {
    let region = |line: &str| {
        let mut fields = line.split_whitespace();
        let (first, last) = (address(fields.next()?)?, address(fields.next()?)?);
        let kind = match fields.next()? {
            "msi" => ReservedKind::Msi,
            "direct" => ReservedKind::Direct,
            "direct-relaxable" => ReservedKind::DirectRelaxable,
            _ => ReservedKind::Reserved,
        };
        // No mapping can include the last byte of the 64-bit space.
        let range = ByteRange::between(first, last.saturating_add(1));
        (!range.is_empty()).then_some(ReservedRegion { range, kind })
    };
    text.lines().filter_map(region).collect()
}

fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would accept a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// The regions that are read from a tree with these contents for group 7.
    fn of(contents: impl AsRef<[u8]>) -> Vec<ReservedRegion> {
        let tree = tempfile::tempdir().unwrap();
        let folder = tree.path().join("kernel/iommu_groups/7");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("reserved_regions"), contents).unwrap();
        Sysfs::at(tree.path()).reserved_regions(7)
    }

    #[test]
    fn reads_regions_in_the_kernels_format() {
        let text = "\
0x0000000000000000 0x0000000000ffffff direct-relaxable
0x000000007b800000 0x000000007fffffff direct
0x00000000fee00000 0x00000000feefffff msi
0x000000fd00000000 0x000000ffffffffff reserved
0x0000010000000000 0x00000100000fffff of-a-later-kernel
";
        let found: Vec<_> = of(text)
            .iter()
            .map(|r| (r.range.start(), r.range.end(), r.kind.to_string(), r.is_taken()))
            .collect();
        let expected = [
            (0, 1 << 24, "direct-relaxable", false),
            (0x7b80_0000, 0x8000_0000, "direct", true),
            (0xfee0_0000, 0xfef0_0000, "msi", true),
            (0xfd_0000_0000, 1 << 40, "reserved", true),
            (1 << 40, (1 << 40) + (1 << 20), "reserved", true),
        ];
        assert_eq!(
            found,
            expected.map(|(start, end, kind, taken)| (start, end, kind.to_owned(), taken))
        );
    }

    #[test]
    fn skips_lines_that_are_not_regions() {
        let text = "\
0x2000 0x1000 direct
nonsense
0x1000 0x1fff
+0x1000 0x1fff msi
0x10000000000000000 0x10000000000000001 msi
0x 0x0 msi

  0x3000\t0x3fff\tmsi and more
0xf000000000000000 0xffffffffffffffff reserved";
        let ranges: Vec<_> = of(text).iter().map(|r| (r.range.start(), r.range.end())).collect();
        assert_eq!(ranges, [(0x3000, 0x4000), (0xf000_0000_0000_0000, u64::MAX)]);
    }

    #[test]
    fn reads_missing_and_endless_files() {
        let sysfs = Sysfs::at("/nonexistent");
        assert_eq!(sysfs.reserved_regions(7), []);
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("kernel/iommu_groups/7/reserved_regions");
        fs::create_dir_all(&file).unwrap();
        assert_eq!(Sysfs::at(tree.path()).reserved_regions(7), [], "a folder");
        fs::remove_dir(&file).unwrap();
        std::os::unix::fs::symlink(&file, &file).unwrap();
        assert_eq!(Sysfs::at(tree.path()).reserved_regions(7), [], "a link to itself");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert_eq!(Sysfs::at(tree.path()).reserved_regions(7), [], "no end");
    }

    proptest! {
        #[test]
        fn never_reads_an_empty_region(
            contents in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..400),
                "(0x[0-9a-f]{0,17} 0x[0-9a-f]{0,17} (msi|direct|x|)\n){0,8}"
                    .prop_map(String::into_bytes),
            ]
        ) {
            let regions = regions(&String::from_utf8_lossy(&contents));
            prop_assert!(regions.iter().all(|region| !region.range.is_empty()));
        }
    }
}
